#include "net/device_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "sys/unique_fd.h"

namespace lunpath::net {

Status WriteAttribute(const std::string& path, const std::string& text) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return ErrnoError(errno, "open", "Cannot open " + path);
  ssize_t written = 0;
  do {
    written = write(fd.get(), text.data(), text.size());
  } while (written < 0 && errno == EINTR);
  if (written < 0) return ErrnoError(errno, "write", "Cannot write to " + path);
  // The attribute has taken a part for the whole.
  if (static_cast<size_t>(written) < text.size()) return ErrnoError(EIO, "write", "Only a part was written to " + path);
  return Nothing{};
}

Status Flush(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
  if (!fd) return ErrnoError(errno, "open", "Cannot open " + path);
  if (fsync(fd.get()) != 0) return ErrnoError(errno, "fsync", "Cannot flush " + path);
  return Nothing{};
}

}  // namespace lunpath::net
