// What a benchmark does its I/O with. The runner decides what is read and when, and keeps the times; an engine moves
// the bytes. Each engine owns its buffers, one per slot, until the slot's completion is in or Abandon() has returned.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sys/result.h"

namespace lunpath::bench {

struct DeviceFacts {
  std::string wwid;
  std::string serial;
  std::string vendor;
  std::string product;
  uint64_t size_bytes = 0;
  uint32_t block_bytes = 0;
};

enum class Outcome : uint8_t { kGood, kFailed };

struct Completion {
  uint32_t slot;
  Outcome outcome;
  uint64_t completed_ns;  // CLOCK_MONOTONIC
};

// All on the run's thread, except Interrupt().
class Engine {
 public:
  virtual ~Engine() = default;
  virtual const char* name() const = 0;

  // Opens the device and reads its identity. The engine has deadlines of its own here.
  virtual Result<DeviceFacts> Open() = 0;
  // Memory for `iodepth` reads of `bs` bytes.
  virtual Status Prepare(uint32_t iodepth, uint32_t bs) = 0;

  // Queues a read of `bs` bytes into a free slot. False: the device is gone.
  virtual bool QueueRead(uint32_t slot, uint64_t offset) = 0;
  // Sends what is queued, waits until `deadline_ns` at most for a completion, and appends all that are in.
  // False: the device is gone; I/Os that were in flight get no completion.
  virtual bool Reap(std::vector<Completion>* completions, uint64_t deadline_ns) = 0;
  // The last failure of an I/O or of the device, for the report.
  virtual const Error& last_error() const = 0;

  // Gives the device back: in order where nothing is in flight, else by leaving it behind.
  virtual void Close() = 0;
  virtual void Abandon() = 0;
  // Makes Open() fail with ECANCELED soon, or one Reap() return early. Any thread.
  virtual void Interrupt() = 0;
};

}  // namespace lunpath::bench
