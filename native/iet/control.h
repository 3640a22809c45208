// ioctl calls on IET's control device, over a short-lived duplicate of ietd's own descriptor. The device is never
// opened: each close of an open of it deletes all targets, sessions included.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "iet/ietd.h"
#include "sys/result.h"
#include "sys/unique_fd.h"

namespace lunpath::iet {

// Those that are safe here. Targets and accounts are ietd's to make: it learns of no target that an ioctl has made.
// Sessions and connections go by the socket alone: that ioctl can hang beyond a SIGKILL of the caller.
enum class CallKind {
  kModuleInfo,
  kAddTarget,  // only to make a target known again that ietd still lists
  kAddVolume,
  kDeleteVolume,
  kSessionInfo,
  kConnectionInfo,
  kParameterSet,
  kParameterGet,
};

struct Call {
  CallKind kind = CallKind::kModuleInfo;
  uint32_t tid = 0;
  uint64_t sid = 0;
  uint32_t cid = 0;
  uint32_t lun = 0;
  std::string text{};  // a target's name, a volume's arguments
  Parameters parameters{};
};

// What another thread may see of a batch of calls, and do to it.
class Progress {
 public:
  // No further call begins, and one that waits in the kernel is interrupted (EINTR), unless it waits beyond signals. A
  // signal that comes just before the wait is lost: repeat until the batch has ended. Returns the position of the call
  // under way, counted over all sequences.
  size_t Stop();

  // By the thread that makes the calls, around each: false once it has been told to stop.
  bool Begin(size_t position);
  bool End();

 private:
  std::mutex mutex_;  // guards the rest
  bool is_stopped_ = false;
  bool is_calling_ = false;
  pthread_t thread_{};
  size_t position_ = 0;
};

// While it lives, its thread takes no signal but the one with which Progress::Stop() interrupts: a call that waits in
// the kernel would end at any.
class OnlyInterrupt {
 public:
  OnlyInterrupt();
  ~OnlyInterrupt();
  OnlyInterrupt(const OnlyInterrupt&) = delete;
  OnlyInterrupt& operator=(const OnlyInterrupt&) = delete;

 private:
  sigset_t before_{};
};

// Finds ietd and its descriptor of the device, and keeps in mind where they are. Any thread, several at once.
class Control {
 public:
  explicit Control(std::string socket_name);

  // Makes the calls, in order, over one duplicate, which is closed again before this returns. An errno that a call
  // gives ends its sequence, not the ones after it. Answers: kModuleInfo has the version as its only name, kSessionInfo
  // the numbers exp_cmd_sn and max_cmd_sn, kConnectionInfo cid, stat_sn and exp_stat_sn, kParameterGet the values.
  //
  // Failures beside those of Exchange(): IET_NO_DEVICE (no module), IET_NO_OWNER (no process with the device is found),
  // ENOSYS or EPERM of pidfd_getfd (Linux before 5.6, ptrace scope 3), EACCES (not root), ECANCELED after Stop(). Each
  // means that nothing was called. IET_RESTARTED: ietd ended meanwhile, and its targets may be gone.
  //
  // Blocks as long as the kernel does, whatever the deadline, which is that of finding ietd.
  Outcome Run(const std::vector<std::vector<Call>>& sequences, Clock::time_point deadline, pid_t expected_pid,
              Progress& progress);

 private:
  struct Located {
    pid_t listener = 0;  // what SO_PEERCRED says
    pid_t owner = 0;     // who has the descriptor; the same, except for releases that listen before they fork
    UniqueFd pidfd;
    int fd = -1;  // of the device, in that process
    uint32_t major = 0;
  };
  Result<std::shared_ptr<Located>> Find(Clock::time_point deadline, pid_t expected_pid);
  Result<std::shared_ptr<Located>> Search(Clock::time_point deadline, pid_t expected_pid);
  void Forget(const std::shared_ptr<Located>& located);

  const std::string socket_name_;
  std::mutex mutex_;  // guards located_
  std::shared_ptr<Located> located_;
};

}  // namespace lunpath::iet
