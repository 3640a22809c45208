// The WRITEs of iscsi/data_path.h against targets that are made here: honest ones, and hostile ones. `write-path NAME`
// runs one case; the exit code is 1 where something is not as it must be. Built with sanitizers.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bed.h"
#include "iscsi/outcome.h"
#include "sys/big_endian.h"

namespace lunpath::iscsi {
namespace {

constexpr uint8_t kWriteFlags = 0x21;  // write, simple
const Bytes kSense{0x70, 0, 0x03, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x0c, 0x00, 0, 0, 0, 0};

void Commands() {
  WriteBed bed;
  bed.Write(2, 4096, (uint64_t{1} << 41) + 512);
  auto pdus = bed.Pdus();
  CHECK(pdus.size() == 1);
  Bytes expected(48);
  const uint8_t head[] = {0x01, kFinal | kWriteFlags, 0, 0, 0, 0, 0x10, 0};
  memcpy(expected.data(), head, sizeof head);
  expected[9] = 1;
  PutBe32(expected.data() + 16, 100 << 16 | 2);
  PutBe32(expected.data() + 20, 4096);
  PutBe32(expected.data() + 24, 100);
  PutBe32(expected.data() + 28, 7);
  const uint8_t write16[16] = {0x8a, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0};
  memcpy(expected.data() + 32, write16, sizeof write16);
  CHECK(pdus[0].header == expected);
  CHECK(pdus[0].data == bed.data[2]);
  CHECK(bed.Feed(bed.Response(pdus[0].tag, 0)));
  CHECK(bed.Outcome() == 4096);
  WriteBed narrow(Agreed(true, true), 131, false);
  narrow.Write(0, 65536, 512 * 0x01020304ULL);
  pdus = narrow.Pdus();
  const uint8_t write10[16] = {0x2a, 0, 1, 2, 3, 4, 0, 0, 128, 0};
  CHECK(memcmp(pdus[0].header.data() + 32, write10, sizeof write10) == 0);
}

// A command without data in either direction, which ends with whatever status it gets.
void Flushes() {
  WriteBed bed;
  const auto begin = [&bed](uint32_t slot) {
    bed.path.Flush(slot);
    return bed.Pdus();
  };
  const auto pdus = begin(2);
  CHECK(pdus.size() == 1);
  Bytes expected(48);
  expected[0] = 0x01;
  expected[1] = kFinal | 0x01;  // simple
  expected[9] = 1;
  PutBe32(expected.data() + 16, 100 << 16 | 2);
  PutBe32(expected.data() + 24, 100);
  PutBe32(expected.data() + 28, 7);
  expected[32] = 0x35;
  CHECK(pdus[0].header == expected && pdus[0].data.empty());
  CHECK(bed.path.done().empty());
  CHECK(bed.Feed(bed.Response(pdus[0].tag, 0)));
  CHECK(bed.Outcome() == 0);
  CHECK(bed.Feed(bed.Response(begin(2)[0].tag, 0, {}, kOverflow, 512)));
  CHECK(bed.Outcome() == 0);
  CHECK(bed.Feed(bed.Response(begin(2)[0].tag, 2, kSense)));
  CHECK(bed.Outcome() == SenseOutcome(3, 0x0c00));
  // The slot's next command is a WRITE again.
  CHECK(bed.Feed(bed.Response(bed.Begin(2, 4096), 0)));
  CHECK(bed.Outcome() == 4096);
  // It waits for the window as others do.
  WriteBed narrow(Agreed(true, true), 99);
  narrow.path.Flush(0);
  CHECK(!narrow.path.has_to_send());
  // Neither data nor a request for some belongs to it, nor a second answer.
  WriteBed asked;
  asked.path.Flush(0);
  CHECK(!asked.Feed(asked.R2t(asked.Pdus()[0].tag, 0, 0, 512)));
  WriteBed given;
  given.path.Flush(0);
  CHECK(!given.Feed(given.DataIn(given.Pdus()[0].tag, 0, 0, Pattern(512, 1), kFinal | kStatus)));
  WriteBed twice;
  twice.path.Flush(0);
  const uint32_t tag = twice.Pdus()[0].tag;
  CHECK(twice.Feed(twice.Response(tag, 0)));
  CHECK(!twice.Feed(twice.Response(tag, 0)));
}

struct Expected {
  bool is_command, is_final;
  uint32_t offset, bytes;
};

void CheckPdus(const std::vector<Seen>& pdus, const std::vector<Expected>& expected, const Bytes& data,
               uint32_t transfer_tag) {
  CHECK(pdus.size() == expected.size());
  for (size_t i = 0; i < std::min(pdus.size(), expected.size()); ++i) {
    const Seen& pdu = pdus[i];
    const Expected& should = expected[i];
    CHECK(pdu.opcode == (should.is_command ? 0x01 : 0x05));
    CHECK(pdu.is_final() == should.is_final);
    CHECK(pdu.data.size() == should.bytes);
    CHECK(pdu.data == Bytes(data.begin() + should.offset, data.begin() + should.offset + should.bytes));
    if (should.is_command) continue;
    const auto number = static_cast<uint32_t>(i) - (expected[0].is_command ? 1 : 0);
    CHECK(pdu.tag == pdus[0].tag && pdu.transfer_tag == transfer_tag);
    CHECK(pdu.offset == should.offset && pdu.number == number);
    CHECK((pdu.flags & ~kFinal) == 0 && Be32(pdu.header.data() + 24) == 0 && Be32(pdu.header.data() + 28) == 7);
  }
}

// All four combinations, at and around the lengths: a FirstBurstLength of 2,048 and segments of 1,024.
void Unsolicited() {
  struct Case {
    bool immediate_data, initial_r2t;
    uint32_t bytes;
    std::vector<Expected> expected;
  };
  const std::vector<Case> cases{
      {true, true, 512, {{true, true, 0, 512}}},
      {true, true, 1024, {{true, true, 0, 1024}}},
      {true, true, 1536, {{true, true, 0, 1024}}},
      {true, true, 4096, {{true, true, 0, 1024}}},
      {false, true, 512, {{true, true, 0, 0}}},
      {false, true, 4096, {{true, true, 0, 0}}},
      {true, false, 1024, {{true, true, 0, 1024}}},
      {true, false, 1536, {{true, false, 0, 1024}, {false, true, 1024, 512}}},
      {true, false, 2048, {{true, false, 0, 1024}, {false, true, 1024, 1024}}},
      {true, false, 2560, {{true, false, 0, 1024}, {false, true, 1024, 1024}}},
      {false, false, 512, {{true, false, 0, 0}, {false, true, 0, 512}}},
      {false, false, 1536, {{true, false, 0, 0}, {false, false, 0, 1024}, {false, true, 1024, 512}}},
      {false, false, 2048, {{true, false, 0, 0}, {false, false, 0, 1024}, {false, true, 1024, 1024}}},
      {false, false, 2560, {{true, false, 0, 0}, {false, false, 0, 1024}, {false, true, 1024, 1024}}},
  };
  for (const Case& one : cases) {
    WriteBed bed(Agreed(one.immediate_data, one.initial_r2t, 2048, 4096, 1024));
    bed.Write(0, one.bytes);
    CheckPdus(bed.Pdus(), one.expected, bed.data[0], kNoTag);
  }
  // A FirstBurstLength that fits into one segment leaves nothing for Data-Out PDUs.
  WriteBed bed(Agreed(true, false, 1024, 4096, 8192));
  bed.Write(0, 4096);
  CheckPdus(bed.Pdus(), {{true, true, 0, 1024}}, bed.data[0], kNoTag);
}

void Solicited() {
  WriteBed bed(Agreed(false, true, 2048, 4096, 1024));
  const uint32_t tag = bed.Begin(0, 8192);
  CHECK(bed.Feed(bed.R2t(tag, 0, 0, 2560, 0xabcd), 7));
  auto pdus = bed.Pdus();
  CheckPdus(pdus, {{false, false, 0, 1024}, {false, false, 1024, 1024}, {false, true, 2048, 512}}, bed.data[0], 0xabcd);
  CHECK(pdus[0].header[9] == 1);
  // Lengths that leave padding, and segments that do.
  CHECK(bed.Feed(bed.R2t(tag, 1, 2560, 1537, 0)));
  CheckPdus(bed.Pdus(), {{false, false, 2560, 1024}, {false, true, 3584, 513}}, bed.data[0], 0);
  CHECK(bed.Feed(bed.R2t(tag, 2, 4097, 4095)));
  CHECK(bed.Pdus().size() == 4);
  CHECK(bed.path.done().empty());
  CHECK(bed.Feed(bed.Response(tag, 0)));
  CHECK(bed.Outcome() == 8192);

  WriteBed odd(Agreed(true, false, 1001, 4096, 700));
  odd.Write(0, 8192);
  CheckPdus(odd.Pdus(), {{true, false, 0, 700}, {false, true, 700, 301}}, odd.data[0], kNoTag);
  // What the target asks for before it has what comes without being asked for.
  WriteBed ahead(Agreed(true, false, 2048, 4096, 1024));
  ahead.Write(0, 4096);
  Bytes stream = ahead.Outgoing(48);
  CHECK(ahead.Feed(ahead.R2t(Be32(stream.data() + 16), 0, 2048, 2048)));
  const Bytes rest = ahead.Outgoing();
  stream.insert(stream.end(), rest.begin(), rest.end());
  CHECK(TakePdus(&stream).size() == 4);
}

// The stream is the same in whatever chunks the socket takes it.
void Partial() {
  for (const size_t chunk : {size_t{1}, size_t{47}, size_t{48}, size_t{1000}, size_t{100'000}, SIZE_MAX}) {
    WriteBed bed(Agreed(true, false, 3001, 1U << 20, 1001));
    WriteBed whole(Agreed(true, false, 3001, 1U << 20, 1001));
    Bytes stream;
    const auto drain = [&](size_t until) {
      while (bed.path.has_to_send() && stream.size() < until) {
        const Bytes some = bed.Outgoing(chunk);
        stream.insert(stream.end(), some.begin(), some.end());
      }
    };
    Bytes expected;
    const auto note = [&] {
      const Bytes sent = whole.Outgoing();
      expected.insert(expected.end(), sent.begin(), sent.end());
    };
    for (uint32_t slot = 0; slot < 4; ++slot) {
      const uint32_t bytes = slot == 3 ? 512 * 1024 : 4096;
      bed.Write(slot, bytes);
      whole.Write(slot, bytes);
      note();
      drain(stream.size() + chunk / 2);
    }
    drain(SIZE_MAX);
    for (Bed* one : {static_cast<Bed*>(&bed), static_cast<Bed*>(&whole)}) {
      CHECK(one->Feed(bed.R2t(103 << 16 | 3, 0, 3001, 512 * 1024 - 3001)));
    }
    note();
    drain(SIZE_MAX);
    CHECK(stream == expected);
  }
}

void Status() {
  for (const int status : {0x08, 0x18, 0x28}) {
    WriteBed bed;
    CHECK(bed.Feed(bed.Response(bed.Begin(0, 4096), static_cast<uint8_t>(status))));
    CHECK(bed.Outcome() == StatusOutcome(status));
    // And the slot's next command is none the worse for it.
    CHECK(bed.Feed(bed.Response(bed.Begin(0, 4096), 0)));
    CHECK(bed.Outcome() == 4096);
  }
  WriteBed bed;
  CHECK(bed.Feed(bed.Response(bed.Begin(0, 65536), 2, kSense)));
  CHECK(bed.Outcome() == SenseOutcome(3, 0x0c00));
  Bytes target_failure = bed.Response(bed.Begin(0, 4096), 0);
  target_failure[2] = 1;
  CHECK(bed.Feed(target_failure));
  CHECK(bed.Outcome() == -EREMOTEIO);
}

// An answer that comes before the data has gone out: the buffer stays the slot's until it has.
void Early() {
  WriteBed bed(Agreed(true, false, 65'536, 262'144, 8'192));
  bed.Write(0, 65536);
  Bytes stream = bed.Outgoing(10'000);
  const uint32_t tag = Be32(stream.data() + 16);
  CHECK(bed.Feed(bed.Response(tag, 2, kSense)));
  CHECK(bed.path.done().empty());
  const Bytes rest = bed.Outgoing();
  stream.insert(stream.end(), rest.begin(), rest.end());
  CHECK(bed.Outcome() == SenseOutcome(3, 0x0c00));
  const auto pdus = TakePdus(&stream);
  CHECK(stream.empty() && pdus.size() == 8 && pdus.back().is_final());
  // It was answered: neither a second answer nor an R2T is one to it.
  for (const bool is_r2t : {false, true}) {
    WriteBed twice(Agreed(true, false));
    twice.Write(0, 131'072);
    const uint32_t other = Be32(twice.Outgoing(10'000).data() + 16);
    CHECK(twice.Feed(twice.Response(other, 2, kSense)));
    CHECK(!twice.Feed(is_r2t ? twice.R2t(other, 0, 65'536, 4096) : twice.Response(other, 2, kSense)));
  }
  // A success cannot come that early.
  WriteBed lies(Agreed(true, false));
  lies.Write(0, 65536);
  CHECK(!lies.Feed(lies.Response(Be32(lies.Outgoing(10'000).data() + 16), 0)));
  CHECK(lies.path.done().empty() && lies.path.fault().code == "PROTOCOL");
}

void Residual() {
  WriteBed bed;
  CHECK(bed.Feed(bed.Response(bed.Begin(0, 4096), 0, {}, kUnderflow, 1024)));
  CHECK(bed.Outcome() == 3072);
  CHECK(bed.Feed(bed.Response(bed.Begin(0, 4096), 0, {}, kUnderflow, 4096)));
  CHECK(bed.Outcome() == 0);
  CHECK(bed.Feed(bed.Response(bed.Begin(0, 4096), 0, {}, kUnderflow, 100)));
  CHECK(bed.Outcome() == -EPROTO);
  CHECK(bed.Feed(bed.Response(bed.Begin(0, 4096), 0, {}, kOverflow, 512)));
  CHECK(bed.Outcome() == -EPROTO);
  // 8,192 bytes are sent; what was not can have been taken by nobody.
  CHECK(bed.Feed(bed.Response(bed.Begin(0, 16384), 0, {}, kUnderflow, 8192)));
  CHECK(bed.Outcome() == 8192);
  for (const uint32_t residual : {0U, 8191U, 16'385U, 0xffffffffU}) {
    WriteBed wrong;
    CHECK(!wrong.Feed(wrong.Response(wrong.Begin(0, 16384), 0, {}, kUnderflow, residual)));
    CHECK(wrong.path.done().empty() && wrong.path.fault().code == "PROTOCOL");
  }
}

// Data goes with its command, and both wait for the window.
void Window() {
  WriteBed bed(Agreed(true, false, 2048, 4096, 1024), 100);
  const uint32_t first = bed.Begin(0, 2048);
  bed.Write(1, 2048);
  bed.Write(2, 512);
  CHECK(!bed.path.has_to_send());
  bed.max = 102;
  CHECK(bed.Feed(bed.Response(first, 0)));
  CHECK(bed.Outcome() == 2048);
  const auto pdus = bed.Pdus();
  CHECK(pdus.size() == 3);
  CHECK((pdus[0].tag & 0xffff) == 1 && pdus[0].opcode == 0x01 && pdus[1].opcode == 0x05);
  CHECK(pdus[1].tag == pdus[0].tag && (pdus[2].tag & 0xffff) == 2);
  CHECK(Be32(pdus[0].header.data() + 24) == 101 && Be32(pdus[2].header.data() + 24) == 102);
  CHECK(Be32(pdus[1].header.data() + 28) == 8);
}

// READs and WRITEs of one session, their answers in any order.
void Mixed() {
  WriteBed bed(Agreed(false, true));
  const Command read = bed.Read(0, 4096);
  const uint32_t write = bed.Begin(1, 4096);
  const Command later = bed.Read(2, 1024);
  const Bytes sent = Pattern(4096, 77);
  CHECK(bed.Feed(Joined({bed.R2t(write, 0, 0, 4096), bed.DataIn(read.tag, 0, 0, {sent.begin(), sent.begin() + 1000})}),
                 100));
  const auto pdus = bed.Pdus();
  CHECK(pdus.size() == 1 && pdus[0].data == bed.data[1]);
  CHECK(bed.Feed(Joined({bed.Response(write, 0), bed.DataIn(later.tag, 0, 0, Pattern(1024, 5), kFinal | kStatus),
                         bed.DataIn(read.tag, 1, 1000, {sent.begin() + 1000, sent.end()}, kFinal | kStatus)}),
                 100));
  CHECK(bed.path.done().size() == 3);
  CHECK(memcmp(bed.buffers[0].get(), sent.data(), 4096) == 0);
  CHECK(memcmp(bed.buffers[1].get(), bed.data[1].data(), 4096) == 0);
  for (const auto& [slot, outcome] : bed.path.done()) CHECK(outcome == (slot == 2 ? 1024 : 4096));
}

void Refused() {
  using Change = std::function<void(Bytes&, WriteBed&, uint32_t tag)>;
  const auto refused = [](const Change& change, const char* words) {
    WriteBed bed(Agreed(true, true, 65'536, 4'096, 1'024));
    const uint32_t tag = bed.Begin(0, 16'384);
    Bytes pdu = bed.R2t(tag, 0, 1024, 4096);
    change(pdu, bed, tag);
    CHECK(!bed.Feed(pdu));
    CHECK(!bed.path.has_to_send());
    CHECK(bed.path.done().empty());
    if (bed.path.fault().message.find(words) == std::string::npos) {
      ++failures;
      fprintf(stderr, "no '%s' in '%s'\n", words, bed.path.fault().message.c_str());
    }
  };
  const auto set = [](size_t at, uint32_t value) {
    return [=](Bytes& pdu, WriteBed&, uint32_t) { PutBe32(pdu.data() + at, value); };
  };
  refused(set(16, 100 << 16 | 1), "not in flight");
  refused(set(16, 99 << 16), "not in flight");
  refused(set(16, kNoTag), "not in flight");
  refused(set(20, kNoTag), "without a tag");
  refused(set(36, 1), "out of order");
  refused(set(40, 0), "another place");
  refused(set(40, 1020), "another place");
  refused(set(40, 2048), "another place");
  refused(set(40, 0xfffff400), "another place");
  refused(set(44, 0), "another place");
  refused(set(44, 4097), "more data at once");
  refused(set(44, 0xffffffff), "more data at once");
  refused([](Bytes& pdu, WriteBed& bed, uint32_t tag) { pdu = bed.DataIn(tag, 0, 0, Pattern(512, 1)); }, "sent data");
  refused([](Bytes& pdu, WriteBed& bed, uint32_t) { pdu = bed.R2t(bed.Read(1, 4096).tag, 0, 0, 4096); },
          "not in flight");
  // What is left of the command is less than the R2T asks for.
  refused(
      [](Bytes& pdu, WriteBed& bed, uint32_t tag) {
        for (uint32_t i = 0; i < 3; ++i) {
          CHECK(bed.Feed(bed.R2t(tag, i, 1024 + i * 4096, 4096)));
          CHECK(bed.Pdus().size() == 4);
        }
        pdu = bed.R2t(tag, 3, 13'312, 4096);
      },
      "another place");
  // An answered command, the same R2T twice, and one of a command of which all was asked for.
  refused(
      [](Bytes& pdu, WriteBed& bed, uint32_t) {
        const uint32_t other = bed.Begin(1, 4096);
        CHECK(bed.Feed(bed.Response(other, 8)));
        CHECK(bed.Outcome() == StatusOutcome(8));
        pdu = bed.R2t(other, 0, 1024, 3072);
      },
      "not in flight");
  refused(
      [](Bytes& pdu, WriteBed& bed, uint32_t) {
        CHECK(bed.Feed(pdu));
        CHECK(bed.Pdus().size() == 4);
      },
      "out of order");
  refused([](Bytes& pdu, WriteBed& bed, uint32_t) { pdu = bed.R2t(bed.Begin(1, 1024), 0, 1024, 512); },
          "another place");
  // More than one at a time.
  WriteBed bed(Agreed(true, true, 65'536, 4'096, 1'024));
  const uint32_t tag = bed.Begin(0, 16'384);
  CHECK(bed.Feed(bed.R2t(tag, 0, 1024, 4096)));
  CHECK(!bed.Feed(bed.R2t(tag, 1, 5120, 4096)));
  // None before the command has gone out.
  WriteBed held(Agreed(true, true), 99);
  held.Write(0, 16'384);
  for (const uint32_t any : {0U, 100U << 16, kNoTag}) CHECK(!held.Feed(held.R2t(any, 0, 0, 4096)));
  CHECK(!held.path.has_to_send());
}

void Login() {
  const auto parse = [](std::string text) {
    std::replace(text.begin(), text.end(), '|', '\0');
    return ParseNegotiated(text);
  };
  const Negotiated none = parse("");
  CHECK(none.initial_r2t && none.immediate_data && none.unusable.empty());
  CHECK(none.first_burst_bytes == 65'536 && none.max_burst_bytes == 262'144 && none.max_segment_bytes == 8'192);
  const Negotiated all = parse(
      "TargetPortalGroupTag=1|AuthMethod=None|HeaderDigest=None|DataDigest=None|InitialR2T=No|ImmediateData=No|"
      "MaxBurstLength=1048576|FirstBurstLength=0x8000|MaxOutstandingR2T=1|ErrorRecoveryLevel=0|DataPDUInOrder=Yes|"
      "DataSequenceInOrder=Yes|IFMarker=NotUnderstood|MaxRecvDataSegmentLength=16777215|TargetAlias=a=b|");
  CHECK(!all.initial_r2t && !all.immediate_data && all.unusable.empty());
  CHECK(all.first_burst_bytes == 32'768 && all.max_burst_bytes == 1'048'576 && all.max_segment_bytes == 16'777'215);
  // The last declaration counts, a burst is no longer than all bursts, and what does not matter says nothing.
  CHECK(parse("MaxRecvDataSegmentLength=512|MaxRecvDataSegmentLength=4096|").max_segment_bytes == 4096);
  CHECK(parse("FirstBurstLength=65536|MaxBurstLength=4096").first_burst_bytes == 4096);
  CHECK(parse("FirstBurstLength=Irrelevant|").unusable.empty());
  for (const char* answer :
       {"MaxOutstandingR2T=4", "DataPDUInOrder=No", "DataSequenceInOrder=No", "ErrorRecoveryLevel=2",
        "HeaderDigest=CRC32C", "DataDigest=CRC32C", "InitialR2T=Reject", "ImmediateData=", "FirstBurstLength=511",
        "MaxBurstLength=16777216", "MaxRecvDataSegmentLength=0", "MaxRecvDataSegmentLength=99999999999",
        "MaxBurstLength=4096k", "MaxBurstLength=-4096", "FirstBurstLength=0x"}) {
    CHECK(parse(std::string("InitialR2T=No|") + answer + "|ErrorRecoveryLevel=1|").unusable == answer);
  }
}

// The target's side of WRITEs. `is_strict`: it was never made to say what it does not mean, so that all must be as it
// asked for.
class Target {
 public:
  Target(WriteBed& bed, Negotiated agreed, bool is_strict, Random& random)
      : bed_(bed), agreed_(std::move(agreed)), is_strict_(is_strict), random_(random) {}

  void Expect(uint32_t tag, const Bytes& data) { tasks_[tag].data = data; }

  // Its answers to one PDU.
  std::vector<Bytes> Take(const Seen& pdu) {
    CHECK(tasks_.contains(pdu.tag));
    Task& task = tasks_[pdu.tag];
    const Bytes& data = task.data;
    const bool is_command = pdu.opcode == 0x01;
    if (is_command) {
      CHECK(pdu.transfer_tag == data.size());
      task.until = std::min(static_cast<uint32_t>(data.size()), agreed_.first_burst_bytes);
      CHECK(agreed_.immediate_data || pdu.data.empty());
      CHECK(!agreed_.initial_r2t || pdu.is_final());
    } else {
      CHECK(pdu.opcode == 0x05 && !pdu.data.empty());
      CHECK(!is_strict_ || pdu.transfer_tag == task.transfer_tag);
    }
    const uint32_t offset = is_command ? 0 : pdu.offset;
    const auto bytes = static_cast<uint32_t>(pdu.data.size());
    CHECK(bytes <= agreed_.max_segment_bytes);
    // Whatever was asked for: only a command's own data, each byte once.
    CHECK(offset == task.got && bytes <= data.size() - offset);
    if (offset > data.size() || bytes > data.size() - offset) return {};
    CHECK(bytes == 0 || memcmp(pdu.data.data(), data.data() + offset, bytes) == 0);
    task.got += bytes;
    if (is_strict_) CHECK(task.got <= task.until);
    if (!pdu.is_final()) return {};
    if (is_strict_ && !is_command) CHECK(task.got == task.until);
    const uint32_t left = static_cast<uint32_t>(data.size()) - task.got;
    if (left == 0) return {bed_.Response(pdu.tag, 0)};
    const uint32_t next = std::min({left, agreed_.max_burst_bytes, 1 + random_.Below(4000)});
    task.until = task.got + next;
    task.transfer_tag = random_.Below(1'000'000);
    return {bed_.R2t(pdu.tag, task.r2ts++, task.got, next, task.transfer_tag)};
  }

  uint32_t got(uint32_t tag) const {
    const auto found = tasks_.find(tag);
    return found == tasks_.end() ? 0 : found->second.got;
  }

  // An R2T that nobody should send.
  Bytes AnyR2t() {
    const uint32_t extremes[] = {0, 1, 511, 512, 4096, 0x7fffffff, 0xfffffe00, 0xffffffff};
    const auto any = [&] { return random_.Below(2) ? extremes[random_.Below(8)] : random_.Below(8192); };
    const uint32_t slot = random_.Below(5);
    const uint32_t tag = random_.Below(8) ? (100 + random_.Below(8)) << 16 | slot : any();
    const uint32_t number = tasks_.contains(tag) && random_.Below(2) ? tasks_[tag].r2ts : random_.Below(3);
    const uint32_t offset = random_.Below(2) ? got(tag) : any();
    return bed_.R2t(tag, number, offset, any(), any());
  }

  Bytes AnyResponse() {
    const uint32_t tag = (100 + random_.Below(8)) << 16 | random_.Below(4);
    const bool good = random_.Below(2);
    return bed_.Response(tag, good ? 0 : 2, good ? Bytes{} : kSense, random_.Below(3) ? 0 : kUnderflow,
                         random_.Below(8192));
  }

 private:
  struct Task {
    Bytes data{};
    uint32_t got = 0;
    uint32_t until = 0;  // what it may send without being asked again
    uint32_t transfer_tag = kNoTag;
    uint32_t r2ts = 0;
  };

  WriteBed& bed_;
  const Negotiated agreed_;
  const bool is_strict_;
  Random& random_;
  std::map<uint32_t, Task> tasks_;
};

void Spoil(std::vector<Bytes>* answers, uint32_t way, Target& target, Random& random) {
  const auto any = [&] { return random.Below(static_cast<uint32_t>(answers->size())); };
  if (way == 1 && !answers->empty()) (*answers)[any()][random.Below(48)] = static_cast<uint8_t>(random.Below(256));
  if (way == 2 && !answers->empty()) answers->push_back((*answers)[any()]);
  if (way == 3 && !answers->empty()) answers->erase(answers->begin() + any());
  if (way == 4) answers->push_back(target.AnyR2t());
  if (way == 5) answers->push_back(target.AnyResponse());
  if (way == 6) answers->push_back(Pattern(random.Below(200), random.Below(1'000'000)));
  if (way == 7 && !answers->empty()) PutBe32((*answers)[any()].data() + 36 + 4 * random.Below(3), random.Below(9000));
}

struct Tally {
  int honest = 0;
  int ended = 0;
  int accepted = 0;
};

// One session of eight WRITEs, two of each slot.
void Round(Random& random, Tally* tally) {
  const uint32_t first_burst = 512 + random.Below(4000);
  const Negotiated agreed =
      Agreed(random.Below(2), random.Below(2), first_burst, first_burst + random.Below(4000), 512 + random.Below(2000));
  const uint32_t way = random.Below(8);
  WriteBed bed(agreed);
  Target target(bed, agreed, way == 0, random);
  uint32_t tags[4];
  int begun = 0;
  int done = 0;
  const auto begin = [&](uint32_t slot) {
    tags[slot] = static_cast<uint32_t>(100 + begun++) << 16 | slot;
    bed.Write(slot, kBlock * (1 + random.Below(16)));
    target.Expect(tags[slot], bed.data[slot]);
  };
  for (uint32_t slot = 0; slot < 4; ++slot) begin(slot);
  Bytes stream;
  bool alive = true;
  for (int idle = 0; alive && idle < 2;) {
    const Bytes sent = bed.Outgoing(1 + random.Below(6000));
    stream.insert(stream.end(), sent.begin(), sent.end());
    std::vector<Bytes> answers;
    for (const Seen& pdu : TakePdus(&stream)) {
      for (Bytes& answer : target.Take(pdu)) answers.push_back(std::move(answer));
    }
    if (way > 0 && random.Below(4) == 0) Spoil(&answers, way, target, random);
    idle = sent.empty() && answers.empty() ? idle + 1 : 0;
    if (!answers.empty()) alive = bed.Feed(Joined(answers), 1 + random.Below(200));
    auto& outcomes = bed.path.done();
    for (const auto& [slot, outcome] : outcomes) {
      // No success of what the target has not got; and from here on nothing reads the buffer.
      CHECK(outcome <= static_cast<int64_t>(target.got(tags[slot]) + stream.size()));
      if (way == 0) CHECK(outcome == static_cast<int64_t>(bed.data[slot].size()));
      if (outcome > 0) ++tally->accepted;
      bed.buffers[slot].reset();
      ++done;
    }
    const auto finished = std::exchange(outcomes, {});
    for (const auto& one : finished) {
      if (begun < 8) begin(one.slot);
    }
  }
  if (way == 0) CHECK(alive && done == 8);
  tally->honest += way == 0;
  tally->ended += !alive;
  if (!alive) CHECK(!bed.path.fault().code.empty());
}

void Hostile() {
  constexpr int kRounds = 50'000;
  Random random(1);
  Tally tally;
  for (int round = 0; round < kRounds && failures == 0; ++round) {
    Round(random, &tally);
    if (failures > 0) fprintf(stderr, "in round %d\n", round);
  }
  printf("%d rounds, %d honest, %d ended, %d writes accepted\n", kRounds, tally.honest, tally.ended, tally.accepted);
  CHECK(tally.honest > kRounds / 12 && tally.ended > kRounds / 4 && tally.accepted > kRounds);
}

}  // namespace
}  // namespace lunpath::iscsi

int main(int argc, char** argv) {
  using namespace lunpath::iscsi;
  using Case = std::pair<const char*, void (*)()>;
  constexpr Case cases[] = {
      {"commands", Commands},   {"flushes", Flushes},   {"unsolicited", Unsolicited},
      {"solicited", Solicited}, {"partial", Partial},   {"status", Status},
      {"early", Early},         {"residual", Residual}, {"window", Window},
      {"mixed", Mixed},         {"refused", Refused},   {"login", Login},
      {"hostile", Hostile},
  };
  for (const auto& [name, run] : cases) {
    if (argc != 2 || strcmp(name, argv[1]) != 0) continue;
    run();
    return failures > 0 ? 1 : 0;
  }
  fprintf(stderr, "write-path: no such case\n");
  return 2;
}
