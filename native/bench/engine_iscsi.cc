#include "bench/engine_iscsi.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "bench/clock.h"
#include "sys/clock.h"

namespace lunpath::bench {
namespace {

constexpr uint64_t kLogoutNs = 2 * kNsPerSecond;
// How long a system call that receives sleeps at most: a Wake() that comes meanwhile waits for its end.
constexpr uint64_t kNapNs = 20 * kNsPerMs;

iscsi::LoginParams WithPlainHeaders(iscsi::LoginParams params) {
  params.plain_headers = true;
  return params;
}

}  // namespace

IscsiEngine::IscsiEngine(iscsi::LoginParams params) : LibiscsiEngine(WithPlainHeaders(std::move(params))) {}

Result<DeviceFacts> IscsiEngine::Open() {
  auto device = SessionEngine::Open();
  if (!device.ok()) return device;
  if (const std::string& answer = session_.negotiated().unusable; !answer.empty()) {
    fallback_reason_ = "the target answered " + answer;
    return device;
  }
  auto numbers = session_.TakeOver();
  if (!numbers.ok()) return numbers.error();
  numbers_ = numbers.value();
  // What is sent is whole batches: the second must not wait until the first was acknowledged (tcp(7)).
  const int on = 1;
  setsockopt(session_.socket(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const int flags = fcntl(session_.socket(), F_GETFL);
  const timeval nap{.tv_sec = 0, .tv_usec = kNapNs / 1000};
  if (flags < 0 || setsockopt(session_.socket(), SOL_SOCKET, SO_RCVTIMEO, &nap, sizeof nap) != 0 ||
      fcntl(session_.socket(), F_SETFL, flags & ~O_NONBLOCK) != 0)
    return ErrnoError(errno, "fcntl", "Session with " + session_.params().portal);
  return device;
}

Status IscsiEngine::Prepare(uint32_t iodepth, const Buffers& buffers) {
  if (is_libiscsi()) return LibiscsiEngine::Prepare(iodepth, buffers);
  if (iodepth > iscsi::DataPath::kMostSlots) return ErrnoError(EINVAL, "SCSI", "So many commands in flight");
  path_.emplace(iscsi::DataPath::Params{.portal = session_.params().portal,
                                        .lun = session_.params().lun,
                                        .block_bytes = identity_.block_bytes,
                                        .long_commands = identity_.long_commands,
                                        .numbers = numbers_,
                                        .negotiated = session_.negotiated(),
                                        .slots = iodepth});
  return Nothing{};
}

// What cannot be sent or received at once never keeps the other from being done: a target may take nothing more before
// it is rid of its answers. Where there is nothing but answers to wait for, and no deadline is near, the thread sleeps
// in the system call that receives: to poll first is two calls more for each time.
bool IscsiEngine::Exchange(bool wait, uint64_t deadline) {
  if (is_libiscsi()) return LibiscsiEngine::Exchange(wait, deadline);
  const Clock& clock = Clock::Get();
  for (;;) {
    if (!Send()) return false;
    const bool nap = wait && !path_->has_to_send() && clock.Now() + 2 * kNapNs < deadline;
    if (!Receive(nap ? 0 : MSG_DONTWAIT)) return false;
    if (!wait || !path_->done().empty()) return true;
    const uint64_t now = clock.Now();
    if (now >= deadline || !Wait(nap ? 0 : std::min(deadline - now, kNsPerSecond))) return true;
  }
}

bool IscsiEngine::Send() {
  while (path_->has_to_send()) {
    const auto pieces = path_->NextToSend();
    size_t bytes = 0;
    for (const iovec& piece : pieces) bytes += piece.iov_len;
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(pieces.data());  // sendmsg(2) only reads it
    message.msg_iovlen = pieces.size();
    const ssize_t sent = sendmsg(session_.socket(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (sent < 0) return Lost(ErrnoError(errno, "send", "Session with " + session_.params().portal));
    path_->Sent(static_cast<size_t>(sent));
    if (static_cast<size_t>(sent) < bytes) return true;
  }
  return true;
}

// One system call for all that is there.
bool IscsiEngine::Receive(int flags) {
  const auto space = path_->Space();
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(space.data());  // recvmsg(2) only reads the vector
  message.msg_iovlen = space.size();
  const ssize_t got = recvmsg(session_.socket(), &message, flags);
  if (got > 0) return path_->Took(static_cast<size_t>(got)) || Lost(path_->fault());
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (got < 0) return Lost(ErrnoError(errno, "recv", "Session with " + session_.params().portal));
  return Lost({.message = session_.params().portal + " closed the session", .code = "SESSION_LOST", .syscall = "recv"});
}

// False: it was woken.
bool IscsiEngine::Wait(uint64_t ns) {
  const short events = path_->has_to_send() ? POLLIN | POLLOUT : POLLIN;
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
  if (!path_ || !session_.context()) {
    LibiscsiEngine::Close();
    return;
  }
  BeginClose();
  path_->LogOut();
  const uint64_t deadline = NowNs() + kLogoutNs;
  while (Send() && Receive(MSG_DONTWAIT) && !path_->logged_out()) {
    const uint64_t now = NowNs();
    if (now >= deadline) break;
    Wait(deadline - now);
  }
  Abandon();
}

}  // namespace lunpath::bench
