// A benchmark run: a supervisor's thread, and a thread for each job of each target.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/engine.h"
#include "bench/figures.h"
#include "bench/job.h"
#include "bench/worker.h"
#include "sys/result.h"

namespace lunpath::bench {

struct Sample {
  uint64_t from_ns = 0;  // since the run's first I/O
  uint64_t to_ns = 0;
  Phase phase = Phase::kRamp;
  std::vector<Figures> targets{};
  Figures total{};

  // `later` follows this one directly.
  void Append(const Sample& later);
};

struct TargetReport {
  RunState state = RunState::kFinished;
  std::string engine{};
  std::vector<std::string> engine_flags{};
  std::string fallback_reason{};
  DeviceFacts device{};
  uint64_t elapsed_ns = 0;  // a target that ends after so many I/Os may end before the run
  uint64_t offset = 0;
  uint64_t size = 0;
  Figures figures{};
  ErrorTally errors{};
  uint64_t unanswered = 0;
  OpenLoopFigures open_loop{};
  VerifyFigures verify{};
  double little_in_flight = 0;
  Error last_error{};  // with an empty code where there was none
};

// Between the begin of the runtime and its end.
struct CpuReport {
  uint64_t threads_ns = 0;
  uint64_t io_workers_ns = 0;
  uint64_t process_ns = 0;
  uint64_t machine_ns = 0;
};

struct Report {
  RunState state = RunState::kFinished;
  bool clock_is_tsc = false;
  uint64_t elapsed_ns = 0;
  uint64_t start_to_first_completion_ns = 0;
  std::vector<TargetReport> targets{};
  Figures total{};
  CpuReport cpu{};
};

// Start() and Cancel() may be called on any thread; the callbacks come on the supervisor's thread, `on_end` last and
// once. An error there means that nothing was measured: a device could not be opened, or is not the one expected
// (IDENTITY_MISMATCH), or the job does not fit it (ERANGE), or the run was cancelled before (ECANCELED).
class Run : public std::enable_shared_from_this<Run> {
 public:
  using OnSample = std::function<void(Sample)>;
  using OnEnd = std::function<void(Result<Report>)>;

  Run(JobSpec job, OnSample on_sample, OnEnd on_end);

  // The threads keep what they need alive and are not joined: a process that ends need not wait for a device that
  // hangs. Where there can be no thread, `on_end` has the error before this returns. It throws nothing.
  void Start();
  void Cancel();

 private:
  // One thread with what is known of it from outside.
  struct Crew {
    std::shared_ptr<Worker> worker;
    size_t target;
    // It was given up. Its counts are the supervisor's where they could be seized, else the thread's own, which nobody
    // else looks at: it may write to them at any time.
    bool given_up = false;
    bool seized = false;
    // When its counts were last looked at.
    bool stuck = false;
    uint64_t in_flight = 0;

    bool readable() const { return seized || !given_up; }
  };

  // What ends a wait besides its deadline.
  enum class Until : uint8_t { kCancel, kDeadline };

  Result<Report> Execute();
  Result<Report> Conduct();
  template <class T>
  std::optional<Result<T>> DoAside(uint64_t patience_ns, Until until, std::function<Result<T>()> work);
  Status OpenTarget(size_t index);
  Result<EngineChoice> Probe(size_t index);
  Status MakeCrew();
  Status AwaitReady();
  void CallOff();
  void Supervise();
  void Look(uint64_t now);
  void TakeFigures(Crew& member);
  void Stop(uint64_t now);
  static void GiveUp(Crew& member);
  void Deliver(uint64_t now);
  Sample EmptySample(uint64_t from_ns) const;
  void NoteCpu(CpuReport* cpu) const;
  Report MakeReport();
  void AddToReport(const Crew& member, Report* report) const;
  uint64_t ElapsedNs(size_t target) const;
  bool IsIdle(size_t target) const;
  void GiveBack();

  const std::shared_ptr<const JobSpec> job_;
  const OnSample on_sample_;
  const OnEnd on_end_;
  const uint64_t created_ns_;
  std::atomic<bool> cancelled_{false};
  const std::shared_ptr<Muster> muster_ = std::make_shared<Muster>();

  // The supervisor's own.
  std::vector<std::shared_ptr<PathTarget>> paths_;  // by target; they are held open until the run is over
  std::vector<EngineChoice> choices_;               // by target
  std::vector<Crew> crew_;
  uint64_t start_ns_ = 0;
  uint64_t run_begin_ns_ = 0;
  uint64_t run_end_ns_ = 0;
  uint64_t last_start_delay_ns_ = 0;  // by which the last target begins, and ends, after the first
  uint64_t end_ns_ = 0;
  uint64_t last_look_ns_ = 0;
  uint64_t stopping_since_ns_ = 0;  // 0: not
  Sample sample_;
  std::vector<Figures> figures_;  // by target, of the runtime
  std::optional<CpuReport> cpu_before_;
  CpuReport cpu_after_;
};

}  // namespace lunpath::bench
