#include "file/create.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "sys/unique_fd.h"

namespace lunpath::file {

namespace {

Error Undo(const std::string& path, const char* syscall) {
  const int number = errno;
  ::unlink(path.c_str());
  return ErrnoError(number, syscall, syscall + (" '" + path + "'"));
}

}  // namespace

Status CreateSparse(const std::string& path, int64_t size) {
  UniqueFd fd(::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return ErrnoError(errno, "open", "open '" + path + "'");
  if (::ftruncate(fd.get(), size) != 0) return Undo(path, "ftruncate");
  if (::fsync(fd.get()) != 0) return Undo(path, "fsync");
  return Nothing{};
}

}  // namespace lunpath::file
