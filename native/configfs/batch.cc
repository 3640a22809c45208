#include "configfs/batch.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <memory>
#include <string_view>

#include "sys/unique_fd.h"

namespace lunpath::configfs {

namespace {

// An attribute's content is at most a page (the kernel's fs/configfs/file.c).
constexpr size_t kPage = 4096;

Outcome Failure(const char* syscall) {
  const int number = errno;
  return Outcome{.code = ErrnoName(number), .number = number, .syscall = syscall};
}

Outcome Done(int result, const char* syscall) { return result == 0 ? Outcome{} : Failure(syscall); }

// The kernel takes what one write(2) brings as the whole value: a part of it, such as the first page, is another value,
// and the rest would be one more (fs/configfs/file.c, fill_write_buffer).
Outcome Write(const Operation& operation) {
  const UniqueFd fd(::open(operation.path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return Failure("open");
  const ssize_t written = ::write(fd.get(), operation.value.data(), operation.value.size());
  if (written < 0) return Failure("write");
  if (static_cast<size_t>(written) == operation.value.size()) return Outcome{};
  return Outcome{.code = ErrnoName(EIO), .number = EIO, .syscall = "write"};
}

Outcome Read(const Operation& operation) {
  const UniqueFd fd(::open(operation.path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return Failure("open");
  Secret page(kPage);
  size_t length = 0;
  while (length < page.size()) {
    const ssize_t got = ::read(fd.get(), page.data() + length, page.size() - length);
    if (got < 0) return Failure("read");
    if (got == 0) break;
    length += static_cast<size_t>(got);
  }
  return Outcome{.content = Secret(std::string_view(page.data(), length))};
}

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};

// configfs gives the type of each entry (fs/configfs/dir.c, configfs_readdir).
Outcome List(const Operation& operation, unsigned char type) {
  const std::unique_ptr<DIR, CloseDirectory> directory(::opendir(operation.path.c_str()));
  if (!directory) return Failure("opendir");
  Outcome outcome;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (entry->d_type != type || name == "." || name == "..") continue;
    outcome.texts.push_back(name);
    if (type != DT_LNK) continue;
    char target[PATH_MAX];
    const ssize_t length = ::readlinkat(::dirfd(directory.get()), entry->d_name, target, sizeof target);
    if (length < 0) return Failure("readlink");
    outcome.texts.emplace_back(target, static_cast<size_t>(length));
  }
  return errno == 0 ? outcome : Failure("readdir");
}

Outcome RunOne(const Operation& operation) {
  const char* path = operation.path.c_str();
  switch (operation.call) {
    case Call::kMkdir:
      return Done(::mkdir(path, 0755), "mkdir");
    case Call::kRmdir:
      return Done(::rmdir(path), "rmdir");
    case Call::kWrite:
      return Write(operation);
    case Call::kSymlink:
      return Done(::symlink(operation.value.c_str(), path), "symlink");
    case Call::kUnlink:
      return Done(::unlink(path), "unlink");
    case Call::kRead:
      return Read(operation);
    case Call::kList:
      return List(operation, DT_DIR);
    case Call::kLinks:
      return List(operation, DT_LNK);
  }
  return Outcome{.code = "EINVAL", .number = EINVAL};
}

}  // namespace

std::vector<Outcome> Run(const std::vector<Operation>& operations, Progress& progress) {
  std::vector<Outcome> outcomes;
  outcomes.reserve(operations.size());
  for (size_t i = 0; i < operations.size(); i++) {
    progress.position = i;
    if (progress.is_stopped) {
      outcomes.push_back(Outcome{.code = "ECANCELED", .number = ECANCELED});
      break;
    }
    outcomes.push_back(RunOne(operations[i]));
    const std::string& code = outcomes.back().code;
    const auto& tolerated = operations[i].tolerated;
    if (!code.empty() && std::find(tolerated.begin(), tolerated.end(), code) == tolerated.end()) break;
  }
  return outcomes;
}

Status EnterNetwork(const std::string& path) {
  const UniqueFd network(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!network) return ErrnoError(errno, "open", "open '" + path + "'");
  if (::setns(network.get(), CLONE_NEWNET) != 0) return ErrnoError(errno, "setns", "setns '" + path + "'");
  return Nothing{};
}

}  // namespace lunpath::configfs
