#include "bench/binding.h"

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "bench/engine_libiscsi.h"
#include "bench/histogram.h"
#include "bench/runner.h"
#include "iscsi/params.h"
#include "napi/error.h"

namespace lunpath::bench {
namespace {

// What this addon keeps per environment, so that it loads in several at once.
struct AddonData {
  Napi::FunctionReference histogram;
};

class HistogramObject : public Napi::ObjectWrap<HistogramObject> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "Histogram",
                       {
                           InstanceMethod<&HistogramObject::Record>("record"),
                           InstanceMethod<&HistogramObject::Merge>("merge"),
                           InstanceMethod<&HistogramObject::Percentile>("percentile"),
                           InstanceAccessor<&HistogramObject::Count>("count"),
                           InstanceAccessor<&HistogramObject::Overflow>("overflow"),
                           InstanceAccessor<&HistogramObject::Min>("minNs"),
                           InstanceAccessor<&HistogramObject::Max>("maxNs"),
                           InstanceAccessor<&HistogramObject::Mean>("meanNs"),
                       });
  }

  explicit HistogramObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {}

  static Napi::Object From(Napi::Env env, const Histogram& histogram) {
    Napi::Object js = env.GetInstanceData<AddonData>()->histogram.New({});
    Unwrap(js)->histogram_ = histogram;
    return js;
  }

 private:
  Napi::Value Record(const Napi::CallbackInfo& info) {
    const double ns = info[0].ToNumber().DoubleValue();
    // What is no latency at all (NaN, negative) would be undefined as an integer.
    if (!(ns >= 0 && ns <= 9e15)) {
      Napi::TypeError::New(info.Env(), "record() takes nanoseconds, 0 or more").ThrowAsJavaScriptException();
      return info.Env().Undefined();
    }
    histogram_.Record(static_cast<uint64_t>(ns));
    return info.Env().Undefined();
  }

  Napi::Value Merge(const Napi::CallbackInfo& info) {
    Napi::Function type = info.Env().GetInstanceData<AddonData>()->histogram.Value();
    if (!info[0].IsObject() || !info[0].As<Napi::Object>().InstanceOf(type)) {
      Napi::TypeError::New(info.Env(), "merge() takes a Histogram").ThrowAsJavaScriptException();
      return info.Env().Undefined();
    }
    histogram_.Merge(Unwrap(info[0].As<Napi::Object>())->histogram_);
    return info.Env().Undefined();
  }

  Napi::Value Percentile(const Napi::CallbackInfo& info) {
    const double percent = info[0].ToNumber().DoubleValue();
    if (!(percent > 0 && percent <= 100)) {
      Napi::RangeError::New(info.Env(), "percentile() takes a number above 0, at most 100")
          .ThrowAsJavaScriptException();
      return info.Env().Undefined();
    }
    return Napi::Number::New(info.Env(), static_cast<double>(histogram_.Percentile(percent)));
  }

  Napi::Value Count(const Napi::CallbackInfo& info) { return ToNumber(info, histogram_.count()); }
  Napi::Value Overflow(const Napi::CallbackInfo& info) { return ToNumber(info, histogram_.overflow()); }
  Napi::Value Min(const Napi::CallbackInfo& info) { return ToNumber(info, histogram_.min_ns()); }
  Napi::Value Max(const Napi::CallbackInfo& info) { return ToNumber(info, histogram_.max_ns()); }
  Napi::Value Mean(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), histogram_.mean_ns()); }

  static Napi::Value ToNumber(const Napi::CallbackInfo& info, uint64_t value) {
    return Napi::Number::New(info.Env(), static_cast<double>(value));
  }

  Histogram histogram_;
};

const char* NameOf(RunState state) {
  switch (state) {
    case RunState::kFinished:
      return "finished";
    case RunState::kCancelled:
      return "cancelled";
    case RunState::kDeviceLost:
      return "device-lost";
    case RunState::kStuck:
      return "stuck";
  }
  return "";
}

Napi::Value ToJs(Napi::Env env, const Sample& sample) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("fromNs", static_cast<double>(sample.from_ns));
  js.Set("toNs", static_cast<double>(sample.to_ns));
  js.Set("errors", static_cast<double>(sample.errors));
  js.Set("latency", HistogramObject::From(env, sample.latency));
  return js;
}

Napi::Value ToJs(Napi::Env env, const char* engine, const Report& report) {
  Napi::Object device = Napi::Object::New(env);
  device.Set("wwid", report.device.wwid);
  device.Set("serial", report.device.serial);
  device.Set("vendor", report.device.vendor);
  device.Set("product", report.device.product);
  device.Set("sizeBytes", static_cast<double>(report.device.size_bytes));
  device.Set("blockSizeBytes", report.device.block_bytes);
  Napi::Object js = Napi::Object::New(env);
  js.Set("state", NameOf(report.state));
  js.Set("engine", engine);
  js.Set("device", device);
  js.Set("elapsedNs", static_cast<double>(report.elapsed_ns));
  js.Set("errors", static_cast<double>(report.errors));
  js.Set("unanswered", static_cast<double>(report.unanswered));
  js.Set("threadCpuNs", static_cast<double>(report.thread_cpu_ns));
  js.Set("latency", HistogramObject::From(env, report.latency));
  js.Set("lastError", report.last_error.code.empty() ? env.Null() : ToJsError(env, report.last_error));
  return js;
}

// new BenchRun(job, onSample(sample), onEnd(error, report)). Starts at once, and keeps itself and the event loop alive
// until onEnd has been called. Samples that JS has no time for are merged, so that at most one waits.
class BenchRunObject : public Napi::ObjectWrap<BenchRunObject> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "BenchRun", {InstanceMethod<&BenchRunObject::Cancel>("cancel")});
  }

  explicit BenchRunObject(const Napi::CallbackInfo& info) : ObjectWrap(info), bridge_(std::make_shared<Bridge>()) {
    Napi::Env env = info.Env();
    Napi::Object js = info[0].As<Napi::Object>();
    on_sample_ = Napi::Persistent(info[1].As<Napi::Function>());
    on_end_ = Napi::Persistent(info[2].As<Napi::Function>());
    bridge_->owner = this;
    bridge_->wake = Wake::New(env, "lunpath.bench.Run", 0, 1, static_cast<std::nullptr_t*>(nullptr));
    napi_add_env_cleanup_hook(env, &BenchRunObject::OnCleanup, this);

    auto engine = std::make_unique<LibiscsiEngine>(iscsi::ToLoginParams(js.Get("login").As<Napi::Object>()));
    engine_name_ = engine->name();
    run_ = std::make_shared<Run>(
        std::move(engine), ToJobSpec(js),
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

  static JobSpec ToJobSpec(const Napi::Object& js) {
    const auto u64 = [&js](const char* key) { return static_cast<uint64_t>(js.Get(key).ToNumber().Int64Value()); };
    const auto text = [&js](const char* key) {
      Napi::Value value = js.Get(key);
      return value.IsString() ? value.As<Napi::String>().Utf8Value() : std::string();
    };
    bool lossless = true;
    const uint64_t seed = js.Get("seed").As<Napi::BigInt>().Uint64Value(&lossless);
    return JobSpec{.random = js.Get("random").ToBoolean().Value(),
                   .bs = static_cast<uint32_t>(u64("bs")),
                   .iodepth = static_cast<uint32_t>(u64("iodepth")),
                   .runtime_ns = u64("runtimeMs") * 1'000'000,
                   .offset = u64("offsetBytes"),
                   .size = u64("sizeBytes"),
                   .seed = seed,
                   .stuck_ns = u64("stuckMs") * 1'000'000,
                   .sample_ns = u64("sampleMs") * 1'000'000,
                   .expected_wwid = text("expectedWwid"),
                   .expected_serial = text("expectedSerial"),
                   .expected_size = u64("expectedSizeBytes")};
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
      on_end.Call({env.Null(), ToJs(env, engine_name_, result->value())});
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
  const char* engine_name_ = "";
  Napi::FunctionReference on_sample_;
  Napi::FunctionReference on_end_;
};

}  // namespace

void Define(Napi::Env env, Napi::Object exports) {
  Napi::Function histogram = HistogramObject::Define(env);
  auto* data = new AddonData{.histogram = Napi::Persistent(histogram)};
  env.SetInstanceData(data);
  exports.Set("Histogram", histogram);
  exports.Set("BenchRun", BenchRunObject::Define(env));
}

}  // namespace lunpath::bench
