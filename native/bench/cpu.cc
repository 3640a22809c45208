#include "bench/cpu.h"

#include <dirent.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <string>

#include "sys/clock.h"

namespace lunpath::bench {

uint64_t IoWorkersCpuNs(pid_t tid) {
  const std::unique_ptr<DIR, int (*)(DIR*)> tasks(opendir("/proc/self/task"), closedir);
  if (!tasks) return 0;
  const std::string wanted = "iou-wrk-" + std::to_string(tid);
  uint64_t sum = 0;
  while (const dirent* entry = readdir(tasks.get())) {
    if (entry->d_name[0] == '.') continue;
    const std::string task = std::string("/proc/self/task/") + entry->d_name;
    std::string name;
    std::getline(std::ifstream(task + "/comm") >> std::ws, name);
    if (name != wanted) continue;
    uint64_t on_cpu = 0;
    std::ifstream(task + "/schedstat") >> on_cpu;
    sum += on_cpu;
  }
  return sum;
}

uint64_t ProcessCpuNs() {
  timespec used;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<uint64_t>(used.tv_sec) * kNsPerSecond + static_cast<uint64_t>(used.tv_nsec);
}

uint64_t MachineCpuNs() {
  std::string label;
  uint64_t user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0;
  std::ifstream("/proc/stat") >> label >> user >> nice >> system >> idle >> iowait >> irq >> softirq;
  const auto per_second = static_cast<uint64_t>(sysconf(_SC_CLK_TCK));
  return (user + nice + system + irq + softirq) * (kNsPerSecond / per_second);
}

}  // namespace lunpath::bench
