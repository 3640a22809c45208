// Reads, writes, discards and flushes of a path by pread(2), pwrite(2), fallocate(2) and fsync(2): one I/O at a time on
// the worker's own thread, several on a thread each.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "bench/engine.h"
#include "bench/path_target.h"

namespace lunpath::bench {

class PreadEngine {
 public:
  explicit PreadEngine(std::shared_ptr<PathTarget> target);
  PreadEngine(const PreadEngine&) = delete;
  PreadEngine& operator=(const PreadEngine&) = delete;
  ~PreadEngine();

  const char* name() const { return "pread"; }
  Result<DeviceFacts> Open() { return target_->facts(); }
  Status Prepare(uint32_t iodepth, const Buffers& buffers);
  std::vector<std::string> flags() const;

  void Queue(const Request& request);
  bool Exchange(bool wait, uint64_t deadline);

  template <class OnDone>
  void Reap(uint64_t now, OnDone done) {
    for (const Done& one : done_) done(one.slot, one.result, now);
    done_.clear();
  }

  Error loss() const { return {}; }
  void CancelAll() {}
  Error Describe(int64_t result) const { return target_->Describe(result, "pread"); }
  bool IsGone(int64_t result) { return target_->IsGone(result); }
  uint64_t HelpersCpuNs() const;
  uint64_t KernelThreadsCpuNs() const { return 0; }
  void Close();
  void Abandon();
  void Wake();

 private:
  struct Done {
    uint32_t slot;
    int64_t result;
  };
  struct Pool;

  static int64_t Perform(int fd, const Request& request);
  static void Work(const std::shared_ptr<Pool>& pool);
  void SendHome();

  std::shared_ptr<PathTarget> target_;
  std::vector<Done> done_;
  std::vector<Request> queued_;
  const std::shared_ptr<Pool> pool_;
  std::vector<std::thread> threads_;  // none for one I/O at a time
};

}  // namespace lunpath::bench
