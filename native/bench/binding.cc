#include "bench/binding.h"

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/arrivals.h"
#include "bench/histogram_object.h"
#include "bench/job_from_js.h"
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
    bridge_->wake = Wake::New(env, "lunpath.bench.Run", 0, 1, static_cast<std::nullptr_t*>(nullptr));
    napi_add_env_cleanup_hook(env, &BenchRunObject::OnCleanup, this);

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
    Ref();
    run_->Start();
  }

 private:
  struct Bridge;
  static void OnWake(Napi::Env env, Napi::Function, std::nullptr_t*, std::shared_ptr<Bridge>* data) {
    std::unique_ptr<std::shared_ptr<Bridge>> owned(data);
    if (static_cast<napi_env>(env) == nullptr) return;  // the environment is going down
    Bridge& bridge = **owned;
    std::optional<Sample> sample;
    std::optional<Result<Report>> result;
    {
      std::lock_guard lock(bridge.mutex);
      bridge.woken = false;
      sample.swap(bridge.sample);
      result.swap(bridge.result);
    }
    Napi::HandleScope scope(env);
    if (bridge.owner) bridge.owner->Deliver(env, sample, result);
  }
  using Wake = Napi::TypedThreadSafeFunction<std::nullptr_t, std::shared_ptr<Bridge>, &BenchRunObject::OnWake>;

  struct Bridge {
    std::mutex mutex;  // guards sample, result, woken, closed
    std::optional<Sample> sample;
    std::optional<Result<Report>> result;
    bool woken = false;
    bool closed = false;
    Wake wake;
    BenchRunObject* owner = nullptr;  // main thread only; null once the end has been delivered
  };

  // With the bridge's mutex held.
  static void WakeUp(const std::shared_ptr<Bridge>& bridge) {
    if (bridge->closed || bridge->woken) return;
    bridge->woken = true;
    bridge->wake.NonBlockingCall(new std::shared_ptr<Bridge>(bridge));
  }

  void Deliver(Napi::Env env, const std::optional<Sample>& sample, const std::optional<Result<Report>>& result) {
    if (sample) on_sample_.Call({ToJs(env, *sample)});
    if (!result) return;
    Shut();
    napi_remove_env_cleanup_hook(env, &BenchRunObject::OnCleanup, this);
    Napi::Function on_end = on_end_.Value();
    // The functions know this object: as long as they are held here, it could never be collected.
    on_sample_.Reset();
    on_end_.Reset();
    Unref();
    if (result->ok()) {
      on_end.Call({env.Null(), ToJs(env, result->value(), names_)});
    } else {
      on_end.Call({ToJsError(env, result->error()), env.Null()});
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
    bridge_->wake.Release();
  }

  std::shared_ptr<Bridge> bridge_;
  std::shared_ptr<Run> run_;
  std::vector<std::string> names_;
  Napi::FunctionReference on_sample_;
  Napi::FunctionReference on_end_;
};

// arrivals(rate, seed, count): when the first I/Os of an open loop on one thread are due.
Napi::Value ToArrivals(const Napi::CallbackInfo& info) {
  const auto rate = info[0].As<Napi::Object>();
  const Pace pace = rate.Get("kind").ToString().Utf8Value() == "poisson" ? Pace::kPoisson : Pace::kFixed;
  bool lossless = true;
  const uint64_t seed = info[1].As<Napi::BigInt>().Uint64Value(&lossless);
  const uint32_t count = info[2].ToNumber().Uint32Value();
  Arrivals arrivals(pace, rate.Get("iops").ToNumber().DoubleValue(), 0, seed);
  Napi::Float64Array times = Napi::Float64Array::New(info.Env(), count);
  for (uint32_t i = 0; i < count; ++i, arrivals.Advance()) times[i] = arrivals.next_ns();
  return times;
}

}  // namespace

void Define(Napi::Env env, Napi::Object exports) {
  Napi::Function histogram = HistogramObject::Define(env);
  auto* data = new AddonData{.histogram = Napi::Persistent(histogram)};
  env.SetInstanceData(data);
  exports.Set("Histogram", histogram);
  exports.Set("BenchRun", BenchRunObject::Define(env));
  exports.Set("arrivals", Napi::Function::New(env, ToArrivals, "arrivals"));
}

}  // namespace lunpath::bench
