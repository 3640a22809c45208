// CPU time that a run costs, wherever it is spent.
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace lunpath::bench {

// Any thread; 0 where /proc does not tell.

// Of the io-wq threads that the kernel runs for the requests of thread `tid` of this process: they are threads of the
// process named iou-wrk-TID (io_uring/io-wq.c). Those that have ended are not in it.
uint64_t IoWorkersCpuNs(pid_t tid);

uint64_t ProcessCpuNs();

// Of all processors: user, nice, system, irq and softirq of /proc/stat, in its steps of 10 ms.
uint64_t MachineCpuNs();

}  // namespace lunpath::bench
