#include "bench/engine_iscsi.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "bench/clock.h"
#include "sys/clock.h"

namespace lunpath::bench {
namespace {

constexpr uint64_t kLogoutNs = 2 * kNsPerSecond;

iscsi::LoginParams WithPlainHeaders(iscsi::LoginParams params) {
  params.plain_headers = true;
  return params;
}

}  // namespace

IscsiEngine::IscsiEngine(iscsi::LoginParams params) : SessionEngine(WithPlainHeaders(std::move(params))) {}

Result<DeviceFacts> IscsiEngine::Open() {
  auto device = SessionEngine::Open();
  if (!device.ok()) return device;
  auto numbers = session_.TakeOver();
  if (!numbers.ok()) return numbers.error();
  numbers_ = numbers.value();
  // What is sent is whole batches: the second must not wait until the first was acknowledged (tcp(7)).
  const int on = 1;
  setsockopt(session_.socket(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return device;
}

Status IscsiEngine::Prepare(uint32_t iodepth, const Buffers&) {
  if (iodepth > iscsi::DataPath::kMostSlots) return ErrnoError(EINVAL, "READ", "So many commands in flight");
  path_.emplace(iscsi::DataPath::Params{.portal = session_.params().portal,
                                        .lun = session_.params().lun,
                                        .block_bytes = identity_.block_bytes,
                                        .long_commands = identity_.long_commands,
                                        .numbers = numbers_,
                                        .slots = iodepth});
  return Nothing{};
}

bool IscsiEngine::Exchange(bool wait, uint64_t deadline) {
  const Clock& clock = Clock::Get();
  for (;;) {
    if (!Send() || !Receive()) return false;
    if (!wait || !path_->done().empty()) return true;
    const uint64_t now = clock.Now();
    if (now >= deadline || !Wait(std::min(deadline - now, kNsPerSecond))) return true;
  }
}

bool IscsiEngine::Send() {
  const auto bytes = path_->to_send();
  if (bytes.empty()) return true;
  const ssize_t sent = send(session_.socket(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent >= 0) {
    path_->Sent(static_cast<size_t>(sent));
  } else if (errno != EAGAIN && errno != EINTR) {
    return Lost(ErrnoError(errno, "send", "Session with " + session_.params().portal));
  }
  return true;
}

// One system call for all that is there: libiscsi's socket does not block.
bool IscsiEngine::Receive() {
  const auto space = path_->Space();
  const ssize_t got = readv(session_.socket(), space.data(), static_cast<int>(space.size()));
  if (got > 0) return path_->Took(static_cast<size_t>(got)) || Lost(path_->fault());
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (got < 0) return Lost(ErrnoError(errno, "recv", "Session with " + session_.params().portal));
  return Lost({.message = session_.params().portal + " closed the session", .code = "SESSION_LOST", .syscall = "recv"});
}

// False: it was woken.
bool IscsiEngine::Wait(uint64_t ns) {
  const short events = path_->to_send().empty() ? POLLIN : POLLIN | POLLOUT;
  pollfd fds[2] = {{.fd = session_.socket(), .events = events, .revents = 0},
                   {.fd = session_.wake_fd(), .events = POLLIN, .revents = 0}};
  const timespec left{.tv_sec = static_cast<time_t>(ns / kNsPerSecond),
                      .tv_nsec = static_cast<long>(ns % kNsPerSecond)};
  ppoll(fds, 2, &left, nullptr);
  if (fds[1].revents == 0) return true;
  session_.Resume();
  return false;
}

bool IscsiEngine::Lost(Error error) {
  loss_ = std::move(error);
  return false;
}

void IscsiEngine::Close() {
  BeginClose();
  if (path_ && session_.context()) {
    path_->LogOut();
    const uint64_t deadline = NowNs() + kLogoutNs;
    while (Send() && Receive() && !path_->logged_out()) {
      const uint64_t now = NowNs();
      if (now >= deadline) break;
      Wait(deadline - now);
    }
  } else {
    session_.Logout();
  }
  Abandon();
}

}  // namespace lunpath::bench
