#include "file/block.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace lunpath::file {

Status ZeroOut(int fd, uint64_t offset, uint64_t length) {
  std::array<uint64_t, 2> range = {offset, length};
  if (::ioctl(fd, BLKZEROOUT, range.data()) != 0) return ErrnoError(errno, "ioctl", "BLKZEROOUT");
  if (::fsync(fd) != 0) return ErrnoError(errno, "fsync", "fsync");
  return Nothing{};
}

Status Discard(int fd, uint64_t offset, uint64_t length) {
  std::array<uint64_t, 2> range = {offset, length};
  if (::ioctl(fd, BLKDISCARD, range.data()) != 0) return ErrnoError(errno, "ioctl", "BLKDISCARD");
  return Nothing{};
}

}  // namespace lunpath::file
