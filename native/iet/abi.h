// The two interfaces of the iSCSI Enterprise Target 1.4.20 to 1.4.20.3: ioctl requests of its control device, and the
// requests of ietd's socket, which ietadm speaks. Native byte order and alignment on both sides, as on x86-64.
#pragma once

#include <linux/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace lunpath::iet {

constexpr size_t kNameBytes = 256;
constexpr size_t kSessionKeys = 19;
constexpr size_t kTargetKeys = 5;

// ---- the control device ----

struct ModuleInfo {
  char version[128];
};
static_assert(sizeof(ModuleInfo) == 128);

struct TargetInfo {
  uint32_t tid;
  char name[kNameBytes];
};
static_assert(sizeof(TargetInfo) == 260, "must match struct target_info of IET 1.4.20");
static_assert(offsetof(TargetInfo, name) == 4);

struct VolumeInfo {
  uint32_t tid;
  uint32_t lun;
  uint64_t args_ptr;
  uint32_t args_len;
  uint32_t unused;
};
static_assert(sizeof(VolumeInfo) == 24, "must match struct volume_info of IET 1.4.20");
static_assert(offsetof(VolumeInfo, lun) == 4);
static_assert(offsetof(VolumeInfo, args_ptr) == 8);
static_assert(offsetof(VolumeInfo, args_len) == 16);

struct SessionInfo {
  uint32_t tid;
  uint32_t unused;
  uint64_t sid;
  char initiator_name[kNameBytes];
  uint32_t exp_cmd_sn;
  uint32_t max_cmd_sn;
};
static_assert(sizeof(SessionInfo) == 280, "must match struct session_info of IET 1.4.20");
static_assert(offsetof(SessionInfo, sid) == 8);
static_assert(offsetof(SessionInfo, initiator_name) == 16);
static_assert(offsetof(SessionInfo, exp_cmd_sn) == 272);
static_assert(offsetof(SessionInfo, max_cmd_sn) == 276);

struct ConnectionInfo {
  uint32_t tid;
  uint32_t unused;
  uint64_t sid;
  uint32_t cid;
  uint32_t stat_sn;
  uint32_t exp_stat_sn;
  int32_t header_digest;
  int32_t data_digest;
  int32_t fd;
};
static_assert(sizeof(ConnectionInfo) == 40, "must match struct conn_info of IET 1.4.20");
static_assert(offsetof(ConnectionInfo, sid) == 8);
static_assert(offsetof(ConnectionInfo, cid) == 16);
static_assert(offsetof(ConnectionInfo, stat_sn) == 20);
static_assert(offsetof(ConnectionInfo, exp_stat_sn) == 24);
static_assert(offsetof(ConnectionInfo, header_digest) == 28);
static_assert(offsetof(ConnectionInfo, data_digest) == 32);
static_assert(offsetof(ConnectionInfo, fd) == 36);

enum ParameterType : uint32_t { kSessionParameters = 0, kTargetParameters = 1 };

struct ParameterInfo {
  uint32_t tid;
  uint32_t unused;
  uint64_t sid;  // 0: the target's defaults
  uint32_t type;
  uint32_t partial;  // a bit for each key that is meant; 0 means all of them
  uint32_t session[kSessionKeys];
  uint32_t target[kTargetKeys];
};
static_assert(sizeof(ParameterInfo) == 120, "must match struct iscsi_param_info of IET 1.4.20");
static_assert(offsetof(ParameterInfo, sid) == 8);
static_assert(offsetof(ParameterInfo, type) == 16);
static_assert(offsetof(ParameterInfo, partial) == 20);
static_assert(offsetof(ParameterInfo, session) == 24);
static_assert(offsetof(ParameterInfo, target) == 100);

// What the module tells ietd over netlink (protocol 21, one listener). Nobody here listens.
struct Event {
  uint32_t tid;
  uint32_t unused;
  uint64_t sid;
  uint32_t cid;
  uint32_t state;
};
static_assert(sizeof(Event) == 24, "must match struct iet_event of IET 1.4.20");
static_assert(offsetof(Event, sid) == 8);
static_assert(offsetof(Event, cid) == 16);
static_assert(offsetof(Event, state) == 20);

// GET_MODULE_INFO is coded as one that only reads from the caller, and yet writes.
constexpr unsigned long kGetModuleInfo = _IOW('i', 20, ModuleInfo);
constexpr unsigned long kAddTarget = _IOWR('i', 21, TargetInfo);
constexpr unsigned long kDelTarget = _IOW('i', 22, TargetInfo);
constexpr unsigned long kAddVolume = _IOW('i', 24, VolumeInfo);
constexpr unsigned long kDelVolume = _IOW('i', 25, VolumeInfo);
constexpr unsigned long kAddSession = _IOW('i', 26, SessionInfo);
constexpr unsigned long kDelSession = _IOW('i', 27, SessionInfo);
constexpr unsigned long kGetSessionInfo = _IOWR('i', 28, SessionInfo);
constexpr unsigned long kAddConnection = _IOW('i', 29, ConnectionInfo);
constexpr unsigned long kDelConnection = _IOW('i', 30, ConnectionInfo);
constexpr unsigned long kGetConnectionInfo = _IOWR('i', 31, ConnectionInfo);
constexpr unsigned long kParameterSet = _IOW('i', 32, ParameterInfo);
constexpr unsigned long kParameterGet = _IOWR('i', 33, ParameterInfo);

static_assert(kGetModuleInfo == 0x40806914);
static_assert(kAddTarget == 0xc1046915);
static_assert(kDelTarget == 0x41046916);
static_assert(kAddVolume == 0x40186918);
static_assert(kDelVolume == 0x40186919);
static_assert(kAddSession == 0x4118691a);
static_assert(kDelSession == 0x4118691b);
static_assert(kGetSessionInfo == 0xc118691c);
static_assert(kAddConnection == 0x4028691d);
static_assert(kDelConnection == 0x4028691e);
static_assert(kGetConnectionInfo == 0xc028691f);
static_assert(kParameterSet == 0x40786920);
static_assert(kParameterGet == 0xc0786921);

// ---- ietd's socket ----

enum Command : uint32_t {
  kTargetNew = 0,
  kTargetDelete = 1,
  kTargetUpdate = 2,
  kTargetShow = 3,
  kTargetRedirect = 4,
  kSessionDelete = 6,
  kSessionShow = 8,
  kConnectionDelete = 10,
  kLunNew = 13,
  kLunDelete = 14,
  kAccountNew = 17,
  kAccountDelete = 18,
  kAccountShow = 20,
  kSystemShow = 24,  // does nothing
  kAccountList = 25,
};

struct ParameterValue {
  uint32_t state;
  uint32_t value;
};

struct TargetMessage {
  char name[kNameBytes];
  char alias[kNameBytes];
  uint32_t type;  // bit 0: session parameters, bit 1: target parameters
  uint32_t session_partial;
  uint32_t target_partial;
  ParameterValue session[kSessionKeys];
  ParameterValue target[kTargetKeys];
};
static_assert(sizeof(TargetMessage) == 716, "must match struct msg_trgt of IET 1.4.20");
static_assert(offsetof(TargetMessage, alias) == 256);
static_assert(offsetof(TargetMessage, type) == 512);
static_assert(offsetof(TargetMessage, session_partial) == 516);
static_assert(offsetof(TargetMessage, target_partial) == 520);
static_assert(offsetof(TargetMessage, session) == 524);
static_assert(offsetof(TargetMessage, target) == 676);

struct AccountMessage {
  uint32_t direction;  // 0 incoming, 1 outgoing
  char name[kNameBytes];
  char password[kNameBytes];
};
static_assert(sizeof(AccountMessage) == 516, "must match struct msg_acnt of IET 1.4.20");
static_assert(offsetof(AccountMessage, name) == 4);
static_assert(offsetof(AccountMessage, password) == 260);

struct AccountListMessage {
  uint32_t direction;
  uint32_t alloc_len;
  uint32_t count;
  uint32_t overflow;
};
static_assert(offsetof(AccountListMessage, alloc_len) == 4);
static_assert(offsetof(AccountListMessage, count) == 8);
static_assert(offsetof(AccountListMessage, overflow) == 12);

struct LunMessage {
  char args[2048];
};

struct RedirectMessage {
  char destination[1061];
};
static_assert(sizeof(RedirectMessage) == 1061, "must match struct msg_redir of IET 1.4.20");

struct Request {
  uint32_t command;
  uint32_t tid;
  uint64_t sid;
  uint32_t cid;
  uint32_t lun;
  union {
    TargetMessage target;
    AccountMessage account;
    AccountListMessage accounts;
    LunMessage volume;
    RedirectMessage redirect;
  };
};
static_assert(sizeof(Request) == 2072, "must match struct ietadm_req of IET 1.4.20");
static_assert(offsetof(Request, tid) == 4);
static_assert(offsetof(Request, sid) == 8);
static_assert(offsetof(Request, cid) == 16);
static_assert(offsetof(Request, lun) == 20);
static_assert(offsetof(Request, target) == 24);
static_assert(offsetof(Request, account) == 24);
static_assert(offsetof(Request, volume) == 24);
static_assert(offsetof(Request, redirect) == 24);

// The request as ietd has changed it, then the result; data may follow.
struct Reply {
  Request request;
  int32_t error;  // 0, or an errno below zero
  uint32_t unused;
};
static_assert(offsetof(Reply, error) == 2072);
constexpr size_t kReplyBytes = offsetof(Reply, error) + sizeof(int32_t);
static_assert(kReplyBytes == 2076);

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && sizeof(void*) == 8,
              "the layouts above were taken from x86-64");

}  // namespace lunpath::iet
