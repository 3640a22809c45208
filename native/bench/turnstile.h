// Who may look at a thread's figures: the thread itself while it works, the supervisor while the thread waits.
#pragma once

#include <sched.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace lunpath::bench {

// A lock that costs the worker one store and one exchange for each batch of I/Os, and that the supervisor gets within a
// batch's time, or at once where the worker hangs in the kernel.
class Turnstile {
 public:
  // The worker's, around everything that may wait. False: the supervisor has given the worker up, which must neither
  // touch what is guarded any more nor send another I/O.
  bool Leave() {
    held_.store(false, std::memory_order_release);
    return !seized_.load(std::memory_order_acquire);
  }
  bool Enter() {
    for (;;) {
      if (wanted_.load(std::memory_order_relaxed)) sched_yield();
      const bool entered = !held_.exchange(true, std::memory_order_acquire);
      if (seized_.load(std::memory_order_acquire)) return false;
      if (entered) return true;
      sched_yield();
    }
  }

  // The supervisor's: one thread. False where the worker did not let go within some 20 ms.
  bool Take() {
    constexpr int yields = 100;
    constexpr int most = yields + 300;
    wanted_.store(true, std::memory_order_relaxed);
    bool taken = false;
    for (int i = 0; i < most; ++i) {
      taken = !held_.exchange(true, std::memory_order_acquire);
      if (taken) break;
      if (i < yields) {
        sched_yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
    wanted_.store(false, std::memory_order_relaxed);
    return taken;
  }
  void Give() { held_.store(false, std::memory_order_release); }
  // For good. What is guarded is the supervisor's only where Take() has succeeded before.
  void Seize() { seized_.store(true, std::memory_order_release); }

 private:
  std::atomic<bool> held_{true};
  std::atomic<bool> wanted_{false};
  std::atomic<bool> seized_{false};
};

}  // namespace lunpath::bench
