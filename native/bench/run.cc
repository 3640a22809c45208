#include "bench/run.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "bench/clock.h"
#include "bench/cpu.h"
#include "bench/guard.h"
#include "bench/path_target.h"
#include "sys/thread.h"

namespace lunpath::bench {
namespace {

// How often the supervisor looks whether the threads get on.
constexpr uint64_t kLookNs = 50 * kNsPerMs;
// How long a probe may take that decides which engine a target gets.
constexpr uint64_t kProbeNs = kNsPerSecond;
// A thread that does not end so long after it was told to is given up, with its memory.
constexpr uint64_t kGraceNs = 45 * kNsPerMs;
constexpr char kThread[] = "A thread of the benchmark";

Error Cancelled() { return Error{.message = "Cancelled", .code = "ECANCELED", .number = ECANCELED}; }

template <class Predicate>
bool WaitFor(Muster& muster, std::unique_lock<std::mutex>& lock, uint64_t ns, Predicate predicate) {
  return muster.changed.wait_for(lock, std::chrono::nanoseconds(ns), predicate);
}

}  // namespace

void Sample::Append(const Sample& later) {
  to_ns = later.to_ns;
  phase = later.phase;
  for (size_t i = 0; i < targets.size(); ++i) targets[i].Merge(later.targets[i]);
  total.Merge(later.total);
}

Run::Run(JobSpec job, OnSample on_sample, OnEnd on_end)
    : job_(std::make_shared<const JobSpec>(std::move(job))),
      on_sample_(std::move(on_sample)),
      on_end_(std::move(on_end)),
      created_ns_(NowNs()) {}

void Run::Start() {
  const auto failure = StartThread([self = shared_from_this()]() noexcept { self->on_end_(self->Execute()); }, kThread);
  if (failure) on_end_(*failure);
}

void Run::Cancel() {
  std::lock_guard lock(muster_->mutex);
  cancelled_ = true;
  muster_->changed.notify_all();
}

Result<Report> Run::Execute() {
  Result<Report> report = Guarded([this] { return Conduct(); });
  if (report.ok()) return report;
  const Status called_off = Guarded([this]() -> Status {
    CallOff();
    return Nothing{};
  });
  return called_off.ok() ? report : called_off.error();
}

Result<Report> Run::Conduct() {
  const Clock& clock = Clock::Get();
  if (Status made = MakeCrew(); !made.ok()) return made.error();
  if (Status ready = AwaitReady(); !ready.ok()) return ready.error();
  const uint64_t before_start_ns = NowNs() - created_ns_;
  start_ns_ = clock.Now();
  run_begin_ns_ = start_ns_ + job_->ramp_ns;
  run_end_ns_ = run_begin_ns_ + job_->runtime_ns;
  for (const TargetSpec& spec : job_->targets)
    last_start_delay_ns_ = std::max(last_start_delay_ns_, spec.start_delay_ns);
  {
    std::lock_guard lock(muster_->mutex);
    muster_->start_ns = start_ns_;
    muster_->go = true;
    muster_->changed.notify_all();
  }
  Supervise();
  Report report = MakeReport();
  if (report.start_to_first_completion_ns > 0) report.start_to_first_completion_ns += before_start_ns;
  GiveBack();
  return report;
}

// Every thread of the target has ended, and every I/O has been answered.
bool Run::IsIdle(size_t target) const {
  return std::all_of(crew_.begin(), crew_.end(), [target](const Crew& member) {
    return member.target != target || (!member.given_up && member.worker->counts.in_flight == 0);
  });
}

// The run itself lives on until JS has let go of it; devices are free at its end. One that hangs stays claimed: the
// threads that were given up, and the kernel, have it open until the last I/O is in.
void Run::GiveBack() {
  for (size_t i = 0; i < paths_.size(); ++i) {
    if (!paths_[i] || !IsIdle(i)) continue;
    // The last close of a block device writes back what the page cache has of it, and hangs where the device does.
    DoAside<Nothing>(job_->stuck_ns, Until::kDeadline, [path = paths_[i]]() -> Status {
      path->Close();
      return Nothing{};
    });
  }
  paths_.clear();
  crew_.clear();
}

// Does what may hang in the kernel on a thread of its own. Nothing: it has not ended in that time, or the run was
// cancelled; the thread goes on by itself then, and what it gets is freed when it has it.
template <class T>
std::optional<Result<T>> Run::DoAside(uint64_t patience_ns, Until until, std::function<Result<T>()> work) {
  const auto result = std::make_shared<std::optional<Result<T>>>();  // under the muster's mutex
  auto body = [work = std::move(work), result, muster = muster_]() noexcept {
    Result<T> outcome = Guarded(work);
    std::lock_guard lock(muster->mutex);
    *result = std::move(outcome);
    muster->changed.notify_all();
  };
  if (auto failure = StartThread(std::move(body), kThread)) return Result<T>(std::move(*failure));
  std::unique_lock lock(muster_->mutex);
  WaitFor(*muster_, lock, patience_ns, [&] { return result->has_value() || (cancelled_ && until == Until::kCancel); });
  return std::exchange(*result, std::nullopt);
}

Status Run::OpenTarget(size_t index) {
  const TargetSpec& spec = job_->targets[index];
  const auto* device = std::get_if<PathDevice>(&spec.device);
  if (!device) return Nothing{};
  auto opened = DoAside<std::shared_ptr<PathTarget>>(
      job_->stuck_ns, Until::kCancel,
      [job = job_, device, writes = spec.writes()] { return PathTarget::Open(*device, writes); });
  if (!opened && cancelled_) return Cancelled();
  if (!opened) return ErrnoError(ETIMEDOUT, "open", device->path);
  if (!opened->ok()) return opened->error();
  paths_[index] = opened->value();
  return Nothing{};
}

Result<EngineChoice> Run::Probe(size_t index) {
  const auto enough = std::make_shared<std::atomic<bool>>(false);
  const auto engine = DoAside<EngineKind>(std::min(kProbeNs, job_->stuck_ns), Until::kCancel,
                                          [job = job_, index, path = paths_[index], enough]() -> Result<EngineKind> {
                                            return ProbeEngine(job->targets[index], path, *enough);
                                          });
  enough->store(true, std::memory_order_relaxed);
  if (!engine && cancelled_) return Cancelled();
  if (engine && !engine->ok()) return engine->error();
  // A device that does not answer is the run's own matter, which sees to it.
  if (!engine || engine->value() == EngineKind::kAuto) {
    return EngineChoice{.engine = EngineKind::kUring, .flags = {"unprobed"}};
  }
  return EngineChoice{.engine = engine->value(), .flags = {"probed"}};
}

Status Run::MakeCrew() {
  const size_t count = job_->targets.size();
  paths_.resize(count);
  choices_.resize(count);
  figures_.resize(count);
  size_t threads = 0;
  for (const TargetSpec& spec : job_->targets) threads += spec.numjobs;
  crew_.reserve(threads);
  for (size_t i = 0; i < count; ++i) {
    const TargetSpec& spec = job_->targets[i];
    if (Status opened = OpenTarget(i); !opened.ok()) return opened.error();
    auto choice = ChooseEngine(spec, paths_[i]);
    if (choice.ok() && choice.value().engine == EngineKind::kAuto) choice = Probe(i);
    if (!choice.ok()) return choice.error();
    choices_[i] = choice.value();
    for (uint32_t thread = 0; thread < spec.numjobs; ++thread) {
      // Seeds of neighbours must not be neighbours: the generator's own step is added to them.
      const uint64_t seed = Random(job_->seed ^ (uint64_t{i} << 32 | thread)).Next();
      WorkerContext context{.job = job_, .muster = muster_, .target = i, .thread = thread, .seed = seed};
      std::shared_ptr<Worker> worker = MakeWorker(std::move(context), choices_[i].engine, paths_[i]);
      if (!worker) return Error{.message = "This addon was built without libiscsi", .code = "ENOSYS", .number = ENOSYS};
      if (auto failure = StartThread([worker]() noexcept { worker->Execute(); }, kThread)) return std::move(*failure);
      crew_.push_back({.worker = std::move(worker), .target = i});
    }
  }
  return Nothing{};
}

Status Run::AwaitReady() {
  std::unique_lock lock(muster_->mutex);
  muster_->changed.wait(lock, [&] { return muster_->ready == crew_.size() || muster_->failed || cancelled_; });
  if (muster_->failed) return *muster_->failed;
  if (cancelled_) return Cancelled();
  return Nothing{};
}

// There will be no report. Threads that are still busy with a login are interrupted, and log out where they had logged
// in; any other stops. What hangs is left to itself.
void Run::CallOff() {
  constexpr uint64_t patience = 3 * kNsPerSecond;
  {
    std::lock_guard lock(muster_->mutex);
    muster_->called_off = true;
    muster_->changed.notify_all();
  }
  for (const Crew& member : crew_) member.worker->Stop();
  {
    std::unique_lock lock(muster_->mutex);
    WaitFor(*muster_, lock, patience, [&] { return muster_->ended == crew_.size(); });
  }
  for (Crew& member : crew_) {
    member.given_up = !member.worker->ended.load(std::memory_order_acquire);
    member.worker->turnstile.Seize();
  }
  GiveBack();
}

void Run::Supervise() {
  const Clock& clock = Clock::Get();
  sample_ = EmptySample(0);
  uint64_t next_sample = start_ns_ + job_->sample_ns;
  last_look_ns_ = start_ns_;
  bool end_announced = false;
  for (;;) {
    uint64_t now = clock.Now();
    if (!cpu_before_ && now >= run_begin_ns_) NoteCpu(&cpu_before_.emplace());
    uint64_t wake_at = std::min(now + kLookNs, next_sample);
    if (!cpu_before_) wake_at = std::min(wake_at, run_begin_ns_);
    const uint64_t last_end_ns = run_end_ns_ + last_start_delay_ns_;
    if (!end_announced) wake_at = std::min(wake_at, std::max(last_end_ns, now));
    if (stopping_since_ns_ != 0) wake_at = std::min(wake_at, stopping_since_ns_ + kGraceNs);
    bool all_ended = false;
    {
      std::unique_lock lock(muster_->mutex);
      const bool stopping = stopping_since_ns_ != 0;
      WaitFor(*muster_, lock, wake_at > now ? wake_at - now : 0,
              [&] { return muster_->ended == crew_.size() || (cancelled_ && !stopping); });
      all_ended = muster_->ended == crew_.size();
    }
    if (all_ended) break;
    now = clock.Now();
    if (cancelled_) Stop(now);
    if (!end_announced && now >= last_end_ns) {
      // A thread in closed loop sleeps without a deadline: it may not have seen the end come.
      for (const Crew& member : crew_) member.worker->Wake();
      end_announced = true;
    }
    Look(now);
    if (now >= next_sample) {
      for (Crew& member : crew_) TakeFigures(member);
      Deliver(now);
      next_sample = std::max(next_sample + job_->sample_ns, now + job_->sample_ns / 2);
    }
    if (stopping_since_ns_ != 0 && now >= stopping_since_ns_ + kGraceNs) {
      for (Crew& member : crew_) GiveUp(member);
      break;
    }
  }
  end_ns_ = clock.Now();
  NoteCpu(&cpu_after_);
  for (Crew& member : crew_) TakeFigures(member);
  Deliver(end_ns_);
}

// One that is not well ends all.
void Run::Look(uint64_t now) {
  // Where this thread was not run for long, the others may not have been either: their silence tells nothing.
  const bool overslept = now > last_look_ns_ + 4 * kLookNs;
  last_look_ns_ = now;
  for (Crew& member : crew_) {
    Worker& worker = *member.worker;
    if (worker.ended.load(std::memory_order_acquire)) {
      if (worker.counts.state != RunState::kFinished) Stop(now);
      continue;
    }
    if (overslept || !worker.turnstile.Take()) continue;
    Counts& counts = worker.counts;
    const bool stuck =
        counts.in_flight > 0 && counts.state == RunState::kFinished && now > counts.last_progress_ns + job_->stuck_ns;
    if (stuck) counts.state = RunState::kStuck;
    member.stuck = member.stuck || stuck;
    member.in_flight = counts.in_flight;
    worker.turnstile.Give();
    if (stuck) Stop(now);
  }
}

void Run::Stop(uint64_t now) {
  if (stopping_since_ns_ != 0) return;
  stopping_since_ns_ = now;
  for (const Crew& member : crew_) member.worker->Stop();
}

// A thread that has not ended hangs in the kernel, or has not been run. It may issue nothing and touch no figures any
// more, and is left to itself with the memory that the kernel may still write to.
void Run::GiveUp(Crew& member) {
  Worker& worker = *member.worker;
  if (worker.ended.load(std::memory_order_acquire)) return;
  member.given_up = true;
  member.seized = worker.turnstile.Take();
  worker.turnstile.Seize();
  if (!member.seized) return;
  Counts& counts = worker.counts;
  if (counts.state == RunState::kFinished) counts.state = RunState::kCancelled;
  timespec used{};
  if (counts.cpu_clock && clock_gettime(*counts.cpu_clock, &used) == 0) {
    counts.cpu_ns = static_cast<uint64_t>(used.tv_sec) * kNsPerSecond + static_cast<uint64_t>(used.tv_nsec) -
                    counts.cpu_before_run_ns;
  }
}

void Run::TakeFigures(Crew& member) {
  Worker& worker = *member.worker;
  if (!member.readable()) return;
  const bool ours = member.seized || worker.ended.load(std::memory_order_acquire);
  if (!ours && !worker.turnstile.Take()) return;
  Counts& counts = worker.counts;
  Figures& of_sample = sample_.targets[member.target];
  const bool open = job_->targets[member.target].pace != Pace::kClosed;
  for (Figures* figures : {&counts.ramp, &counts.run, &counts.verify_reads}) {
    if (figures == &counts.verify_reads && counts.phase < Phase::kVerify) continue;
    if (!open) figures->ServiceIsResponse();
    of_sample.Merge(*figures);
    if (figures == &counts.run) figures_[member.target].Merge(*figures);
    figures->Clear();
  }
  sample_.phase = std::max(sample_.phase, counts.phase);
  if (!ours) worker.turnstile.Give();
}

void Run::Deliver(uint64_t now) {
  sample_.to_ns = now - start_ns_;
  for (const Figures& target : sample_.targets) sample_.total.Merge(target);
  on_sample_(std::exchange(sample_, EmptySample(sample_.to_ns)));
}

// With every direction: a thread whose figures cannot be had for a while has zeros.
Sample Run::EmptySample(uint64_t from_ns) const {
  Sample sample;
  sample.from_ns = from_ns;
  for (const TargetSpec& spec : job_->targets) sample.targets.emplace_back(spec);
  return sample;
}

void Run::NoteCpu(CpuReport* cpu) const {
  cpu->process_ns = ProcessCpuNs();
  cpu->machine_ns = MachineCpuNs();
}

uint64_t Run::ElapsedNs(size_t target) const {
  const TargetSpec& spec = job_->targets[target];
  const uint64_t begin = run_begin_ns_ + spec.start_delay_ns;
  uint64_t last = begin;
  bool unanswered = false;
  bool open = false;
  for (const Crew& member : crew_) {
    if (member.target != target) continue;
    unanswered = unanswered || !member.readable();
    if (!member.readable()) continue;
    const Counts& counts = member.worker->counts;
    last = std::max(last, counts.last_completion_ns);
    unanswered = unanswered || counts.in_flight > 0;
    open = open || (spec.pace != Pace::kClosed && !spec.bounded() && counts.state == RunState::kFinished);
  }
  if (unanswered) last = std::max(last, end_ns_);
  // A schedule has its length also where its last arrival comes before the end.
  if (open) last = std::max(last, begin + job_->runtime_ns);
  return last - begin;
}

Report Run::MakeReport() {
  Report report;
  report.clock_is_tsc = Clock::Get().is_tsc();
  report.targets.resize(job_->targets.size());
  for (size_t i = 0; i < report.targets.size(); ++i) {
    TargetReport& target = report.targets[i];
    target.figures = Figures(job_->targets[i]);
    target.figures.Merge(figures_[i]);
    target.fallback_reason = choices_[i].fallback_reason;
    report.total.Merge(target.figures);
  }
  for (const Crew& member : crew_) AddToReport(member, &report);
  for (size_t i = 0; i < report.targets.size(); ++i) {
    report.targets[i].elapsed_ns = ElapsedNs(i);
    report.elapsed_ns = std::max(report.elapsed_ns, report.targets[i].elapsed_ns);
  }
  if (cpu_before_) {
    report.cpu.process_ns = cpu_after_.process_ns - cpu_before_->process_ns;
    report.cpu.machine_ns = cpu_after_.machine_ns - cpu_before_->machine_ns;
  }
  for (size_t i = 0; i < report.targets.size(); ++i) {
    TargetReport& target = report.targets[i];
    report.state = std::max(report.state, target.state);
    // Targets that go on to the end of the run share its length.
    if (!job_->targets[i].bounded()) target.elapsed_ns = report.elapsed_ns;
    if (job_->targets[i].pace != Pace::kClosed || target.elapsed_ns == 0) continue;
    double latency_ns = 0;
    for (const auto& figures : target.figures.directions) {
      if (figures) latency_ns += figures->service.mean_ns() * static_cast<double>(figures->service.count());
    }
    target.little_in_flight = latency_ns / static_cast<double>(target.elapsed_ns);
  }
  return report;
}

void Run::AddToReport(const Crew& member, Report* report) const {
  const Worker& worker = *member.worker;
  TargetReport& target = report->targets[member.target];
  // From where the first thread's range begins to where the last one's ends.
  if (target.engine.empty()) target.offset = worker.range_offset();
  target.size = std::max(target.size, worker.range_offset() + worker.range_bytes() - target.offset);
  target.engine = worker.engine_name();
  target.engine_flags = worker.engine_flags();
  for (const std::string& flag : choices_[member.target].flags) target.engine_flags.push_back(flag);
  target.device = worker.device();
  if (!member.readable()) {
    target.state = std::max(target.state, member.stuck ? RunState::kStuck : RunState::kCancelled);
    target.unanswered += member.in_flight;
    target.last_error = Error{.message = "A thread did not stop: what it did since the last sample is missing",
                              .code = "ETIMEDOUT",
                              .number = ETIMEDOUT};
    return;
  }
  if (!worker.fallback_reason().empty()) target.fallback_reason = worker.fallback_reason();
  const Counts& counts = worker.counts;
  target.state = std::max(target.state, counts.state);
  target.errors.Merge(counts.errors);
  target.unanswered += counts.in_flight + counts.cancelled;
  target.open_loop.Merge(counts.open_loop);
  target.verify.Merge(counts.verify);
  if (!counts.last_error.code.empty()) target.last_error = counts.last_error;
  report->cpu.threads_ns += counts.cpu_ns;
  report->cpu.io_workers_ns += counts.io_workers_ns;
  uint64_t& first = report->start_to_first_completion_ns;
  if (counts.first_completion_ns != 0) {
    const uint64_t took = counts.first_completion_ns - start_ns_;
    first = first == 0 ? std::max<uint64_t>(took, 1) : std::min(first, std::max<uint64_t>(took, 1));
  }
}

}  // namespace lunpath::bench
