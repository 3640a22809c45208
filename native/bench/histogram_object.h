// Histograms as JS objects.
#pragma once

#include <napi.h>

#include "bench/histogram.h"

namespace lunpath::bench {

// What this addon keeps per environment, so that it loads in several at once.
struct AddonData {
  Napi::FunctionReference histogram;
};

// src/bench/native.ts documents it. Main thread.
class HistogramObject : public Napi::ObjectWrap<HistogramObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  static Napi::Object From(Napi::Env env, const Histogram& histogram);

  // new Histogram(saved?)
  explicit HistogramObject(const Napi::CallbackInfo& info);
  void Finalize(Napi::Env env) override;

 private:
  Napi::Value Record(const Napi::CallbackInfo& info);
  Napi::Value Merge(const Napi::CallbackInfo& info);
  Napi::Value Percentile(const Napi::CallbackInfo& info);
  Napi::Value Save(const Napi::CallbackInfo& info);
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

}  // namespace lunpath::bench
