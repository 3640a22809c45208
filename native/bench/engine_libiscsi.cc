#include "bench/engine_libiscsi.h"

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
#include <poll.h>
#include <sys/types.h>

#include <cerrno>
#include <new>
#include <utility>

#include "sys/clock.h"

namespace lunpath::bench {

struct LibiscsiEngine::Slot {
  LibiscsiEngine* engine;
  uint32_t index;
  scsi_task* task;
  scsi_iovec iov;
};

LibiscsiEngine::LibiscsiEngine(iscsi::LoginParams params) : session_(std::move(params)) {}

LibiscsiEngine::~LibiscsiEngine() { Abandon(); }

Result<DeviceFacts> LibiscsiEngine::Open() {
  auto identity = session_.Login();
  if (!identity.ok()) return identity.error();
  identity_ = identity.value();
  return DeviceFacts{.wwid = identity_.wwid,
                     .serial = identity_.serial,
                     .vendor = identity_.vendor,
                     .product = identity_.product,
                     .size_bytes = identity_.size_bytes,
                     .block_bytes = identity_.block_bytes};
}

Status LibiscsiEngine::Prepare(uint32_t iodepth, uint32_t bs) {
  bs_ = bs;
  buffers_.reset(new (std::nothrow) uint8_t[static_cast<size_t>(iodepth) * bs]);
  if (!buffers_) return ErrnoError(ENOMEM, "new", "Buffers of the benchmark");
  slots_.resize(iodepth);
  for (uint32_t i = 0; i < iodepth; ++i) {
    uint8_t* buffer = buffers_.get() + static_cast<size_t>(i) * bs;
    slots_[i] = Slot{.engine = this, .index = i, .task = nullptr, .iov = {.iov_base = buffer, .iov_len = bs}};
  }
  completed_.reserve(iodepth);
  return Nothing{};
}

void LibiscsiEngine::OnRead(iscsi_context*, int status, void*, void* opaque) {
  Slot& slot = *static_cast<Slot*>(opaque);
  LibiscsiEngine& self = *slot.engine;
  if (status == SCSI_STATUS_CANCELLED || status == SCSI_STATUS_ERROR) {
    // The connection is gone. The task stays until the context has been destroyed.
    self.lost_ = true;
    return;
  }
  const uint64_t now = NowNs();
  scsi_task* task = std::exchange(slot.task, nullptr);
  const bool good = status == SCSI_STATUS_GOOD && task->residual_status == SCSI_RESIDUAL_NO_RESIDUAL;
  if (!good) {
    const bool sense = status == SCSI_STATUS_CHECK_CONDITION;
    self.last_error_ =
        Error{.message = sense ? "READ failed with a check condition"
                               : "READ failed with SCSI status " + std::to_string(status),
              .code = sense ? "SCSI_SENSE" : "SCSI_STATUS",
              .number = sense ? static_cast<int>(task->sense.key) << 16 | (task->sense.ascq & 0xffff) : status,
              .syscall = "READ"};
  }
  scsi_free_scsi_task(task);
  self.completed_.push_back(
      {.slot = slot.index, .outcome = good ? Outcome::kGood : Outcome::kFailed, .completed_ns = now});
}

bool LibiscsiEngine::QueueRead(uint32_t index, uint64_t offset) {
  Slot& slot = slots_[index];
  const int block = static_cast<int>(identity_.block_bytes);
  const int lun = session_.params().lun;
  const uint64_t lba = offset / identity_.block_bytes;
  slot.task = identity_.long_commands ? iscsi_read16_iov_task(session_.context(), lun, lba, bs_, block, 0, 0, 0, 0, 0,
                                                              OnRead, &slot, &slot.iov, 1)
                                      : iscsi_read10_iov_task(session_.context(), lun, static_cast<uint32_t>(lba), bs_,
                                                              block, 0, 0, 0, 0, 0, OnRead, &slot, &slot.iov, 1);
  if (!slot.task) lost_ = true;
  queued_ = true;
  return !lost_;
}

bool LibiscsiEngine::Reap(std::vector<Completion>* completions, uint64_t deadline_ns) {
  // Sending at once spares one poll per batch; what does not fit into the socket waits for the poll below.
  if (std::exchange(queued_, false) && !lost_ && iscsi_service(session_.context(), POLLOUT) != 0) lost_ = true;
  while (!lost_ && completed_.empty()) {
    Status round = session_.Round(deadline_ns);
    if (!round.ok()) {
      if (round.error().code == "ECANCELED") {
        session_.Resume();  // a wake-up for the runner; what is in flight may still come in
        break;
      }
      last_error_ = round.error();
      lost_ = true;
    }
    if (NowNs() >= deadline_ns) break;
  }
  completions->insert(completions->end(), completed_.begin(), completed_.end());
  completed_.clear();
  if (lost_ && last_error_.code.empty()) {
    last_error_ =
        Error{.message = "The session with " + session_.params().portal + " was lost", .code = "SESSION_LOST"};
  }
  return !lost_;
}

void LibiscsiEngine::Close() {
  session_.Logout();
  Abandon();
}

// Destroying the context is enough: it closes the socket, so nothing can write to the buffers any more.
void LibiscsiEngine::Abandon() {
  session_.Drop();
  for (Slot& slot : slots_) {
    if (slot.task) scsi_free_scsi_task(std::exchange(slot.task, nullptr));
  }
}

}  // namespace lunpath::bench
