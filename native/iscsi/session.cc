#include "iscsi/session.h"

#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <utility>

// libiscsi's headers expect the includer to bring stdint.h and sys/types.h.
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#include "iscsi/pdu.h"
#include "iscsi/text.h"
#include "sys/big_endian.h"
#include "sys/clock.h"

namespace lunpath::iscsi {
namespace {

// Until the login has negotiated another, MaxRecvDataSegmentLength is 8192 (RFC 7143, 13.12).
constexpr size_t kMaxLoginDataBytes = 8192;
// Of all responses of a login together. What a target says beyond it is not heard.
constexpr size_t kMaxLoginTextBytes = 64 * 1024;
constexpr int kLunNotSupported = 0x2500;
constexpr int kLogoutTimeoutMs = 2'000;
constexpr uint64_t kLongestWaitNs = 60 * kNsPerSecond;

std::string Trimmed(const uint8_t* bytes, size_t length) {
  std::string text(reinterpret_cast<const char*>(bytes), length);
  const char* blanks = " \t";
  text.erase(std::find(text.begin(), text.end(), '\0'), text.end());
  const size_t first = text.find_first_not_of(blanks);
  if (first == std::string::npos) return {};
  return Printable(text.substr(first, text.find_last_not_of(blanks) - first + 1), 255);
}

Error LoginError(uint16_t status, const LoginParams& params, bool discovery) {
  const std::string to = discovery ? "portal " + params.portal : params.target + " at " + params.portal;
  Error error{.message = "", .code = "LOGIN_FAILED", .number = status, .syscall = "login"};
  switch (status) {
    case 0x0201:
      error.code = "AUTH";
      error.message = to + " refused the CHAP credentials";
      return error;
    case 0x0202:
      error.code = "ACCESS_DENIED";
      error.message = to + " does not allow this initiator";
      return error;
    case 0x0203:
      error.code = "TARGET_NOT_FOUND";
      error.message = to + ": target not found, or not for this initiator";
      return error;
    default:
      break;
  }
  if (status >> 8 == 1) {
    error.code = "REDIRECTED";
    error.message = to + " sends initiators to another portal, which is not supported";
    return error;
  }
  char hex[16];
  snprintf(hex, sizeof hex, "0x%04x", status);
  error.message = to + " refused the login with status " + hex;
  return error;
}

Error NoLunError(const LoginParams& params, const char* what) {
  return Error{.message = params.target + " at " + params.portal + " has no LUN " + std::to_string(params.lun),
               .code = "LUN_NOT_FOUND",
               .syscall = what};
}

Error SenseError(const scsi_task& task, const char* what) {
  const auto key = static_cast<int>(task.sense.key);
  char facts[64];
  snprintf(facts, sizeof facts, ": sense key 0x%x, ASC 0x%02x, ASCQ 0x%02x", key, task.sense.ascq >> 8 & 0xff,
           task.sense.ascq & 0xff);
  return Error{.message = std::string(what) + facts,
               .code = "SCSI_SENSE",
               .number = key << 16 | (task.sense.ascq & 0xffff),
               .syscall = what};
}

// The kernel's %*pE with its default flags (lib/string_helpers.c, ESCAPE_ANY_NP): what is not printable is escaped.
std::string Escaped(const uint8_t* bytes, size_t length) {
  std::string out;
  for (size_t i = 0; i < length; ++i) {
    const uint8_t c = bytes[i];
    if (c >= 0x20 && c <= 0x7e && c != '\\') {
      out += static_cast<char>(c);
    } else if (c == 0) {
      out += "\\0";
    } else {
      char text[8];
      snprintf(text, sizeof text, "\\%03o", c);
      out += text;
    }
  }
  return out;
}

std::string Hex(const uint8_t* bytes, size_t length) {
  static const char digits[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < length; ++i) {
    out += digits[bytes[i] >> 4];
    out += digits[bytes[i] & 15];
  }
  return out;
}

int DesignatorPriority(const uint8_t* d) {
  const bool names_the_lun = (d[1] & 0x30) == 0;
  const size_t length = d[3];
  if (!names_the_lun || length == 0) return 0;
  switch (d[1] & 0x0f) {
    case 8:  // SCSI name string
      return 9;
    case 3:  // NAA
      switch (d[4] >> 4) {
        case 6:
          return 8;
        case 5:
          return 5;
        case 4:
          return 4;
        case 3:
          return 1;
        default:
          return 0;
      }
    case 2:  // EUI-64
      switch (length) {
        case 16:
          return 7;
        case 12:
          return 6;
        case 8:
          return 3;
        default:
          return 0;
      }
    case 1:  // T10 vendor identification
      return 1;
    default:
      return 0;
  }
}

}  // namespace

std::string LunWwid(const uint8_t* page, size_t length) {
  if (length < 4) return {};
  const size_t end = std::min(length, static_cast<size_t>(Be16(page + 2)) + 4);
  int best = 0;
  std::string wwid;
  for (size_t at = 4; at + 4 <= end && at + 4 + page[at + 3] <= end; at += 4 + page[at + 3]) {
    const uint8_t* d = page + at;
    const int priority = DesignatorPriority(d);
    if (priority <= best) continue;
    best = priority;
    switch (d[1] & 0x0f) {
      case 1:
        wwid = "t10." + Escaped(d + 4, d[3]);
        break;
      case 2:
        wwid = "eui." + Hex(d + 4, d[3]);
        break;
      case 3:
        wwid = "naa." + Hex(d + 4, d[3]);
        break;
      case 8:
        wwid = Trimmed(d + 4, d[3]);
        break;
    }
  }
  return wwid;
}

struct Session::Wait {
  bool done = false;
  int status = 0;
  void (*on_data)(void* data, void* into) = nullptr;  // libiscsi frees discovery data when the callback returns
  void* into = nullptr;
  std::exception_ptr thrown{};  // by on_data: libiscsi, which is C, called it
};

Session::Session(LoginParams params) : params_(std::move(params)), wake_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

Session::~Session() { Drop(); }

void Session::OnDone(iscsi_context*, int status, void* data, void* opaque) {
  auto* wait = static_cast<Wait*>(opaque);
  wait->done = true;
  wait->status = status;
  if (!wait->on_data || status != SCSI_STATUS_GOOD) return;
  try {
    wait->on_data(data, wait->into);
  } catch (...) {
    wait->thrown = std::current_exception();
  }
}

Error Session::LibraryError(const char* code, const char* what) const {
  const char* said = context_ ? iscsi_get_error(context_) : "";
  std::string message = std::string(what) + " with " + params_.portal + " failed";
  if (said && *said) message += ": " + Printable(said);
  return Error{.message = std::move(message), .code = code, .syscall = what};
}

void Session::Interrupt() {
  interrupted_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(wake_.get(), &one, sizeof one);
}

void Session::Resume() {
  uint64_t count;
  [[maybe_unused]] ssize_t got = read(wake_.get(), &count, sizeof count);
  interrupted_ = false;
}

void Session::Drop() {
  if (!context_) return;
  // libiscsi frees its copies of the secrets as they are. It fills the fields of new ones up with NULs, unless they are
  // empty.
  iscsi_set_initiator_username_pwd(context_, "-", "-");
  iscsi_set_target_username_pwd(context_, "-", "-");
  iscsi_destroy_context(std::exchange(context_, nullptr));
  socket_wait_.reset();
  logging_in_ = false;
}

// poll() waits for so many bytes.
void Session::SetLowWater(size_t bytes) const {
  const int low_water = static_cast<int>(bytes);
  setsockopt(socket(), SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water);
}

int Session::socket() const { return iscsi_get_fd(context_); }

// libiscsi accepts a target that answers without a CHAP_R where mutual CHAP was asked for, if it leaves the security
// stage at once; and before its own challenge was sent it compares CHAP_R with zeros. So each login response is looked
// at before libiscsi reads it: the target has proved itself only with a CHAP_R that is not zero, and which libiscsi
// then compares. The status (RFC 7143, 11.13.5) is taken here too, since libiscsi has it in the text of an error only.
//
// Returns true where libiscsi may read, false where the response is not complete yet.
Result<bool> Session::InspectLoginResponse(short revents) {
  uint8_t pdu[kHeaderBytes + kMaxLoginDataBytes];
  const int fd = iscsi_get_fd(context_);
  const ssize_t got = recv(fd, pdu, sizeof pdu, MSG_PEEK | MSG_DONTWAIT);
  if (got < 0) {
    if (errno == EAGAIN || errno == EINTR) return false;
    return ErrnoError(errno, "recv", "login at " + params_.portal);
  }
  size_t needed = kHeaderBytes;
  if (static_cast<size_t>(got) >= kHeaderBytes) {
    const size_t data_bytes = Be24(pdu + 5);
    if ((pdu[0] & kOpcodeMask) != kLoginResponse || pdu[4] != 0 || data_bytes > kMaxLoginDataBytes) {
      return Error{.message = params_.portal + " answered the login with something else than a login response",
                   .code = "PROTOCOL",
                   .syscall = "login"};
    }
    needed += (data_bytes + 3) & ~size_t{3};
  }
  if (static_cast<size_t>(got) < needed) {
    if (got == 0 || revents & (POLLRDHUP | POLLHUP)) {
      return Error{.message = params_.portal + " closed the connection during the login",
                   .code = "SESSION_LOST",
                   .syscall = "login"};
    }
    // So that poll waits for the rest in place of reporting the same bytes again.
    SetLowWater(needed);
    return false;
  }
  SetLowWater(1);

  const uint16_t status = Be16(pdu + 36);
  if (status != 0) return LoginError(status, params_, params_.target.empty());

  std::string_view text(reinterpret_cast<const char*>(pdu) + kHeaderBytes, Be24(pdu + 5));
  if (login_text_.size() + text.size() <= kMaxLoginTextBytes) login_text_ += text;
  while (!text.empty()) {
    const std::string_view pair = text.substr(0, text.find('\0'));
    text.remove_prefix(std::min(text.size(), pair.size() + 1));
    constexpr std::string_view key = "CHAP_R=0x";
    if (!pair.starts_with(key)) continue;
    const std::string_view response = pair.substr(key.size());
    const bool hex = response.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos;
    const bool zero = response.find_first_not_of('0') == std::string_view::npos;
    if (!hex || zero) {
      return Error{.message = params_.portal + " sent an invalid proof of the target's secret",
                   .code = "AUTH",
                   .syscall = "login"};
    }
    target_proved_itself_ = true;
  }
  return true;
}

Status Session::Round(uint64_t deadline_ns) {
  if (interrupted_) return Error{.message = "Cancelled", .code = "ECANCELED", .number = ECANCELED};
  const uint64_t now = NowNs();
  const uint64_t left_ns = std::min(deadline_ns > now ? deadline_ns - now : 0, kLongestWaitNs);
  pollfd fds[2] = {
      {.fd = iscsi_get_fd(context_),
       .events = static_cast<short>(iscsi_which_events(context_) | POLLRDHUP),
       .revents = 0},
      {.fd = wake_.get(), .events = POLLIN, .revents = 0},
  };
  const timespec left{.tv_sec = static_cast<time_t>(left_ns / kNsPerSecond),
                      .tv_nsec = static_cast<long>(left_ns % kNsPerSecond)};
  const int ready = ppoll(fds, 2, &left, nullptr);
  if (ready < 0 && errno != EINTR) return ErrnoError(errno, "poll", "session with " + params_.portal);
  if (ready <= 0 || fds[0].revents == 0) return Nothing{};

  short revents = fds[0].revents;
  if (revents & POLLERR) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fds[0].fd, SOL_SOCKET, SO_ERROR, &error, &size);
    const bool connecting = logging_in_ && !socket_wait_->done;
    return ErrnoError(error ? error : ECONNRESET, connecting ? "connect" : "recv",
                      (connecting ? "Cannot connect to " : "Session with ") + params_.portal);
  }
  if (logging_in_ && revents & POLLIN) {
    Result<bool> complete = InspectLoginResponse(revents);
    if (!complete.ok()) return complete.error();
    if (!complete.value()) revents &= ~(POLLIN | POLLHUP);
  }
  if (taking_over_ && revents & POLLIN) numbers_ = PeekNumbers();
  if (iscsi_service(context_, revents & (POLLIN | POLLOUT | POLLHUP)) != 0) {
    return LibraryError("SESSION_LOST", "iSCSI");
  }
  return Nothing{};
}

// What is thrown here leaves no command behind whose callback would find `wait` gone.
Status Session::Pump(const Wait& wait, uint64_t deadline_ns, const char* what) {
  try {
    Status pumped = PumpUntilDone(wait, deadline_ns, what);
    if (wait.thrown) std::rethrow_exception(wait.thrown);
    return pumped;
  } catch (...) {
    Drop();
    throw;
  }
}

Status Session::PumpUntilDone(const Wait& wait, uint64_t deadline_ns, const char* what) {
  while (!wait.done) {
    if (NowNs() >= deadline_ns) {
      return Error{.message = std::string(what) + ": no answer from " + params_.portal + " in time",
                   .code = "ETIMEDOUT",
                   .number = ETIMEDOUT,
                   .syscall = what};
    }
    Status round = Round(deadline_ns);
    if (!round.ok()) return round;
  }
  return Nothing{};
}

Status Session::Open(Kind kind, uint64_t deadline_ns) {
  Drop();
  context_ = iscsi_create_context(params_.initiator.c_str());
  if (!context_) return ErrnoError(ENOMEM, "iscsi_create_context", "iSCSI session");
  // A second session with the same name and ISID would end the first (RFC 7143, 6.3.5), and libiscsi takes it from
  // rand().
  uint32_t random[2];
  if (getrandom(random, sizeof random, 0) == sizeof random) {
    iscsi_set_isid_random(context_, random[0] & 0xffffff, random[1] & 0xffff);
  }
  iscsi_set_noautoreconnect(context_, 1);
  if (params_.plain_headers) iscsi_set_header_digest(context_, ISCSI_HEADER_DIGEST_NONE);
  iscsi_set_session_type(context_, kind == Kind::kNormal ? ISCSI_SESSION_NORMAL : ISCSI_SESSION_DISCOVERY);
  if (kind == Kind::kNormal) iscsi_set_targetname(context_, params_.target.c_str());
  const Chap& chap = params_.chap;
  if (!chap.user.empty()) iscsi_set_initiator_username_pwd(context_, chap.user.c_str(), chap.secret.c_str());
  if (!chap.target_user.empty()) {
    iscsi_set_target_username_pwd(context_, chap.target_user.c_str(), chap.target_secret.c_str());
  }

  logging_in_ = true;
  target_proved_itself_ = false;
  login_text_.clear();
  socket_wait_ = std::make_unique<Wait>();
  if (iscsi_connect_async(context_, params_.portal.c_str(), OnDone, socket_wait_.get()) != 0) {
    return LibraryError("ECONNREFUSED", "connect");
  }
  if (Status connected = Pump(*socket_wait_, deadline_ns, "connect"); !connected.ok()) return connected;
  if (socket_wait_->status != SCSI_STATUS_GOOD) return LibraryError("SESSION_LOST", "connect");

  Wait login;
  if (iscsi_login_async(context_, OnDone, &login) != 0) return LibraryError("LOGIN_FAILED", "login");
  Status answered = Pump(login, deadline_ns, "login");
  if (!login.done) {
    Drop();  // `login` must not be called back after this function
    return answered.ok() ? Status(LibraryError("SESSION_LOST", "login")) : answered;
  }
  if (login.status != SCSI_STATUS_GOOD) {
    const bool mutual = !chap.target_user.empty();
    return LibraryError(mutual ? "AUTH" : "LOGIN_FAILED", "login");
  }
  if (!chap.target_user.empty() && !target_proved_itself_) {
    return Error{.message = params_.portal + " did not prove that it knows the target's CHAP secret",
                 .code = "AUTH",
                 .syscall = "login"};
  }
  logging_in_ = false;
  negotiated_ = ParseNegotiated(login_text_);
  return Nothing{};
}

Result<std::vector<DiscoveredTarget>> Session::Discover() {
  const uint64_t deadline = NowNs() + params_.login_timeout_ms * kNsPerMs;
  if (Status opened = Open(Kind::kDiscovery, deadline); !opened.ok()) {
    Drop();
    return opened.error();
  }
  std::vector<DiscoveredTarget> targets;
  Wait wait;
  wait.into = &targets;
  wait.on_data = [](void* data, void* into) {
    auto* found = static_cast<std::vector<DiscoveredTarget>*>(into);
    for (auto* at = static_cast<iscsi_discovery_address*>(data); at; at = at->next) {
      DiscoveredTarget target{.name = Printable(TextOrEmpty(at->target_name), 255), .portals = {}};
      for (auto* portal = at->portals; portal; portal = portal->next) {
        target.portals.push_back(Printable(TextOrEmpty(portal->portal), 255));
      }
      found->push_back(std::move(target));
    }
  };
  if (iscsi_discovery_async(context_, OnDone, &wait) != 0) {
    Error error = LibraryError("PROTOCOL", "SendTargets");
    Drop();
    return error;
  }
  Status answered = Pump(wait, deadline, "SendTargets");
  if (answered.ok() && wait.status == SCSI_STATUS_GOOD) {
    Logout();
    return targets;
  }
  Error error = answered.ok() ? LibraryError("SESSION_LOST", "SendTargets") : answered.error();
  Drop();
  return error;
}

Status Session::End() {
  Status ended = Logout();
  params_.chap = {};
  params_.reconnect = false;
  return ended;
}

Status Session::Logout() {
  if (!context_) return Nothing{};
  Wait wait;
  if (!logging_in_ && iscsi_is_logged_in(context_) && iscsi_logout_async(context_, OnDone, &wait) == 0) {
    Pump(wait, NowNs() + kLogoutTimeoutMs * kNsPerMs, "logout");
  }
  Drop();
  return Nothing{};
}

// Starts one SCSI command and waits for it. The task is the caller's once the transport has let it go. Where the
// connection or the deadline is lost the session is dropped: its buffers must not be written to later.
template <class Start>
Result<Session::TaskPtr> Session::Command(const char* what, uint64_t deadline_ns, Start start) {
  if (!context_) {
    return Error{.message = "The session with " + params_.portal + " is lost", .code = "SESSION_LOST", .syscall = what};
  }
  for (int attempt = 0;; ++attempt) {
    Wait wait;
    TaskPtr task(start(&wait), scsi_free_scsi_task);
    if (!task) {
      Error error = LibraryError("SESSION_LOST", what);
      Drop();
      return error;
    }
    Status pumped = Pump(wait, deadline_ns, what);
    if (!wait.done) {
      Drop();
      return pumped.error();
    }
    switch (wait.status) {
      case SCSI_STATUS_GOOD:
        if (task->residual_status == SCSI_RESIDUAL_OVERFLOW) {
          return Error{.message = std::string(what) + ": the target had more data than was asked for",
                       .code = "PROTOCOL",
                       .syscall = what};
        }
        return task;
      case SCSI_STATUS_CHECK_CONDITION:
        // A unit attention reports an event once (a reset, a changed capacity) and the command was not run.
        if (task->sense.key == SCSI_SENSE_UNIT_ATTENTION && attempt < 8) continue;
        if (task->sense.key == SCSI_SENSE_ILLEGAL_REQUEST && task->sense.ascq == kLunNotSupported) {
          return NoLunError(params_, what);
        }
        return SenseError(*task, what);
      case SCSI_STATUS_CANCELLED:
      case SCSI_STATUS_ERROR:
      case SCSI_STATUS_TIMEOUT: {
        Drop();
        return Error{.message = std::string(what) + ": the session with " + params_.portal + " was lost",
                     .code = "SESSION_LOST",
                     .syscall = what};
      }
      default:
        return Error{.message = std::string(what) + ": SCSI status " + std::to_string(wait.status),
                     .code = "SCSI_STATUS",
                     .number = wait.status,
                     .syscall = what};
    }
  }
}

Result<std::vector<uint8_t>> Session::Inquiry(bool vpd, int page, std::optional<uint64_t> login_deadline_ns) {
  const char* what = "INQUIRY";
  // Old devices take an allocation length of one byte only; the few pages that are longer are asked for again.
  for (int length : {255, 4096}) {
    const auto start = [&](Wait* wait) {
      return iscsi_inquiry_task(context_, params_.lun, vpd, page, length, OnDone, wait);
    };
    auto task = login_deadline_ns ? Command(what, *login_deadline_ns, start) : CommandWithReconnect(what, start);
    if (!task.ok()) return task.error();
    const scsi_data& data = task.value()->datain;
    std::vector<uint8_t> bytes(data.data, data.data + std::max(0, data.size));
    if (bytes.size() < 4 || (vpd && bytes[1] != page)) {
      return Error{.message = "INQUIRY: the target's answer is malformed", .code = "PROTOCOL", .syscall = what};
    }
    if (!vpd || Be16(bytes.data() + 2) + 4 <= length || length == 4096) return bytes;
  }
  return Error{.message = "INQUIRY", .code = "PROTOCOL", .syscall = what};  // not reached
}

Result<std::vector<uint8_t>> Session::VitalPage(int page) { return Inquiry(true, page, std::nullopt); }

Result<Identity> Session::Identify(uint64_t deadline_ns) {
  auto ready = Command("TEST UNIT READY", deadline_ns,
                       [&](Wait* wait) { return iscsi_testunitready_task(context_, params_.lun, OnDone, wait); });
  if (!ready.ok()) return ready.error();

  Identity identity;
  auto standard = Inquiry(false, 0, deadline_ns);
  if (!standard.ok()) return standard.error();
  const std::vector<uint8_t>& inquiry = standard.value();
  // A peripheral qualifier that is not 0 says that no such logical unit is connected (SPC-4, 6.6.2).
  if (inquiry[0] >> 5 != 0) {
    return NoLunError(params_, "INQUIRY");
  }
  if (inquiry.size() >= 32) {
    identity.vendor = Trimmed(inquiry.data() + 8, 8);
    identity.product = Trimmed(inquiry.data() + 16, 16);
  }
  // A target without a page has no serial or no designator: the caller decides what that means.
  auto serial = Inquiry(true, 0x80, deadline_ns);
  if (serial.ok()) {
    const std::vector<uint8_t>& page = serial.value();
    identity.serial = Trimmed(page.data() + 4, std::min<size_t>(page.size() - 4, Be16(page.data() + 2)));
  } else if (serial.error().code != "SCSI_SENSE") {
    return serial.error();
  }
  auto designators = Inquiry(true, 0x83, deadline_ns);
  if (designators.ok()) {
    identity.wwid = LunWwid(designators.value().data(), designators.value().size());
  } else if (designators.error().code != "SCSI_SENSE") {
    return designators.error();
  }

  auto capacity16 = Command("READ CAPACITY (16)", deadline_ns,
                            [&](Wait* wait) { return iscsi_readcapacity16_task(context_, params_.lun, OnDone, wait); });
  if (capacity16.ok()) {
    auto* facts = static_cast<scsi_readcapacity16*>(scsi_datain_unmarshall(capacity16.value().get()));
    if (!facts) return Error{.message = "READ CAPACITY (16): malformed answer", .code = "PROTOCOL"};
    identity.block_bytes = facts->block_length;
    identity.size_bytes = (facts->returned_lba + 1) * facts->block_length;
    identity.long_commands = true;
  } else if (capacity16.error().code == "SCSI_SENSE") {
    auto capacity10 = Command("READ CAPACITY (10)", deadline_ns, [&](Wait* wait) {
      return iscsi_readcapacity10_task(context_, params_.lun, 0, 0, OnDone, wait);
    });
    if (!capacity10.ok()) return capacity10.error();
    auto* facts = static_cast<scsi_readcapacity10*>(scsi_datain_unmarshall(capacity10.value().get()));
    if (!facts) return Error{.message = "READ CAPACITY (10): malformed answer", .code = "PROTOCOL"};
    identity.block_bytes = facts->block_size;
    identity.size_bytes = (static_cast<uint64_t>(facts->lba) + 1) * facts->block_size;
  } else {
    return capacity16.error();
  }
  const uint32_t block = identity.block_bytes;
  if (block < 512 || block > 65536 || (block & (block - 1)) != 0) {
    return Error{.message = "The target reports a block size of " + std::to_string(block), .code = "PROTOCOL"};
  }
  return identity;
}

Result<Identity> Session::OpenAndIdentify(uint64_t deadline_ns) {
  Status opened = Open(Kind::kNormal, deadline_ns);
  if (!opened.ok()) {
    Drop();
    return opened.error();
  }
  auto identity = Identify(deadline_ns);
  if (!identity.ok()) Logout();
  return identity;
}

Result<Identity> Session::Login() {
  auto identity = OpenAndIdentify(NowNs() + params_.login_timeout_ms * kNsPerMs);
  if (identity.ok()) {
    identity_ = identity.value();
    identified_ = true;
  }
  return identity;
}

// Nothing where the next PDU is no SCSI Response (RFC 7143, 11.4).
std::optional<CommandNumbers> Session::PeekNumbers() const {
  uint8_t header[kHeaderBytes];
  const ssize_t got = recv(socket(), header, sizeof header, MSG_PEEK | MSG_DONTWAIT);
  if (got != sizeof header || (header[0] & kOpcodeMask) != kResponse) return std::nullopt;
  return CommandNumbers{
      .cmd_sn = Be32(header + 28), .max_cmd_sn = Be32(header + 32), .exp_stat_sn = Be32(header + 24) + 1};
}

// libiscsi tells nobody its numbers. With one command in flight the target's answer to it has them all: the CmdSN
// that it expects is that of the next.
Result<CommandNumbers> Session::TakeOver() {
  const uint64_t deadline = NowNs() + params_.command_timeout_ms * kNsPerMs;
  for (int attempt = 0; attempt < 8; ++attempt) {
    SetLowWater(kHeaderBytes);
    taking_over_ = true;
    auto ready = Command("TEST UNIT READY", deadline,
                         [&](Wait* wait) { return iscsi_testunitready_task(context_, params_.lun, OnDone, wait); });
    taking_over_ = false;
    if (!ready.ok()) return ready.error();
    SetLowWater(1);
    // Where the target sent something else before its answer, libiscsi may have read both at once, and may have more to
    // send.
    if (numbers_ && !(iscsi_which_events(context_) & POLLOUT)) return *numbers_;
  }
  return Error{.message = params_.portal + " sends other PDUs all the time", .code = "PROTOCOL", .syscall = "recv"};
}

template <class Start>
Result<Session::TaskPtr> Session::CommandWithReconnect(const char* what, Start start) {
  const uint64_t deadline = NowNs() + params_.command_timeout_ms * kNsPerMs;
  auto result = Command(what, deadline, start);
  if (!params_.reconnect || !identified_) return result;
  while (!result.ok() && !context_ && !interrupted_ && NowNs() < deadline) {
    auto again = OpenAndIdentify(std::min(deadline, NowNs() + params_.login_timeout_ms * kNsPerMs));
    if (again.ok()) {
      const Identity& now = again.value();
      if (now.wwid != identity_.wwid || now.serial != identity_.serial || now.size_bytes != identity_.size_bytes) {
        Logout();
        return Error{.message = params_.target + " came back as another logical unit", .code = "IDENTITY_CHANGED"};
      }
      result = Command(what, deadline, start);
      continue;
    }
    // Refused credentials stay refused; all else may pass while a target daemon restarts.
    if (again.error().code == "AUTH") return again.error();
    pollfd wake{.fd = wake_.get(), .events = POLLIN, .revents = 0};
    poll(&wake, 1, 50);
  }
  return result;
}

Status Session::Read(uint64_t offset, uint8_t* into, uint32_t length) {
  const int block = static_cast<int>(identity_.block_bytes);
  const uint64_t lba = offset / block;
  scsi_iovec iov{.iov_base = into, .iov_len = length};
  auto task = CommandWithReconnect("READ", [&](Wait* wait) {
    if (identity_.long_commands) {
      return iscsi_read16_iov_task(context_, params_.lun, lba, length, block, 0, 0, 0, 0, 0, OnDone, wait, &iov, 1);
    }
    return iscsi_read10_iov_task(context_, params_.lun, static_cast<uint32_t>(lba), length, block, 0, 0, 0, 0, 0,
                                 OnDone, wait, &iov, 1);
  });
  if (!task.ok()) return task.error();
  if (task.value()->residual_status != SCSI_RESIDUAL_NO_RESIDUAL) {
    return Error{.message = "READ: the target sent fewer bytes than asked for", .code = "PROTOCOL", .syscall = "READ"};
  }
  return Nothing{};
}

Status Session::Write(uint64_t offset, const uint8_t* from, uint32_t length) {
  const int block = static_cast<int>(identity_.block_bytes);
  const uint64_t lba = offset / block;
  auto* data = const_cast<uint8_t*>(from);  // libiscsi only reads from it
  scsi_iovec iov{.iov_base = data, .iov_len = length};
  auto task = CommandWithReconnect("WRITE", [&](Wait* wait) {
    if (identity_.long_commands) {
      return iscsi_write16_iov_task(context_, params_.lun, lba, nullptr, length, block, 0, 0, 0, 0, 0, OnDone, wait,
                                    &iov, 1);
    }
    return iscsi_write10_iov_task(context_, params_.lun, static_cast<uint32_t>(lba), nullptr, length, block, 0, 0, 0, 0,
                                  0, OnDone, wait, &iov, 1);
  });
  if (!task.ok()) return task.error();
  if (task.value()->residual_status != SCSI_RESIDUAL_NO_RESIDUAL) {
    return Error{.message = "WRITE: the target took fewer bytes than sent", .code = "PROTOCOL", .syscall = "WRITE"};
  }
  return Nothing{};
}

Status Session::Flush() {
  auto task = CommandWithReconnect("SYNCHRONIZE CACHE", [&](Wait* wait) {
    return iscsi_synchronizecache10_task(context_, params_.lun, 0, 0, 0, 0, OnDone, wait);
  });
  if (!task.ok()) return task.error();
  return Nothing{};
}

}  // namespace lunpath::iscsi
