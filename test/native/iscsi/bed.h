// The data path of iscsi/data_path.h with the target's side of it, made by hand. Programs that use it are built with
// sanitizers.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "bench/random.h"
#include "iscsi/data_path.h"
#include "sys/big_endian.h"

namespace lunpath::iscsi {

using Bytes = std::vector<uint8_t>;

inline int failures = 0;

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      ++failures;                                                             \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                         \
  } while (false)

class Random : public bench::Random {
 public:
  using bench::Random::Random;
  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(bench::Random::Below(bound)); }
};

constexpr uint32_t kBlock = 512;
constexpr uint8_t kFinal = 0x80;
constexpr uint8_t kOverflow = 0x04;
constexpr uint8_t kUnderflow = 0x02;
constexpr uint8_t kStatus = 0x01;

struct Command {
  uint32_t tag, bytes, cmd_sn, exp_stat_sn;
  uint8_t opcode, flags;
};

// A session of four slots, the buffers of their commands (each an allocation of its own, so that a sanitizer sees what
// goes beyond it), and the target's side of it.
class Bed {
 public:
  explicit Bed(uint32_t max_cmd_sn = 131, bool long_commands = true, Negotiated negotiated = {})
      : path({.portal = "portal",
              .lun = 1,
              .block_bytes = kBlock,
              .long_commands = long_commands,
              .numbers = {.cmd_sn = 100, .max_cmd_sn = max_cmd_sn, .exp_stat_sn = 7},
              .negotiated = std::move(negotiated),
              .slots = 4,
              .staging_bytes = DataPath::kLeastStaging}),
        max(max_cmd_sn) {}

  // Returns what the target sees of it.
  Command Read(uint32_t slot, uint32_t bytes, uint64_t offset = 0) {
    buffers[slot] = std::make_unique<uint8_t[]>(bytes);
    path.Read(slot, offset, bytes, buffers[slot].get());
    const auto sent = Sent();
    return sent.empty() ? Command{} : sent.back();
  }

  // What is sent next, as from a socket that takes `most` bytes.
  Bytes Outgoing(size_t most = SIZE_MAX) {
    Bytes bytes;
    while (path.has_to_send() && bytes.size() < most) {
      const size_t before = bytes.size();
      for (const iovec& piece : path.NextToSend()) {
        const auto* data = static_cast<const uint8_t*>(piece.iov_base);
        bytes.insert(bytes.end(), data, data + std::min(piece.iov_len, most - bytes.size()));
      }
      CHECK(bytes.size() > before);
      path.Sent(bytes.size() - before);
    }
    return bytes;
  }

  std::vector<Command> Sent() {
    std::vector<Command> commands;
    const Bytes bytes = Outgoing();
    for (size_t at = 0; at + 48 <= bytes.size();) {
      const uint8_t* p = bytes.data() + at;
      commands.push_back({Be32(p + 16), Be32(p + 20), Be32(p + 24), Be32(p + 28), p[0], p[1]});
      raw.assign(p, p + 48);
      at += 48 + ((Be24(p + 5) + 3) & ~3U);
    }
    return commands;
  }

  Bytes Header(uint8_t opcode, uint8_t flags, uint32_t tag, uint32_t data_bytes) const {
    Bytes pdu(48);
    pdu[0] = opcode;
    pdu[1] = flags;
    PutBe32(pdu.data() + 4, data_bytes);
    PutBe32(pdu.data() + 16, tag);
    PutBe32(pdu.data() + 20, 0xffffffff);
    PutBe32(pdu.data() + 24, stat_sn);
    PutBe32(pdu.data() + 28, 100);
    PutBe32(pdu.data() + 32, max);
    return pdu;
  }

  Bytes DataIn(uint32_t tag, uint32_t sn, uint32_t offset, const Bytes& data, uint8_t flags = 0,
               uint32_t residual = 0) {
    if (flags & kStatus) ++stat_sn;
    Bytes pdu = Header(0x25, flags, tag, static_cast<uint32_t>(data.size()));
    PutBe32(pdu.data() + 36, sn);
    PutBe32(pdu.data() + 40, offset);
    PutBe32(pdu.data() + 44, residual);
    pdu.insert(pdu.end(), data.begin(), data.end());
    pdu.resize((pdu.size() + 3) & ~size_t{3}, 0xee);
    return pdu;
  }

  Bytes Response(uint32_t tag, uint8_t status, const Bytes& sense = {}, uint8_t flags = 0, uint32_t residual = 0) {
    ++stat_sn;
    Bytes data;
    if (!sense.empty()) {
      data = {static_cast<uint8_t>(sense.size() >> 8), static_cast<uint8_t>(sense.size())};
      data.insert(data.end(), sense.begin(), sense.end());
    }
    Bytes pdu = Header(0x21, kFinal | flags, tag, static_cast<uint32_t>(data.size()));
    pdu[3] = status;
    PutBe32(pdu.data() + 44, residual);
    pdu.insert(pdu.end(), data.begin(), data.end());
    pdu.resize((pdu.size() + 3) & ~size_t{3});
    return pdu;
  }

  // As the socket would, `chunk` bytes at a time. False: the session has ended.
  bool Feed(const Bytes& stream, size_t chunk = SIZE_MAX) {
    for (size_t at = 0; at < stream.size();) {
      size_t some = std::min(chunk, stream.size() - at);
      size_t put = 0;
      for (const iovec& space : path.Space()) {
        const size_t here = std::min(some - put, space.iov_len);
        memcpy(space.iov_base, stream.data() + at + put, here);
        put += here;
      }
      if (put == 0 || !path.Took(put)) return false;
      at += put;
    }
    return true;
  }

  int64_t Outcome() {
    if (path.done().size() != 1) return INT64_MIN;
    const int64_t outcome = path.done()[0].outcome;
    path.done().clear();
    return outcome;
  }

  DataPath path;
  std::unique_ptr<uint8_t[]> buffers[4];
  Bytes raw;
  uint32_t stat_sn = 6;
  uint32_t max;
};

inline Bytes Pattern(uint32_t bytes, uint64_t seed) {
  Random random(seed);
  Bytes data(bytes);
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(random.Below(256));
  return data;
}

inline Bytes Joined(const std::vector<Bytes>& pdus) {
  Bytes stream;
  for (const Bytes& pdu : pdus) stream.insert(stream.end(), pdu.begin(), pdu.end());
  return stream;
}

inline constexpr uint32_t kNoTag = 0xffffffff;
// A PDU that the path has sent. `number` is a Data-Out PDU's DataSN.
struct Seen {
  uint8_t opcode, flags;
  uint32_t tag, transfer_tag, number, offset;
  Bytes header, data;

  bool is_final() const { return flags & kFinal; }
};

// Takes the whole PDUs from the begin of `stream`.
inline std::vector<Seen> TakePdus(Bytes* stream) {
  std::vector<Seen> pdus;
  size_t at = 0;
  for (;;) {
    if (stream->size() - at < 48) break;
    const uint8_t* p = stream->data() + at;
    const uint32_t bytes = Be24(p + 5);
    const size_t whole = 48 + ((bytes + 3) & ~3U);
    if (stream->size() - at < whole) break;
    CHECK(p[4] == 0);
    pdus.push_back({.opcode = p[0],
                    .flags = p[1],
                    .tag = Be32(p + 16),
                    .transfer_tag = Be32(p + 20),
                    .number = Be32(p + 36),
                    .offset = Be32(p + 40),
                    .header = Bytes(p, p + 48),
                    .data = Bytes(p + 48, p + 48 + bytes)});
    for (size_t i = 48 + bytes; i < whole; ++i) CHECK(p[i] == 0);
    at += whole;
  }
  stream->erase(stream->begin(), stream->begin() + static_cast<ptrdiff_t>(at));
  return pdus;
}

inline Negotiated Agreed(bool immediate_data, bool initial_r2t, uint32_t first_burst = 65'536,
                         uint32_t max_burst = 262'144, uint32_t segment = 8'192) {
  return {.initial_r2t = initial_r2t,
          .immediate_data = immediate_data,
          .first_burst_bytes = first_burst,
          .max_burst_bytes = max_burst,
          .max_segment_bytes = segment};
}

class WriteBed : public Bed {
 public:
  explicit WriteBed(Negotiated negotiated = Agreed(true, true), uint32_t max_cmd_sn = 131, bool long_commands = true)
      : Bed(max_cmd_sn, long_commands, std::move(negotiated)) {}

  void Write(uint32_t slot, uint32_t bytes, uint64_t offset = 0) {
    data[slot] = Pattern(bytes, next_seed++);
    buffers[slot] = std::make_unique<uint8_t[]>(bytes);
    memcpy(buffers[slot].get(), data[slot].data(), bytes);
    path.Write(slot, offset, bytes, buffers[slot].get());
  }

  std::vector<Seen> Pdus() {
    Bytes stream = Outgoing();
    auto pdus = TakePdus(&stream);
    CHECK(stream.empty());
    return pdus;
  }

  // Writes, lets all go out that goes without an R2T, and returns the command's tag.
  uint32_t Begin(uint32_t slot, uint32_t bytes) {
    Write(slot, bytes);
    const auto pdus = Pdus();
    return pdus.empty() ? 0 : pdus.front().tag;
  }

  Bytes R2t(uint32_t tag, uint32_t number, uint32_t offset, uint32_t bytes, uint32_t transfer_tag = 0x1234) const {
    Bytes pdu = Header(0x31, kFinal, tag, 0);
    pdu[9] = 1;
    PutBe32(pdu.data() + 20, transfer_tag);
    PutBe32(pdu.data() + 24, stat_sn + 1);
    PutBe32(pdu.data() + 36, number);
    PutBe32(pdu.data() + 40, offset);
    PutBe32(pdu.data() + 44, bytes);
    return pdu;
  }

  Bytes data[4];
  uint64_t next_seed = 1;
};

}  // namespace lunpath::iscsi
