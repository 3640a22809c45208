// Reads IET's listings in /proc/net/iet, which the kernel may let wait behind whatever holds its locks.
#pragma once

#include <string>

#include "iet/control.h"
#include "sys/result.h"

namespace lunpath::iet {

// One pass over the file. Each read(2) ends where a target ends, and between two of them the list may change. With
// `until` the pass ends with the read that has that text: the newest target comes first.
// ECANCELED after Stop(); EFBIG beyond 64 MiB; else the errno of open(2) or read(2). Any thread.
Result<std::string> ReadListing(const std::string& path, const std::string& until, Progress& progress);

}  // namespace lunpath::iet
