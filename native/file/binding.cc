// file.node: what volumes need and Node gives in too many steps, or not at all.
#include <napi.h>

#include "file/block.h"
#include "file/create.h"
#include "file/replace.h"
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

std::vector<std::string> ToStrings(const Napi::Value& value) {
  const auto array = value.As<Napi::Array>();
  std::vector<std::string> strings(array.Length());
  for (uint32_t i = 0; i < strings.size(); ++i) strings[i] = array.Get(i).As<Napi::String>().Utf8Value();
  return strings;
}

// class FileReplacer {
//   replace(paths: string[], fresh: string, forbidden: string[], version: string, text: string, durable: boolean):
//     Promise<{written: string} | {forbidden: string} | {changed: true}>
// }
class FileReplacer : public Napi::ObjectWrap<FileReplacer> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "FileReplacer", {InstanceMethod<&FileReplacer::ReplaceFile>("replace")});
  }

  explicit FileReplacer(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<FileReplacer>(info), worker_(info.Env(), this, "lunpath-replace", 1) {}

 private:
  Napi::Value ReplaceFile(const Napi::CallbackInfo& info) {
    Replacement asked{.paths = ToStrings(info[0]),
                      .fresh = info[1].As<Napi::String>().Utf8Value(),
                      .forbidden = ToStrings(info[2]),
                      .version = info[3].As<Napi::String>().Utf8Value(),
                      .text = info[4].As<Napi::String>().Utf8Value(),
                      .durable = info[5].As<Napi::Boolean>().Value()};
    return worker_.Run<Replaced>([asked = std::move(asked)]() { return Replace(asked); },
                                 [](Napi::Env env, Replaced& replaced) -> Napi::Value {
                                   auto js = Napi::Object::New(env);
                                   switch (replaced.outcome) {
                                     case Replaced::Outcome::kWritten:
                                       js.Set("written", replaced.version);
                                       break;
                                     case Replaced::Outcome::kForbidden:
                                       js.Set("forbidden", replaced.forbidden);
                                       break;
                                     case Replaced::Outcome::kChanged:
                                       js.Set("changed", true);
                                       break;
                                   }
                                   return js;
                                 });
  }

  PromiseWorker worker_;
};

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("FileReplacer", FileReplacer::Define(env));
  exports.Set("FileMaker", FileMaker::Define(env));
  exports.Set("BlockWiper", BlockWiper::Define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)

}  // namespace lunpath::file
