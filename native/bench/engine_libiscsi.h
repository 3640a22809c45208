// Reads, writes, discards and flushes of a logical unit through libiscsi, without the kernel's initiator.
#pragma once

#include <vector>

#include "bench/engine_session.h"

namespace lunpath::bench {

class LibiscsiEngine : public SessionEngine {
 public:
  explicit LibiscsiEngine(iscsi::LoginParams params);
  ~LibiscsiEngine();

  const char* name() const { return "libiscsi"; }
  Status Prepare(uint32_t iodepth, const Buffers& buffers);

  void Queue(const Request& request);
  bool Exchange(bool wait, uint64_t deadline);

  template <class OnDone>
  void Reap(uint64_t, OnDone done) {
    for (const Done& one : done_) done(one.slot, one.result, one.completed_ns);
    done_.clear();
  }

  void Close();
  void Abandon();

 private:
  struct Slot;
  struct Done {
    uint32_t slot;
    int64_t result;
    uint64_t completed_ns;
  };
  static void OnAnswer(iscsi_context*, int status, void* data, void* slot);
  void SendQueued(uint32_t queued);

  std::vector<Slot> slots_;
  std::vector<Done> done_;
  bool lost_ = false;
  uint32_t queued_ = 0;
};

}  // namespace lunpath::bench
