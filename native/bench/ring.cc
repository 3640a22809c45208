#include "bench/ring.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "bench/clock.h"
#include "bench/uring_abi.h"

namespace lunpath::bench {
namespace {

struct TaskWork {
  uint32_t flags;
  std::vector<std::string> words;
};

const TaskWork kWays[] = {
    {uring::kSetupSingleIssuer | uring::kSetupDeferTaskrun, {"single_issuer", "defer_taskrun"}},
    {uring::kSetupCoopTaskrun, {"coop_taskrun"}},
    {0, {}},
};

}  // namespace

Ring::~Ring() {
  if (sqes_) munmap(sqes_, sqes_bytes_);
  if (rings_) munmap(rings_, rings_bytes_);
}

Status Ring::Setup(uint32_t entries) {
  for (const TaskWork& way : kWays) {
    io_uring_params params{};
    params.flags = way.flags | IORING_SETUP_CQSIZE;
    params.cq_entries = 2 * entries;
    const auto fd = static_cast<int>(syscall(SYS_io_uring_setup, entries, &params));
    if (fd < 0) {
      if (errno == EINVAL && way.flags != 0) continue;
      return ErrnoError(errno, "io_uring_setup", "io_uring");
    }
    fd_.Reset(fd);
    flags_ = way.words;
    // Both came with 5.4 and 5.11: before them two mappings and another kind of timeout would be needed.
    constexpr uint32_t needed = IORING_FEAT_SINGLE_MMAP | uring::kFeatureExtArg;
    if ((params.features & needed) != needed)
      return ErrnoError(ENOSYS, "io_uring_setup", "io_uring is older than 5.11");
    if (!Map(params)) return ErrnoError(errno, "mmap", "io_uring");
    enter_fd_ = fd;
    return Nothing{};
  }
  return ErrnoError(EINVAL, "io_uring_setup", "io_uring");
}

bool Ring::Map(const io_uring_params& params) {
  const size_t sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
  const size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  rings_bytes_ = std::max(sq_bytes, cq_bytes);
  constexpr int protection = PROT_READ | PROT_WRITE;
  constexpr int flags = MAP_SHARED | MAP_POPULATE;
  void* rings = mmap(nullptr, rings_bytes_, protection, flags, fd_.get(), IORING_OFF_SQ_RING);
  if (rings == MAP_FAILED) return false;
  rings_ = rings;
  sqes_bytes_ = params.sq_entries * sizeof(io_uring_sqe);
  void* sqes = mmap(nullptr, sqes_bytes_, protection, flags, fd_.get(), IORING_OFF_SQES);
  if (sqes == MAP_FAILED) return false;
  sqes_ = static_cast<io_uring_sqe*>(sqes);

  const auto at = [this](uint32_t offset) { return reinterpret_cast<uint32_t*>(static_cast<char*>(rings_) + offset); };
  sq_head_ = at(params.sq_off.head);
  sq_tail_ = at(params.sq_off.tail);
  cq_head_ = at(params.cq_off.head);
  cq_tail_ = at(params.cq_off.tail);
  cqes_ = reinterpret_cast<io_uring_cqe*>(at(params.cq_off.cqes));
  sq_mask_ = *at(params.sq_off.ring_mask);
  cq_mask_ = *at(params.cq_off.ring_mask);
  // Entries are used in their own order.
  uint32_t* array = at(params.sq_off.array);
  for (uint32_t i = 0; i < params.sq_entries; ++i) array[i] = i;
  return true;
}

int Ring::Register(uint32_t opcode, const void* argument, uint32_t count) {
  return static_cast<int>(syscall(SYS_io_uring_register, fd_.get(), opcode, argument, count));
}

bool Ring::RegisterFile(int fd) {
  if (Register(IORING_REGISTER_FILES, &fd, 1) != 0) return false;
  flags_.emplace_back("registered_file");
  return true;
}

void Ring::UnregisterFile() { Register(IORING_UNREGISTER_FILES, nullptr, 0); }

bool Ring::RegisterBuffer(void* base, size_t bytes) {
  const iovec all{.iov_base = base, .iov_len = bytes};
  if (Register(IORING_REGISTER_BUFFERS, &all, 1) != 0) return false;
  flags_.emplace_back("registered_buffers");
  return true;
}

bool Ring::RegisterItself() {
  uring::ResourceUpdate update{};
  update.offset = UINT32_MAX;  // any
  update.data = static_cast<uint64_t>(fd_.get());
  if (Register(uring::kRegisterRingFds, &update, 1) != 1) return false;
  enter_fd_ = static_cast<int>(update.offset);
  enter_flags_ = uring::kEnterRegisteredRing;
  flags_.emplace_back("registered_ring");
  return true;
}

int Ring::Enter(uint32_t wait_for, uint64_t timeout_ns) {
  std::atomic_ref(*sq_tail_).store(tail_, std::memory_order_release);
  const uint32_t pending = tail_ - std::atomic_ref(*sq_head_).load(std::memory_order_acquire);
  uint32_t flags = enter_flags_ | IORING_ENTER_GETEVENTS;
  int64_t entered;
  if (wait_for == 0 || timeout_ns == kNever) {
    entered = syscall(SYS_io_uring_enter, enter_fd_, pending, wait_for, flags, nullptr, 0);
  } else {
    __kernel_timespec timeout{};
    timeout.tv_sec = static_cast<int64_t>(timeout_ns / kNsPerSecond);
    timeout.tv_nsec = static_cast<int64_t>(timeout_ns % kNsPerSecond);
    uring::GetEventsArgument argument{};
    argument.timeout = reinterpret_cast<uint64_t>(&timeout);
    flags |= uring::kEnterExtArg;
    entered = syscall(SYS_io_uring_enter, enter_fd_, pending, wait_for, flags, &argument, sizeof argument);
  }
  return entered >= 0 ? 0 : errno;
}

}  // namespace lunpath::bench
