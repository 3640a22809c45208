// What io_uring has learned after Linux 5.10, as include/uapi/linux/io_uring.h of Linux 6.1 has it: so that lunpath
// builds with the headers of an older kernel than the one that it runs on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunpath::bench::uring {

// io_uring_params.flags and .features
inline constexpr uint32_t kSetupCoopTaskrun = 1u << 8;    // IORING_SETUP_COOP_TASKRUN, 5.19
inline constexpr uint32_t kSetupSingleIssuer = 1u << 12;  // IORING_SETUP_SINGLE_ISSUER, 6.0
inline constexpr uint32_t kSetupDeferTaskrun = 1u << 13;  // IORING_SETUP_DEFER_TASKRUN, 6.1
inline constexpr uint32_t kFeatureExtArg = 1u << 8;       // IORING_FEAT_EXT_ARG, 5.11

// io_uring_enter(2)
inline constexpr uint32_t kEnterExtArg = 1u << 3;          // IORING_ENTER_EXT_ARG, 5.11
inline constexpr uint32_t kEnterRegisteredRing = 1u << 4;  // IORING_ENTER_REGISTERED_RING, 5.18

// struct io_uring_getevents_arg, 5.11
struct GetEventsArgument {
  uint64_t sigmask;
  uint32_t sigmask_bytes;
  uint32_t unused;
  uint64_t timeout;
};
static_assert(sizeof(GetEventsArgument) == 24 && offsetof(GetEventsArgument, timeout) == 16);

// io_uring_register(2)
inline constexpr uint32_t kRegisterRingFds = 20;  // IORING_REGISTER_RING_FDS, 5.18

// struct io_uring_rsrc_update, 5.13
struct ResourceUpdate {
  uint32_t offset;
  uint32_t unused;
  uint64_t data;
};
static_assert(sizeof(ResourceUpdate) == 16 && offsetof(ResourceUpdate, data) == 8);

// io_uring_sqe.cancel_flags
inline constexpr uint32_t kCancelAll = 1u << 0;      // IORING_ASYNC_CANCEL_ALL, 5.19
inline constexpr uint32_t kCancelFd = 1u << 1;       // IORING_ASYNC_CANCEL_FD, 5.19
inline constexpr uint32_t kCancelFdFixed = 1u << 3;  // IORING_ASYNC_CANCEL_FD_FIXED, 6.0

}  // namespace lunpath::bench::uring
