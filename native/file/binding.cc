// file.node: what volumes in a directory need and Node gives in too many steps.
#include <napi.h>

#include "file/create.h"
#include "napi/promise_worker.h"

namespace lunpath::file {

namespace {

// As many as libuv has for files; an fsync waits for the disk.
constexpr int kThreads = 4;

// class FileMaker { createSparse(path: string, sizeBytes: number): Promise<void> }
class FileMaker : public Napi::ObjectWrap<FileMaker> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "FileMaker", {InstanceMethod<&FileMaker::CreateSparseFile>("createSparse")});
  }

  explicit FileMaker(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<FileMaker>(info), worker_(info.Env(), this, "lunpath-file", kThreads) {}

 private:
  Napi::Value CreateSparseFile(const Napi::CallbackInfo& info) {
    return worker_.Run<Nothing>([path = info[0].As<Napi::String>().Utf8Value(),
                                 size = info[1].As<Napi::Number>().Int64Value()]() { return CreateSparse(path, size); },
                                [](Napi::Env env, Nothing&) { return env.Undefined(); });
  }

  PromiseWorker worker_;
};

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("FileMaker", FileMaker::Define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)

}  // namespace lunpath::file
