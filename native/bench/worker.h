// One thread of a run, as its supervisor sees it.
#pragma once

#include <time.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bench/engine.h"
#include "bench/figures.h"
#include "bench/job.h"
#include "bench/turnstile.h"
#include "sys/result.h"

namespace lunpath::bench {

class PathTarget;

enum class Phase : uint8_t { kRamp, kRun, kDrain, kVerify, kStopping };

// What a worker counts, under its turnstile.
struct Counts {
  // I/Os that were answered in the ramp, in the runtime and after it, and while what was written is read back.
  Figures ramp;
  Figures run;
  Figures verify_reads;
  ErrorTally errors;
  OpenLoopFigures open_loop;
  VerifyFigures verify;
  Phase phase = Phase::kRamp;
  RunState state = RunState::kFinished;
  Error last_error;
  uint64_t in_flight = 0;
  uint64_t cancelled = 0;                // ended at our own wish, when the run was stopped
  uint64_t last_progress_ns = 0;         // last completion, or submission while nothing was in flight
  uint64_t last_completion_ns = 0;       // of those in `run`
  uint64_t first_completion_ns = 0;      // 0: none yet
  uint64_t cpu_before_run_ns = 0;        // of the thread and its helpers, when the runtime began
  uint64_t cpu_ns = 0;                   // from then on, once the loop has ended
  uint64_t io_workers_ns = 0;            // of the kernel's threads for it, in the same time
  std::optional<clockid_t> cpu_clock{};  // the thread's
};

// Where the threads of a run meet: all wait for the last to be ready, and begin together.
struct Muster {
  std::mutex mutex;  // guards all below
  std::condition_variable changed;
  uint32_t ready = 0;
  uint32_t ended = 0;
  std::optional<Error> failed;  // the first that could not get ready
  bool go = false;
  bool called_off = false;
  uint64_t start_ns = 0;
};

// What a worker gets. It outlives the run where the worker hangs.
struct WorkerContext {
  std::shared_ptr<const JobSpec> job;
  std::shared_ptr<Muster> muster;
  size_t target = 0;    // its index in the job
  uint32_t thread = 0;  // of that target
  uint64_t seed = 0;

  const TargetSpec& spec() const { return job->targets[target]; }
};

class Worker {
 public:
  virtual ~Worker() = default;

  // The whole life of the worker's thread. Where I/Os are left behind it may never return.
  virtual void Execute() = 0;
  // Ends a wait. Any thread.
  virtual void Wake() = 0;

  // The supervisor's: issue no more, cancel what is in flight, end soon.
  void Stop() {
    stop_.store(true, std::memory_order_relaxed);
    Wake();
  }

  // Fixed once the worker is ready.
  const DeviceFacts& device() const { return device_; }
  const std::string& engine_name() const { return engine_name_; }
  const std::vector<std::string>& engine_flags() const { return engine_flags_; }
  // Where the device made the engine another one: why.
  const std::string& fallback_reason() const { return fallback_reason_; }
  uint64_t range_offset() const { return range_offset_; }
  uint64_t range_bytes() const { return range_bytes_; }

  Turnstile turnstile;
  Counts counts;                   // under the turnstile, or once `ended`
  std::atomic<bool> ended{false};  // the thread touches nothing of this any more

 protected:
  DeviceFacts device_;
  std::string engine_name_;
  std::vector<std::string> engine_flags_;
  std::string fallback_reason_;
  uint64_t range_offset_ = 0;
  uint64_t range_bytes_ = 0;
  std::atomic<bool> stop_{false};
};

// A worker for an engine of its own. `path` for targets that are paths. With iSCSI only where that is built in.
std::unique_ptr<Worker> MakeWorker(WorkerContext context, EngineKind engine, std::shared_ptr<PathTarget> path);

// Which engine a target gets, and why not a better one. `path` for targets that are paths. kAuto: a probe decides.
struct EngineChoice {
  EngineKind engine = EngineKind::kAuto;
  std::vector<std::string> flags{};
  std::string fallback_reason{};
};
Result<EngineChoice> ChooseEngine(const TargetSpec& spec, const std::shared_ptr<PathTarget>& path);

// Whether io_uring or pread(2) costs less for one I/O at a time, by some reads of each. kAuto: the reads failed, or
// `enough` became true meanwhile. It waits as long as the device lets it wait.
EngineKind ProbeEngine(const TargetSpec& spec, const std::shared_ptr<PathTarget>& path,
                       const std::atomic<bool>& enough);

}  // namespace lunpath::bench
