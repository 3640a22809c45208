#include "iet/listing.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "sys/unique_fd.h"

namespace lunpath::iet {

namespace {

// 10,000 targets with long paths are some 4 MB.
constexpr size_t kMaxBytes = 64 << 20;
constexpr size_t kChunkBytes = 64 << 10;

}  // namespace

Result<std::string> ReadListing(const std::string& path, const std::string& until, Progress& progress) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoError(errno, "open", "Cannot open " + path);
  std::string text;
  for (;;) {
    const size_t had = text.size();
    if (had > kMaxBytes) return ErrnoError(EFBIG, "read", "Cannot take " + path);
    text.resize(had + kChunkBytes);
    // A signal that ends a read which has waited makes the listing end too, without a word.
    const OnlyInterrupt quiet;
    if (!progress.Begin(0)) return ErrnoError(ECANCELED, "read", "Cannot read " + path);
    const ssize_t got = read(fd.get(), text.data() + had, kChunkBytes);
    const int number = errno;
    if (!progress.End()) return ErrnoError(ECANCELED, "read", "Cannot read " + path);
    if (got < 0) return ErrnoError(number, "read", "Cannot read " + path);
    text.resize(had + static_cast<size_t>(got));
    if (got == 0 || (!until.empty() && text.find(until, had) != std::string::npos)) return text;
  }
}

}  // namespace lunpath::iet
