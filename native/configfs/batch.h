// System calls on configfs, in order, in one job.
#pragma once

#include <atomic>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "sys/result.h"
#include "sys/secret.h"

namespace lunpath::configfs {

enum class Call { kMkdir, kRmdir, kWrite, kSymlink, kUnlink, kRead, kList, kLinks };

// One operation. Names of errnos in `tolerated` are outcomes like any other; any other error ends the batch.
struct Operation {
  Call call = Call::kRead;
  std::string path{};
  Secret value{};                        // what kWrite writes, perhaps a password; where kSymlink points
  std::vector<std::string> tolerated{};  // "EEXIST", "ENOENT" …
};

// What came of one operation. `code` is empty where it succeeded, else the errno's name.
struct Outcome {
  std::string code{};
  int number = 0;
  const char* syscall = "";
  std::optional<Secret> content{};  // kRead; LIO gives passwords back
  // kList: the names of directories. kLinks: name, target, name, target …
  std::vector<std::string> texts{};
};

// What another thread may see of a batch, and do to it.
struct Progress {
  std::atomic<size_t> position = 0;      // of the operation under way
  std::atomic<bool> is_stopped = false;  // no further operation begins
};

// Runs the operations one after the other until one fails with an error that it does not tolerate, or the batch is
// stopped; the last outcome is then that failure, or ECANCELED. Blocks as long as the kernel does (a symlink waits for
// RCU, a disabled target for commands in flight); any thread, one batch by one thread.
std::vector<Outcome> Run(const std::vector<Operation>& operations, Progress& progress);

// Puts the calling thread into a network namespace, for good: the kernel opens a portal's socket in that of the thread
// that makes its directory (drivers/target/iscsi/iscsi_target_login.c, iscsit_setup_np). Needs CAP_SYS_ADMIN.
Status EnterNetwork(const std::string& path);

}  // namespace lunpath::configfs
