// iet.node: `new Control(socketName)` with exchange(), call(), stop() and close(). Values arrive settled;
// src/targets/iet-control.ts says what they mean.
#include <napi.h>

#include <memory>

#include "iet/control.h"
#include "iet/ietd.h"
#include "iet/listing.h"
#include "napi/error.h"
#include "napi/promise_worker.h"
#include "napi/running.h"
#include "napi/secret.h"

namespace lunpath::iet {
namespace {

// Each call and each read may wait in the kernel, and one that never ends keeps its thread.
constexpr int kCallThreads = 4;
constexpr int kReadThreads = 2;

std::vector<uint32_t> ToNumbers(const Napi::Value& value) {
  const auto array = value.As<Napi::Array>();
  std::vector<uint32_t> numbers(array.Length());
  for (uint32_t i = 0; i < array.Length(); ++i) numbers[i] = array.Get(i).As<Napi::Number>().Uint32Value();
  return numbers;
}

// The fields that requests and calls have in common, in the order of their array.
struct Fields {
  uint32_t kind;
  uint32_t tid;
  uint64_t sid;
  uint32_t cid;
  uint32_t lun;
  std::string text;
  Parameters parameters;
};

Fields ToFields(const Napi::Array& array) {
  const auto number = [&](uint32_t index) { return array.Get(index).As<Napi::Number>().Uint32Value(); };
  bool lossless;
  return Fields{
      .kind = number(0),
      .tid = number(1),
      .sid = array.Get(2u).As<Napi::BigInt>().Uint64Value(&lossless),
      .cid = number(3),
      .lun = number(4),
      .text = array.Get(5u).As<Napi::String>().Utf8Value(),
      .parameters = {
          .type = static_cast<ParameterType>(number(6)), .partial = number(7), .values = ToNumbers(array.Get(8u))}};
}

Message ToMessage(const Napi::Array& array) {
  Fields fields = ToFields(array);
  Message message{.command = static_cast<Command>(fields.kind),
                  .tid = fields.tid,
                  .sid = fields.sid,
                  .cid = fields.cid,
                  .lun = fields.lun,
                  .text = std::move(fields.text),
                  .secret = {},
                  .direction = array.Get(10u).As<Napi::Number>().Uint32Value(),
                  .most = array.Get(11u).As<Napi::Number>().Uint32Value(),
                  .parameters = std::move(fields.parameters),
                  .wanted = array.Get(12u).As<Napi::Number>().Int32Value()};
  message.secret = ToSecret(array.Get(9u));
  return message;
}

Call ToCall(const Napi::Array& array) {
  Fields fields = ToFields(array);
  return Call{.kind = static_cast<CallKind>(fields.kind),
              .tid = fields.tid,
              .sid = fields.sid,
              .cid = fields.cid,
              .lun = fields.lun,
              .text = std::move(fields.text),
              .parameters = std::move(fields.parameters)};
}

template <class T>
std::vector<std::vector<T>> ToSequences(const Napi::Value& value, T (*convert)(const Napi::Array&)) {
  const auto list = value.As<Napi::Array>();
  std::vector<std::vector<T>> sequences(list.Length());
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto items = list.Get(i).As<Napi::Array>();
    sequences[i].reserve(items.Length());
    for (uint32_t j = 0; j < items.Length(); ++j) {
      Napi::HandleScope scope(value.Env());
      sequences[i].push_back(convert(items.Get(j).As<Napi::Array>()));
    }
  }
  return sequences;
}

Napi::Array ToJs(Napi::Env env, const Answer& answer) {
  auto numbers = Napi::Array::New(env, answer.numbers.size());
  for (uint32_t i = 0; i < answer.numbers.size(); ++i) numbers.Set(i, answer.numbers[i]);
  auto names = Napi::Array::New(env, answer.names.size());
  for (uint32_t i = 0; i < answer.names.size(); ++i) names.Set(i, answer.names[i]);
  auto js = Napi::Array::New(env, 4);
  js.Set(0u, answer.error);
  js.Set(1u, answer.tid);
  js.Set(2u, numbers);
  js.Set(3u, names);
  return js;
}

// [pid, answers by sequence, failure?], an answer being [errno, tid, numbers, names].
Napi::Value ToJs(Napi::Env env, const Outcome& outcome) {
  auto sequences = Napi::Array::New(env, outcome.answers.size());
  for (uint32_t i = 0; i < outcome.answers.size(); ++i) {
    Napi::HandleScope scope(env);
    auto answers = Napi::Array::New(env, outcome.answers[i].size());
    for (uint32_t j = 0; j < outcome.answers[i].size(); ++j) answers.Set(j, ToJs(env, outcome.answers[i][j]));
    sequences.Set(i, answers);
  }
  auto js = Napi::Array::New(env, outcome.failure ? 3 : 2);
  js.Set(0u, static_cast<int32_t>(outcome.pid));
  js.Set(1u, sequences);
  if (outcome.failure) js.Set(2u, ToJsError(env, *outcome.failure));
  return js;
}

Clock::time_point DeadlineIn(const Napi::Value& milliseconds) {
  return Clock::now() + std::chrono::milliseconds(milliseconds.As<Napi::Number>().Int64Value());
}

// class Control {
//   constructor(socketName: string)
//   exchange(sequences, timeoutMs, expectedPid): Promise<Outcome>    requests over the socket; the wait for earlier
//   ones
//                                                                    counts
//   call(id, sequences, timeoutMs, expectedPid): Promise<Outcome>    calls on the device
//   read(id, path, until): Promise<string | Error>    ReadListing()
//   stop(id): number    Progress::Stop() of that batch or reading; -1 where it has settled
//   close(): void       later calls of all three reject; what hangs no longer keeps the process
// }
class Binding : public Napi::ObjectWrap<Binding> {
 public:
  static void Define(Napi::Env env, Napi::Object exports) {
    exports.Set("Control",
                DefineClass(env, "Control",
                            {InstanceMethod<&Binding::ExchangeAll>("exchange"),
                             InstanceMethod<&Binding::CallAll>("call"), InstanceMethod<&Binding::Read>("read"),
                             InstanceMethod<&Binding::Stop>("stop"), InstanceMethod<&Binding::Close>("close")}));
  }

  explicit Binding(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<Binding>(info),
        name_(info[0].As<Napi::String>().Utf8Value()),
        control_(std::make_shared<Control>(name_)),
        // One: ietd serves one request at a time, and its queue of 33 connections is never ours to fill.
        socket_(info.Env(), this, "lunpath.iet", 1),
        device_(info.Env(), this, "lunpath.iet.device", kCallThreads),
        reading_(info.Env(), this, "lunpath.iet.listing", kReadThreads) {}

 private:
  Napi::Value ExchangeAll(const Napi::CallbackInfo& info) {
    auto sequences = ToSequences<Message>(info[0], ToMessage);
    const auto deadline = DeadlineIn(info[1]);
    const pid_t expected_pid = info[2].As<Napi::Number>().Int32Value();
    return socket_.Run<Outcome>(
        [name = name_, sequences = std::move(sequences), deadline, expected_pid]() -> Result<Outcome> {
          return Exchange(name, sequences, deadline, expected_pid);
        },
        [](Napi::Env env, Outcome& outcome) { return ToJs(env, outcome); });
  }

  Napi::Value CallAll(const Napi::CallbackInfo& info) {
    const double id = info[0].As<Napi::Number>().DoubleValue();
    auto sequences = ToSequences<Call>(info[1], ToCall);
    const auto deadline = DeadlineIn(info[2]);
    const pid_t expected_pid = info[3].As<Napi::Number>().Int32Value();
    const std::shared_ptr<Progress> progress = running_.Begin(id);
    return device_.Run<Outcome>(
        [control = control_, sequences = std::move(sequences), deadline, expected_pid, progress]() -> Result<Outcome> {
          return control->Run(sequences, deadline, expected_pid, *progress);
        },
        [progress](Napi::Env env, Outcome& outcome) { return ToJs(env, outcome); });
  }

  Napi::Value Read(const Napi::CallbackInfo& info) {
    const double id = info[0].As<Napi::Number>().DoubleValue();
    const std::shared_ptr<Progress> progress = running_.Begin(id);
    return reading_.Run<Result<std::string>>(
        [path = info[1].As<Napi::String>().Utf8Value(), until = info[2].As<Napi::String>().Utf8Value(),
         progress]() -> Result<Result<std::string>> { return ReadListing(path, until, *progress); },
        [progress](Napi::Env env, Result<std::string>& text) -> Napi::Value {
          return text.ok() ? Napi::String::New(env, text.value()) : ToJsError(env, text.error());
        });
  }

  Napi::Value Stop(const Napi::CallbackInfo& info) {
    double position = -1;
    running_.With(info[0].As<Napi::Number>().DoubleValue(),
                  [&](Progress& progress) { position = static_cast<double>(progress.Stop()); });
    return Napi::Number::New(info.Env(), position);
  }

  Napi::Value Close(const Napi::CallbackInfo& info) {
    socket_.LetGo();
    device_.LetGo();
    reading_.LetGo();
    return info.Env().Undefined();
  }

  const std::string name_;
  std::shared_ptr<Control> control_;
  Running<Progress> running_;
  PromiseWorker socket_;
  PromiseWorker device_;
  PromiseWorker reading_;
};

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  Binding::Define(env, exports);
  return exports;
}

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)

}  // namespace
}  // namespace lunpath::iet
