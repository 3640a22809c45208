// What the double's module and daemon agree on: the requests and layouts of IET 1.4.20 on x86-64 as they were observed.
// It is written apart from native/iet, so that a mistake in one of the two shows.
#ifndef LUNPATH_TEST_LAB_IET_INTERFACE_H_
#define LUNPATH_TEST_LAB_IET_INTERFACE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace iet {

enum Request : uint32_t {
  kGetModuleInfo = 0x40806914,
  kAddTarget = 0xc1046915,
  kDelTarget = 0x41046916,
  kAddVolume = 0x40186918,
  kDelVolume = 0x40186919,
  kAddSession = 0x4118691a,
  kDelSession = 0x4118691b,
  kGetSessionInfo = 0xc118691c,
  kAddConn = 0x4028691d,
  kDelConn = 0x4028691e,
  kGetConnInfo = 0xc028691f,
  kParamSet = 0x40786920,
  kParamGet = 0xc0786921,
};

// 1.4.18 and 1.4.19 have other numbers, which ones is not known: here this bit is turned over in all of them.
inline constexpr uint32_t kOldNumbers = 0x80;

inline constexpr size_t kSessionKeys = 19;
inline constexpr size_t kTargetKeys = 5;

struct ModuleInfo {
  char version[128];
};

struct TargetInfo {
  uint32_t tid;
  char name[256];
};

struct VolumeInfo {
  uint32_t tid;
  uint32_t lun;
  uint64_t args_ptr;
  uint32_t args_len;
  uint32_t padding;
};

struct SessionInfo {
  uint32_t tid;
  uint32_t padding;
  uint64_t sid;
  char initiator_name[256];
  uint32_t exp_cmd_sn;
  uint32_t max_cmd_sn;
};

struct ConnInfo {
  uint32_t tid;
  uint32_t padding;
  uint64_t sid;
  uint32_t cid;
  uint32_t stat_sn;
  uint32_t exp_stat_sn;
  uint32_t header_digest;
  uint32_t data_digest;
  uint32_t fd;
};

struct ParamInfo {
  uint32_t tid;
  uint32_t padding;
  uint64_t sid;
  uint32_t type;
  uint32_t partial;
  uint32_t session_param[kSessionKeys];
  uint32_t target_param[kTargetKeys];
};

static_assert(sizeof(ModuleInfo) == 128 && sizeof(TargetInfo) == 260 && sizeof(VolumeInfo) == 24);
static_assert(sizeof(SessionInfo) == 280 && sizeof(ConnInfo) == 40 && sizeof(ParamInfo) == 120);
static_assert(offsetof(VolumeInfo, args_ptr) == 8 && offsetof(VolumeInfo, args_len) == 16);
static_assert(offsetof(SessionInfo, sid) == 8 && offsetof(SessionInfo, exp_cmd_sn) == 272);
static_assert(offsetof(ConnInfo, cid) == 16 && offsetof(ConnInfo, fd) == 36);
static_assert(offsetof(ParamInfo, type) == 16 && offsetof(ParamInfo, target_param) == 100);

enum Command : uint32_t {
  kTargetNew,
  kTargetDel,
  kTargetUpdate,
  kTargetShow,
  kTargetRedirect,
  kSessionNew,
  kSessionDel,
  kSessionUpdate,
  kSessionShow,
  kConnNew,
  kConnDel,
  kConnUpdate,
  kConnShow,
  kLunNew,
  kLunDel,
  kLunUpdate,
  kLunShow,
  kAccountNew,
  kAccountDel,
  kAccountUpdate,
  kAccountShow,
  kSystemNew,
  kSystemDel,
  kSystemUpdate,
  kSystemShow,
  kAccountList,
};

struct ParamState {
  uint32_t state;
  uint32_t value;
};

struct TargetUnion {
  char name[256];
  char alias[256];
  uint32_t type;
  uint32_t session_partial;
  uint32_t target_partial;
  ParamState session_param[kSessionKeys];
  ParamState target_param[kTargetKeys];
};

struct AccountUnion {
  uint32_t direction;
  union {
    struct {
      char name[256];
      char pass[256];
    } user;
    struct {
      uint32_t alloc_len;
      uint32_t count;
      uint32_t overflow;
    } list;
  } u;
};

struct Message {
  uint32_t command;
  uint32_t tid;
  uint64_t sid;
  uint32_t cid;
  uint32_t lun;
  union {
    TargetUnion target;
    AccountUnion account;
    char lun_args[2048];
    char redirect[1061];
    char bytes[2048];
  } u;
};

struct Reply {
  Message echo;
  int32_t error;
};

// The data follows the error at once, without the padding that the compiler puts there.
inline constexpr size_t kReplyBytes = offsetof(Reply, error) + sizeof(int32_t);

static_assert(sizeof(TargetUnion) == 716 && offsetof(TargetUnion, session_param) == 524);
static_assert(offsetof(TargetUnion, target_param) == 676 && sizeof(AccountUnion) == 516);
static_assert(sizeof(Message) == 2072 && offsetof(Message, u) == 24 && kReplyBytes == 2076);

// A version before 1.4.20: other numbers, no GET_MODULE_INFO, and listings without blocks.
inline bool before_1_4_20(const std::string& version) { return version == "1.4.18" || version == "1.4.19"; }

}  // namespace iet

#endif  // LUNPATH_TEST_LAB_IET_INTERFACE_H_
