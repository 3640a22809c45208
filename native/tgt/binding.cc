// tgt.node: `new Control(socketPath)` with run() and close(). Values arrive settled; src/targets/tgt-control.ts says
// what they mean.
#include <napi.h>

#include "napi/error.h"
#include "napi/promise_worker.h"
#include "tgt/control.h"

namespace lunpath::tgt {
namespace {

uint32_t NumberField(const Napi::Object& object, const char* name) {
  Napi::Value value = object.Get(name);
  return value.IsNumber() ? value.As<Napi::Number>().Uint32Value() : 0;
}

uint64_t WideField(const Napi::Object& object, const char* name) {
  Napi::Value value = object.Get(name);
  if (value.IsBigInt()) {
    bool lossless;
    return value.As<Napi::BigInt>().Uint64Value(&lossless);
  }
  return value.IsNumber() ? static_cast<uint64_t>(value.As<Napi::Number>().Int64Value()) : 0;
}

Request ToRequest(const Napi::Object& object) {
  Napi::Value tid = object.Get("tid");
  Napi::Value force = object.Get("force");
  Napi::Value parameters = object.Get("parameters");
  return Request{.mode = NumberField(object, "mode"),
                 .op = NumberField(object, "op"),
                 .tid = tid.IsNumber() ? tid.As<Napi::Number>().Int32Value() : 0,
                 .sid = WideField(object, "sid"),
                 .lun = WideField(object, "lun"),
                 .cid = NumberField(object, "cid"),
                 .account_direction = NumberField(object, "accountDirection"),
                 .force = force.IsBoolean() && force.As<Napi::Boolean>().Value(),
                 .parameters = parameters.IsString() ? parameters.As<Napi::String>().Utf8Value() : std::string()};
}

Napi::Value ToJs(Napi::Env env, Outcome& outcome) {
  Napi::Object js = Napi::Object::New(env);
  Napi::Array sequences = Napi::Array::New(env, outcome.replies.size());
  for (uint32_t i = 0; i < outcome.replies.size(); ++i) {
    auto& replies = outcome.replies[i];
    Napi::Array list = Napi::Array::New(env, replies.size());
    for (uint32_t j = 0; j < replies.size(); ++j) {
      Napi::Object reply = Napi::Object::New(env);
      reply.Set("error", replies[j].error);
      reply.Set("text", replies[j].text);
      list.Set(j, reply);
    }
    sequences.Set(i, list);
  }
  js.Set("replies", sequences);
  js.Set("pid", static_cast<int32_t>(outcome.pid));
  if (outcome.failure) js.Set("failure", ToJsError(env, *outcome.failure));
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
        sequences[i].push_back(ToRequest(requests.Get(j).As<Napi::Object>()));
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

  // Jobs run in order on one thread: one more at the end resolves when all before it have settled.
  Napi::Value Close(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (worker_.refuses_new()) {
      auto deferred = Napi::Promise::Deferred::New(env);
      deferred.Resolve(env.Undefined());
      return deferred.Promise();
    }
    auto closed = worker_.Run<Nothing>([]() -> Status { return Nothing{}; },
                                       [](Napi::Env env, Nothing&) -> Napi::Value { return env.Undefined(); });
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
