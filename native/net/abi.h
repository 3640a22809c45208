// What the kernel's iSCSI transport class and its clients exchange over NETLINK_ISCSI, as Linux 6.1 lays it out in
// include/scsi/iscsi_if.h, which is not among the headers for user space. Native byte order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunpath::net {

constexpr int kNetlinkIscsi = 8;         // NETLINK_ISCSI, linux/netlink.h
constexpr uint32_t kGroupIscsid = 1;     // ISCSI_NL_GRP_ISCSID: statistics come to this group, not to who asked
constexpr uint16_t kEventGetStats = 20;  // ISCSI_UEVENT_GET_STATS

// struct iscsi_uevent. The unions of the request and of the reply are as long as their longest members.
struct Event {
  uint32_t type;
  uint32_t error;
  uint64_t transport_handle;
  struct {
    uint32_t sid;
    uint32_t cid;
    uint8_t unused[16];
  } request;
  uint8_t reply[16];
};

static_assert(sizeof(Event) == 56, "must match struct iscsi_uevent");
static_assert(offsetof(Event, transport_handle) == 8);
static_assert(offsetof(Event, request) == 16);

// struct iscsi_stats, without the custom counters that follow it.
struct Stats {
  uint64_t txdata_octets;
  uint64_t rxdata_octets;
  uint32_t noptx_pdus;
  uint32_t scsicmd_pdus;
  uint32_t tmfcmd_pdus;
  uint32_t login_pdus;
  uint32_t text_pdus;
  uint32_t dataout_pdus;
  uint32_t logout_pdus;
  uint32_t snack_pdus;
  uint32_t noprx_pdus;
  uint32_t scsirsp_pdus;
  uint32_t tmfrsp_pdus;
  uint32_t textrsp_pdus;
  uint32_t datain_pdus;
  uint32_t logoutrsp_pdus;
  uint32_t r2t_pdus;
  uint32_t async_pdus;
  uint32_t rjt_pdus;
  uint32_t digest_err;
  uint32_t timeout_err;
  uint32_t custom_length;
};

static_assert(sizeof(Stats) == 96, "must match struct iscsi_stats");
static_assert(offsetof(Stats, digest_err) == 84);

}  // namespace lunpath::net
