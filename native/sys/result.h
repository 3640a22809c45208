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

// An errno as an Error whose code is the errno's name.
Error ErrnoError(int number, const char* syscall, const std::string& what);

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
