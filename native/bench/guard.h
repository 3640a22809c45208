// Nothing that C++ throws leaves a thread of a run, where it would end the process: it becomes the run's error.
#pragma once

#include "sys/result.h"

namespace lunpath::bench {

// In a catch block alone.
inline Error Thrown() { return CaughtError("A step of the benchmark failed"); }

// `work` returns a Result; what it throws comes back as an error.
template <class Work>
auto Guarded(const Work& work) -> decltype(work()) {
  try {
    return work();
  } catch (...) {
    return Thrown();
  }
}

}  // namespace lunpath::bench
