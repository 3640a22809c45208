// Reads of a logical unit over iSCSI by PDUs of our own (iscsi/data_path.h), over a connection that libiscsi has logged
// in: libiscsi takes a system call for each command, each header and each segment of data.
#pragma once

#include <optional>

#include "bench/engine_session.h"
#include "iscsi/data_path.h"

namespace lunpath::bench {

class IscsiEngine : public SessionEngine {
 public:
  explicit IscsiEngine(iscsi::LoginParams params);

  const char* name() const { return "iscsi"; }
  Result<DeviceFacts> Open();
  Status Prepare(uint32_t iodepth, const Buffers& buffers);

  void Queue(const Request& request) { path_->Read(request.slot, request.offset, request.bytes, request.data); }
  bool Exchange(bool wait, uint64_t deadline);

  template <class OnDone>
  void Reap(uint64_t now, OnDone done) {
    for (const auto& [slot, outcome] : path_->done()) done(slot, outcome, now);
    path_->done().clear();
  }

  void Close();
  void Abandon() { session_.Drop(); }

 private:
  bool Send();
  bool Receive();
  bool Wait(uint64_t ns);
  bool Lost(Error error);

  iscsi::CommandNumbers numbers_;
  std::optional<iscsi::DataPath> path_;
};

}  // namespace lunpath::bench
