// The addon `bench`: the benchmark without libiscsi. The addon `iscsi` has it with all engines.
#include <napi.h>

#include "bench/binding.h"

namespace lunpath::bench {

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  Define(env, exports);
  return exports;
}

NODE_API_MODULE(bench, Init)

}  // namespace lunpath::bench
