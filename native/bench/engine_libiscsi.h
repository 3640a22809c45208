// Reads, writes and discards of a logical unit through libiscsi, without the kernel's initiator.
#pragma once

#include <mutex>
#include <vector>

#include "bench/engine.h"
#include "iscsi/session.h"

struct scsi_iovec;

namespace lunpath::bench {

class LibiscsiEngine {
 public:
  explicit LibiscsiEngine(iscsi::LoginParams params);
  LibiscsiEngine(const LibiscsiEngine&) = delete;
  LibiscsiEngine& operator=(const LibiscsiEngine&) = delete;
  ~LibiscsiEngine();

  const char* name() const { return "libiscsi"; }
  Result<DeviceFacts> Open();
  Status Prepare(uint32_t iodepth, const Buffers& buffers);
  std::vector<std::string> flags() const { return {}; }

  void Queue(const Request& request);
  bool Exchange(bool wait, uint64_t deadline);

  template <class OnDone>
  void Reap(uint64_t, OnDone done) {
    for (const Done& one : done_) done(one.slot, one.result, one.completed_ns);
    done_.clear();
  }

  Error loss() const { return loss_; }
  void CancelAll() {}  // a target that does not answer a command seldom answers ABORT TASK
  Error Describe(int64_t result) const;
  bool IsGone(int64_t) { return false; }
  uint64_t HelpersCpuNs() const { return 0; }
  uint64_t KernelThreadsCpuNs() const { return 0; }

  void Close();
  void Abandon();
  void Wake();

 private:
  struct Slot;
  struct Done {
    uint32_t slot;
    int64_t result;
    uint64_t completed_ns;
  };
  static void OnAnswer(iscsi_context*, int status, void* data, void* slot);
  void SendQueued(uint32_t queued);

  iscsi::Session session_;
  std::mutex wake_mutex_;  // guards closing_ and the session's interruption
  bool closing_ = false;
  iscsi::Identity identity_;
  std::vector<Slot> slots_;
  std::vector<Done> done_;
  bool lost_ = false;
  uint32_t queued_ = 0;
  Error loss_;
};

}  // namespace lunpath::bench
