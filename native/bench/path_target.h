// A block device or file that is measured: opened once, for all threads that work on it.
#pragma once

#include <memory>

#include "bench/engine.h"
#include "bench/job.h"
#include "sys/result.h"
#include "sys/unique_fd.h"

namespace lunpath::bench {

// Any thread.
class PathTarget {
 public:
  // Opens it, exclusively where asked for, and checks that it is what was meant. Errors: errno names;
  // IDENTITY_MISMATCH. A block device is claimed by O_EXCL, a file by flock(2): the kernel keeps either until the
  // descriptor is closed and the last I/O in flight has let go of it.
  static Result<std::shared_ptr<PathTarget>> Open(const PathDevice& device, bool for_writing);

  int fd() const { return fd_.get(); }
  // Once no thread uses it any more.
  void Close() { fd_.Reset(); }
  bool direct() const { return direct_; }
  const DeviceFacts& facts() const { return facts_; }

  Error Describe(int64_t result, const char* syscall) const;
  // ENODEV, ENXIO, or any failure while the device has no size any more.
  bool IsGone(int64_t result) const;

 private:
  PathTarget(UniqueFd fd, std::string path, bool direct)
      : fd_(std::move(fd)), path_(std::move(path)), direct_(direct) {}

  Status Inspect(const PathDevice& expected);

  UniqueFd fd_;
  std::string path_;
  bool direct_;
  bool is_block_device_ = false;
  DeviceFacts facts_;
};

}  // namespace lunpath::bench
