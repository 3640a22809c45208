#include "sys/local_daemon.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

#include "sys/wait.h"

namespace lunpath {

Error LocalDaemon::Timeout(const char* syscall) const {
  return ErrnoError(ETIMEDOUT, syscall, name + " did not answer in time");
}

Error LocalDaemon::Closed(const char* syscall) const {
  return Error{.message = name + " closed the connection without an answer: " + why_close,
               .code = code + "_CLOSED",
               .syscall = syscall};
}

Error LocalDaemon::Protocol(const std::string& what) const {
  return Error{.message = name + "'s socket gave an answer that is none: " + what, .code = code + "_PROTOCOL"};
}

Result<LocalConnection> LocalConnection::Open(const LocalDaemon& daemon, Clock::time_point deadline, pid_t expected_pid,
                                              pid_t* pid) {
  // A request that has waited too long must not be sent: its caller has been told that it failed, and goes on from
  // there.
  if (MillisecondsLeft(deadline) == 0) return daemon.Timeout("connect");
  LocalConnection made(daemon, deadline);
  made.fd_.Reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made.fd_) return ErrnoError(errno, "socket", "Cannot make a socket");
  const int fd = made.fd_.get();
  while (connect(fd, reinterpret_cast<const sockaddr*>(&daemon.address), sizeof(daemon.address)) != 0) {
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return ErrnoError(errno, "connect", "Cannot reach " + daemon.name + " at " + daemon.place);
    // The backlog is full. A non-blocking unix socket cannot wait for it.
    if (MillisecondsLeft(deadline) == 0) return daemon.Timeout("connect");
    poll(nullptr, 0, 1);
  }
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return ErrnoError(errno, "getsockopt", "Cannot tell which process listens at " + daemon.place);
  }
  *pid = peer.pid;
  if (expected_pid != 0 && peer.pid != expected_pid) {
    return Error{.message = daemon.name + " has been restarted: process " + std::to_string(peer.pid) + " listens at " +
                            daemon.place + ", it was " + std::to_string(expected_pid),
                 .code = daemon.code + "_RESTARTED"};
  }
  return made;
}

std::optional<Error> LocalConnection::Send(const void* bytes, size_t size) {
  const auto* from = static_cast<const char*>(bytes);
  size_t sent = 0;
  while (sent < size) {
    const ssize_t n = send(fd_.get(), from + sent, size - sent, MSG_NOSIGNAL);
    if (n >= 0) {
      sent += static_cast<size_t>(n);
    } else if (errno == EAGAIN) {
      if (!Wait(fd_.get(), POLLOUT, deadline_)) return daemon_->Timeout("send");
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return daemon_->Closed("send");
    } else if (errno != EINTR) {
      return ErrnoError(errno, "send", "Cannot send to " + daemon_->name);
    }
  }
  return std::nullopt;
}

Result<size_t> LocalConnection::Fill(char* into, size_t want) {
  size_t have = 0;
  while (have < want) {
    const ssize_t got = recv(fd_.get(), into + have, want - have, 0);
    if (got > 0) {
      have += static_cast<size_t>(got);
    } else if (got == 0 || errno == ECONNRESET) {
      break;
    } else if (errno == EAGAIN) {
      if (!Wait(fd_.get(), POLLIN, deadline_)) return daemon_->Timeout("recv");
    } else if (errno != EINTR) {
      return ErrnoError(errno, "recv", "Cannot read " + daemon_->name + "'s answer");
    }
  }
  return have;
}

bool LocalConnection::HasMore() {
  char byte;
  return recv(fd_.get(), &byte, 1, MSG_DONTWAIT) > 0;
}

}  // namespace lunpath
