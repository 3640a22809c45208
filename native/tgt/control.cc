#include "tgt/control.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "sys/local_daemon.h"
#include "tgt/abi.h"

namespace lunpath::tgt {
namespace {

// A listing of 5,000 targets is 5.3 MB.
constexpr size_t kMaxReplyBytes = 64 << 20;

Result<LocalDaemon> Tgtd(const std::string& path) {
  LocalDaemon tgtd{.name = "tgtd",
                   .code = "TGT",
                   .place = path,
                   .why_close = "it died, or this process runs as another user or group than tgtd"};
  if (path.size() >= sizeof(tgtd.address.sun_path)) {
    return ErrnoError(ENAMETOOLONG, "connect", "The path of tgtd's control socket is longer than 107 bytes");
  }
  tgtd.address.sun_family = AF_UNIX;
  std::memcpy(tgtd.address.sun_path, path.data(), path.size());
  return tgtd;
}

Result<Reply> Receive(const LocalDaemon& tgtd, LocalConnection& connection) {
  ReplyHeader header{};
  auto head = connection.Fill(reinterpret_cast<char*>(&header), sizeof(header));
  if (!head.ok()) return std::move(head.error());
  if (head.value() == 0) return tgtd.Closed("recv");
  const auto ended_after = [&](size_t bytes, const std::string& of) {
    return tgtd.Protocol("it ended after " + std::to_string(bytes) + " bytes of " + of);
  };
  if (head.value() < sizeof(header)) return ended_after(head.value(), "a header of 8");
  if (header.len < sizeof(header) || header.len > kMaxReplyBytes) {
    return tgtd.Protocol("its length is " + std::to_string(header.len));
  }
  std::string text(header.len - sizeof(header), '\0');
  auto body = connection.Fill(text.data(), text.size());
  if (!body.ok()) return body.error();
  if (body.value() < text.size()) return ended_after(sizeof(header) + body.value(), std::to_string(header.len));
  if (connection.HasMore()) return tgtd.Protocol("it is longer than its length says");
  text.resize(strnlen(text.data(), text.size()));
  return Reply{.error = header.error, .text = std::move(text)};
}

Secret Encode(const Request& request) {
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
  Secret bytes(sizeof(header) + parameters);
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::memcpy(bytes.data() + sizeof(header), request.parameters.data(), request.parameters.size());
  return bytes;
}

Result<Reply> Exchange(const LocalDaemon& tgtd, const Request& request, Clock::time_point deadline, pid_t expected_pid,
                       pid_t* pid) {
  auto connected = LocalConnection::Open(tgtd, deadline, expected_pid, pid);
  if (!connected.ok()) return std::move(connected.error());
  const Secret bytes = Encode(request);
  if (auto error = connected.value().Send(bytes.data(), bytes.size())) return std::move(*error);
  return Receive(tgtd, connected.value());
}

}  // namespace

Outcome Run(const std::string& socket_path, const std::vector<Sequence>& sequences, Clock::time_point deadline,
            pid_t expected_pid) {
  Outcome outcome;
  auto tgtd = Tgtd(socket_path);
  if (!tgtd.ok()) {
    outcome.failure = std::move(tgtd.error());
    return outcome;
  }
  for (const Sequence& sequence : sequences) {
    auto& replies = outcome.replies.emplace_back();
    for (const Request& request : sequence) {
      auto reply = Exchange(tgtd.value(), request, deadline, expected_pid, &outcome.pid);
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
