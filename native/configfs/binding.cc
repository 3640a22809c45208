// configfs.node: batches of system calls on configfs, on threads of their own.
#include <napi.h>

#include <array>
#include <memory>

#include "configfs/batch.h"
#include "napi/promise_worker.h"
#include "napi/running.h"
#include "napi/secret.h"

namespace lunpath::configfs {

namespace {

// Each may wait in the kernel; as many as exports shall be made at once.
constexpr int kThreads = 16;

// The order of Call.
constexpr std::array kCalls = {"mkdir", "rmdir", "write", "symlink", "unlink", "read", "list", "links"};

Operation ToOperation(const Napi::Object& given) {
  Operation operation;
  const std::string call = given.Get("call").As<Napi::String>();
  for (size_t i = 0; i < kCalls.size(); i++) {
    if (call == kCalls[i]) operation.call = static_cast<Call>(i);
  }
  operation.path = given.Get("path").As<Napi::String>().Utf8Value();
  const Napi::Value value = given.Get("value");
  operation.value = ToSecret(value);
  const Napi::Value names = given.Get("tolerated");
  if (!names.IsArray()) return operation;
  const auto tolerated = names.As<Napi::Array>();
  for (uint32_t i = 0; i < tolerated.Length(); i++) {
    operation.tolerated.push_back(tolerated.Get(i).As<Napi::String>().Utf8Value());
  }
  return operation;
}

Napi::Value ToJs(Napi::Env env, const std::vector<Outcome>& outcomes) {
  auto all = Napi::Array::New(env, outcomes.size());
  for (uint32_t i = 0; i < outcomes.size(); i++) {
    const Outcome& outcome = outcomes[i];
    auto one = Napi::Object::New(env);
    if (!outcome.code.empty()) {
      one.Set("code", outcome.code);
      one.Set("errno", outcome.number);
      one.Set("syscall", outcome.syscall);
    }
    auto texts = Napi::Array::New(env, outcome.texts.size());
    // Set() makes a copy of a Napi::String, through a std::string; of a value of any type it makes none.
    if (const auto& content = outcome.content) {
      texts.Set(0u, Napi::Value(Napi::String::New(env, content->data(), content->size())));
    }
    for (uint32_t j = 0; j < outcome.texts.size(); j++) texts.Set(j, outcome.texts[j]);
    one.Set("texts", texts);
    all.Set(i, one);
  }
  return all;
}

// class Runner {
//   constructor(network: string)    path of the network namespace in which all is done; empty: this process's
//   run(id: number, operations: {call, path, value?, tolerated?}[]): Promise<{code?, errno?, syscall?, texts}[]>
//   stop(id: number): number    no further operation of that batch begins; the number of the one under way, -1 where
//                               the batch has settled
//   close(): void               later calls of run() reject; what runs no longer keeps the process
// }
class Runner : public Napi::ObjectWrap<Runner> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "Runner",
                       {InstanceMethod<&Runner::RunBatch>("run"), InstanceMethod<&Runner::Stop>("stop"),
                        InstanceMethod<&Runner::Close>("close")});
  }

  explicit Runner(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<Runner>(info),
        network_(info[0].As<Napi::String>().Utf8Value()),
        worker_(info.Env(), this, "lunpath-configfs", kThreads) {}

 private:
  Napi::Value RunBatch(const Napi::CallbackInfo& info) {
    const double id = info[0].As<Napi::Number>().DoubleValue();
    const auto given = info[1].As<Napi::Array>();
    std::vector<Operation> operations;
    operations.reserve(given.Length());
    for (uint32_t i = 0; i < given.Length(); i++) operations.push_back(ToOperation(given.Get(i).As<Napi::Object>()));
    const std::shared_ptr<Progress> progress = running_.Begin(id);
    return worker_.Run<std::vector<Outcome>>(
        [operations = std::move(operations), progress, network = network_]() -> Result<std::vector<Outcome>> {
          if (!network.empty()) {
            Status entered = EnterNetwork(network);
            if (!entered.ok()) return entered.error();
          }
          return Run(operations, *progress);
        },
        [progress](Napi::Env env, std::vector<Outcome>& outcomes) { return ToJs(env, outcomes); });
  }

  Napi::Value Stop(const Napi::CallbackInfo& info) {
    double position = -1;
    running_.With(info[0].As<Napi::Number>().DoubleValue(), [&](Progress& progress) {
      progress.is_stopped = true;
      position = static_cast<double>(progress.position);
    });
    return Napi::Number::New(info.Env(), position);
  }

  Napi::Value Close(const Napi::CallbackInfo& info) {
    worker_.LetGo();
    return info.Env().Undefined();
  }

  Running<Progress> running_;
  const std::string network_;
  PromiseWorker worker_;
};

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("Runner", Runner::Define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)

}  // namespace lunpath::configfs
