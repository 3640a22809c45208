// The memory that a thread's I/Os read into and write from: one mapping, page-aligned, so that it can be registered
// once.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#include "bench/random.h"

namespace lunpath::bench {

// One owner, one thread at a time.
class Buffers {
 public:
  Buffers() = default;
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  ~Buffers() {
    if (base_) munmap(base_, bytes_);
  }

  // `count` buffers of at least `bytes` each. False: no memory.
  bool Map(uint32_t count, uint32_t bytes) {
    constexpr size_t page = 4096;
    stride_ = (bytes + page - 1) / page * page;
    bytes_ = stride_ * count;
    void* mapped = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (mapped == MAP_FAILED) return false;
    base_ = static_cast<uint8_t*>(mapped);
    return true;
  }

  // What is written must not be zeros: storage may make holes of them, or compress them.
  void FillRandomly(uint64_t seed) {
    Random random(seed);
    auto* words = reinterpret_cast<uint64_t*>(base_);
    for (size_t i = 0; i < bytes_ / sizeof(uint64_t); ++i) words[i] = random.Next();
  }

  // For what the kernel may still write to: never freed.
  void Leak() { base_ = nullptr; }

  uint8_t* operator[](uint32_t index) const { return base_ + index * stride_; }
  uint8_t* base() const { return base_; }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* base_ = nullptr;
  size_t bytes_ = 0;
  size_t stride_ = 0;
};

}  // namespace lunpath::bench
