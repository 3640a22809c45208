#include "tgt/control.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "sys/unique_fd.h"
#include "sys/wait.h"
#include "tgt/abi.h"

namespace lunpath::tgt {
namespace {

// A listing of 5,000 targets is 5.3 MB.
constexpr size_t kMaxReplyBytes = 64 << 20;

Error Timeout(const char* syscall) { return ErrnoError(ETIMEDOUT, syscall, "tgtd did not answer in time"); }

Error Protocol(const std::string& what) {
  return Error{.message = "tgtd's control socket gave an answer that is none: " + what, .code = "TGT_PROTOCOL"};
}

Error Closed(const char* syscall) {
  return Error{.message =
                   "tgtd closed the control connection without an answer: it died, or this process runs as another "
                   "user or group than tgtd",
               .code = "TGT_CLOSED",
               .syscall = syscall};
}

Result<UniqueFd> Connect(const std::string& path, Clock::time_point deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return ErrnoError(ENAMETOOLONG, "connect", "The path of tgtd's control socket is longer than 107 bytes");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return ErrnoError(errno, "socket", "Cannot make a socket");
  while (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return ErrnoError(errno, "connect", "Cannot reach tgtd at " + path);
    // The listen backlog (32) is full, by other clients of this tgtd. A non-blocking unix socket cannot wait for it.
    if (MillisecondsLeft(deadline) == 0) return Timeout("connect");
    poll(nullptr, 0, 1);
  }
  return fd;
}

std::optional<Error> Send(int fd, const std::string& bytes, Clock::time_point deadline) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    ssize_t n = send(fd, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n >= 0) {
      sent += static_cast<size_t>(n);
    } else if (errno == EAGAIN) {
      if (!Wait(fd, POLLOUT, deadline)) return Timeout("send");
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return Closed("send");
    } else if (errno != EINTR) {
      return ErrnoError(errno, "send", "Cannot send to tgtd");
    }
  }
  return std::nullopt;
}

Result<Reply> Receive(int fd, Clock::time_point deadline) {
  std::string bytes(4096, '\0');
  ReplyHeader header{};
  size_t have = 0;
  for (;;) {
    ssize_t n = recv(fd, bytes.data() + have, bytes.size() - have, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      if (!Wait(fd, POLLIN, deadline)) return Timeout("recv");
      continue;
    }
    if (n < 0 && errno != ECONNRESET) return ErrnoError(errno, "recv", "Cannot read tgtd's answer");
    if (n <= 0) {
      if (have == 0) return Closed("recv");
      return Protocol("it ended after " + std::to_string(have) + " bytes of " +
                      (have < sizeof(header) ? "a header of 8" : std::to_string(header.len)));
    }
    have += static_cast<size_t>(n);
    if (have < sizeof(header)) continue;
    std::memcpy(&header, bytes.data(), sizeof(header));
    if (header.len < sizeof(header) || header.len > kMaxReplyBytes) {
      return Protocol("its length is " + std::to_string(header.len));
    }
    if (have > header.len) return Protocol("it is longer than its length says");
    if (have == header.len) break;
    if (bytes.size() < header.len) bytes.resize(header.len);
  }
  const char* text = bytes.data() + sizeof(header);
  return Reply{.error = header.error, .text = std::string(text, strnlen(text, have - sizeof(header)))};
}

std::string Encode(const Request& request) {
  RequestHeader header{};
  header.mode = request.mode;
  header.op = request.op;
  std::strcpy(header.lld, "iscsi");
  // Without parameters tgtd expects the bare header: a NUL alone would be taken for parameters.
  size_t parameters = request.parameters.empty() ? 0 : request.parameters.size() + 1;
  header.len = static_cast<uint32_t>(sizeof(header) + parameters);
  header.tid = request.tid;
  header.sid = request.sid;
  header.lun = request.lun;
  header.cid = request.cid;
  header.account_direction = request.account_direction;
  header.force = request.force ? 1 : 0;
  std::string bytes(sizeof(header) + parameters, '\0');
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::memcpy(bytes.data() + sizeof(header), request.parameters.data(), request.parameters.size());
  return bytes;
}

Result<Reply> Exchange(const std::string& path, const Request& request, Clock::time_point deadline, pid_t expected_pid,
                       pid_t* pid) {
  auto connected = Connect(path, deadline);
  if (!connected.ok()) return std::move(connected.error());
  int fd = connected.value().get();
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return ErrnoError(errno, "getsockopt", "Cannot tell which process listens at " + path);
  }
  *pid = peer.pid;
  if (expected_pid != 0 && peer.pid != expected_pid) {
    return Error{.message = "tgtd has been restarted: process " + std::to_string(peer.pid) + " listens at " + path +
                            ", it was " + std::to_string(expected_pid),
                 .code = "TGT_RESTARTED"};
  }
  if (auto error = Send(fd, Encode(request), deadline)) return std::move(*error);
  return Receive(fd, deadline);
}

}  // namespace

Outcome Run(const std::string& socket_path, const std::vector<Sequence>& sequences, Clock::time_point deadline,
            pid_t expected_pid) {
  Outcome outcome;
  for (const Sequence& sequence : sequences) {
    auto& replies = outcome.replies.emplace_back();
    for (const Request& request : sequence) {
      auto reply = Exchange(socket_path, request, deadline, expected_pid, &outcome.pid);
      if (!reply.ok()) {
        outcome.failure = std::move(reply.error());
        return outcome;
      }
      replies.push_back(std::move(reply.value()));
      if (replies.back().error != 0) break;
    }
  }
  return outcome;
}

}  // namespace lunpath::tgt
