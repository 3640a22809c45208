// Which engine a target gets, and the workers for each.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "bench/engine_aio.h"
#include "bench/engine_null.h"
#include "bench/engine_pread.h"
#include "bench/engine_uring.h"
#include "bench/loop.h"
#include "bench/worker.h"

#ifdef LUNPATH_BENCH_LIBISCSI
#include "bench/engine_iscsi.h"
#include "bench/engine_libiscsi.h"
#endif

namespace lunpath::bench {
namespace {

constexpr size_t kProbes = 32;
constexpr uint64_t kProbeLookNs = 10 * kNsPerMs;

// The median time of single reads. 0: they fail, and so tell nothing, or there were enough.
template <Engine E>
uint64_t ProbeReads(E& engine, const TargetSpec& spec, const DeviceFacts& device, const std::atomic<bool>& enough) {
  const auto range = FitToDevice(spec, device, 0);
  Buffers buffers;
  const uint32_t bytes = spec.SmallestBlock();
  if (!range.ok() || !buffers.Map(1, bytes) || !engine.Prepare(1, buffers).ok()) return 0;
  const Clock& clock = Clock::Get();
  Random random(0);
  std::array<uint64_t, kProbes> times{};
  for (uint64_t& time : times) {
    const uint64_t offset = range.value().offset + random.Below(range.value().size / bytes) * bytes;
    bool good = false;
    bool answered = false;
    const uint64_t before = clock.Now();
    engine.Queue({.slot = 0, .direction = Direction::kRead, .bytes = bytes, .offset = offset, .data = buffers[0]});
    while (!answered) {
      const bool alive = engine.Exchange(true, clock.Now() + kProbeLookNs);
      engine.Reap(0, [&](uint32_t, int64_t result, uint64_t) {
        answered = true;
        good = result == bytes;
      });
      if (!answered && (!alive || enough.load(std::memory_order_relaxed))) {
        buffers.Leak();
        return 0;
      }
    }
    if (!good || enough.load(std::memory_order_relaxed)) return 0;
    time = clock.Now() - before;
  }
  engine.Close();
  std::nth_element(times.begin(), times.begin() + kProbes / 2, times.end());
  return times[kProbes / 2];
}

}  // namespace

Result<EngineChoice> ChooseEngine(const TargetSpec& spec, const std::shared_ptr<PathTarget>& path) {
  if (spec.engine == EngineKind::kLibaio && spec.Has(Direction::kTrim)) {
    return Error{.message = "libaio has no discard: use io_uring or pread", .code = "EOPNOTSUPP", .number = EOPNOTSUPP};
  }
  if (spec.engine == EngineKind::kIscsi && spec.Has(Direction::kTrim)) {
    return EngineChoice{.engine = EngineKind::kLibiscsi, .fallback_reason = "discards go through libiscsi"};
  }
  if (spec.engine != EngineKind::kAuto && spec.engine != EngineKind::kUring) return EngineChoice{.engine = spec.engine};

  Ring ring;
  const Status available = ring.Setup(1);
  if (!available.ok()) {
    if (spec.engine == EngineKind::kUring) return available.error();
    const std::string why = "io_uring_setup: " + available.error().code;
    // Without O_DIRECT io_submit() would block in each I/O.
    const bool aio_does = path->direct() && !spec.Has(Direction::kTrim);
    aio_context_t context = 0;
    if (aio_does && syscall(SYS_io_setup, 1, &context) == 0) {
      syscall(SYS_io_destroy, context);
      return EngineChoice{.engine = EngineKind::kLibaio, .fallback_reason = why};
    }
    return EngineChoice{.engine = EngineKind::kPread, .fallback_reason = why};
  }
  const bool settled = spec.engine == EngineKind::kUring || spec.iodepth > 1;
  return EngineChoice{.engine = settled ? EngineKind::kUring : EngineKind::kAuto};
}

// Where a device cannot start an I/O without blocking, io_uring hands it to another thread and one pread() costs less.
EngineKind ProbeEngine(const TargetSpec& spec, const std::shared_ptr<PathTarget>& path,
                       const std::atomic<bool>& enough) {
  PreadEngine pread(path);
  const uint64_t by_pread = ProbeReads(pread, spec, path->facts(), enough);
  if (by_pread == 0) return EngineKind::kAuto;
  UringEngine uring(path);
  const uint64_t by_uring = ProbeReads(uring, spec, path->facts(), enough);
  if (by_uring == 0) return EngineKind::kAuto;
  return by_pread * 10 < by_uring * 9 ? EngineKind::kPread : EngineKind::kUring;
}

std::unique_ptr<Worker> MakeWorker(WorkerContext context, EngineKind engine, std::shared_ptr<PathTarget> path) {
  const TargetSpec& spec = context.spec();
  switch (engine) {
    case EngineKind::kNull:
      return std::make_unique<Loop<NullEngine>>(std::move(context), std::get<NullDevice>(spec.device).size_bytes);
    case EngineKind::kLibaio:
      return std::make_unique<Loop<AioEngine>>(std::move(context), std::move(path));
    case EngineKind::kPread:
      return std::make_unique<Loop<PreadEngine>>(std::move(context), std::move(path));
    case EngineKind::kAuto:
    case EngineKind::kUring:
      return std::make_unique<Loop<UringEngine>>(std::move(context), std::move(path));
#ifdef LUNPATH_BENCH_LIBISCSI
    case EngineKind::kIscsi:
      return std::make_unique<Loop<IscsiEngine>>(std::move(context), std::get<IscsiDevice>(spec.device).login);
    case EngineKind::kLibiscsi:
      return std::make_unique<Loop<LibiscsiEngine>>(std::move(context), std::get<IscsiDevice>(spec.device).login);
#else
    case EngineKind::kIscsi:
    case EngineKind::kLibiscsi:
      break;
#endif
  }
  return nullptr;
}

}  // namespace lunpath::bench
