// A daemon on this machine that answers one request for each connection to its unix socket. Blocking, with a deadline.
#pragma once

#include <sys/types.h>
#include <sys/un.h>

#include <chrono>
#include <optional>
#include <string>

#include "sys/result.h"
#include "sys/unique_fd.h"

namespace lunpath {

struct LocalDaemon {
  std::string name;       // in messages
  std::string code;       // what its errors begin with: CODE_CLOSED, CODE_RESTARTED, CODE_PROTOCOL
  std::string place;      // where it listens, in messages
  std::string why_close;  // what it means where it closes a connection without an answer
  sockaddr_un address{};  // all of it counts: of an abstract name the NULs behind it too (unix(7))

  Error Timeout(const char* syscall) const;
  Error Closed(const char* syscall) const;
  // What the daemon has sent is not to be quoted: it may hold a secret.
  Error Protocol(const std::string& what) const;
};

// One connection, for one request. One thread at a time; the daemon outlives it.
class LocalConnection {
 public:
  using Clock = std::chrono::steady_clock;

  // Tells in `pid` which process listens (SO_PEERCRED). CODE_RESTARTED where `expected_pid` is not 0 and it is another
  // one. As many connections as wait already may be all that the daemon lets wait: then it is tried until `deadline`,
  // and not at all after it.
  static Result<LocalConnection> Open(const LocalDaemon& daemon, Clock::time_point deadline, pid_t expected_pid,
                                      pid_t* pid);

  // All of it, in one write where the kernel takes it. CODE_CLOSED where the other side has gone.
  std::optional<Error> Send(const void* bytes, size_t size);
  // Reads until `want` bytes are there or the other side has closed. Returns how many came.
  Result<size_t> Fill(char* into, size_t want);
  // True where more has come than was asked for.
  bool HasMore();

 private:
  LocalConnection(const LocalDaemon& daemon, Clock::time_point deadline) : daemon_(&daemon), deadline_(deadline) {}

  const LocalDaemon* daemon_;
  Clock::time_point deadline_;
  UniqueFd fd_;
};

}  // namespace lunpath
