// How a SCSI command ended, in one number: bytes that were moved, or below 0 an errno or what the target said.
#pragma once

#include <cerrno>
#include <cstdint>
#include <string>

#include "sys/result.h"

namespace lunpath::iscsi {

// A kind, and below it what the target said.
inline constexpr int64_t kSenseOutcome = int64_t{1} << 32;
inline constexpr int64_t kStatusOutcome = int64_t{2} << 32;
inline constexpr int64_t kOutcomeDetail = (int64_t{1} << 32) - 1;

// `asc_ascq` is ASC << 8 | ASCQ.
constexpr int64_t SenseOutcome(int key, int asc_ascq) {
  return -(kSenseOutcome | static_cast<int64_t>(key) << 16 | (asc_ascq & 0xffff));
}

constexpr int64_t StatusOutcome(int status) { return -(kStatusOutcome | status); }

// Of an outcome that is no success. The codes are those of iscsi/session.h; of 0 it is ENODATA.
inline Error DescribeOutcome(int64_t outcome, const std::string& portal) {
  const int64_t failure = -outcome;
  const auto number = static_cast<int>(failure & kOutcomeDetail);
  if ((failure & ~kOutcomeDetail) == kSenseOutcome) {
    return Error{.message = "The command failed with a check condition",
                 .code = "SCSI_SENSE",
                 .number = number,
                 .syscall = "SCSI"};
  }
  if ((failure & ~kOutcomeDetail) == kStatusOutcome) {
    return Error{.message = "The command failed with SCSI status " + std::to_string(number),
                 .code = "SCSI_STATUS",
                 .number = number,
                 .syscall = "SCSI"};
  }
  return ErrnoError(number == 0 ? ENODATA : number, "SCSI", portal);
}

}  // namespace lunpath::iscsi
