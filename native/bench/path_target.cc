#include "bench/path_target.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

namespace lunpath::bench {
namespace {

// What O_DIRECT needs of offsets and sizes of a file; the kernel tells it since 6.1.
uint32_t DirectAlignment(int fd) {
#ifdef STATX_DIOALIGN
  struct statx status {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 && (status.stx_mask & STATX_DIOALIGN) != 0 &&
      status.stx_dio_offset_align != 0) {
    return status.stx_dio_offset_align;
  }
#endif
  return 512;
}

}  // namespace

Result<std::shared_ptr<PathTarget>> PathTarget::Open(const PathDevice& device, bool for_writing) {
  // O_EXCL without O_CREAT has a meaning for block devices alone (open(2)). A file gets a lock in its place.
  struct stat before {};
  const bool is_file = stat(device.path.c_str(), &before) == 0 && S_ISREG(before.st_mode);
  const int flags = (for_writing ? O_RDWR : O_RDONLY) | O_CLOEXEC | (device.direct ? O_DIRECT : 0) |
                    (device.exclusive && !is_file ? O_EXCL : 0) | device.sync_flag;
  UniqueFd fd(open(device.path.c_str(), flags));
  if (!fd) return ErrnoError(errno, "open", device.path);
  if (device.exclusive && is_file && flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    return ErrnoError(errno == EWOULDBLOCK ? EBUSY : errno, "flock", device.path);
  }
  std::shared_ptr<PathTarget> target(new PathTarget(std::move(fd), device.path, device.direct));
  if (Status inspected = target->Inspect(device); !inspected.ok()) return inspected.error();
  return target;
}

Status PathTarget::Inspect(const PathDevice& expected) {
  struct stat status {};
  if (fstat(fd(), &status) != 0) return ErrnoError(errno, "fstat", path_);
  is_block_device_ = S_ISBLK(status.st_mode);
  if (!is_block_device_ && !S_ISREG(status.st_mode)) {
    return Error{
        .message = path_ + " is neither a block device nor a regular file", .code = "ENOTBLK", .number = ENOTBLK};
  }
  const int64_t rdev = is_block_device_ ? static_cast<int64_t>(status.st_rdev) : 0;
  const auto differs = [](int64_t wanted, auto found) { return wanted >= 0 && wanted != static_cast<int64_t>(found); };
  if (differs(expected.expected_rdev, rdev) || differs(expected.expected_dev, status.st_dev) ||
      differs(expected.expected_ino, status.st_ino)) {
    return Error{.message = path_ + " is not the device or file that was checked before", .code = "IDENTITY_MISMATCH"};
  }
  if (is_block_device_) {
    uint64_t size = 0;
    int block = 0;
    if (ioctl(fd(), BLKGETSIZE64, &size) != 0) return ErrnoError(errno, "ioctl(BLKGETSIZE64)", path_);
    if (ioctl(fd(), BLKSSZGET, &block) != 0) return ErrnoError(errno, "ioctl(BLKSSZGET)", path_);
    facts_.size_bytes = size;
    facts_.block_bytes = direct_ ? static_cast<uint32_t>(block) : 1;
  } else {
    facts_.size_bytes = static_cast<uint64_t>(status.st_size);
    facts_.block_bytes = direct_ ? DirectAlignment(fd()) : 1;
  }
  return Nothing{};
}

Error PathTarget::Describe(int64_t result, const char* syscall) const {
  // An answer of no bytes at all: the end of the file or device came before that of the range.
  if (result == 0) return ErrnoError(ENODATA, syscall, path_);
  return ErrnoError(static_cast<int>(-result), syscall, path_);
}

bool PathTarget::IsGone(int64_t result) const {
  if (result == -ENODEV || result == -ENXIO) return true;
  uint64_t size = 0;
  return is_block_device_ && ioctl(fd(), BLKGETSIZE64, &size) == 0 && size == 0;
}

}  // namespace lunpath::bench
