/*
 * The other side of the io bench: a closed loop of random reads over io_uring, by hand.
 *
 *   uring_bare PATH IODEPTH BS RUNTIME_MS DIRECT
 *
 * Registered file, buffers and ring, SINGLE_ISSUER and DEFER_TASKRUN, the time stamp counter, and a log-linear histogram:
 * all that the engine of lunpath has, and nothing else. Prints one line of JSON.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

static uint64_t counts[64 * 128];
static double ns_per_tick;

static void die(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

static uint64_t monotonic(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void calibrate(void) {
  uint64_t ns = monotonic(), ticks = __rdtsc(), later;
  while ((later = monotonic()) < ns + 2000000) {
  }
  ns_per_tick = (double)(later - ns) / (double)(__rdtsc() - ticks);
}

static void record(uint64_t ticks) {
  uint64_t ns = (uint64_t)((double)ticks * ns_per_tick) | 1;
  int octave = 63 - __builtin_clzll(ns) - 7;
  if (octave < 0) octave = 0;
  counts[(uint64_t)octave * 128 + (ns >> octave)]++;
}

static uint64_t seed = 1;
static uint64_t random64(void) {
  uint64_t z = seed += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  unsigned depth = (unsigned)atoi(argv[2]), bs = (unsigned)atoi(argv[3]);
  int fd = open(argv[1], O_RDONLY | O_CLOEXEC | (atoi(argv[5]) ? O_DIRECT : 0));
  if (fd < 0) die(argv[1]);
  struct stat status;
  uint64_t size = 0;
  if (fstat(fd, &status) != 0) die("fstat");
  if (S_ISBLK(status.st_mode)) {
    if (ioctl(fd, BLKGETSIZE64, &size) != 0) die("BLKGETSIZE64");
  } else {
    size = (uint64_t)status.st_size;
  }
  uint64_t blocks = size / bs;
  calibrate();

  struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
  int ring = (int)syscall(SYS_io_uring_setup, depth, &params);
  if (ring < 0) die("io_uring_setup");
  char *rings = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
  struct io_uring_sqe *sqes = mmap(NULL, params.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE,
                                   MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
  size_t bytes = (size_t)depth * bs;
  char *buffers = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (rings == MAP_FAILED || (void *)sqes == MAP_FAILED || buffers == MAP_FAILED) die("mmap");
  unsigned *sq_tail = (unsigned *)(rings + params.sq_off.tail), *array = (unsigned *)(rings + params.sq_off.array);
  unsigned *cq_head = (unsigned *)(rings + params.cq_off.head), *cq_tail = (unsigned *)(rings + params.cq_off.tail);
  unsigned sq_mask = *(unsigned *)(rings + params.sq_off.ring_mask);
  unsigned cq_mask = *(unsigned *)(rings + params.cq_off.ring_mask);
  struct io_uring_cqe *cqes = (struct io_uring_cqe *)(rings + params.cq_off.cqes);
  for (unsigned i = 0; i < params.sq_entries; i++) array[i] = i;
  struct iovec all = {.iov_base = buffers, .iov_len = bytes};
  struct io_uring_rsrc_update update = {.offset = UINT32_MAX, .data = (uint64_t)ring};
  if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &fd, 1) != 0) die("register files");
  if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &all, 1) != 0) die("register buffers");
  if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_RING_FDS, &update, 1) != 1) die("register ring");

  uint64_t *submitted = calloc(depth, sizeof(*submitted));
  unsigned *free_slots = calloc(depth, sizeof(*free_slots)), free_count = depth, tail = 0, in_flight = 0;
  for (unsigned i = 0; i < depth; i++) free_slots[i] = i;
  uint64_t ios = 0, start = __rdtsc(), last = start;
  uint64_t end = start + (uint64_t)(atof(argv[4]) * 1e6 / ns_per_tick);
  int issuing = 1;
  while (issuing || in_flight > 0) {
    uint64_t now = __rdtsc();
    if (now >= end) issuing = 0;
    unsigned queued = 0;
    while (issuing && free_count > 0) {
      unsigned slot = free_slots[--free_count];
      struct io_uring_sqe *sqe = &sqes[tail++ & sq_mask];
      memset(sqe, 0, sizeof(*sqe));
      sqe->opcode = IORING_OP_READ_FIXED;
      sqe->flags = IOSQE_FIXED_FILE;
      sqe->off = (uint64_t)((unsigned __int128)random64() * blocks >> 64) * bs;
      sqe->addr = (uint64_t)(buffers + (size_t)slot * bs);
      sqe->len = bs;
      sqe->user_data = slot;
      submitted[slot] = now;
      queued++;
      in_flight++;
    }
    if (in_flight == 0) break;
    __atomic_store_n(sq_tail, tail, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, update.offset, queued, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING, NULL,
                0) < 0)
      die("io_uring_enter");
    now = __rdtsc();
    unsigned head = *cq_head, found = __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE);
    while (head != found) {
      struct io_uring_cqe *cqe = &cqes[head++ & cq_mask];
      if (cqe->res != (int)bs) {
        errno = cqe->res < 0 ? -cqe->res : EIO;
        die("read");
      }
      record(now - submitted[cqe->user_data]);
      free_slots[free_count++] = (unsigned)cqe->user_data;
      in_flight--;
      ios++;
      last = now;
    }
    __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
  }
  double elapsed = (double)(last - start) * ns_per_tick;
  uint64_t seen = 0, p99 = 0;
  for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]) && seen < ios * 99 / 100; i++) {
    seen += counts[i];
    unsigned octave = i < 256 ? 0 : i / 128 - 1;
    p99 = ((uint64_t)i - octave * 128) << octave;
  }
  printf("{\"ios\": %llu, \"elapsedNs\": %.0f, \"p99Ns\": %llu}\n", (unsigned long long)ios, elapsed,
         (unsigned long long)p99);
  return 0;
}
