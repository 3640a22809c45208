// Text from the other side or from libiscsi, fit for a message.
#pragma once

#include <string>
#include <string_view>

namespace lunpath::iscsi {

// Printable ASCII, bounded.
inline std::string Printable(std::string_view text, size_t most = 200) {
  std::string out(text.substr(0, most));
  for (char& c : out) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

}  // namespace lunpath::iscsi
