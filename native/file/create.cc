#include "file/create.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "sys/unique_fd.h"

namespace lunpath::file {

namespace {

Error Failed(const char* syscall, std::string path, const std::string& name = "") {
  const int number = errno;
  if (!name.empty()) path.append("/").append(name);
  return ErrnoError(number, syscall, syscall + (" '" + path + "'"));
}

}  // namespace

std::vector<std::optional<Error>> CreateSparse(const std::string& directory, const std::vector<NewFile>& files) {
  std::vector<std::optional<Error>> failures(files.size());
  UniqueFd parent(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!parent) {
    failures.assign(files.size(), Failed("open", directory));
    return failures;
  }
  std::vector<UniqueFd> made(files.size());
  auto discard = [&](size_t index, Error error) {
    failures[index] = std::move(error);
    ::unlinkat(parent.get(), files[index].name.c_str(), 0);
    made[index] = UniqueFd();
  };
  for (size_t i = 0; i < files.size(); ++i) {
    const auto& [name, size] = files[i];
    made[i] =
        UniqueFd(::openat(parent.get(), name.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!made[i]) {
      failures[i] = Failed("open", directory, name);
    } else if (::ftruncate(made[i].get(), size) != 0) {
      discard(i, Failed("ftruncate", directory, name));
    }
  }
  for (size_t i = 0; i < files.size(); ++i) {
    if (made[i] && ::fsync(made[i].get()) != 0) discard(i, Failed("fsync", directory, files[i].name));
  }
  if (::fsync(parent.get()) == 0) return failures;
  const Error error = Failed("fsync", directory);
  for (size_t i = 0; i < files.size(); ++i) {
    if (made[i]) discard(i, error);
  }
  return failures;
}

}  // namespace lunpath::file
