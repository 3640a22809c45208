#include "net/device_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "sys/unique_fd.h"

namespace lunpath::net {

Status WriteAttribute(const std::string& path, const std::string& text) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return ErrnoError(errno, "open", "Cannot open " + path);
  while (write(fd.get(), text.data(), text.size()) < 0) {
    if (errno != EINTR) return ErrnoError(errno, "write", "Cannot write to " + path);
  }
  return Nothing{};
}

Status Flush(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
  if (!fd) return ErrnoError(errno, "open", "Cannot open " + path);
  if (fsync(fd.get()) != 0) return ErrnoError(errno, "fsync", "Cannot flush " + path);
  return Nothing{};
}

}  // namespace lunpath::net
