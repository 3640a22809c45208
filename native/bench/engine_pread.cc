#include "bench/engine_pread.h"

#include <fcntl.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "bench/clock.h"

namespace lunpath::bench {

// What the threads share: they may outlive the engine, with I/Os that are never answered.
struct PreadEngine::Pool {
  std::shared_ptr<PathTarget> target;
  std::mutex mutex;  // guards all below
  std::condition_variable work;
  std::condition_variable answer;
  std::deque<Request> queue;
  std::vector<Done> done;
  bool woken = false;
  bool closing = false;
};

PreadEngine::PreadEngine(std::shared_ptr<PathTarget> target)
    : target_(std::move(target)), pool_(std::make_shared<Pool>()) {
  pool_->target = target_;
}

PreadEngine::~PreadEngine() { Close(); }

Status PreadEngine::Prepare(uint32_t iodepth, const Buffers&) {
  done_.reserve(iodepth);
  queued_.reserve(iodepth);
  // A thread of the pool must not be the one for which there is no memory.
  pool_->done.reserve(iodepth);
  if (iodepth == 1) return Nothing{};
  try {
    for (uint32_t i = 0; i < iodepth; ++i) threads_.emplace_back(Work, pool_);
  } catch (const std::system_error&) {
    Close();
    return ErrnoError(EAGAIN, "pthread_create", "A thread for each of " + std::to_string(iodepth) + " I/Os");
  }
  return Nothing{};
}

std::vector<std::string> PreadEngine::flags() const {
  std::vector<std::string> flags;
  if (!threads_.empty()) flags.emplace_back("pool");
  if (target_->direct()) flags.emplace_back("direct");
  return flags;
}

void PreadEngine::Queue(const Request& request) { queued_.push_back(request); }

int64_t PreadEngine::Perform(int fd, const Request& request) {
  const auto offset = static_cast<off_t>(request.offset);
  ssize_t result = 0;
  switch (request.direction) {
    case Direction::kRead:
      result = pread(fd, request.data, request.bytes, offset);
      break;
    case Direction::kWrite:
      result = pwrite(fd, request.data, request.bytes, offset);
      break;
    case Direction::kTrim:
      result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, request.bytes);
      break;
    case Direction::kFlush:
      result = request.data_only ? fdatasync(fd) : fsync(fd);
      break;
  }
  return result < 0 ? -errno : result;
}

void PreadEngine::Work(const std::shared_ptr<Pool>& pool) {
  std::unique_lock lock(pool->mutex);
  for (;;) {
    pool->work.wait(lock, [&] { return pool->closing || !pool->queue.empty(); });
    if (pool->closing) return;
    const Request request = pool->queue.front();
    pool->queue.pop_front();
    lock.unlock();
    const int64_t result = Perform(pool->target->fd(), request);
    lock.lock();
    pool->done.push_back({.slot = request.slot, .result = result});
    pool->answer.notify_one();
  }
}

bool PreadEngine::Exchange(bool wait, uint64_t deadline) {
  if (threads_.empty() && !queued_.empty()) {
    done_.push_back({.slot = queued_[0].slot, .result = Perform(target_->fd(), queued_[0])});
    queued_.clear();
    return true;
  }
  constexpr uint64_t longest = 5 * kNsPerMs;
  const uint64_t now = Clock::Get().Now();
  const std::chrono::nanoseconds left(wait && deadline > now ? std::min(deadline - now, longest) : 0);
  std::unique_lock lock(pool_->mutex);
  for (const Request& request : queued_) {
    pool_->queue.push_back(request);
    pool_->work.notify_one();
  }
  queued_.clear();
  pool_->answer.wait_for(lock, left, [&] { return pool_->woken || !pool_->done.empty(); });
  pool_->woken = false;
  done_.insert(done_.end(), pool_->done.begin(), pool_->done.end());
  pool_->done.clear();
  return true;
}

uint64_t PreadEngine::HelpersCpuNs() const {
  uint64_t sum = 0;
  for (const std::thread& thread : threads_) {
    clockid_t clock;
    timespec used{};
    // pthread_t is what native_handle() is here.
    auto id = const_cast<std::thread&>(thread).native_handle();
    if (pthread_getcpuclockid(id, &clock) != 0 || clock_gettime(clock, &used) != 0) continue;
    sum += static_cast<uint64_t>(used.tv_sec) * kNsPerSecond + static_cast<uint64_t>(used.tv_nsec);
  }
  return sum;
}

void PreadEngine::SendHome() {
  {
    std::lock_guard lock(pool_->mutex);
    pool_->closing = true;
  }
  pool_->work.notify_all();
}

void PreadEngine::Close() {
  SendHome();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

// Threads that hang in the kernel keep what they use: the pool, and with it the descriptor.
void PreadEngine::Abandon() {
  SendHome();
  for (std::thread& thread : threads_) thread.detach();
  threads_.clear();
}

void PreadEngine::Wake() {
  {
    std::lock_guard lock(pool_->mutex);
    pool_->woken = true;
  }
  pool_->answer.notify_one();
}

}  // namespace lunpath::bench
