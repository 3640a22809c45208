#include "libvirt/event_loop.h"

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <pthread.h>
#include <signal.h>

#include <mutex>
#include <thread>

namespace lunpath::libvirt {

namespace {

void Run() {
  pthread_setname_np(pthread_self(), "libvirt-events");
  for (;;) virEventRunDefaultImpl();
}

void Quiet(void*, virErrorPtr) {}

}  // namespace

void EnsureEventLoop() {
  static std::once_flag once;
  std::call_once(once, [] {
    virInitialize();
    // By default libvirt prints each error to stderr, where a daemon's log is.
    virSetErrorFunc(nullptr, Quiet);
    virEventRegisterDefaultImpl();

    // A new thread inherits the mask: signals stay with Node's own threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread(Run).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  });
}

}  // namespace lunpath::libvirt
