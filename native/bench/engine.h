// What a benchmark does its I/O with. The run loop (worker.h) decides what is done and when, and keeps the times; an
// engine moves the bytes. The loop is compiled for each engine: there is no virtual call for an I/O.
#pragma once

#include <cerrno>
#include <concepts>
#include <cstdint>
#include <string>
#include <vector>

#include "bench/buffers.h"
#include "bench/job.h"
#include "sys/result.h"

namespace lunpath::bench {

struct DeviceFacts {
  std::string wwid{};
  std::string serial{};
  std::string vendor{};
  std::string product{};
  uint64_t size_bytes = 0;
  uint32_t block_bytes = 1;  // what offsets and sizes must be multiples of
};

// One I/O, or what is left of it after an answer that was short. A flush is of the whole device or file: it has no
// bytes and no place, and its answer is 0.
struct Request {
  uint32_t slot;
  Direction direction;
  bool data_only = false;  // of a flush: as fdatasync(2), where there is a difference
  uint32_t bytes;
  uint64_t offset;
  uint8_t* data;
};

// All on the worker's thread, except Wake(). An I/O's data stays the kernel's or the library's until its completion is
// in or Abandon() has returned and Buffers::Leak() was called.
template <class E>
concept Engine = requires(E engine, const E& constant, const Request& request, const Buffers& buffers) {
  { constant.name() } -> std::same_as<const char*>;
  // Opens the device, or takes what the target has opened. With deadlines of its own; Wake() ends it with ECANCELED.
  { engine.Open() } -> std::same_as<Result<DeviceFacts>>;
  // Ready for `iodepth` I/Os with these buffers.
  { engine.Prepare(uint32_t{}, buffers) } -> std::same_as<Status>;
  { constant.flags() } -> std::same_as<std::vector<std::string>>;
  engine.Queue(request);
  // Sends what is queued; with `wait` it waits for a completion, a Wake() or `deadline` of the run's clock. May return
  // early. False: the device is gone, loss() says how; I/Os in flight get no completion.
  { engine.Exchange(bool{}, uint64_t{}) } -> std::same_as<bool>;
  { constant.loss() } -> std::same_as<Error>;
  // Calls done(slot, result, completed_ns) for each completion that Exchange() has found: bytes, or a failure below 0
  // that Describe() knows. `now` stands for the time where the engine keeps none.
  engine.Reap(uint64_t{}, [](uint32_t, int64_t, uint64_t) {});
  // Asks for I/Os in flight to be ended; they still get completions, -ECANCELED where that was in time.
  engine.CancelAll();
  { constant.Describe(int64_t{}) } -> std::same_as<Error>;
  // After a failure: whether it is the device that is gone.
  { engine.IsGone(int64_t{}) } -> std::same_as<bool>;
  // CPU time of threads that work for this one: of the engine's own, and of the kernel's.
  { constant.HelpersCpuNs() } -> std::same_as<uint64_t>;
  { constant.KernelThreadsCpuNs() } -> std::same_as<uint64_t>;
  // Gives the device back: in order where nothing is in flight, else by leaving it behind.
  engine.Close();
  engine.Abandon();
  // Any thread.
  engine.Wake();
};

}  // namespace lunpath::bench
