// A small text file that others write too, replaced as a whole in one call.
#pragma once

#include <string>
#include <vector>

#include "sys/result.h"

namespace lunpath::file {

struct Replacement {
  std::vector<std::string> paths;      // the first one that exists is meant; a link is followed
  std::string fresh;                   // where the file is made if there is none
  std::vector<std::string> forbidden;  // nothing is written while one of these exists
  std::string version;                 // of the file that the text was made from; empty where there was none
  std::string text;
  bool durable = false;  // the text is on disk before it has the name
};

struct Replaced {
  enum class Outcome { kWritten, kChanged, kForbidden };
  Outcome outcome = Outcome::kWritten;
  // What the file is now: inode, times of change and size. Empty where somebody else was at it at the same time.
  std::string version{};
  std::string forbidden{};
};

// Writes a temporary file beside it and renames that, with the mode and the owner that the file had (else 0644).
// Nothing is written where the file is not that version: the caller then reads it anew. Blocks; any thread.
Result<Replaced> Replace(const Replacement& asked);

}  // namespace lunpath::file
