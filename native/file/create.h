// New sparse files in a directory, durable, many in one call.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sys/result.h"

namespace lunpath::file {

struct NewFile {
  std::string name;
  int64_t size = 0;
};

// Makes regular files (mode 0600, all of each a hole) in `directory` and makes them and their names durable: open(2)
// with O_EXCL and ftruncate(2) for all of them, then fsync(2) for each, then one for the directory. In this order a
// journalling file system commits once for all of them: the first fsync takes the others' metadata along. Answers for
// each file nullopt, or why it is not there: EEXIST where its name is taken. One that fails leaves nothing behind and
// does not fail the others; where the directory cannot be synced, all of them go. Blocks; any thread.
std::vector<std::optional<Error>> CreateSparse(const std::string& directory, const std::vector<NewFile>& files);

}  // namespace lunpath::file
