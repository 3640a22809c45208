// The benchmark's part of an addon: the classes Histogram and BenchRun.
#pragma once

#include <napi.h>

namespace lunpath::bench {

// Main thread, once per environment.
void Define(Napi::Env env, Napi::Object exports);

}  // namespace lunpath::bench
