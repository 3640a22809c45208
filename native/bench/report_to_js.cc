#include "bench/report_to_js.h"

#include "bench/histogram_object.h"
#include "napi/error.h"

namespace lunpath::bench {
namespace {

const char* NameOfState(RunState state) {
  switch (state) {
    case RunState::kFinished:
      return "finished";
    case RunState::kCancelled:
      return "cancelled";
    case RunState::kFailed:
      return "failed";
    case RunState::kStuck:
      return "stuck";
    case RunState::kDeviceLost:
      return "device-lost";
  }
  return "";
}

const char* NameOfPhase(Phase phase) {
  switch (phase) {
    case Phase::kRamp:
      return "ramp";
    case Phase::kVerify:
      return "verify";
    case Phase::kRun:
    case Phase::kDrain:
    case Phase::kStopping:
      break;
  }
  return "run";
}

Napi::Number Number(Napi::Env env, uint64_t value) { return Napi::Number::New(env, static_cast<double>(value)); }

template <class List, class ToElement>
Napi::Array Array(Napi::Env env, const List& list, ToElement to_element) {
  Napi::Array js = Napi::Array::New(env, list.size());
  uint32_t at = 0;
  for (const auto& element : list) js.Set(at++, to_element(element));
  return js;
}

Napi::Object ToJs(Napi::Env env, const Histogram& service, const Histogram& response) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("service", HistogramObject::From(env, service));
  js.Set("response", HistogramObject::From(env, response));
  return js;
}

void SetFigures(Napi::Env env, Napi::Object js, const Figures& figures) {
  Napi::Object directions = Napi::Object::New(env);
  for (Direction direction : kMixed) {
    const auto& one = figures.directions[direction];
    if (!one) continue;
    Napi::Object of_direction = ToJs(env, one->service, one->response);
    of_direction.Set("ios", Number(env, one->service.count()));
    of_direction.Set("bytes", Number(env, one->bytes));
    of_direction.Set("shortIos", Number(env, one->short_ios));
    directions.Set(NameOf(direction), of_direction);
  }
  js.Set("directions", directions);
  if (const auto& flushes = figures.directions[Direction::kFlush]) {
    Napi::Object of_flushes = ToJs(env, flushes->service, flushes->response);
    of_flushes.Set("count", Number(env, flushes->service.count()));
    js.Set("flush", of_flushes);
  }
  js.Set("errors", Number(env, figures.errors));
}

Napi::Object ToJs(Napi::Env env, const Figures& figures) {
  Napi::Object js = Napi::Object::New(env);
  SetFigures(env, js, figures);
  return js;
}

Napi::Object ToJs(Napi::Env env, const DeviceFacts& device) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("wwid", device.wwid);
  js.Set("serial", device.serial);
  js.Set("vendor", device.vendor);
  js.Set("product", device.product);
  js.Set("sizeBytes", Number(env, device.size_bytes));
  js.Set("blockSizeBytes", device.block_bytes);
  return js;
}

Napi::Object ToJs(Napi::Env env, const OpenLoopFigures& figures) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("arrivals", Number(env, figures.arrivals));
  js.Set("maxBacklog", Number(env, figures.max_backlog));
  js.Set("unsubmitted", Number(env, figures.unsubmitted));
  js.Set("maxGeneratorLagNs", Number(env, figures.max_generator_lag_ns));
  js.Set("lateArrivals", Number(env, figures.late_arrivals));
  js.Set("generatorBehind", figures.generator_behind());
  return js;
}

Napi::Object ToJs(Napi::Env env, const VerifyFigures& figures) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("verified", Number(env, figures.verified));
  js.Set("failures", Number(env, figures.failures));
  js.Set("firstFailures", Array(env, figures.first_failures, [env](const VerifyFigures::Failure& failure) {
           Napi::Object one = Napi::Object::New(env);
           one.Set("offset", Number(env, failure.offset));
           one.Set("expectedGeneration", failure.expected_generation);
           one.Set("reason", failure.reason);
           return one;
         }));
  return js;
}

Napi::Array ToJs(Napi::Env env, const ErrorTally& tally) {
  return Array(env, tally.entries(), [env](const auto& keyed) {
    const auto& [key, entry] = keyed;
    Napi::Object one = Napi::Object::New(env);
    one.Set("direction", NameOf(key.first));
    one.Set("code", entry.error.code);
    one.Set("number", entry.error.number);
    one.Set("count", Number(env, entry.count));
    one.Set("firstOffsets", Array(env, entry.first_offsets, [env](uint64_t offset) { return Number(env, offset); }));
    return one;
  });
}

Napi::Object ToJs(Napi::Env env, const TargetReport& target, const std::string& name) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("name", name);
  js.Set("state", NameOfState(target.state));
  js.Set("engine", target.engine);
  js.Set("engineFlags",
         Array(env, target.engine_flags, [env](const std::string& flag) { return Napi::String::New(env, flag); }));
  js.Set("fallbackReason", target.fallback_reason);
  js.Set("device", ToJs(env, target.device));
  js.Set("elapsedNs", Number(env, target.elapsed_ns));
  js.Set("offsetBytes", Number(env, target.offset));
  js.Set("sizeBytes", Number(env, target.size));
  SetFigures(env, js, target.figures);
  js.Set("errorCounts", ToJs(env, target.errors));
  js.Set("unanswered", Number(env, target.unanswered));
  js.Set("openLoop", ToJs(env, target.open_loop));
  js.Set("verify", ToJs(env, target.verify));
  js.Set("littleInFlight", target.little_in_flight);
  js.Set("lastError", target.last_error.code.empty() ? env.Null() : ToJsError(env, target.last_error));
  return js;
}

}  // namespace

Napi::Value ToJs(Napi::Env env, const Sample& sample) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("fromNs", Number(env, sample.from_ns));
  js.Set("toNs", Number(env, sample.to_ns));
  js.Set("phase", NameOfPhase(sample.phase));
  js.Set("targets", Array(env, sample.targets, [env](const Figures& figures) { return ToJs(env, figures); }));
  js.Set("total", ToJs(env, sample.total));
  return js;
}

Napi::Value ToJs(Napi::Env env, const Report& report, const std::vector<std::string>& names) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("state", NameOfState(report.state));
  js.Set("clock", report.clock_is_tsc ? "tsc" : "monotonic");
  js.Set("elapsedNs", Number(env, report.elapsed_ns));
  js.Set("startToFirstCompletionNs", Number(env, report.start_to_first_completion_ns));
  size_t at = 0;
  js.Set("targets",
         Array(env, report.targets, [&](const TargetReport& target) { return ToJs(env, target, names[at++]); }));
  js.Set("total", ToJs(env, report.total));
  Napi::Object cpu = Napi::Object::New(env);
  cpu.Set("threadsNs", Number(env, report.cpu.threads_ns));
  cpu.Set("ioWorkersNs", Number(env, report.cpu.io_workers_ns));
  cpu.Set("processNs", Number(env, report.cpu.process_ns));
  cpu.Set("machineNs", Number(env, report.cpu.machine_ns));
  js.Set("cpu", cpu);
  return js;
}

}  // namespace lunpath::bench
