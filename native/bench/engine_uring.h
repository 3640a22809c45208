// Reads, writes, discards and flushes of a path through io_uring.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <memory>
#include <utility>

#include "bench/clock.h"
#include "bench/cpu.h"
#include "bench/engine.h"
#include "bench/path_target.h"
#include "bench/ring.h"
#include "bench/uring_abi.h"

namespace lunpath::bench {

class UringEngine {
 public:
  explicit UringEngine(std::shared_ptr<PathTarget> target)
      : target_(std::move(target)), wake_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

  const char* name() const { return "io_uring"; }
  Result<DeviceFacts> Open() { return target_->facts(); }

  Status Prepare(uint32_t iodepth, const Buffers& buffers) {
    if (!wake_) return ErrnoError(EMFILE, "eventfd", "io_uring");
    // One more for the wake-up, one for a cancel.
    if (Status ready = ring_.Setup(iodepth + 2); !ready.ok()) return ready;
    fixed_file_ = ring_.RegisterFile(target_->fd());
    fixed_buffers_ = ring_.RegisterBuffer(buffers.base(), buffers.bytes());
    ring_.RegisterItself();
    ListenForWake();
    return Nothing{};
  }

  std::vector<std::string> flags() const {
    std::vector<std::string> flags = ring_.flags();
    if (target_->direct()) flags.emplace_back("direct");
    return flags;
  }

  void Queue(const Request& request) {
    io_uring_sqe* entry = ring_.Next();
    entry->fd = fixed_file_ ? 0 : target_->fd();
    entry->flags = fixed_file_ ? IOSQE_FIXED_FILE : 0;
    entry->off = request.offset;
    entry->user_data = request.slot;
    if (request.direction > Direction::kWrite) [[unlikely]] {
      if (request.direction == Direction::kTrim) {
        entry->opcode = IORING_OP_FALLOCATE;
        entry->addr = request.bytes;
        entry->len = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
      } else {
        entry->opcode = IORING_OP_FSYNC;
        entry->fsync_flags = request.data_only ? IORING_FSYNC_DATASYNC : 0;
      }
      return;
    }
    const bool read = request.direction == Direction::kRead;
    if (fixed_buffers_) {
      entry->opcode = read ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
    } else {
      entry->opcode = read ? IORING_OP_READ : IORING_OP_WRITE;
    }
    entry->addr = reinterpret_cast<uint64_t>(request.data);
    entry->len = request.bytes;
  }

  bool Exchange(bool wait, uint64_t deadline) {
    uint64_t timeout = kNever;
    if (wait && deadline != kNever) {
      const uint64_t now = Clock::Get().Now();
      wait = deadline > now;
      timeout = deadline - now;
    }
    const int error = ring_.Enter(wait ? 1 : 0, timeout);
    // ETIME is the deadline; the others pass: the loop comes again.
    if (error == 0 || error == ETIME || error == EINTR || error == EAGAIN || error == EBUSY) [[likely]]
      return true;
    lost_with_ = error;
    return false;
  }

  template <class OnDone>
  void Reap(uint64_t now, OnDone done) {
    ring_.Reap([&](uint64_t data, int32_t result) {
      if (data < kOwn) [[likely]] {
        done(static_cast<uint32_t>(data), result, now);
      } else if (data == kWake) {
        uint64_t count;
        [[maybe_unused]] ssize_t got = read(wake_.get(), &count, sizeof count);
        ListenForWake();
      }
    });
  }

  Error loss() const { return ErrnoError(lost_with_, "io_uring_enter", "io_uring"); }

  void CancelAll() {
    io_uring_sqe* entry = ring_.Next();
    entry->opcode = IORING_OP_ASYNC_CANCEL;
    entry->fd = fixed_file_ ? 0 : target_->fd();
    entry->cancel_flags = uring::kCancelFd | uring::kCancelAll;
    if (fixed_file_) entry->cancel_flags |= uring::kCancelFdFixed;
    entry->user_data = kCancel;
  }

  Error Describe(int64_t result) const { return target_->Describe(result, "io_uring"); }
  bool IsGone(int64_t result) { return target_->IsGone(result); }
  uint64_t HelpersCpuNs() const { return 0; }
  uint64_t KernelThreadsCpuNs() const { return IoWorkersCpuNs(gettid()); }
  // The ring lets go of its file only when the kernel gets round to it, and a device that is held exclusively must be
  // free again when the run is over.
  void Close() { ring_.UnregisterFile(); }
  void Abandon() {}

  void Wake() {
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t written = write(wake_.get(), &one, sizeof one);
  }

 private:
  static constexpr uint64_t kOwn = uint64_t{1} << 32;
  static constexpr uint64_t kWake = kOwn;
  static constexpr uint64_t kCancel = kOwn + 1;

  void ListenForWake() {
    io_uring_sqe* entry = ring_.Next();
    entry->opcode = IORING_OP_POLL_ADD;
    entry->fd = wake_.get();
    entry->poll32_events = POLLIN;
    entry->user_data = kWake;
  }

  std::shared_ptr<PathTarget> target_;
  UniqueFd wake_;
  Ring ring_;
  bool fixed_file_ = false;
  bool fixed_buffers_ = false;
  int lost_with_ = 0;
};

}  // namespace lunpath::bench
