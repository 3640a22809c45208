#include "bench/runner.h"

#include <cerrno>
#include <thread>
#include <utility>

#include "bench/workload.h"
#include "sys/clock.h"

namespace lunpath::bench {
namespace {

// Reads in flight at a cancel get this long to come in, so that a healthy device is logged out of in order.
constexpr uint64_t kCancelDrainNs = 30 * kNsPerMs;

}  // namespace

Run::Run(std::unique_ptr<Engine> engine, JobSpec job, OnSample on_sample, OnEnd on_end)
    : engine_(std::move(engine)), job_(std::move(job)), on_sample_(std::move(on_sample)), on_end_(std::move(on_end)) {}

void Run::Start() {
  std::thread([self = shared_from_this()] { self->on_end_(self->Execute()); }).detach();
}

void Run::Cancel() {
  cancelled_ = true;
  engine_->Interrupt();
}

Status Run::CheckDevice(const DeviceFacts& device) {
  const auto mismatch = [](const char* what, const std::string& expected, const std::string& found) {
    return Error{.message = std::string("The device's ") + what + " is " + found + ", expected " + expected,
                 .code = "IDENTITY_MISMATCH"};
  };
  if (!job_.expected_serial.empty() && job_.expected_serial != device.serial) {
    return mismatch("serial", job_.expected_serial, device.serial);
  }
  if (!job_.expected_wwid.empty() && job_.expected_wwid != device.wwid) {
    return mismatch("WWID", job_.expected_wwid, device.wwid);
  }
  if (job_.expected_size != 0 && job_.expected_size != device.size_bytes) {
    return mismatch("size", std::to_string(job_.expected_size), std::to_string(device.size_bytes));
  }
  if (job_.bs % device.block_bytes != 0 || job_.offset % device.block_bytes != 0) {
    return Error{.message = "bs and offset must be multiples of the device's block size, " +
                            std::to_string(device.block_bytes) + " bytes",
                 .code = "ERANGE",
                 .number = ERANGE};
  }
  const uint64_t available = device.size_bytes > job_.offset ? device.size_bytes - job_.offset : 0;
  if (job_.size == 0) job_.size = available;
  if (job_.size > available || job_.size < job_.bs) {
    return Error{.message = "The range to read does not lie in the device of " + std::to_string(device.size_bytes) +
                            " bytes, or is smaller than one block of " + std::to_string(job_.bs),
                 .code = "ERANGE",
                 .number = ERANGE};
  }
  return Nothing{};
}

Result<Report> Run::Execute() {
  Report report;
  auto device = engine_->Open();
  if (!device.ok()) return device.error();
  report.device = device.value();
  Status checked = CheckDevice(report.device);
  if (checked.ok()) checked = engine_->Prepare(job_.iodepth, job_.bs);
  if (!checked.ok()) {
    engine_->Close();
    return checked.error();
  }
  Measure(&report);
  if (report.unanswered == 0 && report.state != RunState::kDeviceLost) {
    engine_->Close();
  } else {
    engine_->Abandon();
  }
  return report;
}

void Run::Measure(Report* report) {
  Offsets offsets(job_.random, job_.offset, job_.size, job_.bs, job_.seed);
  std::vector<uint64_t> submitted(job_.iodepth);
  std::vector<Completion> completions;
  completions.reserve(job_.iodepth);
  const uint64_t cpu_before = ThreadCpuNs();
  const uint64_t start = NowNs();
  const uint64_t end = start + job_.runtime_ns;
  uint64_t last_completion = start;
  uint64_t drain_until = 0;  // 0: still issuing
  Sample sample;
  uint64_t in_flight = 0;
  bool alive = true;

  const auto issue = [&](uint32_t slot, uint64_t now) {
    submitted[slot] = now;
    alive = engine_->QueueRead(slot, offsets.Next());
    ++in_flight;
  };
  const auto deliver = [&](uint64_t now) {
    sample.to_ns = now - start;
    report->latency.Merge(sample.latency);
    report->errors += sample.errors;
    on_sample_(std::exchange(sample, Sample{.from_ns = now - start}));
  };

  for (uint32_t slot = 0; alive && slot < job_.iodepth; ++slot) issue(slot, NowNs());

  while (alive && in_flight > 0) {
    const uint64_t next_sample = start + sample.from_ns + job_.sample_ns;
    const uint64_t stuck_at = last_completion + job_.stuck_ns;
    const uint64_t stop_at = drain_until ? drain_until : end;
    completions.clear();
    alive = engine_->Reap(&completions, std::min({next_sample, stuck_at, stop_at}));
    uint64_t now = NowNs();

    if (cancelled_ && report->state != RunState::kCancelled) {
      report->state = RunState::kCancelled;
      drain_until = now + kCancelDrainNs;
    } else if (!drain_until && now >= end) {
      drain_until = now + job_.stuck_ns;
    }
    for (const Completion& done : completions) {
      --in_flight;
      last_completion = std::max(last_completion, done.completed_ns);
      if (done.outcome == Outcome::kGood) {
        sample.latency.Record(done.completed_ns - submitted[done.slot]);
      } else {
        ++sample.errors;
      }
      if (!drain_until && alive) issue(done.slot, NowNs());
    }
    now = NowNs();
    if (now >= next_sample) deliver(now);
    if (in_flight > 0 && completions.empty()) {
      const bool drained_in_vain = drain_until && now >= drain_until;
      const bool silent = now >= last_completion + job_.stuck_ns;
      if (report->state == RunState::kCancelled ? drained_in_vain : drained_in_vain || silent) {
        if (report->state != RunState::kCancelled) report->state = RunState::kStuck;
        break;
      }
    }
  }
  const uint64_t now = NowNs();
  if (!alive && report->state != RunState::kCancelled) report->state = RunState::kDeviceLost;
  report->thread_cpu_ns = ThreadCpuNs() - cpu_before;
  report->elapsed_ns = (in_flight > 0 ? now : last_completion) - start;
  report->unanswered = in_flight;
  report->last_error = engine_->last_error();
  deliver(now);
}

}  // namespace lunpath::bench
