#include "bench/fit.h"

#include <algorithm>
#include <cerrno>
#include <string>

namespace lunpath::bench {
namespace {

Error Mismatch(const char* what, const std::string& expected, const std::string& found) {
  return Error{.message = std::string("The device's ") + what + " is " + found + ", expected " + expected,
               .code = "IDENTITY_MISMATCH"};
}

Error DoesNotFit(std::string message) {
  return Error{.message = std::move(message), .code = "ERANGE", .number = ERANGE};
}

}  // namespace

Result<Range> FitToDevice(const TargetSpec& spec, const DeviceFacts& device, uint32_t thread) {
  if (!spec.expected_serial.empty() && spec.expected_serial != device.serial) {
    return Mismatch("serial", spec.expected_serial, device.serial);
  }
  if (!spec.expected_wwid.empty() && spec.expected_wwid != device.wwid) {
    return Mismatch("WWID", spec.expected_wwid, device.wwid);
  }
  if (spec.expected_size != 0 && spec.expected_size != device.size_bytes) {
    return Mismatch("size", std::to_string(spec.expected_size), std::to_string(device.size_bytes));
  }
  const uint32_t smallest = spec.SmallestBlock();
  // As fio: a percentage of the device, rounded up to a block for the offset and down to blocks for the size.
  uint64_t offset = spec.offset;
  if (spec.offset_percent > 0) {
    offset = (device.size_bytes * spec.offset_percent / 100 + smallest - 1) / smallest * smallest;
  }
  offset += thread * spec.offset_increment;
  bool whole_blocks = offset % device.block_bytes == 0;
  for (const auto& sizes : spec.block_sizes) {
    for (const BlockSize& size : sizes) whole_blocks = whole_blocks && size.bytes % device.block_bytes == 0;
  }
  if (!whole_blocks) {
    return DoesNotFit("bs and offset must be multiples of the device's block size, " +
                      std::to_string(device.block_bytes) + " bytes");
  }
  const uint64_t available = device.size_bytes > offset ? device.size_bytes - offset : 0;
  Range range{.offset = offset, .size = spec.size == 0 ? available : spec.size};
  if (spec.size_percent > 0) {
    range.size = std::min(device.size_bytes * spec.size_percent / 100, available) / smallest * smallest;
  }
  const uint32_t block = spec.LargestBlock();
  if (block == 0 || range.size > available || range.size < block) {
    return DoesNotFit("The range does not lie in the device of " + std::to_string(device.size_bytes) +
                      " bytes, or is smaller than one block of " + std::to_string(block));
  }
  if (!spec.verify) return range;
  // What one thread writes no other may: it could not know the generation that is there.
  const uint64_t blocks = range.size / block / spec.numjobs;
  if (blocks == 0) return DoesNotFit("The range has fewer blocks than there are threads to verify them");
  range.size = blocks * block;
  range.offset += thread * range.size;
  return range;
}

}  // namespace lunpath::bench
