// Whether a job fits the device that was opened.
#pragma once

#include "bench/engine.h"
#include "bench/job.h"
#include "bench/workload.h"
#include "sys/result.h"

namespace lunpath::bench {

// The part of the device that this thread of the target uses. Errors: IDENTITY_MISMATCH, ERANGE. Any thread.
Result<Range> FitToDevice(const TargetSpec& spec, const DeviceFacts& device, uint32_t thread);

}  // namespace lunpath::bench
