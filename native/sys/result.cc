#include "sys/result.h"

#include <cerrno>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <system_error>

namespace lunpath {

std::string ErrnoName(int number) {
  const char* name = strerrorname_np(number);
  return name == nullptr ? "EUNKNOWN" : name;
}

std::string ErrnoText(int number) {
  const char* text = strerrordesc_np(number);
  return text == nullptr ? "errno " + std::to_string(number) : text;
}

Error ErrnoError(int number, const char* syscall, const std::string& what) {
  return Error{
      .message = what + ": " + ErrnoText(number), .code = ErrnoName(number), .number = number, .syscall = syscall};
}

Error CaughtError(const char* what) {
  try {
    std::rethrow_exception(std::current_exception());
  } catch (const std::bad_alloc&) {
    return ErrnoError(ENOMEM, "", what);
  } catch (const std::length_error&) {
    // A size that no container can have: of the same kind.
    return ErrnoError(ENOMEM, "", what);
  } catch (const std::system_error& error) {
    return ErrnoError(error.code().value(), "", what);
  } catch (const std::exception& error) {
    return Error{.message = std::string(what) + ": " + error.what(), .code = "ERR_NATIVE"};
  } catch (...) {
    return Error{.message = what, .code = "ERR_NATIVE"};
  }
}

}  // namespace lunpath
