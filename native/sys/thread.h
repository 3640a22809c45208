// Threads that nobody joins.
#pragma once

#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "sys/result.h"

namespace lunpath {

// Starts a thread that runs `body`, from which nothing may be thrown. EAGAIN where there is no thread to be had: the
// pids limit of a cgroup, RLIMIT_NPROC, no room for a stack. `body` has been destroyed then. `what` begins the error.
template <class Body>
std::optional<Error> StartThread(
    Body body, const char* what =
                   "Cannot start a thread; the limit is that of the process's cgroup (systemd: TasksMax=), of its user "
                   "(ulimit -u) or of memory") {
  static_assert(noexcept(body()), "nothing that is thrown may leave a thread");
  try {
    std::thread(std::move(body)).detach();
    return std::nullopt;
  } catch (const std::system_error& error) {
    return ErrnoError(error.code().value(), "pthread_create", what);
  } catch (...) {
    return CaughtError(what);
  }
}

}  // namespace lunpath
