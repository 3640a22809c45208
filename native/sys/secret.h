// Bytes that leave nothing behind in this process's memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>

namespace lunpath {

// A text in a block of its own, which is wiped before it is freed. (A std::string leaves copies where it grows, and a
// short one wherever it was moved from.) Its bytes are set in place, by who made it with their number. A NUL follows
// them.
class Secret {
 public:
  Secret() = default;
  explicit Secret(size_t bytes) : bytes_(std::make_unique<char[]>(bytes + 1)), size_(bytes) {}
  explicit Secret(std::string_view text) : Secret(text.size()) { std::copy(text.begin(), text.end(), bytes_.get()); }
  Secret(const Secret& other) : Secret(other.view()) {}
  Secret(Secret&& other) noexcept : bytes_(std::move(other.bytes_)), size_(std::exchange(other.size_, 0)) {}
  Secret& operator=(Secret other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Secret() {
    if (bytes_) explicit_bzero(bytes_.get(), size_);
  }

  // To be written to; of an empty one that was made without a size, null.
  char* data() { return bytes_.get(); }
  const char* data() const { return bytes_ ? bytes_.get() : ""; }
  const char* c_str() const { return data(); }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::string_view view() const { return {data(), size_}; }

 private:
  std::unique_ptr<char[]> bytes_;
  size_t size_ = 0;
};

// Wipes an object of plain bytes at the end of its scope, whichever way that is left.
template <class T>
class WipeAtEnd {
 public:
  explicit WipeAtEnd(T& object) : object_(&object) {}
  ~WipeAtEnd() { explicit_bzero(object_, sizeof(T)); }
  WipeAtEnd(const WipeAtEnd&) = delete;
  WipeAtEnd& operator=(const WipeAtEnd&) = delete;

 private:
  T* object_;
};

}  // namespace lunpath
