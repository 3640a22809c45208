// Block devices: what there is no system call in Node for.
#pragma once

#include <cstdint>

#include "sys/result.h"

namespace lunpath::file {

// Makes `length` bytes from `offset` on read as zeros, durably: BLKZEROOUT (linux/fs.h), which lets the device do it
// where it can and writes zeros where it cannot, then fsync(2). `fd` stays the caller's. Both numbers are multiples of
// the device's logical block size. Blocks for as long as the device needs; any thread.
Status ZeroOut(int fd, uint64_t offset, uint64_t length);

// Tells the device that `length` bytes from `offset` on are not needed: BLKDISCARD. EOPNOTSUPP where it cannot discard.
// What is read there afterwards is the device's choice.
Status Discard(int fd, uint64_t offset, uint64_t length);

}  // namespace lunpath::file
