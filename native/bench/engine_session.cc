#include "bench/engine_session.h"

#include <utility>

#include "iscsi/outcome.h"

namespace lunpath::bench {

SessionEngine::SessionEngine(iscsi::LoginParams params) : session_(std::move(params)) {}

Result<DeviceFacts> SessionEngine::Open() {
  auto identity = session_.Login();
  if (!identity.ok()) return identity.error();
  identity_ = identity.value();
  return DeviceFacts{.wwid = identity_.wwid,
                     .serial = identity_.serial,
                     .vendor = identity_.vendor,
                     .product = identity_.product,
                     .size_bytes = identity_.size_bytes,
                     .block_bytes = identity_.block_bytes};
}

Error SessionEngine::Describe(int64_t result) const { return iscsi::DescribeOutcome(result, session_.params().portal); }

void SessionEngine::Wake() {
  std::lock_guard lock(wake_mutex_);
  if (!closing_) session_.Interrupt();
}

void SessionEngine::BeginClose() {
  std::lock_guard lock(wake_mutex_);
  closing_ = true;
  session_.Resume();
}

}  // namespace lunpath::bench
