// io_uring by its system calls (io_uring_setup(2), io_uring_enter(2), io_uring_register(2)), without liburing.
#pragma once

#include <linux/io_uring.h>
#include <linux/time_types.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "sys/result.h"
#include "sys/unique_fd.h"

namespace lunpath::bench {

// A ring belongs to the thread that called Setup(): SINGLE_ISSUER.
class Ring {
 public:
  Ring() = default;
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Room for `entries` requests in flight. It takes the cheapest way of running task work that the kernel has:
  // DEFER_TASKRUN (6.1), COOP_TASKRUN (5.19), or none. ENOSYS and EPERM: there is no io_uring for this process.
  Status Setup(uint32_t entries);

  // Each of these saves work for every request; without them all works the same. False: the kernel refused.
  bool RegisterFile(int fd);
  bool RegisterBuffer(void* base, size_t bytes);
  bool RegisterItself();
  void UnregisterFile();

  // A zeroed entry; there is room for `entries` between two calls of Enter().
  io_uring_sqe* Next() {
    io_uring_sqe* entry = &sqes_[tail_++ & sq_mask_];
    memset(entry, 0, sizeof *entry);
    return entry;
  }

  // Submits all, and waits for `wait_for` completions, or for `timeout_ns` (kNever: no limit). 0 or an errno.
  int Enter(uint32_t wait_for, uint64_t timeout_ns);

  template <class OnCompletion>
  void Reap(OnCompletion on_completion) {
    uint32_t head = *cq_head_;
    const uint32_t tail = std::atomic_ref(*cq_tail_).load(std::memory_order_acquire);
    while (head != tail) {
      const io_uring_cqe& completion = cqes_[head++ & cq_mask_];
      on_completion(completion.user_data, completion.res);
    }
    std::atomic_ref(*cq_head_).store(head, std::memory_order_release);
  }

  // What was accepted, in words.
  const std::vector<std::string>& flags() const { return flags_; }

 private:
  bool Map(const io_uring_params& params);
  int Register(uint32_t opcode, const void* argument, uint32_t count);

  UniqueFd fd_;
  int enter_fd_ = -1;
  uint32_t enter_flags_ = 0;
  std::vector<std::string> flags_;

  void* rings_ = nullptr;
  size_t rings_bytes_ = 0;
  io_uring_sqe* sqes_ = nullptr;
  size_t sqes_bytes_ = 0;
  io_uring_cqe* cqes_ = nullptr;
  uint32_t* sq_head_ = nullptr;
  uint32_t* sq_tail_ = nullptr;
  uint32_t* cq_head_ = nullptr;
  uint32_t* cq_tail_ = nullptr;
  uint32_t sq_mask_ = 0;
  uint32_t cq_mask_ = 0;
  uint32_t tail_ = 0;  // what Next() has given out; the kernel learns of it in Enter()
};

}  // namespace lunpath::bench
