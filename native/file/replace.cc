#include "file/replace.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

#include "sys/unique_fd.h"

namespace lunpath::file {

namespace {

constexpr mode_t kUsualMode = 0644;
constexpr mode_t kModeBits = 07777;

Error Failed(const char* syscall, const std::string& path) {
  const int number = errno;
  return ErrnoError(number, syscall, syscall + (" '" + path + "'"));
}

uint64_t Nanoseconds(const timespec& time) {
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}

// src/targets/iet-access.ts makes the same of what it has read.
std::string VersionOf(const struct stat& file) {
  return std::to_string(file.st_ino) + " " + std::to_string(Nanoseconds(file.st_mtim)) + " " +
         std::to_string(Nanoseconds(file.st_ctim)) + " " + std::to_string(file.st_size);
}

struct Present {
  std::string path;
  struct stat status {};
};

std::optional<Present> FindFirst(const std::vector<std::string>& paths) {
  for (const auto& path : paths) {
    const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), std::free);
    if (!real) continue;
    Present present{.path = real.get()};
    if (::stat(real.get(), &present.status) == 0) return present;
  }
  return std::nullopt;
}

bool IsVersion(const std::optional<Present>& present, const std::string& version) {
  return (present ? VersionOf(present->status) : "") == version;
}

bool WriteAll(int fd, const std::string& text) {
  size_t written = 0;
  while (written < text.size()) {
    const ssize_t count = ::write(fd, text.data() + written, text.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return false;
    written += static_cast<size_t>(count);
  }
  return true;
}

// Removes a file that has not got its name.
class Temporary {
 public:
  explicit Temporary(std::string path) : path_(std::move(path)) {}
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  ~Temporary() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  const std::string& path() const { return path_; }
  void Release() { path_.clear(); }

 private:
  std::string path_;
};

}  // namespace

Result<Replaced> Replace(const Replacement& asked) {
  for (const auto& path : asked.forbidden) {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) {
      return Replaced{.outcome = Replaced::Outcome::kForbidden, .forbidden = path};
    }
  }
  const auto present = FindFirst(asked.paths);
  if (!IsVersion(present, asked.version)) return Replaced{.outcome = Replaced::Outcome::kChanged};
  const std::string path = present ? present->path : asked.fresh;
  const size_t slash = path.rfind('/') + 1;
  std::string name = path.substr(0, slash) + "." + path.substr(slash) + ".XXXXXX";
  const UniqueFd fd(::mkostemp(name.data(), O_CLOEXEC));
  if (!fd) return Failed("open", name);
  Temporary temporary(name);
  if (present && ::fchown(fd.get(), present->status.st_uid, present->status.st_gid) != 0) return Failed("chown", name);
  // After the owner: chown(2) takes bits away.
  if (::fchmod(fd.get(), present ? present->status.st_mode & kModeBits : kUsualMode) != 0) return Failed("chmod", name);
  if (!WriteAll(fd.get(), asked.text)) return Failed("write", name);
  if (asked.durable && ::fsync(fd.get()) != 0) return Failed("fsync", name);
  struct stat written {};
  if (::fstat(fd.get(), &written) != 0) return Failed("stat", name);
  // Somebody else may have written meanwhile.
  if (!IsVersion(FindFirst(asked.paths), asked.version)) return Replaced{.outcome = Replaced::Outcome::kChanged};
  if (::rename(name.c_str(), path.c_str()) != 0) return Failed("rename", path);
  temporary.Release();
  // The rename itself has changed its times.
  struct stat now {};
  if (::fstat(fd.get(), &now) != 0) return Failed("stat", path);
  const bool is_ours = Nanoseconds(now.st_mtim) == Nanoseconds(written.st_mtim) && now.st_size == written.st_size;
  return Replaced{.version = is_ours ? VersionOf(now) : ""};
}

}  // namespace lunpath::file
