// Reads, writes and flushes of a logical unit over iSCSI by PDUs of our own (iscsi/data_path.h), over a connection that
// libiscsi has logged in: libiscsi takes a system call for each command, each header and each segment of data.
#pragma once

#include <optional>
#include <string>

#include "bench/engine_libiscsi.h"
#include "iscsi/data_path.h"

namespace lunpath::bench {

// No discards. Where the target has negotiated what the data path cannot work with, it is the engine that it derives
// from, on the same session.
class IscsiEngine : public LibiscsiEngine {
 public:
  explicit IscsiEngine(iscsi::LoginParams params);

  const char* name() const { return is_libiscsi() ? LibiscsiEngine::name() : "iscsi"; }
  // Once it is open: why it is the engine that it derives from; else empty.
  const std::string& fallback_reason() const { return fallback_reason_; }
  Result<DeviceFacts> Open();
  Status Prepare(uint32_t iodepth, const Buffers& buffers);

  void Queue(const Request& request) {
    if (is_libiscsi()) [[unlikely]] {
      LibiscsiEngine::Queue(request);
    } else if (request.direction == Direction::kWrite) {
      path_->Write(request.slot, request.offset, request.bytes, request.data);
    } else if (request.direction == Direction::kRead) {
      path_->Read(request.slot, request.offset, request.bytes, request.data);
    } else {
      path_->Flush(request.slot);
    }
  }
  bool Exchange(bool wait, uint64_t deadline);

  template <class OnDone>
  void Reap(uint64_t now, OnDone done) {
    if (is_libiscsi()) [[unlikely]] {
      LibiscsiEngine::Reap(now, done);
      return;
    }
    for (const auto& [slot, outcome] : path_->done()) done(slot, outcome, now);
    path_->done().clear();
  }

  void Close();

 private:
  bool is_libiscsi() const { return !fallback_reason_.empty(); }
  bool Send();
  bool Receive(int flags);
  bool Wait(uint64_t ns);
  bool Lost(Error error);

  std::string fallback_reason_;
  iscsi::CommandNumbers numbers_;
  std::optional<iscsi::DataPath> path_;
};

}  // namespace lunpath::bench
