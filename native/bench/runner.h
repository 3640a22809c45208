// A benchmark run on a thread of its own: keeps `iodepth` reads in flight (closed loop) until the time is up.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "bench/engine.h"
#include "bench/histogram.h"
#include "sys/result.h"

namespace lunpath::bench {

struct JobSpec {
  bool random = true;
  uint32_t bs = 4096;  // bytes
  uint32_t iodepth = 1;
  uint64_t runtime_ns = 0;
  uint64_t offset = 0;  // bytes
  uint64_t size = 0;    // bytes; 0: up to the device's end
  uint64_t seed = 0;
  uint64_t stuck_ns = 0;   // without a completion for so long the device counts as stuck
  uint64_t sample_ns = 0;  // interval of the samples
  // What the device must be; empty or 0: anything.
  std::string expected_wwid;
  std::string expected_serial;
  uint64_t expected_size = 0;
};

struct Sample {
  uint64_t from_ns = 0;  // since the run's first I/O
  uint64_t to_ns = 0;
  uint64_t errors = 0;
  Histogram latency{};

  // `later` follows this one directly.
  void Append(const Sample& later) {
    to_ns = later.to_ns;
    errors += later.errors;
    latency.Merge(later.latency);
  }
};

enum class RunState : uint8_t { kFinished, kCancelled, kDeviceLost, kStuck };

struct Report {
  RunState state = RunState::kFinished;
  DeviceFacts device;
  uint64_t elapsed_ns = 0;     // first submission to last completion
  uint64_t errors = 0;         // reads that completed with an error; not in `latency`
  uint64_t unanswered = 0;     // reads in flight when the run ended
  uint64_t thread_cpu_ns = 0;  // of the run's thread, user and system, between the same two moments
  Error last_error;            // with an empty code where there was none
  Histogram latency;           // submission to completion of each good read
};

// Start() and Cancel() may be called on any thread; the callbacks come on the run's thread, `on_end` last and once. An
// error there means that nothing was measured: the device could not be opened, or is not the one expected
// (IDENTITY_MISMATCH), or the job does not fit it (ERANGE).
class Run : public std::enable_shared_from_this<Run> {
 public:
  using OnSample = std::function<void(Sample)>;
  using OnEnd = std::function<void(Result<Report>)>;

  Run(std::unique_ptr<Engine> engine, JobSpec job, OnSample on_sample, OnEnd on_end);

  // The thread keeps the run alive and is not joined: a process that ends need not wait for a target that hangs.
  void Start();
  void Cancel();

 private:
  Result<Report> Execute();
  Status CheckDevice(const DeviceFacts& device);
  void Measure(Report* report);

  std::unique_ptr<Engine> engine_;
  JobSpec job_;
  OnSample on_sample_;
  OnEnd on_end_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace lunpath::bench
