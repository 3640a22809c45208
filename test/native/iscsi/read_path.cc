// The READs of iscsi/data_path.h against answers that are made here: honest ones in any chunks, and hostile ones.
// `read-path NAME` runs one case; the exit code is 1 where something is not as it must be. Built with sanitizers.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "bed.h"
#include "iscsi/outcome.h"
#include "sys/big_endian.h"

namespace lunpath::iscsi {
namespace {

// The answer to a READ, in segments of at most `most` bytes.
std::vector<Bytes> Answer(Bed& bed, const Command& command, const Bytes& data, uint32_t most, bool own_response) {
  std::vector<Bytes> pdus;
  uint32_t sn = 0;
  for (uint32_t at = 0; at < data.size(); at += most) {
    const auto some = std::min<uint32_t>(most, static_cast<uint32_t>(data.size()) - at);
    const bool last = at + some == data.size();
    const auto status = static_cast<uint8_t>(last && !own_response ? kFinal | kStatus : 0);
    pdus.push_back(bed.DataIn(command.tag, sn++, at, {data.begin() + at, data.begin() + at + some}, status));
  }
  if (own_response) pdus.push_back(bed.Response(command.tag, 0));
  return pdus;
}

void Data() {
  for (const bool own_response : {false, true}) {
    for (const uint32_t most : {511U, 512U, 4096U, 65536U, 262144U}) {
      for (const size_t chunk : {size_t{1}, size_t{47}, size_t{4096}, size_t{100'000}, SIZE_MAX}) {
        if (chunk == 1 && most > 4096) continue;
        Bed bed;
        const uint32_t sizes[] = {512, 8192, chunk == 1 ? 4096U : 1U << 20, 65536};
        Bytes stream;
        std::vector<Bytes> data;
        for (uint32_t slot = 0; slot < 4; ++slot) {
          data.push_back(Pattern(sizes[slot], slot));
          const Bytes answer = Joined(Answer(bed, bed.Read(slot, sizes[slot]), data[slot], most, own_response));
          stream.insert(stream.end(), answer.begin(), answer.end());
        }
        CHECK(bed.Feed(stream, chunk));
        CHECK(bed.path.done().size() == 4);
        for (const auto& [slot, outcome] : bed.path.done()) {
          CHECK(outcome == sizes[slot]);
          CHECK(memcmp(bed.buffers[slot].get(), data[slot].data(), sizes[slot]) == 0);
        }
      }
    }
  }
}

void Commands() {
  Bed bed;
  bed.Read(2, 4096, (uint64_t{1} << 41) + 512);
  Bytes expected(48);
  const uint8_t head[] = {0x01, 0xc1};
  memcpy(expected.data(), head, sizeof head);
  expected[9] = 1;
  PutBe32(expected.data() + 16, 100 << 16 | 2);
  PutBe32(expected.data() + 20, 4096);
  PutBe32(expected.data() + 24, 100);
  PutBe32(expected.data() + 28, 7);
  const uint8_t read16[16] = {0x88, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0};
  memcpy(expected.data() + 32, read16, sizeof read16);
  CHECK(bed.raw == expected);
  Bed narrow(131, false);
  narrow.Read(0, 65536, 512 * 0x01020304ULL);
  const uint8_t read10[16] = {0x28, 0, 1, 2, 3, 4, 0, 0, 128, 0};
  CHECK(memcmp(narrow.raw.data() + 32, read10, sizeof read10) == 0);
}

void Sense() {
  Bed bed;
  const Bytes fixed{0x70, 0, 0x03, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0x04, 0, 0, 0, 0};
  CHECK(bed.Feed(bed.Response(bed.Read(0, 4096).tag, 2, fixed)));
  CHECK(bed.Outcome() == SenseOutcome(3, 0x1104));
  CHECK(bed.Feed(bed.Response(bed.Read(0, 4096).tag, 2, {0x72, 0x05, 0x21, 0x00, 0, 0, 0, 0}), 1));
  CHECK(bed.Outcome() == SenseOutcome(5, 0x2100));
  // Data that came before the failure counts for nothing.
  const Command failed = bed.Read(0, 4096);
  CHECK(bed.Feed(bed.DataIn(failed.tag, 0, 0, Pattern(512, 1))));
  CHECK(bed.Feed(bed.Response(failed.tag, 2, fixed, kUnderflow, 3584)));
  CHECK(bed.Outcome() == SenseOutcome(3, 0x1104));
  for (const Bytes& cut : {Bytes{}, Bytes{0x70}, Bytes{0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11}, Bytes{0x72, 1, 2},
                           Bytes(20, 0x55)}) {
    CHECK(bed.Feed(bed.Response(bed.Read(0, 4096).tag, 2, cut)));
    CHECK(bed.Outcome() == StatusOutcome(2));
  }
  // A length that is longer than the data.
  Bytes lies = bed.Response(bed.Read(0, 4096).tag, 2, {0x72, 1, 2});
  lies[48] = 0xff;
  CHECK(bed.Feed(lies));
  CHECK(bed.Outcome() == StatusOutcome(2));
  CHECK(bed.Feed(bed.Response(bed.Read(0, 4096).tag, 0x08)));
  CHECK(bed.Outcome() == StatusOutcome(8));
  Bytes target_failure = bed.Response(bed.Read(0, 4096).tag, 0);
  target_failure[2] = 1;
  CHECK(bed.Feed(target_failure));
  CHECK(bed.Outcome() == -EREMOTEIO);
}

void Residual() {
  Bed bed;
  const uint8_t last = kFinal | kStatus;
  CHECK(bed.Feed(bed.DataIn(bed.Read(0, 4096).tag, 0, 0, Pattern(1024, 1), last | kUnderflow, 3072), 100));
  CHECK(bed.Outcome() == 1024);
  CHECK(memcmp(bed.buffers[0].get(), Pattern(1024, 1).data(), 1024) == 0);
  CHECK(bed.Feed(bed.DataIn(bed.Read(0, 4096).tag, 0, 0, Pattern(1001, 1), last | kUnderflow, 3095), 100));
  CHECK(bed.Outcome() == -EPROTO);
  CHECK(bed.Feed(bed.Response(bed.Read(0, 4096).tag, 0, {}, kUnderflow, 4096)));
  CHECK(bed.Outcome() == 0);
  CHECK(bed.Feed(bed.DataIn(bed.Read(0, 4096).tag, 0, 0, Pattern(4096, 1), last | kOverflow, 512)));
  CHECK(bed.Outcome() == -EPROTO);
  for (const uint32_t residual : {0U, 511U, 513U, 4097U, 0xffffffffU}) {
    Bed wrong;
    const uint32_t tag = wrong.Read(0, 4096).tag;
    CHECK(!wrong.Feed(wrong.DataIn(tag, 0, 0, Pattern(3584, 1), last | kUnderflow, residual)));
    CHECK(wrong.path.done().empty() && wrong.path.fault().code == "PROTOCOL");
  }
  Bed silent;
  CHECK(!silent.Feed(silent.Response(silent.Read(0, 4096).tag, 0)));
  CHECK(silent.path.done().empty());
}

void Window() {
  // One command fits; the numbers go round on the way.
  Bed bed(100);
  const Command first = bed.Read(0, 512);
  CHECK(first.cmd_sn == 100);
  CHECK(bed.Read(1, 512).bytes == 0);
  CHECK(bed.Read(2, 512).bytes == 0);
  // What was not sent cannot be answered.
  Bed early(99);
  early.Read(0, 512);
  for (const uint32_t tag : {0U, 100U << 16, 0xffffffffU}) {
    Bed held(99);
    held.Read(0, 512);
    CHECK(!held.Feed(held.DataIn(tag, 0, 0, Pattern(512, 1), kFinal | kStatus)));
  }
  // A window that is older, or that ends before it begins.
  for (const uint32_t max : {99U, 90U}) {
    bed.max = max;
    CHECK(bed.Feed(bed.Header(0x20, kFinal, 0xffffffff, 0)));
    CHECK(bed.Sent().empty());
  }
  bed.max = 101;
  CHECK(bed.Feed(bed.DataIn(first.tag, 0, 0, Pattern(512, 1), kFinal | kStatus)));
  CHECK(bed.Outcome() == 512);
  const auto second = bed.Sent();
  CHECK(second.size() == 1 && second[0].cmd_sn == 101 && (second[0].tag & 0xffff) == 1 && second[0].exp_stat_sn == 8);
  bed.max = 200;
  CHECK(bed.Feed(bed.Header(0x20, kFinal, 0xffffffff, 0)));
  const auto third = bed.Sent();
  CHECK(third.size() == 1 && third[0].cmd_sn == 102 && (third[0].tag & 0xffff) == 2);
}

void Ping() {
  Bed bed;
  bed.Read(0, 512);
  Bytes ping = bed.Header(0x20, kFinal, 0xffffffff, 0);
  ping[9] = 3;
  PutBe32(ping.data() + 20, 0x12345678);
  CHECK(bed.Feed(ping));
  const auto answers = bed.Sent();
  CHECK(answers.size() == 1);
  const Command& answer = answers.at(0);
  CHECK(answer.opcode == 0x40 && answer.flags == kFinal && answer.tag == 0xffffffff && answer.bytes == 0x12345678);
  CHECK(answer.cmd_sn == 101 && answer.exp_stat_sn == 7);
  CHECK(bed.raw[9] == 3);
  CHECK(bed.Read(1, 512).cmd_sn == 101);
  // An answer to a ping that was not sent.
  CHECK(!bed.Feed(bed.Header(0x20, kFinal, 1, 0)));
  Bed flooded;
  bool alive = true;
  int pings = 0;
  for (; alive && pings < 10'000; ++pings) alive = flooded.Feed(ping);
  CHECK(!alive && pings < 100);
}

void Events() {
  Bed bed;
  const Command command = bed.Read(0, 512);
  Bytes message = bed.Header(0x32, kFinal, 0xffffffff, 20);
  PutBe32(message.data() + 24, 7);
  message.resize(48 + 20);
  CHECK(bed.Feed(message));
  bed.stat_sn = 7;
  CHECK(bed.Feed(bed.DataIn(command.tag, 0, 0, Pattern(512, 1), kFinal | kStatus)));
  CHECK(bed.Outcome() == 512);
  CHECK(bed.Read(1, 512).exp_stat_sn == 9);
  for (const int event : {1, 2, 3, 4, 255}) {
    Bed ended;
    message[36] = static_cast<uint8_t>(event);
    CHECK(!ended.Feed(message));
    CHECK(ended.path.fault().code == "SESSION_LOST");
  }
}

void Refused() {
  const auto refused = [](auto change, const char* words) {
    Bed bed;
    const Command command = bed.Read(0, 4096);
    Bytes pdu = bed.DataIn(command.tag, 0, 0, Pattern(4096, 1), kFinal | kStatus);
    change(pdu, bed, command);
    const bool alive = bed.Feed(pdu);
    CHECK(!alive && bed.path.done().empty());
    CHECK(bed.path.fault().code == "PROTOCOL");
    if (bed.path.fault().message.find(words) == std::string::npos) {
      ++failures;
      fprintf(stderr, "no '%s' in '%s'\n", words, bed.path.fault().message.c_str());
    }
  };
  const auto set = [](size_t at, uint32_t value) {
    return [=](Bytes& pdu, Bed&, const Command&) { PutBe32(pdu.data() + at, value); };
  };
  refused(set(16, 100 << 16 | 1), "not in flight");
  refused(set(16, 99 << 16), "not in flight");
  refused(set(16, 100 << 16 | 4), "not in flight");
  refused(set(16, 0xffffffff), "not in flight");
  refused(set(36, 1), "out of order");
  refused(set(40, 512), "another place");
  refused(set(40, 0xfffff000), "another place");
  refused(set(4, 4097), "another place");
  refused(set(4, 262'145), "longer data segment");
  refused(set(4, 0x01000000 | 4096), "additional headers");
  refused(set(4, 3584), "another number of bytes");
  const auto flags = [](uint8_t value) { return [=](Bytes& pdu, Bed&, const Command&) { pdu[1] = value; }; };
  refused(flags(kFinal | 0x40), "acknowledgement");
  refused(flags(kStatus), "before the last");
  const auto opcode = [](uint8_t value) {
    return [=](Bytes& pdu, Bed&, const Command&) {
      pdu.resize(48);
      pdu[0] = value;
      PutBe32(pdu.data() + 4, 0);
    };
  };
  refused(opcode(0x3f), "rejected");
  refused(opcode(0x26), "logout");
  refused(opcode(0x31), "asked for data of a WRITE");
  refused(opcode(0x23), "answers nothing");
  refused(opcode(0x21), "another number of bytes");
  refused(
      [](Bytes& pdu, Bed&, const Command&) {
        pdu[0] = 0x21;
        PutBe32(pdu.data() + 4, 8193);
      },
      "longer data segment");
  // An answer that was given, once more: to nothing, and to the slot's next command.
  refused(
      [](Bytes& pdu, Bed& bed, const Command&) {
        CHECK(bed.Feed(pdu));
        CHECK(bed.Outcome() == 4096);
      },
      "not in flight");
  refused(
      [](Bytes& pdu, Bed& bed, const Command&) {
        CHECK(bed.Feed(pdu));
        CHECK(bed.Outcome() == 4096);
        bed.Read(0, 4096);
      },
      "not in flight");
}

void Logout() {
  Bed bed;
  bed.path.LogOut();
  const auto sent = bed.Sent();
  CHECK(sent.size() == 1 && sent[0].opcode == 0x46 && sent[0].flags == kFinal && sent[0].bytes == 0);
  CHECK(sent[0].cmd_sn == 100 && sent[0].exp_stat_sn == 7);
  CHECK(!bed.path.logged_out());
  CHECK(bed.Feed(bed.Header(0x26, kFinal, sent[0].tag, 0)));
  CHECK(bed.path.logged_out());
}

// Honest streams with something done to them: bytes of headers, whole PDUs, their order, an end too soon, noise. No
// read is accepted with other data than the target sent for it.
void Hostile() {
  constexpr int kRounds = 100'000;
  Random random(1);
  int honest = 0;
  int ended = 0;
  int accepted = 0;
  for (int round = 0; round < kRounds; ++round) {
    Bed bed;
    std::vector<Bytes> data;
    std::vector<Bytes> pdus;
    for (uint32_t slot = 0; slot < 4; ++slot) {
      data.push_back(Pattern(kBlock * (1 + random.Below(6)), random.Below(1'000'000)));
      const Command command = bed.Read(slot, static_cast<uint32_t>(data[slot].size()));
      for (Bytes& pdu : Answer(bed, command, data[slot], 1 + random.Below(2000), random.Below(2) == 0)) {
        pdus.push_back(std::move(pdu));
      }
    }
    const uint32_t way = random.Below(9);
    const auto any = [&] { return random.Below(static_cast<uint32_t>(pdus.size())); };
    if (way >= 1 && way <= 3) {
      for (uint32_t i = 0; i <= random.Below(3); ++i) {
        pdus[any()][random.Below(48)] = static_cast<uint8_t>(random.Below(256));
      }
    }
    if (way == 4) pdus.erase(pdus.begin() + any());
    if (way == 5) pdus.insert(pdus.begin() + any(), Bytes(pdus[any()]));
    if (way == 6) std::swap(pdus[any()], pdus[any()]);
    if (way == 7) pdus.resize(any());
    Bytes stream = Joined(pdus);
    if (way == 7) {
      const Bytes noise = Pattern(random.Below(4096), random.Below(1'000'000));
      stream.insert(stream.end(), noise.begin(), noise.end());
    }
    // Noise in a segment of data is data: TCP's checksum, and no digest, stands against that.
    if (way == 8) stream.resize(random.Below(static_cast<uint32_t>(stream.size())));
    const bool alive = bed.Feed(stream, 1 + random.Below(6000));
    if (way == 0) {
      CHECK(alive && bed.path.done().size() == 4);
      ++honest;
    }
    if (!alive) {
      CHECK(!bed.path.fault().code.empty());
      ++ended;
    }
    std::set<uint32_t> seen;
    for (const auto& [slot, outcome] : bed.path.done()) {
      CHECK(slot < 4 && seen.insert(slot).second);
      if (outcome < 0) continue;
      ++accepted;
      CHECK(static_cast<size_t>(outcome) <= data[slot].size());
      CHECK(memcmp(bed.buffers[slot].get(), data[slot].data(), static_cast<size_t>(outcome)) == 0);
      if (way == 0) CHECK(static_cast<size_t>(outcome) == data[slot].size());
    }
    if (failures > 0) {
      fprintf(stderr, "in round %d, way %u\n", round, way);
      return;
    }
  }
  printf("%d rounds, %d honest, %d ended, %d reads accepted\n", kRounds, honest, ended, accepted);
  CHECK(honest > kRounds / 12 && ended > kRounds / 4 && accepted > kRounds);
}

}  // namespace
}  // namespace lunpath::iscsi

int main(int argc, char** argv) {
  using Case = std::pair<const char*, void (*)()>;
  constexpr Case cases[] = {
      {"commands", lunpath::iscsi::Commands}, {"data", lunpath::iscsi::Data},       {"sense", lunpath::iscsi::Sense},
      {"residual", lunpath::iscsi::Residual}, {"window", lunpath::iscsi::Window},   {"ping", lunpath::iscsi::Ping},
      {"events", lunpath::iscsi::Events},     {"refused", lunpath::iscsi::Refused}, {"logout", lunpath::iscsi::Logout},
      {"hostile", lunpath::iscsi::Hostile},
  };
  for (const auto& [name, run] : cases) {
    if (argc != 2 || strcmp(name, argv[1]) != 0) continue;
    run();
    return lunpath::iscsi::failures > 0 ? 1 : 0;
  }
  fprintf(stderr, "read-path: no such case\n");
  return 2;
}
