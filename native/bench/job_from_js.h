// A job from the object that JS made of settled arguments (src/bench/native.ts).
#pragma once

#include <napi.h>

#include "bench/job.h"

namespace lunpath::bench {

// Main thread. All properties are there and checked; a word that is not known throws a JS error.
JobSpec ToJobSpec(const Napi::Object& js);

}  // namespace lunpath::bench
