// The run loop of one thread, compiled for each engine.
#pragma once

#include <pthread.h>
#include <sys/prctl.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bench/clock.h"
#include "bench/fit.h"
#include "bench/guard.h"
#include "bench/open_loop.h"
#include "bench/verify.h"
#include "bench/worker.h"
#include "bench/workload.h"

namespace lunpath::bench {

template <Engine E>
class Loop final : public Worker {
 public:
  template <class... Args>
  explicit Loop(WorkerContext context, Args&&... args)
      : context_(std::move(context)), spec_(context_.spec()), engine_(std::forward<Args>(args)...) {}

  void Wake() override { engine_.Wake(); }

  void Execute() override {
    pthread_setname_np(pthread_self(), "lunpath-bench");
    // Deadlines of an open loop are met to the microsecond, not to the 50 that a thread gets by default (prctl(2)).
    prctl(PR_SET_TIMERSLACK, 1);
    const Status ready = Guarded([this] { return GetReady(); });
    Muster& muster = *context_.muster;
    uint64_t start = 0;
    bool measure = false;
    {
      std::unique_lock lock(muster.mutex);
      ++muster.ready;
      if (!ready.ok() && !muster.failed) muster.failed = ready.error();
      muster.changed.notify_all();
      muster.changed.wait(lock, [&] { return muster.go || muster.called_off; });
      measure = muster.go && !muster.called_off;
      start = muster.start_ns;
    }
    if (measure && !MeasureGuarded(start)) {
      LeaveBehind();
      return;
    }
    const bool in_order = counts.in_flight == 0 && counts.state != RunState::kDeviceLost;
    // For good: from here on the figures are whoever's has a use for them.
    turnstile.Leave();
    if (in_order) {
      engine_.Close();
    } else {
      LeaveBehind();
    }
    std::lock_guard lock(muster.mutex);
    ended.store(true, std::memory_order_release);
    ++muster.ended;
    muster.changed.notify_all();
  }

 private:
  // Closer than this it waits by looking, not by sleeping.
  static constexpr uint64_t kSpinNs = 20'000;
  // I/Os in flight at a stop get this long to come in, so that a healthy device is given back in order.
  static constexpr uint64_t kStopDrainNs = 30 * kNsPerMs;

  struct Slot {
    uint64_t submitted;
    uint64_t intended;
    uint64_t offset;
    uint32_t bytes;
    uint32_t done;  // of a short answer
    Direction direction;
  };

  struct DueFlush {
    uint64_t since;
    bool data_only;
  };

  Status GetReady() {
    auto device = engine_.Open();
    if (!device.ok()) return device.error();
    device_ = device.value();
    auto range = FitToDevice(spec_, device_, context_.thread);
    if (!range.ok()) return range.error();
    range_ = range.value();
    range_offset_ = range_.offset;
    range_bytes_ = range_.size;
    if (!buffers_.Map(spec_.iodepth, spec_.LargestBlock()))
      return ErrnoError(errno, "mmap", "Buffers of the benchmark");
    if (spec_.Has(Direction::kWrite)) buffers_.FillRandomly(context_.seed);
    if (Status prepared = engine_.Prepare(spec_.iodepth, buffers_); !prepared.ok()) return prepared;
    engine_name_ = engine_.name();
    engine_flags_ = engine_.flags();
    if constexpr (requires { engine_.fallback_reason(); }) fallback_reason_ = engine_.fallback_reason();
    if (spec_.verify) {
      verifier_.emplace(Verifier::Params{.offset = range_.offset,
                                         .size = range_.size,
                                         .block_bytes = spec_.LargestBlock(),
                                         .seed = context_.seed,
                                         .iodepth = spec_.iodepth,
                                         .table_bytes = context_.job->verify_table_bytes});
      if (!verifier_->valid()) return ErrnoError(ENOMEM, "mmap", "Generations of the blocks to verify");
    }
    workload_.emplace(spec_, range_, context_.seed);
    if (open_) {
      const double share = static_cast<double>(context_.thread) / spec_.numjobs;
      open_loop_.emplace(Arrivals(spec_.pace, spec_.iops / spec_.numjobs, share, context_.seed + 1));
    }
    slots_.resize(spec_.iodepth);
    free_.resize(spec_.iodepth);
    for (uint32_t i = 0; i < spec_.iodepth; ++i) free_[i] = spec_.iodepth - 1 - i;
    free_count_ = spec_.iodepth;
    if (spec_.flushes()) data_only_.resize(spec_.iodepth);
    counts.ramp = counts.run = Figures(spec_);
    counts.verify_reads.directions[Direction::kRead].emplace();
    clockid_t cpu_clock;
    if (pthread_getcpuclockid(pthread_self(), &cpu_clock) == 0) counts.cpu_clock = cpu_clock;
    return Nothing{};
  }

  // I/Os are in flight: the kernel may read and write the buffers for as long as it likes.
  void LeaveBehind() {
    engine_.Abandon();
    buffers_.Leak();
  }

  // What is thrown within the turnstile ends the run. Where the worker was given up meanwhile, nobody asks for it.
  bool MeasureGuarded(uint64_t start) {
    const auto measured = Guarded([this, start]() -> Result<bool> { return Measure(start); });
    if (measured.ok()) return measured.value();
    counts.last_error = measured.error();
    counts.state = RunState::kFailed;
    return true;
  }

  // False: the supervisor has given this thread up, and what it counted is no longer its own.
  bool Measure(uint64_t start) {
    start_ = start + spec_.start_delay_ns;
    run_begin_ = start_ + context_.job->ramp_ns;
    run_end_ = run_begin_ + context_.job->runtime_ns;
    think_until_ = start_;
    counts.last_progress_ns = start_;
    if (open_) open_loop_->Begin(start_, run_begin_, run_end_);
    issuing_ = true;
    Enter(Phase::kRamp, run_begin_, &counts.ramp);

    for (;;) {
      uint64_t now = clock_.Now();
      if (now >= mark_) [[unlikely]]
        PassMark();
      if (stop_.load(std::memory_order_relaxed) && counts.phase != Phase::kStopping) [[unlikely]]
        BeginStop(now);
      if (quit_) [[unlikely]]
        break;
      uint64_t wake_at = issuing_ ? Issue(now) : kNever;
      if (counts.in_flight == 0 && !issuing_) [[unlikely]] {
        if (!ReadBack()) break;
        continue;
      }
      if (wake_at != kNever || !issuing_ || counts.in_flight == 0) wake_at = std::min(wake_at, mark_);
      const bool wait = wake_at == kNever || wake_at > now + kSpinNs;

      if (!turnstile.Leave()) return false;
      const bool alive = Exchange(wait, wait && wake_at != kNever ? wake_at - kSpinNs : wake_at);
      if (!turnstile.Enter()) return false;

      now = clock_.Now();
      const uint64_t in_flight = counts.in_flight;
      engine_.Reap(now, [this](uint32_t slot, int64_t result, uint64_t at) { Complete(slot, result, at); });
      if (counts.in_flight != in_flight) counts.last_progress_ns = now;
      if (!alive) [[unlikely]] {
        counts.last_error = thrown_ ? *thrown_ : engine_.loss();
        counts.state = thrown_ ? RunState::kFailed : RunState::kDeviceLost;
        break;
      }
      if (counts.state == RunState::kDeviceLost) [[unlikely]]
        break;
    }
    counts.cpu_ns = CpuNs() - counts.cpu_before_run_ns;
    counts.io_workers_ns = engine_.KernelThreadsCpuNs() - io_workers_before_ns_;
    return true;
  }

  // Outside the turnstile: what is thrown here must not be noted before it is entered again.
  bool Exchange(bool wait, uint64_t deadline) {
    try {
      return engine_.Exchange(wait, deadline);
    } catch (...) {
      NoteThrown();
      return false;
    }
  }
  [[gnu::noinline, gnu::cold]] void NoteThrown() { thrown_ = Thrown(); }

  uint64_t CpuNs() const { return ThreadCpuNs() + engine_.HelpersCpuNs(); }

  void Enter(Phase phase, uint64_t mark, Figures* figures) {
    counts.phase = phase;
    mark_ = mark;
    if (!figures) return;
    for (Direction direction : kEachDirection) {
      auto& one = figures->directions[direction];
      figures_[direction] = one ? &*one : nullptr;
    }
    errors_ = &figures->errors;
  }

  void PassMark() {
    switch (counts.phase) {
      case Phase::kRamp:
        counts.cpu_before_run_ns = CpuNs();
        if (context_.job->ramp_ns > 0) io_workers_before_ns_ = engine_.KernelThreadsCpuNs();
        SetBounds();
        Enter(Phase::kRun, run_end_, &counts.run);
        break;
      case Phase::kRun:
        // In open loop what was due by now is still submitted: to forget it would hide the worst delays.
        if (!open_) issuing_ = false;
        Enter(Phase::kDrain, run_end_ + context_.job->stuck_ns, nullptr);
        break;
      case Phase::kDrain:
        if (issuing_) open_loop_->GiveUp(&counts.open_loop);
        issuing_ = false;
        mark_ = kNever;  // the supervisor sees to I/Os that get no answer
        break;
      case Phase::kVerify:
        mark_ = kNever;
        break;
      case Phase::kStopping:
        quit_ = true;
        break;
    }
  }

  void BeginStop(uint64_t now) {
    if (counts.state == RunState::kFinished) counts.state = RunState::kCancelled;
    issuing_ = false;
    if (counts.in_flight > 0) engine_.CancelAll();
    Enter(Phase::kStopping, now + kStopDrainNs, nullptr);
  }

  // Submits what is due. Returns when there will be more; kNever: after a completion.
  uint64_t Issue(uint64_t now) {
    if (counts.phase == Phase::kVerify) return IssueReadBack(now);
    if (open_) return IssueArrivals(now);
    if (ReachedBound()) [[unlikely]] {
      issuing_ = false;
      return kNever;
    }
    if (now < think_until_) return think_until_;
    while (free_count_ > 0 && !ReachedBound() && Submit(now, now)) {
    }
    return kNever;
  }

  // The thread ends after so much, counted from here.
  void SetBounds() {
    uint64_t bytes = spec_.stop_bytes;
    if (spec_.stop_percent > 0) bytes = std::max<uint64_t>(range_.size * spec_.stop_percent / 100, 1);
    if (spec_.stop_percent == 100) bytes = OnceThrough();
    if (bytes > 0) bytes_left_ = static_cast<int64_t>(bytes);
    if (spec_.stop_ios > 0) ios_left_ = static_cast<int64_t>(spec_.stop_ios);
  }

  // As fio: where blocks do not fill the range, the rest of it is left out where there is nothing behind it or each
  // block has its turn once; with steps, one way through a range within the device is all.
  uint64_t OnceThrough() const {
    const uint32_t block = spec_.SmallestBlock();
    const uint64_t whole = range_.size / block * block;
    const bool is_sequential = spec_.pattern == Pattern::kSequential;
    const bool at_end = range_.offset + range_.size == device_.size_bytes;
    if (is_sequential && spec_.order.step > 0 && !at_end && block == spec_.LargestBlock()) {
      const uint64_t stride = block + static_cast<uint64_t>(spec_.order.step);
      return (range_.size + stride - 1) / stride * block;
    }
    if (spec_.pattern == Pattern::kShuffled || (is_sequential && at_end)) return whole;
    return range_.size;
  }

  bool ReachedBound() const { return bytes_left_ <= 0 || ios_left_ <= 0; }

  uint64_t IssueArrivals(uint64_t now) {
    for (;;) {
      const auto due = open_loop_->Due();
      if (!due || ReachedBound()) {
        issuing_ = false;
        return kNever;
      }
      if (due_flush_ && free_count_ > 0) [[unlikely]]
        StartFlush(now);
      if (*due > now) return *due;
      if (free_count_ == 0) {
        open_loop_->Blocked(now, &counts.open_loop);
        return kNever;
      }
      if (!Submit(*due, now)) return kNever;
      open_loop_->Submitted(now, &counts.open_loop);
    }
  }

  // After the runtime of a job that verifies. False: there is nothing left to do.
  bool ReadBack() {
    // In open loop the last arrival may be answered before the runtime is over.
    const bool done = counts.phase == Phase::kRun || counts.phase == Phase::kDrain;
    if (!verifier_ || !done || counts.state != RunState::kFinished) return false;
    Enter(Phase::kVerify, kNever, &counts.verify_reads);
    read_back_at_ = range_.offset;
    issuing_ = true;
    return true;
  }

  uint64_t IssueReadBack(uint64_t now) {
    const uint32_t bytes = spec_.LargestBlock();
    while (free_count_ > 0) {
      const auto next = verifier_->NextKnown(read_back_at_);
      if (!next) {
        issuing_ = false;
        break;
      }
      verifier_->Lock(*next);
      Start({.direction = Direction::kRead, .bytes = bytes, .offset = *next}, now, now);
      read_back_at_ = *next + bytes;
    }
    return kNever;
  }

  // False: not now, since an I/O for the same block is in flight and will be answered.
  bool Submit(uint64_t intended, uint64_t now) {
    if (is_plain_) [[likely]] {
      Start(workload_->Next(), intended, now);
      return true;
    }
    return SubmitWithCare(intended, now);
  }

  [[gnu::noinline]] bool SubmitWithCare(uint64_t intended, uint64_t now) {
    // As fio: a flush that is due goes before the next I/O, and waits for none that is in flight.
    if (due_flush_) {
      StartFlush(now);
      return true;
    }
    if (!held_back_) held_back_ = workload_->Next();
    if (verifier_) {
      if (held_back_->direction == Direction::kWrite && !verifier_->HasRoom(held_back_->offset)) [[unlikely]] {
        FailForRoom();
        return false;
      }
      if (!verifier_->Lock(held_back_->offset)) return false;
    }
    const Workload::Io io = *std::exchange(held_back_, std::nullopt);
    Start(io, intended, now);
    if (io.direction == Direction::kWrite) NoteWrite(now);
    return true;
  }

  void NoteWrite(uint64_t now) {
    ++writes_;
    const bool all = spec_.fsync > 0 && writes_ % spec_.fsync == 0;
    const bool data = spec_.fdatasync > 0 && writes_ % spec_.fdatasync == 0;
    if (all || data) due_flush_ = DueFlush{.since = now, .data_only = !all};
  }

  [[gnu::noinline]] void StartFlush(uint64_t now) {
    const DueFlush due = *std::exchange(due_flush_, std::nullopt);
    const uint32_t index = free_[--free_count_];
    slots_[index] = {
        .submitted = now, .intended = due.since, .offset = 0, .bytes = 0, .done = 0, .direction = Direction::kFlush};
    data_only_[index] = due.data_only;
    if (counts.in_flight++ == 0) counts.last_progress_ns = now;
    QueueFlush(index);
  }

  void Start(const Workload::Io& io, uint64_t intended, uint64_t now) {
    bytes_left_ -= io.bytes;
    --ios_left_;
    const uint32_t index = free_[--free_count_];
    slots_[index] = {.submitted = now,
                     .intended = intended,
                     .offset = io.offset,
                     .bytes = io.bytes,
                     .done = 0,
                     .direction = io.direction};
    if (verifier_ && io.direction == Direction::kWrite) verifier_->Stamp(buffers_[index], io.offset);
    if (counts.in_flight++ == 0) counts.last_progress_ns = now;
    Queue(index);
  }

  [[gnu::always_inline]] void Queue(uint32_t index) {
    const Slot& slot = slots_[index];
    engine_.Queue({.slot = index,
                   .direction = slot.direction,
                   .bytes = slot.bytes - slot.done,
                   .offset = slot.offset + slot.done,
                   .data = buffers_[index] + slot.done});
  }

  void QueueFlush(uint32_t index) {
    engine_.Queue({.slot = index,
                   .direction = Direction::kFlush,
                   .data_only = data_only_[index],
                   .bytes = 0,
                   .offset = 0,
                   .data = nullptr});
  }

  [[gnu::always_inline]] void Complete(uint32_t index, int64_t result, uint64_t now) {
    Slot& slot = slots_[index];
    // How much was discarded is in no answer.
    if (slot.direction == Direction::kTrim && result == 0) result = slot.bytes;
    if (result != slot.bytes - slot.done) [[unlikely]] {
      if (!HandleFailure(index, result)) return;
    } else {
      DirectionFigures& figures = *figures_[slot.direction];
      figures.bytes += slot.bytes;
      figures.service.Record(now - slot.submitted);
      if (open_) figures.response.Record(now - slot.intended);
      if (verifier_) [[unlikely]]
        Verify(index);
      if (counts.first_completion_ns == 0) [[unlikely]]
        counts.first_completion_ns = now;
      counts.last_completion_ns = now;
    }
    if (verifier_ && slot.direction != Direction::kFlush) verifier_->Unlock(slot.offset);
    if (spec_.think_ns > 0 && slot.direction != Direction::kFlush && ++since_think_ >= spec_.think_blocks) {
      since_think_ = 0;
      think_until_ = now + spec_.think_ns;
    }
    free_[free_count_++] = index;
    --counts.in_flight;
  }

  // False: the I/O goes on. True: it has failed.
  [[gnu::noinline, gnu::cold]] bool HandleFailure(uint32_t index, int64_t result) {
    Slot& slot = slots_[index];
    const bool stopping = counts.phase == Phase::kStopping;
    if (result > 0 && !stopping) {
      if (slot.done == 0) ++figures_[slot.direction]->short_ios;
      slot.done += static_cast<uint32_t>(result);
      Queue(index);
      return false;
    }
    if ((result == -EAGAIN || result == -EINTR) && !stopping) {
      if (slot.direction == Direction::kFlush) {
        QueueFlush(index);
      } else {
        Queue(index);
      }
      return false;
    }
    if (verifier_ && slot.direction == Direction::kWrite) verifier_->Unknown(slot.offset);
    // Neither good nor an error.
    if (stopping && (result == -ECANCELED || result == -EINTR || result == -EAGAIN || result > 0)) {
      ++counts.cancelled;
      return true;
    }
    counts.last_error = engine_.Describe(result);
    counts.errors.Add(slot.direction, result, slot.offset + slot.done, counts.last_error);
    ++*errors_;
    if (engine_.IsGone(result)) {
      counts.state = RunState::kDeviceLost;
    } else if (++failures_ > spec_.errors_allowed && counts.state == RunState::kFinished) {
      Fail(counts.last_error);
    }
    return true;
  }

  // Apart, as all that is rare: the compiler inlines what is done for each I/O by its size.
  [[gnu::noinline, gnu::cold]] void FailForRoom() {
    Fail(Error{.message =
                   "The table of the blocks to verify has the size that this job may have: give a smaller size or "
                   "runtime, or a larger bs",
               .code = "ENOMEM",
               .number = ENOMEM});
  }

  // No more is submitted, and the run ends when what is in flight has come in.
  [[gnu::noinline, gnu::cold]] void Fail(const Error& error) {
    counts.last_error = error;
    counts.state = RunState::kFailed;
    issuing_ = false;
    Enter(Phase::kDrain, kNever, nullptr);
  }

  void Verify(uint32_t index) {
    const Slot& slot = slots_[index];
    if (slot.direction == Direction::kWrite) {
      verifier_->Written(slot.offset);
    } else if (slot.direction == Direction::kRead && verifier_->Knows(slot.offset)) {
      ++counts.verify.verified;
      const auto wrong = verifier_->Check(buffers_[index], slot.offset);
      if (!wrong) return;
      VerifyFigures& verify = counts.verify;
      ++verify.failures;
      if (verify.first_failures.size() >= ErrorTally::kFirst) return;
      const uint32_t generation = verifier_->Generation(slot.offset);
      verify.first_failures.push_back({.offset = slot.offset, .expected_generation = generation, .reason = *wrong});
    }
  }

  const WorkerContext context_;
  const TargetSpec& spec_;
  const Clock& clock_ = Clock::Get();
  const bool open_ = spec_.pace != Pace::kClosed;
  const bool is_plain_ = !spec_.verify && !spec_.flushes();  // nothing but the workload decides what is next
  Buffers buffers_;                                          // before the engine: it goes after it
  E engine_;
  Range range_;
  std::optional<Workload> workload_;
  std::optional<OpenLoop> open_loop_;
  std::optional<Verifier> verifier_;
  std::optional<Workload::Io> held_back_;
  std::optional<DueFlush> due_flush_;
  std::vector<bool> data_only_;  // of each slot that has a flush
  std::optional<Error> thrown_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  uint32_t free_count_ = 0;
  int64_t bytes_left_ = INT64_MAX;
  int64_t ios_left_ = INT64_MAX;
  bool issuing_ = false;
  bool quit_ = false;
  uint64_t start_ = 0;
  uint64_t run_begin_ = 0;
  uint64_t run_end_ = 0;
  uint64_t mark_ = 0;  // when the phase ends
  PerDirection<DirectionFigures*> figures_{};
  uint64_t* errors_ = nullptr;
  uint64_t failures_ = 0;
  uint64_t writes_ = 0;
  uint64_t think_until_ = 0;
  uint32_t since_think_ = 0;
  uint64_t read_back_at_ = 0;
  uint64_t io_workers_before_ns_ = 0;
};

}  // namespace lunpath::bench
