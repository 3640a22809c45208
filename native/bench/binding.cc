#include "bench/binding.h"

#include <cerrno>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/arrivals.h"
#include "bench/histogram_object.h"
#include "bench/job_from_js.h"
#include "bench/open_loop.h"
#include "bench/report_to_js.h"
#include "bench/run.h"
#include "napi/error.h"

namespace lunpath::bench {
namespace {

// new BenchRun(job, onSample(sample), onEnd(error, report)). Starts at once, and keeps itself and the event loop alive
// until onEnd has been called. Samples that JS has no time for are merged, so that at most one waits.
class BenchRunObject : public Napi::ObjectWrap<BenchRunObject> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "BenchRun", {InstanceMethod<&BenchRunObject::Cancel>("cancel")});
  }

  explicit BenchRunObject(const Napi::CallbackInfo& info) : ObjectWrap(info), bridge_(std::make_shared<Bridge>()) {
    Napi::Env env = info.Env();
    const auto js = info[0].As<Napi::Object>();
    JobSpec job = ToJobSpec(js);
    const auto targets = js.Get("targets").As<Napi::Array>();
    for (uint32_t i = 0; i < targets.Length(); ++i) {
      names_.push_back(targets.Get(i).As<Napi::Object>().Get("name").ToString().Utf8Value());
    }
    on_sample_ = Napi::Persistent(info[1].As<Napi::Function>());
    on_end_ = Napi::Persistent(info[2].As<Napi::Function>());
    bridge_->owner = this;
    run_ = std::make_shared<Run>(
        std::move(job),
        [bridge = bridge_](Sample sample) {
          std::lock_guard lock(bridge->mutex);
          if (bridge->sample) {
            bridge->sample->Append(sample);
          } else {
            bridge->sample = std::move(sample);
          }
          WakeUp(bridge);
        },
        [bridge = bridge_](Result<Report> result) {
          std::lock_guard lock(bridge->mutex);
          bridge->result = std::move(result);
          WakeUp(bridge);
        });
    bridge_->idle = std::make_unique<std::shared_ptr<Bridge>>(bridge_);
    bridge_->wake = Wake::New(env, "lunpath.bench.Run", 0, 1, static_cast<std::nullptr_t*>(nullptr));
    // From here on nothing throws: the hook and the thread know this object.
    napi_add_env_cleanup_hook(env, &BenchRunObject::OnCleanup, this);
    Ref();
    run_->Start();
  }

 private:
  struct Bridge;
  static void OnWake(Napi::Env env, Napi::Function, std::nullptr_t*, std::shared_ptr<Bridge>* data) {
    std::unique_ptr<std::shared_ptr<Bridge>> owned(data);
    if (static_cast<napi_env>(env) == nullptr) return;  // the environment is going down
    const std::shared_ptr<Bridge> kept = *owned;
    Bridge& bridge = *kept;
    std::optional<Sample> sample;
    std::optional<Result<Report>> result;
    {
      std::lock_guard lock(bridge.mutex);
      if (!bridge.closed) bridge.idle = std::move(owned);
      sample.swap(bridge.sample);
      result.swap(bridge.result);
    }
    Napi::HandleScope scope(env);
    if (bridge.owner) bridge.owner->Deliver(env, sample, result);
  }
  using Wake = Napi::TypedThreadSafeFunction<std::nullptr_t, std::shared_ptr<Bridge>, &BenchRunObject::OnWake>;

  struct Bridge {
    std::mutex mutex;  // guards sample, result, idle, closed
    std::optional<Sample> sample;
    std::optional<Result<Report>> result;
    // What a wake-up carries, made beforehand: the end of a run must be told where there is no memory either. null: one
    // is under way.
    std::unique_ptr<std::shared_ptr<Bridge>> idle;
    bool closed = false;
    Wake wake;
    BenchRunObject* owner = nullptr;  // main thread only; null once the end has been delivered
  };

  // With the bridge's mutex held.
  static void WakeUp(const std::shared_ptr<Bridge>& bridge) {
    if (!bridge->closed && bridge->idle) bridge->wake.NonBlockingCall(bridge->idle.release());
  }

  void Deliver(Napi::Env env, const std::optional<Sample>& sample, const std::optional<Result<Report>>& result) {
    if (sample) {
      const Napi::Value js = Converted(env, [&] { return ToJs(env, *sample); });
      if (!js.IsNull()) on_sample_.Call({js});
    }
    if (!result) return;
    Shut();
    napi_remove_env_cleanup_hook(env, &BenchRunObject::OnCleanup, this);
    Napi::Function on_end = on_end_.Value();
    // The functions know this object: as long as they are held here, it could never be collected.
    on_sample_.Reset();
    on_end_.Reset();
    Unref();
    if (!result->ok()) {
      on_end.Call({ToJsError(env, result->error()), env.Null()});
      return;
    }
    const Napi::Value report = Converted(env, [&] { return ToJs(env, result->value(), names_); });
    const Error no_memory = ErrnoError(ENOMEM, "malloc", "The report of the benchmark");
    on_end.Call({report.IsNull() ? ToJsError(env, no_memory) : env.Null(), report});
  }

  // null: there is no memory for it. What leaves a callback of Node's would end the process.
  template <class Convert>
  static Napi::Value Converted(Napi::Env env, Convert convert) {
    try {
      return convert();
    } catch (const std::bad_alloc&) {
      return env.Null();
    }
  }

  Napi::Value Cancel(const Napi::CallbackInfo& info) {
    run_->Cancel();
    return info.Env().Undefined();
  }

  // The environment ends: the run's thread ends on its own time, and its result goes nowhere.
  static void OnCleanup(void* opaque) {
    auto* self = static_cast<BenchRunObject*>(opaque);
    self->Shut();
    self->run_->Cancel();
  }

  void Shut() {
    bridge_->owner = nullptr;
    std::lock_guard lock(bridge_->mutex);
    bridge_->closed = true;
    bridge_->idle.reset();
    bridge_->wake.Release();
  }

  std::shared_ptr<Bridge> bridge_;
  std::shared_ptr<Run> run_;
  std::vector<std::string> names_;
  Napi::FunctionReference on_sample_;
  Napi::FunctionReference on_end_;
};

// Of a rate and a seed.
Arrivals ToSchedule(const Napi::CallbackInfo& info) {
  const auto rate = info[0].As<Napi::Object>();
  const Pace pace = rate.Get("kind").ToString().Utf8Value() == "poisson" ? Pace::kPoisson : Pace::kFixed;
  bool lossless = true;
  const uint64_t seed = info[1].As<Napi::BigInt>().Uint64Value(&lossless);
  return {pace, rate.Get("iops").ToNumber().DoubleValue(), 0, seed};
}

// arrivals(rate, seed, count): when the first I/Os of an open loop on one thread are due.
Napi::Value ToArrivals(const Napi::CallbackInfo& info) {
  const uint32_t count = info[2].ToNumber().Uint32Value();
  Arrivals arrivals = ToSchedule(info);
  Napi::Float64Array times = Napi::Float64Array::New(info.Env(), count);
  for (uint32_t i = 0; i < count; ++i, arrivals.Advance()) times[i] = arrivals.next_ns();
  return times;
}

// unsubmitted(rate, seed, ns): how many are given up in an open loop of which none was submitted.
Napi::Value ToUnsubmitted(const Napi::CallbackInfo& info) {
  OpenLoop loop(ToSchedule(info));
  loop.Begin(0, 0, static_cast<uint64_t>(info[2].ToNumber().Int64Value()));
  OpenLoopFigures figures;
  loop.GiveUp(&figures);
  return Napi::Number::New(info.Env(), static_cast<double>(figures.unsubmitted));
}

}  // namespace

void Define(Napi::Env env, Napi::Object exports) {
  Napi::Function histogram = HistogramObject::Define(env);
  auto* data = new AddonData{.histogram = Napi::Persistent(histogram)};
  env.SetInstanceData(data);
  exports.Set("Histogram", histogram);
  exports.Set("BenchRun", BenchRunObject::Define(env));
  exports.Set("unsubmitted", Napi::Function::New(env, ToUnsubmitted, "unsubmitted"));
  exports.Set("arrivals", Napi::Function::New(env, ToArrivals, "arrivals"));
}

}  // namespace lunpath::bench
