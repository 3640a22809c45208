// A new sparse file, durable, in one call.
#pragma once

#include <cstdint>
#include <string>

#include "sys/result.h"

namespace lunpath::file {

// Makes a regular file of `size` bytes (mode 0600, all of it a hole) and makes it durable: open(2) with O_EXCL,
// ftruncate(2), fsync(2), close(2). The directory entry is not synced: the caller does that for many files at once.
// Nothing stays behind where it fails. Errors: the errno, EEXIST where the name is taken. Blocks; any thread.
Status CreateSparse(const std::string& path, int64_t size);

}  // namespace lunpath::file
