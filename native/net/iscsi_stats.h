// Counters of the kernel initiator's connections, asked for over NETLINK_ISCSI. Blocking, free of state, any thread;
// needs CAP_NET_ADMIN.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "net/abi.h"
#include "sys/result.h"

namespace lunpath::net {

using Clock = std::chrono::steady_clock;

struct ConnectionId {
  uint32_t sid = 0;
  uint32_t cid = 0;
};

struct ConnectionStats {
  ConnectionId id;
  Stats stats{};
};

// Asks for each connection's counters, one after the other. One that is not there any more is left out. `handle` is the
// transport's, as /sys/class/iscsi_transport/tcp/handle has it. ETIMEDOUT at `deadline`.
Result<std::vector<ConnectionStats>> ReadStats(uint64_t handle, const std::vector<ConnectionId>& connections,
                                               Clock::time_point deadline);

}  // namespace lunpath::net
