// PDUs of iSCSI, as far as this side makes or reads them itself (RFC 7143, 11.2).
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunpath::iscsi {

// The basic header segment.
inline constexpr size_t kHeaderBytes = 48;

// Opcodes (RFC 7143, 11.2.1.2), of requests and of answers.
inline constexpr uint8_t kNopOut = 0x00;
inline constexpr uint8_t kCommand = 0x01;
inline constexpr uint8_t kDataOut = 0x05;
inline constexpr uint8_t kLogoutRequest = 0x06;
inline constexpr uint8_t kNopIn = 0x20;
inline constexpr uint8_t kResponse = 0x21;
inline constexpr uint8_t kLoginResponse = 0x23;
inline constexpr uint8_t kDataIn = 0x25;
inline constexpr uint8_t kLogoutResponse = 0x26;
inline constexpr uint8_t kReadyToTransfer = 0x31;
inline constexpr uint8_t kAsyncMessage = 0x32;
inline constexpr uint8_t kReject = 0x3f;

inline constexpr uint8_t kImmediate = 0x40;   // beside the opcode
inline constexpr uint8_t kOpcodeMask = 0x3f;  // without it

}  // namespace lunpath::iscsi
