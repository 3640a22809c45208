#include "iet/ietd.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "sys/local_daemon.h"

namespace lunpath::iet {
namespace {

constexpr int kMaxErrno = 4095;

// The name in the abstract namespace is all 108 bytes, with the NULs behind it: a shorter address is another name.
Result<LocalDaemon> Ietd(const std::string& name) {
  LocalDaemon ietd{.name = "ietd", .code = "IET", .place = "the abstract socket @" + name, .why_close = "it died"};
  static_assert(sizeof(ietd.address) == 110);
  if (name.size() >= sizeof(ietd.address.sun_path)) {
    return ErrnoError(ENAMETOOLONG, "connect", "The name of ietd's socket is longer than 107 bytes");
  }
  ietd.address.sun_family = AF_UNIX;
  std::memcpy(ietd.address.sun_path + 1, name.data(), name.size());
  return ietd;
}

template <size_t size>
std::string_view Text(const char (&field)[size]) {
  return {field, strnlen(field, size)};
}

template <size_t size>
void Put(char (&field)[size], std::string_view text) {
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
      Put(request.account.password, message.secret.view());
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
      answer.numbers = {Text(echo.account.password) == message.secret.view() ? 1u : 0u};
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

Result<Answer> Receive(const LocalDaemon& ietd, LocalConnection& connection, const Message& message,
                       const Request& request) {
  Reply reply{};
  const WipeAtEnd wiped(reply);
  auto head = connection.Fill(reinterpret_cast<char*>(&reply), kReplyBytes);
  const auto refuse = [&](const std::string& what) { return ietd.Protocol(what); };
  if (!head.ok()) return std::move(head.error());
  if (head.value() == 0) return ietd.Closed("recv");
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
    auto body = connection.Fill(data.data(), data.size());
    if (!body.ok()) return body.error();
    if (body.value() < data.size()) {
      return refuse("its data ended after " + std::to_string(body.value()) + " bytes of " +
                    std::to_string(data.size()));
    }
  }
  if (connection.HasMore()) return refuse("it is longer than it should be");
  if (answer.error == 0) Decode(message, reply.request, data, answer);
  return answer;
}

Result<Answer> ExchangeOne(const LocalDaemon& ietd, const Message& message, Clock::time_point deadline,
                           pid_t expected_pid, pid_t* pid) {
  // Before the connection is there: while it is silent, ietd serves nobody. To a request in parts it gives no answer.
  Request request{};
  const WipeAtEnd wiped(request);
  Encode(message, request);
  auto connected = LocalConnection::Open(ietd, deadline, expected_pid, pid);
  auto failure = connected.ok() ? connected.value().Send(&request, sizeof(request)) : std::move(connected.error());
  // Not only at the end: the answer may take its time.
  if (message.command == kAccountNew) explicit_bzero(&request.account, sizeof(request.account));
  if (connected.ok() && failure && failure->code == "IET_CLOSED") {
    // Another user than root is refused before it has said anything.
    auto refusal = Receive(ietd, connected.value(), message, request);
    if (refusal.ok() && refusal.value().error == EPERM) return refusal;
  }
  if (failure) return std::move(*failure);
  return Receive(ietd, connected.value(), message, request);
}

}  // namespace

Outcome Exchange(const std::string& name, const std::vector<std::vector<Message>>& sequences,
                 Clock::time_point deadline, pid_t expected_pid) {
  Outcome outcome;
  auto ietd = Ietd(name);
  if (!ietd.ok()) {
    outcome.failure = std::move(ietd.error());
    return outcome;
  }
  for (const auto& sequence : sequences) {
    auto& answers = outcome.answers.emplace_back();
    for (const Message& message : sequence) {
      auto answer = ExchangeOne(ietd.value(), message, deadline, expected_pid, &outcome.pid);
      if (!answer.ok()) {
        outcome.failure = std::move(answer.error());
        return outcome;
      }
      answers.push_back(std::move(answer.value()));
      if (answers.back().error != message.wanted) break;
    }
  }
  return outcome;
}

}  // namespace lunpath::iet
