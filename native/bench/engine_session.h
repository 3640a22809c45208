// What the engines of a logical unit over iSCSI have in common: the session, logged in by libiscsi.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "bench/engine.h"
#include "iscsi/session.h"

namespace lunpath::bench {

class SessionEngine {
 public:
  SessionEngine(const SessionEngine&) = delete;
  SessionEngine& operator=(const SessionEngine&) = delete;

  Result<DeviceFacts> Open();
  std::vector<std::string> flags() const { return {}; }
  Error loss() const { return loss_; }
  void CancelAll() {}  // a target that does not answer a command seldom answers ABORT TASK
  Error Describe(int64_t result) const;
  bool IsGone(int64_t) { return false; }
  uint64_t HelpersCpuNs() const { return 0; }
  uint64_t KernelThreadsCpuNs() const { return 0; }
  void Wake();

 protected:
  explicit SessionEngine(iscsi::LoginParams params);
  ~SessionEngine() = default;

  // From here on no Wake() interrupts: one that came too late for the loop must not end the logout.
  void BeginClose();

  iscsi::Session session_;
  iscsi::Identity identity_;
  Error loss_;

 private:
  std::mutex wake_mutex_;  // guards closing_ and the session's interruption
  bool closing_ = false;
};

}  // namespace lunpath::bench
