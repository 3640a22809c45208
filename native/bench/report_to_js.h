// Samples and reports as the objects that src/bench/native.ts describes.
#pragma once

#include <napi.h>

#include <string>
#include <vector>

#include "bench/run.h"

namespace lunpath::bench {

// Main thread.
Napi::Value ToJs(Napi::Env env, const Sample& sample);
// `names`: of the targets, in the job's order.
Napi::Value ToJs(Napi::Env env, const Report& report, const std::vector<std::string>& names);

}  // namespace lunpath::bench
