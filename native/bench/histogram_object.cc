#include "bench/histogram_object.h"

#include <optional>

namespace lunpath::bench {
namespace {

// What is no count or latency at all (NaN, negative) would be undefined as an integer.
std::optional<uint64_t> ToU64(const Napi::Value& value) {
  if (!value.IsNumber()) return std::nullopt;
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= 0 && number <= 1e19)) return std::nullopt;
  return static_cast<uint64_t>(number);
}

std::optional<Histogram::Saved> ToSaved(const Napi::Object& js) {
  const auto overflow = ToU64(js.Get("overflow"));
  const auto sum = ToU64(js.Get("sumNs"));
  const auto min = ToU64(js.Get("minNs"));
  const auto max = ToU64(js.Get("maxNs"));
  Napi::Value buckets = js.Get("buckets");
  if (!overflow || !sum || !min || !max || !buckets.IsArray()) return std::nullopt;
  Histogram::Saved saved{.overflow = *overflow, .sum_ns = *sum, .min_ns = *min, .max_ns = *max};
  const auto pairs = buckets.As<Napi::Array>();
  if (pairs.Length() % 2 != 0) return std::nullopt;
  for (uint32_t i = 0; i < pairs.Length(); i += 2) {
    const auto middle = ToU64(pairs.Get(i));
    const auto count = ToU64(pairs.Get(i + 1));
    if (!middle || !count) return std::nullopt;
    saved.buckets.emplace_back(*middle, *count);
  }
  return saved;
}

}  // namespace

Napi::Function HistogramObject::Define(Napi::Env env) {
  return DefineClass(env, "Histogram",
                     {
                         InstanceMethod<&HistogramObject::Record>("record"),
                         InstanceMethod<&HistogramObject::Merge>("merge"),
                         InstanceMethod<&HistogramObject::Percentile>("percentile"),
                         InstanceMethod<&HistogramObject::Save>("save"),
                         InstanceAccessor<&HistogramObject::Count>("count"),
                         InstanceAccessor<&HistogramObject::Overflow>("overflow"),
                         InstanceAccessor<&HistogramObject::Min>("minNs"),
                         InstanceAccessor<&HistogramObject::Max>("maxNs"),
                         InstanceAccessor<&HistogramObject::Mean>("meanNs"),
                     });
}

Napi::Object HistogramObject::From(Napi::Env env, const Histogram& histogram) {
  Napi::Object js = env.GetInstanceData<AddonData>()->histogram.New({});
  Unwrap(js)->histogram_ = histogram;
  return js;
}

// Without this V8 would take a histogram for a hundred bytes, and let thousands lie about.
HistogramObject::HistogramObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Napi::MemoryManagement::AdjustExternalMemory(info.Env(), Histogram::kBytes);
  if (info[0].IsUndefined()) return;
  const auto saved = info[0].IsObject() ? ToSaved(info[0].As<Napi::Object>()) : std::nullopt;
  if (!saved || !histogram_.Restore(*saved)) {
    Napi::TypeError::New(info.Env(), "new Histogram() takes what save() gave").ThrowAsJavaScriptException();
  }
}

void HistogramObject::Finalize(Napi::Env env) { Napi::MemoryManagement::AdjustExternalMemory(env, -Histogram::kBytes); }

Napi::Value HistogramObject::Record(const Napi::CallbackInfo& info) {
  const auto ns = ToU64(info[0]);
  if (!ns || *ns > 9'000'000'000'000'000) {
    Napi::TypeError::New(info.Env(), "record() takes nanoseconds, 0 or more").ThrowAsJavaScriptException();
    return info.Env().Undefined();
  }
  histogram_.Record(*ns);
  return info.Env().Undefined();
}

Napi::Value HistogramObject::Merge(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (info[0].IsObject()) {
    const auto other = info[0].As<Napi::Object>();
    if (other.InstanceOf(env.GetInstanceData<AddonData>()->histogram.Value())) {
      histogram_.Merge(Unwrap(other)->histogram_);
      return env.Undefined();
    }
    // One of the other addon that has this class: what it holds has to come across as JS.
    Napi::Value save = other.Get("save");
    const Napi::Value saved = save.IsFunction() ? save.As<Napi::Function>().Call(other, {}) : env.Undefined();
    const auto theirs = saved.IsObject() ? ToSaved(saved.As<Napi::Object>()) : std::nullopt;
    Histogram merged;
    if (theirs && merged.Restore(*theirs)) {
      histogram_.Merge(merged);
      return env.Undefined();
    }
  }
  Napi::TypeError::New(env, "merge() takes a Histogram").ThrowAsJavaScriptException();
  return env.Undefined();
}

Napi::Value HistogramObject::Percentile(const Napi::CallbackInfo& info) {
  const double percent = info[0].ToNumber().DoubleValue();
  if (!(percent > 0 && percent <= 100)) {
    Napi::RangeError::New(info.Env(), "percentile() takes a number above 0, at most 100").ThrowAsJavaScriptException();
    return info.Env().Undefined();
  }
  return Napi::Number::New(info.Env(), static_cast<double>(histogram_.Percentile(percent)));
}

Napi::Value HistogramObject::Save(const Napi::CallbackInfo& info) {
  const Histogram::Saved saved = histogram_.Save();
  Napi::Array buckets = Napi::Array::New(info.Env(), saved.buckets.size() * 2);
  uint32_t at = 0;
  for (const auto& [middle, count] : saved.buckets) {
    buckets.Set(at++, static_cast<double>(middle));
    buckets.Set(at++, static_cast<double>(count));
  }
  Napi::Object js = Napi::Object::New(info.Env());
  js.Set("overflow", static_cast<double>(saved.overflow));
  js.Set("sumNs", static_cast<double>(saved.sum_ns));
  js.Set("minNs", static_cast<double>(saved.min_ns));
  js.Set("maxNs", static_cast<double>(saved.max_ns));
  js.Set("buckets", buckets);
  return js;
}

}  // namespace lunpath::bench
