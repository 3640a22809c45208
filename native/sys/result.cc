#include "sys/result.h"

#include <cstring>

namespace lunpath {

Error ErrnoError(int number, const char* syscall, const std::string& what) {
  const char* name = strerrorname_np(number);
  return Error{.message = what + ": " + strerrordesc_np(number),
               .code = name ? name : "EUNKNOWN",
               .number = number,
               .syscall = syscall};
}

}  // namespace lunpath
