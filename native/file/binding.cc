// file.node: what volumes need and Node gives in too many steps, or not at all.
#include <napi.h>

#include "file/block.h"
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

// One device at a time is what a disk does well; a second thread keeps a device that hangs from holding up the others.
constexpr int kWipeThreads = 2;

// class BlockWiper { zero, discard: (fd: number, offset: number, lengthBytes: number) => Promise<void> }
// The descriptor stays open until the promise has settled.
class BlockWiper : public Napi::ObjectWrap<BlockWiper> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "BlockWiper",
                       {InstanceMethod<&BlockWiper::Run<&ZeroOut>>("zero"),
                        InstanceMethod<&BlockWiper::Run<&lunpath::file::Discard>>("discard")});
  }

  explicit BlockWiper(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<BlockWiper>(info), worker_(info.Env(), this, "lunpath-wipe", kWipeThreads) {}

 private:
  template <Status (*Operation)(int, uint64_t, uint64_t)>
  Napi::Value Run(const Napi::CallbackInfo& info) {
    const auto number = [&](size_t i) { return info[i].As<Napi::Number>().Int64Value(); };
    return worker_.Run<Nothing>(
        [fd = static_cast<int>(number(0)), offset = number(1), length = number(2)]() {
          return Operation(fd, static_cast<uint64_t>(offset), static_cast<uint64_t>(length));
        },
        [](Napi::Env env, Nothing&) { return env.Undefined(); });
  }

  PromiseWorker worker_;
};

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("FileMaker", FileMaker::Define(env));
  exports.Set("BlockWiper", BlockWiper::Define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)

}  // namespace lunpath::file
