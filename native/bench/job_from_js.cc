#include "bench/job_from_js.h"

#include <fcntl.h>

#include <string>
#include <string_view>
#include <utility>

#include "iscsi/params.h"
#include "sys/clock.h"

namespace lunpath::bench {
namespace {

uint64_t U64(const Napi::Object& js, const char* key) {
  return static_cast<uint64_t>(js.Get(key).ToNumber().Int64Value());
}

uint32_t U32(const Napi::Object& js, const char* key) { return js.Get(key).ToNumber().Uint32Value(); }

double Double(const Napi::Object& js, const char* key) { return js.Get(key).ToNumber().DoubleValue(); }

bool Bool(const Napi::Object& js, const char* key) { return js.Get(key).ToBoolean().Value(); }

std::string Text(const Napi::Object& js, const char* key) {
  Napi::Value value = js.Get(key);
  return value.IsString() ? value.As<Napi::String>().Utf8Value() : std::string();
}

Napi::Object Child(const Napi::Object& js, const char* key) { return js.Get(key).As<Napi::Object>(); }

template <class Value>
Value OneOf(const Napi::Object& js, const char* key, std::initializer_list<std::pair<std::string_view, Value>> words) {
  const std::string word = Text(js, key);
  for (const auto& [known, value] : words) {
    if (word == known) return value;
  }
  throw Napi::TypeError::New(js.Env(), std::string(key) + " is not " + word);
}

EngineKind ToEngine(const Napi::Object& device) {
  return OneOf<EngineKind>(device, "engine",
                           {{"auto", EngineKind::kAuto},
                            {"io_uring", EngineKind::kUring},
                            {"libaio", EngineKind::kLibaio},
                            {"pread", EngineKind::kPread},
                            {"iscsi", EngineKind::kIscsi},
                            {"libiscsi", EngineKind::kLibiscsi},
                            {"null", EngineKind::kNull}});
}

decltype(TargetSpec::device) ToDevice(const Napi::Object& js) {
  const std::string kind = Text(js, "kind");
  if (kind == "iscsi") return IscsiDevice{.login = iscsi::ToLoginParams(Child(js, "login"))};
  if (kind == "null") return NullDevice{.size_bytes = U64(js, "sizeBytes")};
  if (kind != "path") throw Napi::TypeError::New(js.Env(), "kind is not " + kind);
  const auto number = [&js](const char* key) { return js.Get(key).ToNumber().Int64Value(); };
  return PathDevice{.path = Text(js, "path"),
                    .direct = Bool(js, "direct"),
                    .exclusive = Bool(js, "exclusive"),
                    .sync_flag = OneOf<int>(js, "sync", {{"none", 0}, {"sync", O_SYNC}, {"dsync", O_DSYNC}}),
                    .expected_rdev = number("expectedRdev"),
                    .expected_dev = number("expectedDev"),
                    .expected_ino = number("expectedIno")};
}

std::vector<BlockSize> ToBlockSizes(const Napi::Value& js) {
  std::vector<BlockSize> sizes;
  const auto list = js.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto size = list.Get(i).As<Napi::Object>();
    sizes.push_back({.bytes = U32(size, "bytes"), .percent = Double(size, "percent")});
  }
  return sizes;
}

std::vector<Zone> ToZones(const Napi::Value& js) {
  std::vector<Zone> zones;
  const auto list = js.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto zone = list.Get(i).As<Napi::Object>();
    zones.push_back({.percent = Double(zone, "percent"),
                     .from_percent = U32(zone, "fromPercent"),
                     .to_percent = U32(zone, "toPercent")});
  }
  return zones;
}

uint64_t ToErrorsAllowed(const Napi::Object& policy) {
  const std::string kind = Text(policy, "kind");
  if (kind == "continue") return UINT64_MAX;
  return kind == "limit" ? U64(policy, "count") : 0;
}

TargetSpec ToTarget(const Napi::Object& js) {
  TargetSpec target;
  const Napi::Object device = Child(js, "device");
  target.device = ToDevice(device);
  target.engine = ToEngine(device);
  const Napi::Object mix = Child(js, "mix");
  const Napi::Object sizes = Child(js, "blockSizes");
  for (Direction direction : kMixed) {
    target.mix[direction] = Double(mix, NameOf(direction));
    if (target.Has(direction)) target.block_sizes[direction] = ToBlockSizes(sizes.Get(NameOf(direction)));
  }
  const Napi::Object distribution = Child(js, "distribution");
  target.pattern = OneOf<Pattern>(distribution, "kind",
                                  {{"sequential", Pattern::kSequential},
                                   {"uniform", Pattern::kUniform},
                                   {"shuffled", Pattern::kShuffled},
                                   {"zipf", Pattern::kZipf},
                                   {"pareto", Pattern::kPareto},
                                   {"zoned", Pattern::kZoned}});
  if (target.pattern == Pattern::kZipf) target.pattern_parameter = Double(distribution, "theta");
  if (target.pattern == Pattern::kPareto) target.pattern_parameter = Double(distribution, "h");
  if (target.pattern == Pattern::kZoned) target.zones = ToZones(distribution.Get("zones"));
  const Napi::Object order = Child(js, "order");
  target.order.align = U32(order, "alignBytes");
  target.order.step = order.Get("stepBytes").ToNumber().Int64Value();
  target.order.run_ios = U32(order, "runIos");
  target.order.run_stays = Bool(order, "runStays");
  target.order.random_percent = U32(order, "randomPercent");
  target.start_delay_ns = U64(js, "startDelayMs") * kNsPerMs;
  target.iodepth = U32(js, "iodepth");
  target.numjobs = U32(js, "numjobs");
  target.offset = U64(js, "offsetBytes");
  target.size = U64(js, "sizeBytes");
  target.offset_percent = U32(js, "offsetPercent");
  target.size_percent = U32(js, "sizePercent");
  target.offset_increment = U64(js, "offsetIncrementBytes");
  const Napi::Object stop = Child(js, "stop");
  target.stop_bytes = U64(stop, "bytes");
  target.stop_percent = U64(stop, "percent");
  target.stop_ios = U64(stop, "ios");
  const Napi::Object flush_after = Child(js, "flushAfter");
  target.fsync = U64(flush_after, "fsync");
  target.fdatasync = U64(flush_after, "fdatasync");
  const Napi::Object rate = Child(js, "rate");
  target.pace =
      OneOf<Pace>(rate, "kind", {{"closed", Pace::kClosed}, {"fixed", Pace::kFixed}, {"poisson", Pace::kPoisson}});
  if (target.pace != Pace::kClosed) target.iops = Double(rate, "iops");
  const Napi::Object think = Child(js, "thinkTime");
  target.think_ns = static_cast<uint64_t>(Double(think, "us") * 1000);
  target.think_blocks = U32(think, "blocks");
  target.verify = OneOf<bool>(js, "verify", {{"none", false}, {"crc32c", true}});
  target.errors_allowed = ToErrorsAllowed(Child(js, "onError"));
  target.expected_wwid = Text(js, "expectedWwid");
  target.expected_serial = Text(js, "expectedSerial");
  target.expected_size = U64(js, "expectedSizeBytes");
  return target;
}

}  // namespace

JobSpec ToJobSpec(const Napi::Object& js) {
  JobSpec job;
  const auto targets = js.Get("targets").As<Napi::Array>();
  for (uint32_t i = 0; i < targets.Length(); ++i) job.targets.push_back(ToTarget(targets.Get(i).As<Napi::Object>()));
  job.runtime_ns = U64(js, "runtimeMs") * kNsPerMs;
  job.ramp_ns = U64(js, "rampMs") * kNsPerMs;
  job.stuck_ns = U64(js, "stuckMs") * kNsPerMs;
  job.sample_ns = U64(js, "sampleMs") * kNsPerMs;
  job.verify_table_bytes = U64(js, "verifyTableBytes");
  bool lossless = true;
  job.seed = js.Get("seed").As<Napi::BigInt>().Uint64Value(&lossless);
  return job;
}

}  // namespace lunpath::bench
