// Nothing that C++ throws leaves a thread of a run, where it would end the process: it becomes the run's error.
#pragma once

#include <cerrno>
#include <exception>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include "sys/result.h"

namespace lunpath::bench {

// In a catch block alone.
inline Error DescribeThrown() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return ErrnoError(ENOMEM, "malloc", "Memory for the benchmark");
  } catch (const std::system_error& error) {
    return ErrnoError(error.code().value(), "pthread_create", "A thread of the benchmark");
  } catch (const std::exception& error) {
    return Error{.message = error.what(), .code = "UNEXPECTED"};
  }
}

// `work` returns a Result; what it throws comes back as an error.
template <class Work>
auto Guarded(const Work& work) -> decltype(work()) {
  try {
    return work();
  } catch (...) {
    return DescribeThrown();
  }
}

// A thread that nobody joins. `work` owns what it touches and throws nothing. EAGAIN: the limit of processes and
// threads (pids.max of the cgroup, RLIMIT_NPROC) is reached.
template <class Work>
Status StartThread(Work work) {
  return Guarded([&work]() -> Status {
    std::thread(std::move(work)).detach();
    return Nothing{};
  });
}

}  // namespace lunpath::bench
