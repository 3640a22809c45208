// What a login has negotiated, as far as the sending of data depends on it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lunpath::iscsi {

// The defaults are those of RFC 7143, section 13: they hold for each key that the target has not answered.
struct Negotiated {
  bool initial_r2t = true;
  bool immediate_data = true;
  uint32_t first_burst_bytes = 65'536;
  uint32_t max_burst_bytes = 262'144;
  uint32_t max_segment_bytes = 8'192;  // the target's MaxRecvDataSegmentLength
  // The first answer that the data path cannot work with (`MaxOutstandingR2T=4`); empty: there is none.
  std::string unusable{};
};

// From the text of the target's login responses, one after the other: pairs KEY=VALUE that each end in a NUL.
Negotiated ParseNegotiated(std::string_view text);

}  // namespace lunpath::iscsi
