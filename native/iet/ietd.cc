#include "iet/ietd.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "sys/unique_fd.h"
#include "sys/wait.h"

namespace lunpath::iet {
namespace {

constexpr int kMaxErrno = 4095;

Error Timeout(const char* syscall) { return ErrnoError(ETIMEDOUT, syscall, "ietd did not answer in time"); }

// What ietd has sent is never quoted: it may hold another caller's request, a CHAP secret included.
Error Protocol(const std::string& what) {
  return Error{.message = "ietd's socket gave an answer that is none: " + what, .code = "IET_PROTOCOL"};
}

Error Closed(const char* syscall) {
  return Error{
      .message = "ietd closed the connection without an answer: it died", .code = "IET_CLOSED", .syscall = syscall};
}

Result<UniqueFd> Connect(const std::string& name, Clock::time_point deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // The name in the abstract namespace is all 108 bytes, with the NULs behind it: a shorter address is another name.
  if (name.size() >= sizeof(address.sun_path)) {
    return ErrnoError(ENAMETOOLONG, "connect", "The name of ietd's socket is longer than 107 bytes");
  }
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  static_assert(sizeof(address) == 110);
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return ErrnoError(errno, "socket", "Cannot make a socket");
  while (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return ErrnoError(errno, "connect", "Cannot reach ietd at the abstract socket @" + name);
    // As many connections wait already as ietd lets wait. A non-blocking unix socket cannot wait for it.
    if (MillisecondsLeft(deadline) == 0) return Timeout("connect");
    poll(nullptr, 0, 1);
  }
  return fd;
}

// In one write: to a request that comes in parts ietd gives no answer.
std::optional<Error> Send(int fd, const Request& request, Clock::time_point deadline) {
  for (;;) {
    const ssize_t sent = send(fd, &request, sizeof(request), MSG_NOSIGNAL);
    if (sent == static_cast<ssize_t>(sizeof(request))) return std::nullopt;
    if (sent >= 0) return Protocol("it took a part of the request");
    if (errno == EAGAIN) {
      if (!Wait(fd, POLLOUT, deadline)) return Timeout("send");
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return Closed("send");
    } else if (errno != EINTR) {
      return ErrnoError(errno, "send", "Cannot send to ietd");
    }
  }
}

// Reads until `want` bytes are there or the other side has closed. Returns how many came.
Result<size_t> Fill(int fd, char* into, size_t have, size_t want, Clock::time_point deadline) {
  while (have < want) {
    const ssize_t got = recv(fd, into + have, want - have, 0);
    if (got > 0) {
      have += static_cast<size_t>(got);
    } else if (got == 0 || errno == ECONNRESET) {
      break;
    } else if (errno == EAGAIN) {
      if (!Wait(fd, POLLIN, deadline)) return Timeout("recv");
    } else if (errno != EINTR) {
      return ErrnoError(errno, "recv", "Cannot read ietd's answer");
    }
  }
  return have;
}

// True where ietd has sent more than it should.
bool HasMore(int fd) {
  char byte;
  return recv(fd, &byte, 1, MSG_DONTWAIT) > 0;
}

template <size_t size>
std::string Text(const char (&field)[size]) {
  return {field, strnlen(field, size)};
}

template <size_t size>
void Put(char (&field)[size], const std::string& text) {
  std::memcpy(field, text.data(), std::min(text.size(), size - 1));
}

template <size_t size>
void PutValues(ParameterValue (&fields)[size], const std::vector<uint32_t>& values) {
  for (size_t i = 0; i < std::min(values.size(), size); ++i) fields[i].value = values[i];
}

void Encode(const Message& message, Request& request) {
  request.command = message.command;
  request.tid = message.tid;
  request.sid = message.sid;
  request.cid = message.cid;
  request.lun = message.lun;
  switch (message.command) {
    case kTargetNew:
      Put(request.target.name, message.text);
      break;
    case kTargetUpdate:
      request.target.type = 1u << message.parameters.type;
      if (message.parameters.type == kSessionParameters) {
        request.target.session_partial = message.parameters.partial;
        PutValues(request.target.session, message.parameters.values);
      } else {
        request.target.target_partial = message.parameters.partial;
        PutValues(request.target.target, message.parameters.values);
      }
      break;
    case kTargetShow:
    case kSessionShow:
      request.target.type = 1u << message.parameters.type;
      break;
    case kTargetRedirect:
      Put(request.redirect.destination, message.text);
      break;
    case kLunNew:
      Put(request.volume.args, message.text);
      break;
    case kAccountNew:
      Put(request.account.password, message.secret);
      [[fallthrough]];
    case kAccountDelete:
    case kAccountShow:
      request.account.direction = message.direction;
      Put(request.account.name, message.text);
      break;
    case kAccountList:
      request.accounts.direction = message.direction;
      request.accounts.alloc_len = message.most * static_cast<uint32_t>(kNameBytes);
      break;
    case kTargetDelete:
    case kSessionDelete:
    case kConnectionDelete:
    case kLunDelete:
    case kSystemShow:
      break;
  }
}

// Empty where the reply is one to this request.
std::string WhatIsWrong(const Request& request, const Request& echo) {
  if (echo.command != request.command) return "it is for another command";
  const bool gives_tid = request.command == kTargetNew && request.tid == 0;
  if (!gives_tid && echo.tid != request.tid) return "it is for another target";
  if (gives_tid && echo.tid == 0) return "the new target has no number";
  if (echo.sid != request.sid || echo.cid != request.cid) return "it is for another session or connection";
  if (echo.lun != request.lun) return "it is for another logical unit";
  if (request.command != kAccountList) return {};
  if (echo.accounts.direction != request.accounts.direction || echo.accounts.alloc_len != request.accounts.alloc_len) {
    return "it is for another list of accounts";
  }
  if (echo.accounts.count > request.accounts.alloc_len / kNameBytes) return "it counts more names than it has room for";
  return {};
}

void Decode(const Message& message, const Request& echo, const std::string& data, Answer& answer) {
  switch (echo.command) {
    case kTargetNew:
      answer.tid = echo.tid;
      break;
    case kTargetShow:
      for (const ParameterValue& one : echo.target.target) answer.numbers.push_back(one.value);
      break;
    case kSessionShow:
      for (const ParameterValue& one : echo.target.session) answer.numbers.push_back(one.value);
      break;
    case kAccountShow:
      answer.numbers = {Text(echo.account.password) == message.secret ? 1u : 0u};
      break;
    case kAccountList:
      answer.numbers = {echo.accounts.overflow};
      for (uint32_t i = 0; i < echo.accounts.count; ++i) {
        const char* name = data.data() + i * kNameBytes;
        answer.names.emplace_back(name, strnlen(name, kNameBytes));
      }
      break;
    default:
      break;
  }
}

Result<Answer> Receive(int fd, const Message& message, const Request& request, Clock::time_point deadline) {
  Reply reply{};
  auto head = Fill(fd, reinterpret_cast<char*>(&reply), 0, kReplyBytes, deadline);
  const auto refuse = [&reply](const std::string& what) {
    explicit_bzero(&reply, sizeof(reply));
    return Protocol(what);
  };
  if (!head.ok()) return std::move(head.error());
  if (head.value() == 0) return Closed("recv");
  if (head.value() < kReplyBytes) {
    return refuse("it ended after " + std::to_string(head.value()) + " bytes of " + std::to_string(kReplyBytes));
  }
  if (reply.error > 0 || reply.error < -kMaxErrno) return refuse("its result is no errno");
  Answer answer{.error = -reply.error};
  // To another user ietd answers EPERM before it has read the request: what it echoes is an earlier one.
  if (answer.error != EPERM) {
    // A target that was refused has no number.
    const bool refused_target = answer.error != 0 && request.command == kTargetNew;
    if (refused_target) reply.request.tid = request.tid == 0 ? 1 : request.tid;
    if (auto wrong = WhatIsWrong(request, reply.request); !wrong.empty()) return refuse(wrong);
  }
  const bool has_data = answer.error == 0 && request.command == kAccountList;
  std::string data(has_data ? request.accounts.alloc_len : 0, '\0');
  if (has_data) {
    auto body = Fill(fd, data.data(), 0, data.size(), deadline);
    if (!body.ok()) return body.error();
    if (body.value() < data.size()) {
      return refuse("its data ended after " + std::to_string(body.value()) + " bytes of " +
                    std::to_string(data.size()));
    }
  }
  if (HasMore(fd)) return refuse("it is longer than it should be");
  if (answer.error == 0) Decode(message, reply.request, data, answer);
  explicit_bzero(&reply, sizeof(reply));
  return answer;
}

Result<Answer> ExchangeOne(const std::string& name, const Message& message, Clock::time_point deadline,
                           pid_t expected_pid, pid_t* pid) {
  auto connected = Connect(name, deadline);
  if (!connected.ok()) return std::move(connected.error());
  const int fd = connected.value().get();
  // Encoded before anything else happens: while this connection is silent, ietd serves nobody.
  Request request{};
  Encode(message, request);
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return ErrnoError(errno, "getsockopt", "Cannot tell which process listens at @" + name);
  }
  *pid = peer.pid;
  if (expected_pid != 0 && peer.pid != expected_pid) {
    return Error{.message = "ietd has been restarted: process " + std::to_string(peer.pid) + " listens at @" + name +
                            ", it was " + std::to_string(expected_pid),
                 .code = "IET_RESTARTED"};
  }
  auto failure = Send(fd, request, deadline);
  if (message.command == kAccountNew) explicit_bzero(&request.account, sizeof(request.account));
  if (failure && failure->code == "IET_CLOSED") {
    // Another user than root is refused before it has said anything.
    auto refusal = Receive(fd, message, request, deadline);
    if (refusal.ok() && refusal.value().error == EPERM) return refusal;
  }
  if (failure) return std::move(*failure);
  return Receive(fd, message, request, deadline);
}

}  // namespace

Outcome Exchange(const std::string& name, const std::vector<std::vector<Message>>& sequences,
                 Clock::time_point deadline, pid_t expected_pid) {
  Outcome outcome;
  for (const auto& sequence : sequences) {
    auto& answers = outcome.answers.emplace_back();
    for (const Message& message : sequence) {
      auto answer = ExchangeOne(name, message, deadline, expected_pid, &outcome.pid);
      if (!answer.ok()) {
        outcome.failure = std::move(answer.error());
        return outcome;
      }
      answers.push_back(std::move(answer.value()));
      if (answers.back().error != 0) break;
    }
  }
  return outcome;
}

}  // namespace lunpath::iet
