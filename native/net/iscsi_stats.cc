#include "net/iscsi_stats.h"

#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "sys/unique_fd.h"
#include "sys/wait.h"

namespace lunpath::net {
namespace {

Error Timeout() {
  return ErrnoError(ETIMEDOUT, "recv", "The kernel did not answer with the counters of an iSCSI connection in time");
}

Result<UniqueFd> Open() {
  UniqueFd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, kNetlinkIscsi));
  if (!fd) {
    return ErrnoError(errno, "socket", "Cannot open a netlink socket of the kernel's iSCSI initiator");
  }
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = kGroupIscsid;
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoError(errno, "bind", "Cannot join the netlink group of the kernel's iSCSI initiator");
  }
  return fd;
}

std::optional<Error> Ask(int fd, uint64_t handle, ConnectionId id) {
  struct {
    nlmsghdr header;
    Event event;
  } message{};
  static_assert(sizeof(message) == NLMSG_SPACE(sizeof(Event)));
  message.header.nlmsg_len = sizeof(message);
  message.header.nlmsg_type = kEventGetStats;
  message.header.nlmsg_flags = NLM_F_REQUEST;
  message.event.type = kEventGetStats;
  message.event.transport_handle = handle;
  message.event.request.sid = id.sid;
  message.event.request.cid = id.cid;
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  while (sendto(fd, &message, sizeof(message), 0, reinterpret_cast<sockaddr*>(&kernel), sizeof(kernel)) < 0) {
    if (errno != EINTR) return ErrnoError(errno, "sendto", "Cannot ask the kernel for the counters of iSCSI");
  }
  return std::nullopt;
}

enum class Answer { kOther, kStats, kRefused };

// The group hears of all that the transport class has to say, and of what others have asked.
Answer Read(const char* bytes, size_t length, ConnectionId id, Stats* stats) {
  nlmsghdr header;
  Event event;
  if (length < sizeof(header) + sizeof(event)) return Answer::kOther;
  std::memcpy(&header, bytes, sizeof(header));
  std::memcpy(&event, bytes + sizeof(header), sizeof(event));
  if (event.type != kEventGetStats || event.request.sid != id.sid || event.request.cid != id.cid) return Answer::kOther;
  // A refusal is sent back as the request that it refuses; statistics follow the event.
  if (length < sizeof(header) + sizeof(event) + sizeof(*stats)) return Answer::kRefused;
  std::memcpy(stats, bytes + sizeof(header) + sizeof(event), sizeof(*stats));
  return Answer::kStats;
}

}  // namespace

Result<std::vector<ConnectionStats>> ReadStats(uint64_t handle, const std::vector<ConnectionId>& connections,
                                               Clock::time_point deadline) {
  auto opened = Open();
  if (!opened.ok()) return std::move(opened.error());
  const int fd = opened.value().get();
  std::vector<ConnectionStats> all;
  all.reserve(connections.size());
  std::vector<char> bytes(8192);
  for (const ConnectionId& id : connections) {
    if (auto error = Ask(fd, handle, id)) return std::move(*error);
    ConnectionStats found{.id = id};
    for (auto answer = Answer::kOther; answer == Answer::kOther;) {
      if (!Wait(fd, POLLIN, deadline)) return Timeout();
      const ssize_t got = recv(fd, bytes.data(), bytes.size(), 0);
      if (got < 0) {
        if (errno == EINTR || errno == EAGAIN) continue;
        // The group's messages came faster than we read them: the answer may be among those that were lost.
        if (errno == ENOBUFS) {
          if (auto error = Ask(fd, handle, id)) return std::move(*error);
          continue;
        }
        return ErrnoError(errno, "recv", "Cannot read the counters of iSCSI");
      }
      answer = Read(bytes.data(), static_cast<size_t>(got), id, &found.stats);
      if (answer == Answer::kStats) all.push_back(found);
    }
  }
  return all;
}

}  // namespace lunpath::net
