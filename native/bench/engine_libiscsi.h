// Reads of a logical unit through libiscsi, without the kernel's initiator.
#pragma once

#include <memory>

#include "bench/engine.h"
#include "iscsi/session.h"

struct scsi_iovec;

namespace lunpath::bench {

class LibiscsiEngine final : public Engine {
 public:
  explicit LibiscsiEngine(iscsi::LoginParams params);
  ~LibiscsiEngine() override;

  const char* name() const override { return "libiscsi"; }
  Result<DeviceFacts> Open() override;
  Status Prepare(uint32_t iodepth, uint32_t bs) override;
  bool QueueRead(uint32_t slot, uint64_t offset) override;
  bool Reap(std::vector<Completion>* completions, uint64_t deadline_ns) override;
  const Error& last_error() const override { return last_error_; }
  void Close() override;
  void Abandon() override;
  void Interrupt() override { session_.Interrupt(); }

 private:
  struct Slot;
  static void OnRead(iscsi_context*, int status, void* data, void* slot);

  iscsi::Session session_;
  iscsi::Identity identity_;
  uint32_t bs_ = 0;
  std::unique_ptr<uint8_t[]> buffers_;
  std::vector<Slot> slots_;
  std::vector<Completion> completed_;
  bool lost_ = false;
  bool queued_ = false;
  Error last_error_;
};

}  // namespace lunpath::bench
