#include "libvirt/event_loop.h"

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <pthread.h>
#include <signal.h>

#include <mutex>

#include "sys/thread.h"

namespace lunpath::libvirt {

namespace {

void Run() noexcept {
  pthread_setname_np(pthread_self(), "libvirt-events");
  for (;;) virEventRunDefaultImpl();
}

void Quiet(void*, virErrorPtr) {}

// A new thread inherits the mask: signals stay with Node's own threads.
class NoSignals {
 public:
  NoSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace

Status EnsureEventLoop() {
  static std::mutex mutex;  // guards both below
  static bool is_registered = false;
  static bool is_running = false;
  const std::lock_guard lock(mutex);
  if (is_running) return Nothing{};
  if (!is_registered) {
    virInitialize();
    // By default libvirt prints each error to stderr, where a daemon's log is.
    virSetErrorFunc(nullptr, Quiet);
    virEventRegisterDefaultImpl();
    is_registered = true;
  }
  const NoSignals quiet;
  if (auto failure = StartThread([]() noexcept { Run(); })) return std::move(*failure);
  is_running = true;
  return Nothing{};
}

}  // namespace lunpath::libvirt
