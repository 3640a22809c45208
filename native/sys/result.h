// What the core returns in place of throwing: a value, or the fact of what went wrong.
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace lunpath {

// The native fact behind a failure; binding code turns it into a JS Error with the same properties.
struct Error {
  std::string message{};
  std::string code{};     // stable word: "ETIMEDOUT", "TGT_ERROR", "VIR_ERR" …
  int number = 0;         // errno, tgtd's error, libvirt's code: what `code` says
  std::string syscall{};  // system call or library function that failed
  int domain = 0;         // libvirt's error domain, else 0
};

// An errno's name, and its description in English. Any number: a file system or a driver may answer one that has
// neither name nor description in the C library; it is "EUNKNOWN", "errno 524".
std::string ErrnoName(int number);
std::string ErrnoText(int number);

// An errno as an Error whose code is the errno's name.
Error ErrnoError(int number, const char* syscall, const std::string& what);

// The exception that is being handled, as an Error: only in a catch block, and all that may be thrown is the lack of
// the memory for it. ENOMEM where memory was lacking, the errno of the system's own, else ERR_NATIVE.
Error CaughtError(const char* what = "A native call failed");

// A string of a C library, which may give null where it has nothing to say.
inline std::string TextOrEmpty(const char* text) { return text == nullptr ? std::string() : std::string(text); }

template <class T>
class Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  T& value() { return std::get<0>(state_); }
  const T& value() const { return std::get<0>(state_); }
  Error& error() { return std::get<1>(state_); }
  const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Error> state_;
};

struct Nothing {};
using Status = Result<Nothing>;

}  // namespace lunpath
