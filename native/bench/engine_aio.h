// Reads, writes and flushes of a path through the kernel's older asynchronous I/O (io_submit(2)), by its system calls.
// Where the file is not opened with O_DIRECT, io_submit() does the I/O itself.
#pragma once

#include <linux/aio_abi.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "bench/clock.h"
#include "bench/engine.h"
#include "bench/path_target.h"

namespace lunpath::bench {

class AioEngine {
 public:
  explicit AioEngine(std::shared_ptr<PathTarget> target) : target_(std::move(target)) {}
  AioEngine(const AioEngine&) = delete;
  AioEngine& operator=(const AioEngine&) = delete;
  ~AioEngine() {
    // Waits for what is in flight: a thread that leaves I/Os behind leaves its engine behind too.
    if (context_ != 0) syscall(SYS_io_destroy, context_);
  }

  const char* name() const { return "libaio"; }
  Result<DeviceFacts> Open() { return target_->facts(); }

  Status Prepare(uint32_t iodepth, const Buffers&) {
    if (syscall(SYS_io_setup, iodepth, &context_) != 0) return ErrnoError(errno, "io_setup", "libaio");
    blocks_ = std::make_unique<iocb[]>(iodepth);
    queued_ = std::make_unique<iocb*[]>(iodepth);
    events_ = std::make_unique<io_event[]>(iodepth);
    iodepth_ = iodepth;
    return Nothing{};
  }

  std::vector<std::string> flags() const {
    return target_->direct() ? std::vector<std::string>{"direct"} : std::vector<std::string>{};
  }

  void Queue(const Request& request) {
    iocb& block = blocks_[request.slot];
    block = iocb{};
    block.aio_data = request.slot;
    block.aio_fildes = static_cast<uint32_t>(target_->fd());
    queued_[count_++] = &block;
    if (request.direction == Direction::kFlush) [[unlikely]] {
      // Since Linux 4.18; all else of it must be 0 (fs/aio.c, aio_fsync).
      block.aio_lio_opcode = request.data_only ? IOCB_CMD_FDSYNC : IOCB_CMD_FSYNC;
      return;
    }
    block.aio_lio_opcode = request.direction == Direction::kRead ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE;
    block.aio_buf = reinterpret_cast<uint64_t>(request.data);
    block.aio_nbytes = request.bytes;
    block.aio_offset = static_cast<int64_t>(request.offset);
  }

  bool Exchange(bool wait, uint64_t deadline) {
    if (!Submit()) return false;
    // It cannot be woken but by time.
    constexpr uint64_t longest = 5 * kNsPerMs;
    const uint64_t now = Clock::Get().Now();
    const uint64_t left = wait && deadline > now ? std::min(deadline - now, longest) : 0;
    timespec timeout{.tv_sec = 0, .tv_nsec = static_cast<long>(left)};
    const long got = syscall(SYS_io_getevents, context_, left > 0 ? 1 : 0, iodepth_, events_.get(), &timeout);
    if (got < 0 && errno != EINTR) return Lost(errno, "io_getevents");
    found_ = got > 0 ? static_cast<uint32_t>(got) : 0;
    return true;
  }

  template <class OnDone>
  void Reap(uint64_t now, OnDone done) {
    for (uint32_t i = 0; i < found_; ++i) done(static_cast<uint32_t>(events_[i].data), events_[i].res, now);
    found_ = 0;
  }

  Error loss() const { return ErrnoError(lost_with_, lost_in_, "libaio"); }
  void CancelAll() {}  // the kernel has io_cancel() for no block device
  Error Describe(int64_t result) const { return target_->Describe(result, "io_submit"); }
  bool IsGone(int64_t result) { return target_->IsGone(result); }
  uint64_t HelpersCpuNs() const { return 0; }
  uint64_t KernelThreadsCpuNs() const { return 0; }
  void Close() {}
  void Abandon() { context_ = 0; }
  void Wake() {}

 private:
  bool Submit() {
    uint32_t sent = 0;
    while (sent < count_) {
      const long taken = syscall(SYS_io_submit, context_, count_ - sent, queued_.get() + sent);
      if (taken < 0 && errno == EINTR) continue;
      if (taken < 0 && errno == EAGAIN) break;
      if (taken < 0) return Lost(errno, "io_submit");
      sent += static_cast<uint32_t>(taken);
    }
    std::move(queued_.get() + sent, queued_.get() + count_, queued_.get());
    count_ -= sent;
    return true;
  }

  bool Lost(int error, const char* syscall_name) {
    lost_with_ = error;
    lost_in_ = syscall_name;
    return false;
  }

  std::shared_ptr<PathTarget> target_;
  aio_context_t context_ = 0;
  uint32_t iodepth_ = 0;
  std::unique_ptr<iocb[]> blocks_;
  std::unique_ptr<iocb*[]> queued_;
  uint32_t count_ = 0;
  std::unique_ptr<io_event[]> events_;
  uint32_t found_ = 0;
  int lost_with_ = 0;
  const char* lost_in_ = "";
};

}  // namespace lunpath::bench
