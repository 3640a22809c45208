#include "bench/engine_libiscsi.h"

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <algorithm>
#include <utility>

#include "bench/clock.h"
#include "iscsi/outcome.h"

namespace lunpath::bench {

struct LibiscsiEngine::Slot {
  LibiscsiEngine* engine;
  uint32_t index;
  uint32_t bytes;
  bool has_residual;
  scsi_task* task;
  scsi_iovec iov;
};

LibiscsiEngine::LibiscsiEngine(iscsi::LoginParams params) : SessionEngine(std::move(params)) {}

LibiscsiEngine::~LibiscsiEngine() { Abandon(); }

Status LibiscsiEngine::Prepare(uint32_t iodepth, const Buffers&) {
  slots_.resize(iodepth);
  done_.reserve(iodepth);
  return Nothing{};
}

void LibiscsiEngine::OnAnswer(iscsi_context*, int status, void*, void* opaque) {
  Slot& slot = *static_cast<Slot*>(opaque);
  LibiscsiEngine& self = *slot.engine;
  if (status == SCSI_STATUS_CANCELLED || status == SCSI_STATUS_ERROR) {
    // The connection is gone. The task stays until the context has been destroyed.
    self.lost_ = true;
    return;
  }
  const uint64_t now = Clock::Get().Now();
  scsi_task* task = std::exchange(slot.task, nullptr);
  int64_t result = slot.bytes;
  if (status == SCSI_STATUS_CHECK_CONDITION) {
    result = iscsi::SenseOutcome(static_cast<int>(task->sense.key), task->sense.ascq);
  } else if (status != SCSI_STATUS_GOOD) {
    result = iscsi::StatusOutcome(status);
  } else if (!slot.has_residual) {
    // That of a discard is of the list of ranges, which tgtd never counts as taken.
  } else if (task->residual_status == SCSI_RESIDUAL_UNDERFLOW && task->residual < slot.bytes) {
    result -= static_cast<int64_t>(task->residual);
  } else if (task->residual_status != SCSI_RESIDUAL_NO_RESIDUAL) {
    result = -EPROTO;
  }
  scsi_free_scsi_task(task);
  self.done_.push_back({.slot = slot.index, .result = result, .completed_ns = now});
}

void LibiscsiEngine::Queue(const Request& request) {
  Slot& slot = slots_[request.slot];
  slot = {.engine = this,
          .index = request.slot,
          .bytes = request.bytes,
          .has_residual = request.direction == Direction::kRead || request.direction == Direction::kWrite,
          .task = nullptr,
          .iov = {.iov_base = request.data, .iov_len = request.bytes}};
  iscsi_context* context = session_.context();
  const int lun = session_.params().lun;
  const auto block = static_cast<int>(identity_.block_bytes);
  const uint64_t lba = request.offset / identity_.block_bytes;
  const auto lba32 = static_cast<uint32_t>(lba);
  const uint32_t bytes = request.bytes;
  const bool wide = identity_.long_commands;
  switch (request.direction) {
    case Direction::kRead:
      slot.task =
          wide ? iscsi_read16_iov_task(context, lun, lba, bytes, block, 0, 0, 0, 0, 0, OnAnswer, &slot, &slot.iov, 1)
               : iscsi_read10_iov_task(context, lun, lba32, bytes, block, 0, 0, 0, 0, 0, OnAnswer, &slot, &slot.iov, 1);
      break;
    case Direction::kWrite:
      slot.task = wide ? iscsi_write16_iov_task(context, lun, lba, nullptr, bytes, block, 0, 0, 0, 0, 0, OnAnswer,
                                                &slot, &slot.iov, 1)
                       : iscsi_write10_iov_task(context, lun, lba32, nullptr, bytes, block, 0, 0, 0, 0, 0, OnAnswer,
                                                &slot, &slot.iov, 1);
      break;
    case Direction::kTrim: {
      unmap_list range{.lba = lba, .num = bytes / identity_.block_bytes};
      slot.task = iscsi_unmap_task(context, lun, 0, 0, &range, 1, OnAnswer, &slot);
      break;
    }
    case Direction::kFlush:
      // No blocks: up to the last one (SBC-4, 5.30). It is answered when all is on the medium.
      slot.task = iscsi_synchronizecache10_task(context, lun, 0, 0, 0, 0, OnAnswer, &slot);
      break;
  }
  if (!slot.task) lost_ = true;
  ++queued_;
}

// Sending at once spares one poll per batch; what does not fit into the socket waits for the next poll. libiscsi makes
// a system call of each command; corked (tcp(7)) they go through the network as one.
void LibiscsiEngine::SendQueued(uint32_t queued) {
  const int fd = iscsi_get_fd(session_.context());
  const bool corked = queued > 1;
  const auto cork = [fd](int on) { setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on); };
  if (corked) cork(1);
  if (iscsi_service(session_.context(), POLLOUT) != 0) lost_ = true;
  if (corked) cork(0);
}

bool LibiscsiEngine::Exchange(bool wait, uint64_t deadline) {
  if (const uint32_t queued = std::exchange(queued_, 0); queued > 0 && !lost_) SendQueued(queued);
  const Clock& clock = Clock::Get();
  while (!lost_ && done_.empty()) {
    // Session::Round() has CLOCK_MONOTONIC.
    const uint64_t now = clock.Now();
    const uint64_t left = wait && deadline > now ? std::min(deadline - now, kNsPerSecond) : 0;
    Status round = session_.Round(NowNs() + left);
    if (!round.ok()) {
      if (round.error().code == "ECANCELED") {
        session_.Resume();  // a wake-up for the loop; what is in flight may still come in
        break;
      }
      loss_ = round.error();
      lost_ = true;
    }
    if (clock.Now() >= deadline || !wait) break;
  }
  if (lost_ && loss_.code.empty()) {
    loss_ = Error{.message = "The session with " + session_.params().portal + " was lost", .code = "SESSION_LOST"};
  }
  return !lost_;
}

void LibiscsiEngine::Close() {
  BeginClose();
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
