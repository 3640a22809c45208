// An iSCSI session with one logical unit, over libiscsi's asynchronous calls and a poll loop of our own: libiscsi's
// synchronous calls know deadlines in whole seconds only and cannot be interrupted.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "iscsi/negotiated.h"
#include "sys/result.h"
#include "sys/secret.h"
#include "sys/unique_fd.h"

struct iscsi_context;
struct scsi_task;

namespace lunpath::iscsi {

// `target_*` is the mutual half: with it, a target that does not prove that it knows `target_secret` is refused.
struct Chap {
  std::string user;
  Secret secret;
  std::string target_user;
  Secret target_secret;
};

struct LoginParams {
  std::string portal;     // ADDRESS:PORT, IPv6 in brackets. Never a host name: libiscsi would resolve it and block.
  std::string target;     // IQN; not used by Discover()
  std::string initiator;  // the initiator's own IQN
  int lun = 0;
  Chap chap;
  int login_timeout_ms = 5'000;
  int command_timeout_ms = 10'000;
  // Where the connection is lost, log in again within the command's deadline, check that it is still the same logical
  // unit, and repeat the command. Without it a lost session stays lost.
  bool reconnect = false;
  // For TakeOver(): PDUs without a digest of their headers. Else libiscsi offers CRC32C, after None.
  bool plain_headers = false;
};

// What the next command of a session carries (RFC 7143, 4.2.2).
struct CommandNumbers {
  uint32_t cmd_sn = 0;
  uint32_t max_cmd_sn = 0;  // the last that the target takes
  uint32_t exp_stat_sn = 0;
};

struct Identity {
  std::string wwid;    // as the kernel's sysfs attribute `wwid`: naa.…, eui.…, t10.…
  std::string serial;  // VPD page 0x80, blanks trimmed
  std::string vendor;
  std::string product;
  uint64_t size_bytes = 0;
  uint32_t block_bytes = 0;
  bool long_commands = false;  // READ CAPACITY (16) was answered, so READ (16) and WRITE (16) will be
};

struct DiscoveredTarget {
  std::string name;
  std::vector<std::string> portals;  // ADDRESS:PORT,TPGT as the target wrote them
};

// The designator that names the logical unit in a VPD page 0x83, in the form and the order of preference of the Linux
// kernel (drivers/scsi/scsi_lib.c, scsi_vpd_lun_id and designator_prio); empty where there is none. `page` is the whole
// page with its header.
std::string LunWwid(const uint8_t* page, size_t length);

// One thread at a time, except Interrupt(). Error codes, beside errno names:
//   AUTH, ACCESS_DENIED, TARGET_NOT_FOUND, REDIRECTED, LOGIN_FAILED   number = status class << 8 | detail
//                                                                     (RFC 7143, 11.13.5)
//   SCSI_SENSE                                                        number = sense key << 16 | ASC << 8 | ASCQ
//   SCSI_STATUS                                                       number = SCSI status
//   LUN_NOT_FOUND, SESSION_LOST, PROTOCOL, IDENTITY_CHANGED, ETIMEDOUT, ECANCELED
class Session {
 public:
  explicit Session(LoginParams params);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // SendTargets on a discovery session, which it opens and closes.
  Result<std::vector<DiscoveredTarget>> Discover();

  // Logs in, waits out unit attentions and reads the identity.
  Result<Identity> Login();

  // Whole blocks. `offset` and `length` are multiples of the block size.
  Status Read(uint64_t offset, uint8_t* into, uint32_t length);
  Status Write(uint64_t offset, const uint8_t* from, uint32_t length);
  // SYNCHRONIZE CACHE (10) of the whole logical unit.
  Status Flush();
  // A page of vital product data as it is, with its header (SPC-4, 7.8).
  Result<std::vector<uint8_t>> VitalPage(int page);

  // Logs out where the session is up, waiting for the answer two seconds at most. Success in any case.
  Status Logout();
  // Logout() for good: the secrets are forgotten, so that nobody can log in again.
  Status End();
  // Closes the connection without a logout; commands in flight complete as cancelled, here.
  void Drop();

  // Makes the running call, and all later ones, end with ECANCELED. Any thread.
  void Interrupt();
  // Takes an Interrupt() back. The session's own thread.
  void Resume();

  // After Login() with `plain_headers`: the numbers with which the caller goes on without libiscsi, over socket(). From
  // its first command on only Drop() may be called.
  Result<CommandNumbers> TakeOver();
  int socket() const;
  // Readable from Interrupt() to Resume().
  int wake_fd() const { return wake_.get(); }

  // By the last Login().
  const Negotiated& negotiated() const { return negotiated_; }

  // For an engine that queues commands of its own after Login().
  iscsi_context* context() const { return context_; }
  const LoginParams& params() const { return params_; }
  // One poll and one service of libiscsi, waiting until `deadline_ns` at most. An error means that the connection is
  // gone. A connection that ends while commands are in flight shows only in their callbacks: SCSI_STATUS_CANCELLED.
  Status Round(uint64_t deadline_ns);

 private:
  enum class Kind { kDiscovery, kNormal };
  struct Wait;
  using TaskPtr = std::unique_ptr<scsi_task, void (*)(scsi_task*)>;

  static void OnDone(iscsi_context*, int status, void* data, void* wait);

  Status Open(Kind kind, uint64_t deadline_ns);
  Result<Identity> OpenAndIdentify(uint64_t deadline_ns);
  Result<Identity> Identify(uint64_t deadline_ns);
  Status Pump(const Wait& wait, uint64_t deadline_ns, const char* what);
  Status PumpUntilDone(const Wait& wait, uint64_t deadline_ns, const char* what);
  Result<bool> InspectLoginResponse(short revents);
  void SetLowWater(size_t bytes) const;
  std::optional<CommandNumbers> PeekNumbers() const;
  Error LibraryError(const char* code, const char* what) const;
  template <class Start>
  Result<TaskPtr> Command(const char* what, uint64_t deadline_ns, Start start);
  template <class Start>
  Result<TaskPtr> CommandWithReconnect(const char* what, Start start);
  // With a deadline it is part of a login. Without one it is a call of its own, and reconnects as reads do.
  Result<std::vector<uint8_t>> Inquiry(bool vpd, int page, std::optional<uint64_t> login_deadline_ns);

  LoginParams params_;
  iscsi_context* context_ = nullptr;
  std::unique_ptr<Wait> socket_wait_;  // libiscsi may call back a second time at teardown, so it lives with the context
  bool logging_in_ = false;
  bool target_proved_itself_ = false;
  std::string login_text_;  // what the target has said in the login, or the last one
  Negotiated negotiated_;
  bool taking_over_ = false;
  std::optional<CommandNumbers> numbers_;  // of the last SCSI Response, while it is taken over
  Identity identity_;
  bool identified_ = false;
  UniqueFd wake_;
  std::atomic<bool> interrupted_{false};
};

}  // namespace lunpath::iscsi
