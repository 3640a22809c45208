// file.node: what volumes in a directory need and Node gives in too many steps.
#include <napi.h>

#include "file/create.h"
#include "napi/error.h"
#include "napi/promise_worker.h"

namespace lunpath::file {

namespace {

// class FileMaker { createSparse(directory: string, files: (string | number)[]): Promise<(Error | undefined)[]> }
// `files` is name, size in bytes, name, size …; the answer has one element a file.
class FileMaker : public Napi::ObjectWrap<FileMaker> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "FileMaker", {InstanceMethod<&FileMaker::CreateSparseFiles>("createSparse")});
  }

  // One thread: creations in one directory would only wait for each other's lock on it in the kernel.
  explicit FileMaker(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<FileMaker>(info), worker_(info.Env(), this, "lunpath-file", 1) {}

 private:
  using Failures = std::vector<std::optional<Error>>;

  Napi::Value CreateSparseFiles(const Napi::CallbackInfo& info) {
    auto list = info[1].As<Napi::Array>();
    std::vector<NewFile> files(list.Length() / 2);
    for (uint32_t i = 0; i < files.size(); ++i) {
      files[i] = NewFile{.name = list.Get(2 * i).As<Napi::String>().Utf8Value(),
                         .size = list.Get(2 * i + 1).As<Napi::Number>().Int64Value()};
    }
    return worker_.Run<Failures>(
        [directory = info[0].As<Napi::String>().Utf8Value(), files = std::move(files)]() -> Result<Failures> {
          return CreateSparse(directory, files);
        },
        [](Napi::Env env, Failures& failures) -> Napi::Value {
          Napi::Array js = Napi::Array::New(env, failures.size());
          for (uint32_t i = 0; i < failures.size(); ++i) {
            js.Set(i, failures[i] ? ToJsError(env, *failures[i]) : env.Undefined());
          }
          return js;
        });
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
