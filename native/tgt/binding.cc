// tgt.node: `new Control(socketPath)` with run() and close(). Values arrive settled; src/targets/tgt-control.ts says
// what they mean.
#include <napi.h>

#include "napi/error.h"
#include "napi/promise_worker.h"
#include "napi/secret.h"
#include "tgt/control.h"

namespace lunpath::tgt {
namespace {

// A request is an array, mode first; arrays are read at a fraction of what named properties cost.
Request ToRequest(const Napi::Array& fields) {
  auto number = [&](uint32_t index) { return fields.Get(index).As<Napi::Number>(); };
  bool lossless;
  return Request{.mode = number(0).Uint32Value(),
                 .op = number(1).Uint32Value(),
                 .tid = number(2).Int32Value(),
                 .sid = fields.Get(3u).As<Napi::BigInt>().Uint64Value(&lossless),
                 .lun = static_cast<uint64_t>(number(4).Int64Value()),
                 .cid = number(5).Uint32Value(),
                 .account_direction = number(6).Uint32Value(),
                 .parameters = ToSecret(fields.Get(7u))};
}

// [pid, sequences, failure?], a sequence being error, text, error, text …
Napi::Value ToJs(Napi::Env env, Outcome& outcome) {
  Napi::Array js = Napi::Array::New(env, outcome.failure ? 3 : 2);
  Napi::Array sequences = Napi::Array::New(env, outcome.replies.size());
  for (uint32_t i = 0; i < outcome.replies.size(); ++i) {
    Napi::HandleScope scope(env);
    auto& replies = outcome.replies[i];
    Napi::Array list = Napi::Array::New(env, 2 * replies.size());
    for (uint32_t j = 0; j < replies.size(); ++j) {
      list.Set(2 * j, replies[j].error);
      list.Set(2 * j + 1, replies[j].text);
    }
    sequences.Set(i, list);
  }
  js.Set(0u, static_cast<int32_t>(outcome.pid));
  js.Set(1u, sequences);
  if (outcome.failure) js.Set(2u, ToJsError(env, *outcome.failure));
  return js;
}

class Control : public Napi::ObjectWrap<Control> {
 public:
  static void Define(Napi::Env env, Napi::Object exports) {
    exports.Set(
        "Control",
        DefineClass(env, "Control", {InstanceMethod<&Control::Run>("run"), InstanceMethod<&Control::Close>("close")}));
  }

  // One thread: tgtd serves one request at a time, and its listen backlog of 32 is never ours to fill.
  explicit Control(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<Control>(info),
        path_(info[0].As<Napi::String>().Utf8Value()),
        worker_(info.Env(), this, "lunpath.tgt", 1) {}

 private:
  // run(sequences, timeoutMs, expectedPid). The time in the queue counts: callers behind a tgtd that hangs fail
  // together, not one timeout after the other.
  Napi::Value Run(const Napi::CallbackInfo& info) {
    auto list = info[0].As<Napi::Array>();
    std::vector<Sequence> sequences(list.Length());
    for (uint32_t i = 0; i < list.Length(); ++i) {
      auto requests = list.Get(i).As<Napi::Array>();
      sequences[i].reserve(requests.Length());
      for (uint32_t j = 0; j < requests.Length(); ++j) {
        Napi::HandleScope scope(info.Env());
        sequences[i].push_back(ToRequest(requests.Get(j).As<Napi::Array>()));
      }
    }
    auto deadline = Clock::now() + std::chrono::milliseconds(info[1].As<Napi::Number>().Int64Value());
    pid_t expected_pid = info[2].As<Napi::Number>().Int32Value();
    return worker_.Run<Outcome>(
        [path = path_, sequences = std::move(sequences), deadline, expected_pid]() -> Result<Outcome> {
          return tgt::Run(path, sequences, deadline, expected_pid);
        },
        ToJs);
  }

  // Resolves when all that was pending has settled.
  Napi::Value Close(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (worker_.refuses_new()) {
      auto deferred = Napi::Promise::Deferred::New(env);
      deferred.Resolve(env.Undefined());
      return deferred.Promise();
    }
    auto closed = worker_.Run<Nothing>([]() -> Status { return Nothing{}; },
                                       [](Napi::Env env, Nothing&) -> Napi::Value { return env.Undefined(); },
                                       PromiseWorker::Settles::kLast);
    worker_.RefuseNew();
    return closed;
  }

  std::string path_;
  PromiseWorker worker_;
};

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  Control::Define(env, exports);
  return exports;
}

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)

}  // namespace
}  // namespace lunpath::tgt
