// The engine without Node, for sanitizers, profilers and comparisons: one target, one line of JSON.
//
//   lunpath-bench --engine io_uring|libaio|pread|auto|null|iscsi|libiscsi [--path PATH] [--size BYTES]
//                 [--rw read|write] [--portal ADDRESS:PORT --target IQN --lun N] [--bs BYTES] [--iodepth N]
//                 [--numjobs N] [--runtime-ms N] [--ramp-ms N] [--rate IOPS] [--poisson] [--direct] [--random 0|1]
//                 [--verify] [--fsync N] [--fdatasync N] [--stuck-ms N]
//                 [--sample-ms N] [--seed N] [--cancel-after-ms N] [--repeat N]
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "bench/run.h"
#include "sys/clock.h"

namespace lunpath::bench {
namespace {

class Flags {
 public:
  Flags(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string name = argv[i];
      const bool has_value = i + 1 < argc && std::string(argv[i + 1]).rfind("--", 0) != 0;
      values_[name] = has_value ? argv[++i] : "1";
    }
  }
  std::string Text(const char* name, const char* otherwise) const {
    const auto found = values_.find(name);
    return found == values_.end() ? otherwise : found->second;
  }
  uint64_t Number(const char* name, uint64_t otherwise) const {
    return strtoull(Text(name, std::to_string(otherwise).c_str()).c_str(), nullptr, 10);
  }

 private:
  std::map<std::string, std::string> values_;
};

std::optional<JobSpec> ToJob(const Flags& flags) {
  const std::map<std::string, EngineKind> engines{{"auto", EngineKind::kAuto},     {"io_uring", EngineKind::kUring},
                                                  {"libaio", EngineKind::kLibaio}, {"pread", EngineKind::kPread},
                                                  {"iscsi", EngineKind::kIscsi},   {"libiscsi", EngineKind::kLibiscsi},
                                                  {"null", EngineKind::kNull}};
  const auto engine = engines.find(flags.Text("--engine", "auto"));
  if (engine == engines.end()) return std::nullopt;
  TargetSpec target;
  target.engine = engine->second;
  const uint64_t size = flags.Number("--size", 0);
  if (target.engine == EngineKind::kNull) {
    target.device = NullDevice{.size_bytes = size != 0 ? size : uint64_t{1} << 30};
  } else if (target.engine == EngineKind::kIscsi || target.engine == EngineKind::kLibiscsi) {
    target.device = IscsiDevice{.login = {.portal = flags.Text("--portal", ""),
                                          .target = flags.Text("--target", ""),
                                          .initiator = "iqn.2025-01.io.lunpath:bench",
                                          .lun = static_cast<int>(flags.Number("--lun", 1)),
                                          .chap = {}}};
  } else {
    target.device = PathDevice{.path = flags.Text("--path", ""), .direct = flags.Number("--direct", 0) != 0};
    target.size = size;
  }
  const Direction direction = flags.Text("--rw", "read") == "write" ? Direction::kWrite : Direction::kRead;
  target.mix[direction] = 100;
  target.block_sizes[direction] = {{.bytes = static_cast<uint32_t>(flags.Number("--bs", 4096)), .percent = 100}};
  target.pattern = flags.Number("--random", 1) != 0 ? Pattern::kUniform : Pattern::kSequential;
  target.iodepth = static_cast<uint32_t>(flags.Number("--iodepth", 1));
  target.numjobs = static_cast<uint32_t>(flags.Number("--numjobs", 1));
  target.iops = static_cast<double>(flags.Number("--rate", 0));
  if (target.iops > 0) target.pace = flags.Number("--poisson", 0) != 0 ? Pace::kPoisson : Pace::kFixed;
  target.fsync = flags.Number("--fsync", 0);
  target.fdatasync = flags.Number("--fdatasync", 0);
  target.verify = flags.Number("--verify", 0) != 0;
  target.errors_allowed = UINT64_MAX;
  JobSpec job;
  job.targets.push_back(std::move(target));
  job.runtime_ns = flags.Number("--runtime-ms", 1000) * kNsPerMs;
  job.ramp_ns = flags.Number("--ramp-ms", 0) * kNsPerMs;
  job.stuck_ns = flags.Number("--stuck-ms", 5000) * kNsPerMs;
  job.sample_ns = flags.Number("--sample-ms", 250) * kNsPerMs;
  job.seed = flags.Number("--seed", 1);
  return job;
}

void Print(const Report& report) {
  Histogram all;
  Histogram response;
  for (Direction direction : kMixed) {
    const auto& figures = report.total.directions[direction];
    if (!figures) continue;
    all.Merge(figures->service);
    response.Merge(figures->response);
  }
  const TargetReport& target = report.targets[0];
  const auto ios = static_cast<double>(all.count());
  printf("{\"state\": %d, \"engine\": \"%s\", \"flags\": \"", static_cast<int>(report.state), target.engine.c_str());
  for (const std::string& flag : target.engine_flags) printf("%s ", flag.c_str());
  printf("\", \"clock\": \"%s\", \"ios\": %.0f, \"elapsedNs\": %llu, \"iops\": %.0f, \"errors\": %llu, ",
         report.clock_is_tsc ? "tsc" : "monotonic", ios, static_cast<unsigned long long>(report.elapsed_ns),
         ios * 1e9 / static_cast<double>(std::max<uint64_t>(report.elapsed_ns, 1)),
         static_cast<unsigned long long>(report.total.errors));
  printf("\"meanNs\": %.0f, \"p50Ns\": %llu, \"p99Ns\": %llu, \"responseP99Ns\": %llu, \"little\": %.3f, ",
         all.mean_ns(), static_cast<unsigned long long>(all.Percentile(50)),
         static_cast<unsigned long long>(all.Percentile(99)), static_cast<unsigned long long>(response.Percentile(99)),
         target.little_in_flight);
  printf("\"verified\": %llu, \"verifyFailures\": %llu, \"firstCompletionNs\": %llu, ",
         static_cast<unsigned long long>(target.verify.verified),
         static_cast<unsigned long long>(target.verify.failures),
         static_cast<unsigned long long>(report.start_to_first_completion_ns));
  printf("\"threadsCpuNsPerIo\": %.1f, \"ioWorkersCpuNsPerIo\": %.1f, \"processCpuNsPerIo\": %.1f}\n",
         static_cast<double>(report.cpu.threads_ns) / ios, static_cast<double>(report.cpu.io_workers_ns) / ios,
         static_cast<double>(report.cpu.process_ns) / ios);
}

// The exit code.
int RunOnce(const JobSpec& job, uint64_t cancel_after_ms) {
  std::mutex mutex;
  std::condition_variable ended;
  std::optional<Result<Report>> result;
  auto run = std::make_shared<Run>(
      job, [](const Sample&) {},
      [&](Result<Report> outcome) {
        std::lock_guard lock(mutex);
        result = std::move(outcome);
        ended.notify_one();
      });
  run->Start();
  if (cancel_after_ms > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(cancel_after_ms));
    run->Cancel();
  }
  std::unique_lock lock(mutex);
  ended.wait(lock, [&] { return result.has_value(); });
  if (!result->ok()) {
    fprintf(stderr, "lunpath-bench: %s\n", result->error().message.c_str());
    return 1;
  }
  Print(result->value());
  return 0;
}

}  // namespace
}  // namespace lunpath::bench

int main(int argc, char** argv) {
  try {
    const lunpath::bench::Flags flags(argc, argv);
    const auto job = lunpath::bench::ToJob(flags);
    if (!job) {
      fprintf(stderr, "lunpath-bench: no such engine; native/bench/main.cc lists the flags\n");
      return 2;
    }
    int code = 0;
    for (uint64_t i = flags.Number("--repeat", 1); i > 0 && code == 0; --i) {
      code = lunpath::bench::RunOnce(*job, flags.Number("--cancel-after-ms", 0));
    }
    return code;
  } catch (const std::exception& error) {
    fprintf(stderr, "lunpath-bench: %s\n", error.what());
    return 1;
  }
}
