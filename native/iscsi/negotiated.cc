#include "iscsi/negotiated.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "iscsi/text.h"

namespace lunpath::iscsi {
namespace {

// The range of all three lengths (RFC 7143, 13.12 to 13.14).
constexpr uint32_t kLeastBytes = 512;
constexpr uint32_t kMostBytes = (1 << 24) - 1;

// A numerical value, decimal or hexadecimal (RFC 7143, 6.1), in its range.
std::optional<uint32_t> ToLength(std::string_view value) {
  int base = 10;
  if (value.starts_with("0x") || value.starts_with("0X")) {
    value.remove_prefix(2);
    base = 16;
  }
  uint32_t number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number, base);
  if (error != std::errc() || end != value.data() + value.size()) return std::nullopt;
  return number >= kLeastBytes && number <= kMostBytes ? std::optional(number) : std::nullopt;
}

// False: a value that is none of this key's.
bool TakeBoolean(std::string_view value, bool* into) {
  *into = value == "Yes";
  return *into || value == "No";
}

bool TakeLength(std::string_view value, uint32_t* into) {
  const auto length = ToLength(value);
  if (length) *into = *length;
  return length.has_value();
}

// False: the data path cannot work with this answer. The last ones have one value alone, the one that libiscsi offers.
bool Take(std::string_view key, std::string_view value, Negotiated* into) {
  if (key == "InitialR2T") return TakeBoolean(value, &into->initial_r2t);
  if (key == "ImmediateData") return TakeBoolean(value, &into->immediate_data);
  if (key == "FirstBurstLength") return TakeLength(value, &into->first_burst_bytes);
  if (key == "MaxBurstLength") return TakeLength(value, &into->max_burst_bytes);
  if (key == "MaxRecvDataSegmentLength") return TakeLength(value, &into->max_segment_bytes);
  if (key == "HeaderDigest" || key == "DataDigest") return value == "None";
  if (key == "DataPDUInOrder" || key == "DataSequenceInOrder") return value == "Yes";
  if (key == "MaxOutstandingR2T") return value == "1";
  if (key == "ErrorRecoveryLevel") return value == "0";
  return true;
}

}  // namespace

Negotiated ParseNegotiated(std::string_view text) {
  Negotiated negotiated;
  while (!text.empty()) {
    const std::string_view pair = text.substr(0, text.find('\0'));
    text.remove_prefix(std::min(text.size(), pair.size() + 1));
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos) continue;
    const std::string_view value = pair.substr(equals + 1);
    // A key without a meaning beside the others, such as FirstBurstLength where no data is unsolicited.
    if (value == "Irrelevant") continue;
    if (Take(pair.substr(0, equals), value, &negotiated) || !negotiated.unusable.empty()) continue;
    negotiated.unusable = Printable(pair);
  }
  // RFC 7143, 13.14.
  negotiated.first_burst_bytes = std::min(negotiated.first_burst_bytes, negotiated.max_burst_bytes);
  return negotiated;
}

}  // namespace lunpath::iscsi
