#include "iet/control.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

namespace lunpath::iet {
namespace {

// Where ietd writes its process id: its own default, and what init scripts give it.
constexpr const char* kPidFiles[] = {"/run/iscsi_trgt.pid", "/run/ietd.pid"};

struct CloseDirectory {
  void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

// The signal that interrupts a call. Its handler does nothing: that it is handled is what ends the wait.
int InterruptSignal() {
  static const int signal_number = [] {
    for (int number = SIGRTMAX; number > SIGRTMIN; --number) {
      struct sigaction present {};
      if (sigaction(number, nullptr, &present) != 0 || present.sa_handler != SIG_DFL) continue;
      struct sigaction wanted {};
      wanted.sa_handler = [](int) {};
      if (sigaction(number, &wanted, nullptr) == 0) return number;
    }
    return 0;
  }();
  return signal_number;
}

// The major number of the device; nothing where no module has registered it (proc(5), /proc/devices).
std::optional<uint32_t> DeviceMajor() {
  std::ifstream devices("/proc/devices");
  std::string line;
  bool is_character = false;
  while (std::getline(devices, line)) {
    if (line == "Character devices:") is_character = true;
    if (line == "Block devices:") is_character = false;
    char name[64];
    unsigned major = 0;
    if (is_character && sscanf(line.c_str(), "%u %63s", &major, name) == 2 && std::strcmp(name, "ietctl") == 0) {
      return major;
    }
  }
  return std::nullopt;
}

// The descriptor of the device in a process: -1 where it has none, the errno below zero where nobody may look. Nothing
// is opened: stat(2) follows the link of /proc to the device's inode.
int FindDescriptor(pid_t pid, uint32_t major) {
  const Directory directory(opendir(("/proc/" + std::to_string(pid) + "/fd").c_str()));
  if (!directory) return errno == ENOENT ? -1 : -errno;
  bool is_hidden = false;
  while (const dirent* entry = readdir(directory.get())) {
    if (entry->d_name[0] == '.') continue;
    struct stat found {};
    if (fstatat(dirfd(directory.get()), entry->d_name, &found, 0) != 0) {
      if (errno == EACCES) is_hidden = true;
      continue;
    }
    if (S_ISCHR(found.st_mode) && major == gnu_dev_major(found.st_rdev)) return std::atoi(entry->d_name);
  }
  return is_hidden ? -EACCES : -1;
}

std::string CommandOf(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/comm");
  std::string name;
  std::getline(file, name);
  return name;
}

// Processes named in pid files, then every other one; those called ietd first.
std::vector<pid_t> Candidates() {
  std::vector<pid_t> pids;
  for (const char* path : kPidFiles) {
    pid_t pid = 0;
    if (std::ifstream(path) >> pid && pid > 0) pids.push_back(pid);
  }
  const Directory directory(opendir("/proc"));
  std::vector<pid_t> others;
  while (const dirent* entry = directory ? readdir(directory.get()) : nullptr) {
    const pid_t pid = std::atoi(entry->d_name);
    // A duplicate that another thread of this very process holds now is none of ietd's.
    if (pid <= 0 || pid == getpid()) continue;
    (CommandOf(pid) == "ietd" ? pids : others).push_back(pid);
  }
  pids.insert(pids.end(), others.begin(), others.end());
  return pids;
}

UniqueFd OpenPidfd(pid_t pid) { return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))); }

// A pidfd can be read from the moment at which its process has ended (pidfd_open(2)).
bool HasEnded(int pidfd) {
  pollfd entry{.fd = pidfd, .events = POLLIN, .revents = 0};
  return poll(&entry, 1, 0) != 0;
}

Error Restarted(pid_t pid) {
  return Error{.message = "ietd (process " + std::to_string(pid) + ") has ended", .code = "IET_RESTARTED"};
}

Error Cancelled() { return ErrnoError(ECANCELED, "ioctl", "The call was not made"); }

Answer Make(int device, const Call& call) {
  Answer answer;
  const auto request = [&](unsigned long number, void* argument) {
    const int result = ioctl(device, number, argument);
    answer.error = result < 0 ? errno : 0;
    return answer.error == 0;
  };
  switch (call.kind) {
    case CallKind::kModuleInfo: {
      ModuleInfo info{};
      if (request(kGetModuleInfo, &info)) {
        answer.names.emplace_back(info.version, strnlen(info.version, sizeof(info.version)));
      }
      break;
    }
    case CallKind::kAddTarget: {
      TargetInfo info{.tid = call.tid, .name = {}};
      std::memcpy(info.name, call.text.data(), std::min(call.text.size(), sizeof(info.name) - 1));
      if (request(kAddTarget, &info)) answer.tid = info.tid;
      break;
    }
    case CallKind::kAddVolume: {
      VolumeInfo info{.tid = call.tid,
                      .lun = call.lun,
                      .args_ptr = reinterpret_cast<uint64_t>(call.text.data()),
                      .args_len = static_cast<uint32_t>(call.text.size()),
                      .unused = 0};
      request(kAddVolume, &info);
      break;
    }
    case CallKind::kDeleteVolume: {
      VolumeInfo info{.tid = call.tid, .lun = call.lun, .args_ptr = 0, .args_len = 0, .unused = 0};
      request(kDelVolume, &info);
      break;
    }
    case CallKind::kSessionInfo: {
      SessionInfo info{};
      info.tid = call.tid;
      info.sid = call.sid;
      if (request(kGetSessionInfo, &info)) answer.numbers = {info.exp_cmd_sn, info.max_cmd_sn};
      break;
    }
    case CallKind::kConnectionInfo: {
      ConnectionInfo info{};
      info.tid = call.tid;
      info.sid = call.sid;
      info.cid = call.cid;
      if (request(kGetConnectionInfo, &info)) answer.numbers = {info.cid, info.stat_sn, info.exp_stat_sn};
      break;
    }
    case CallKind::kParameterSet:
    case CallKind::kParameterGet: {
      ParameterInfo info{};
      info.tid = call.tid;
      info.sid = call.sid;
      info.type = call.parameters.type;
      const bool is_session = info.type == kSessionParameters;
      uint32_t* const values = is_session ? info.session : info.target;
      const size_t count = is_session ? kSessionKeys : kTargetKeys;
      if (call.kind == CallKind::kParameterGet) {
        if (request(kParameterGet, &info)) answer.numbers.assign(values, values + count);
        break;
      }
      info.partial = call.parameters.partial;
      std::copy_n(call.parameters.values.begin(), std::min(count, call.parameters.values.size()), values);
      request(kParameterSet, &info);
      break;
    }
  }
  return answer;
}

}  // namespace

OnlyInterrupt::OnlyInterrupt() {
  sigset_t others;
  sigfillset(&others);
  if (const int number = InterruptSignal(); number != 0) sigdelset(&others, number);
  pthread_sigmask(SIG_SETMASK, &others, &before_);
}

OnlyInterrupt::~OnlyInterrupt() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

size_t Progress::Stop() {
  const std::lock_guard lock(mutex_);
  is_stopped_ = true;
  if (is_calling_ && InterruptSignal() != 0) pthread_kill(thread_, InterruptSignal());
  return position_;
}

bool Progress::Begin(size_t position) {
  const std::lock_guard lock(mutex_);
  position_ = position;
  if (is_stopped_) return false;
  thread_ = pthread_self();
  is_calling_ = true;
  return true;
}

bool Progress::End() {
  const std::lock_guard lock(mutex_);
  is_calling_ = false;
  return !is_stopped_;
}

Control::Control(std::string socket_name) : socket_name_(std::move(socket_name)) {}

Outcome Control::Run(const std::vector<std::vector<Call>>& sequences, Clock::time_point deadline, pid_t expected_pid,
                     Progress& progress) {
  Outcome outcome;
  const auto fail = [&outcome](Error error) {
    outcome.failure = std::move(error);
    return std::move(outcome);
  };
  if (Clock::now() >= deadline) return fail(Cancelled());
  auto found = Find(deadline, expected_pid);
  if (!found.ok()) return fail(std::move(found.error()));
  const std::shared_ptr<Located> located = found.value();
  outcome.pid = located->listener;
  {
    const OnlyInterrupt quiet;
    // Close-on-exec by itself (pidfd_getfd(2)), and closed before this block is left.
    const UniqueFd device(static_cast<int>(syscall(SYS_pidfd_getfd, located->pidfd.get(), located->fd, 0)));
    if (!device) {
      const int number = errno;
      Forget(located);
      if (number == ESRCH) return fail(Restarted(located->owner));
      return fail(ErrnoError(number, "pidfd_getfd", "Cannot get at ietd's descriptor of the control device"));
    }
    struct stat status {};
    if (fstat(device.get(), &status) != 0 || !S_ISCHR(status.st_mode) ||
        gnu_dev_major(status.st_rdev) != located->major) {
      Forget(located);
      return fail(Restarted(located->owner));
    }
    size_t position = 0;
    for (const auto& sequence : sequences) {
      auto& answers = outcome.answers.emplace_back();
      size_t at = position;
      position += sequence.size();
      for (const Call& call : sequence) {
        if (!progress.Begin(at++)) return fail(Cancelled());
        answers.push_back(Make(device.get(), call));
        progress.End();
        if (answers.back().error != 0) break;
      }
    }
  }
  if (HasEnded(located->pidfd.get())) {
    Forget(located);
    return fail(Restarted(located->owner));
  }
  return outcome;
}

Result<std::shared_ptr<Control::Located>> Control::Find(Clock::time_point deadline, pid_t expected_pid) {
  std::shared_ptr<Located> known;
  {
    const std::lock_guard lock(mutex_);
    known = located_;
  }
  if (known && !HasEnded(known->pidfd.get()) && (expected_pid == 0 || expected_pid == known->listener)) return known;
  auto found = Search(deadline, expected_pid);
  if (found.ok()) {
    const std::lock_guard lock(mutex_);
    located_ = found.value();
  }
  return found;
}

Result<std::shared_ptr<Control::Located>> Control::Search(Clock::time_point deadline, pid_t expected_pid) {
  // A request that does nothing: a connection without one would make ietd wait for it, and nobody else be served.
  const Outcome asked = Exchange(socket_name_, {{Message{.command = kSystemShow}}}, deadline, expected_pid);
  if (asked.failure) return *asked.failure;
  if (asked.answers.front().front().error == EPERM) {
    return ErrnoError(EPERM, "recv", "ietd lets nobody but root in");
  }
  const auto major = DeviceMajor();
  if (!major) {
    return Error{.message = "/proc/devices has no ietctl: the module iscsi_trgt is not loaded",
                 .code = "IET_NO_DEVICE"};
  }
  std::vector<pid_t> candidates = {asked.pid};
  bool is_listener = true;
  std::optional<Error> refusal;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const pid_t pid = candidates[i];
    UniqueFd pidfd = pid > 0 ? OpenPidfd(pid) : UniqueFd();
    if (!pidfd && pid > 0 && errno == ENOSYS) {
      return ErrnoError(ENOSYS, "pidfd_open", "This kernel is older than 5.6: ietd's descriptor cannot be had");
    }
    const int fd = pidfd ? FindDescriptor(pid, *major) : -1;
    // The process may have ended, and another one have its number, between the two.
    if (fd >= 0 && !HasEnded(pidfd.get())) {
      auto located = std::make_shared<Located>();
      located->listener = asked.pid;
      located->owner = pid;
      located->pidfd = std::move(pidfd);
      located->fd = fd;
      located->major = *major;
      return located;
    }
    if (fd < -1) refusal = ErrnoError(-fd, "opendir", "Cannot look at the descriptors of ietd");
    if (!is_listener) continue;
    is_listener = false;
    const auto others = Candidates();
    candidates.insert(candidates.end(), others.begin(), others.end());
  }
  if (refusal) return std::move(*refusal);
  return Error{.message = "No process is found that has the control device open", .code = "IET_NO_OWNER"};
}

void Control::Forget(const std::shared_ptr<Located>& located) {
  const std::lock_guard lock(mutex_);
  if (located_ == located) located_.reset();
}

}  // namespace lunpath::iet
