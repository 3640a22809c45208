#include "iscsi/data_path.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "iscsi/outcome.h"
#include "iscsi/pdu.h"
#include "sys/big_endian.h"

namespace lunpath::iscsi {
namespace {

// Flags in byte 1 of a SCSI Command (11.3.1), a SCSI Response (11.4.1), a Data-Out and a Data-In PDU (11.7.1).
constexpr uint8_t kFinal = 0x80;
constexpr uint8_t kRead = 0x40;
constexpr uint8_t kWrite = 0x20;
constexpr uint8_t kSimple = 0x01;
constexpr uint8_t kAcknowledge = 0x40;
constexpr uint8_t kOverflow = 0x04;
constexpr uint8_t kUnderflow = 0x02;
constexpr uint8_t kStatus = 0x01;

constexpr uint8_t kRead10 = 0x28;
constexpr uint8_t kRead16 = 0x88;
constexpr uint8_t kWrite10 = 0x2a;
constexpr uint8_t kWrite16 = 0x8a;
constexpr uint8_t kSynchronizeCache10 = 0x35;
constexpr uint8_t kGood = 0x00;
constexpr uint8_t kCheckCondition = 0x02;

// The MaxRecvDataSegmentLength that libiscsi declares (its lib/init.c, iscsi_create_context).
constexpr uint32_t kMaxDataBytes = 262'144;
// Of what is no Data-In: sense data, or the header that was rejected.
constexpr uint32_t kMaxOtherDataBytes = 8'192;
static_assert(DataPath::kLeastStaging > kHeaderBytes + kMaxOtherDataBytes);
// From here on a system call for each data segment costs less than a copy of it.
constexpr size_t kLongDataBytes = 64 * 1024;
// Answers to pings that wait to be sent. A target that sends more takes none.
constexpr size_t kMostPings = 64;

constexpr uint32_t kNoTag = 0xffffffff;
constexpr uint32_t kLogoutTag = 0xfffffffe;
static_assert((kLogoutTag & 0xffff) >= DataPath::kMostSlots, "is no slot's tag");
// Of an answer to a ping, in the queue.
constexpr uint32_t kPing = DataPath::kMostSlots;

// Where sense data is missing or unknown, the status alone (SPC-4, 4.5).
int64_t CheckCondition(const uint8_t* data, size_t bytes) {
  if (bytes >= 2) {
    const size_t length = std::min<size_t>(Be16(data), bytes - 2);
    const uint8_t* sense = data + 2;
    const int format = length > 0 ? sense[0] & 0x7f : 0;
    if ((format == 0x70 || format == 0x71) && length >= 14) return SenseOutcome(sense[2] & 0x0f, Be16(sense + 12));
    if ((format == 0x72 || format == 0x73) && length >= 4) return SenseOutcome(sense[1] & 0x0f, Be16(sense + 2));
  }
  return StatusOutcome(kCheckCondition);
}

}  // namespace

DataPath::DataPath(Params params)
    : params_(std::move(params)), numbers_(params_.numbers), slots_(params_.slots), staging_(params_.staging_bytes) {
  queue_.Reserve((params_.slots + kMostPings) * kHeaderBytes, params_.slots);
  done_.reserve(params_.slots);
}

void DataPath::Read(uint32_t index, uint64_t offset, uint32_t bytes, uint8_t* data) {
  slots_[index] = {};
  slots_[index].into = data;
  slots_[index].offset = offset;
  slots_[index].bytes = bytes;
  Start(index);
}

void DataPath::Write(uint32_t index, uint64_t offset, uint32_t bytes, const uint8_t* data) {
  slots_[index] = {};
  slots_[index].from = data;
  slots_[index].offset = offset;
  slots_[index].bytes = bytes;
  Start(index);
}

void DataPath::Flush(uint32_t index) {
  slots_[index] = {};
  slots_[index].flushes = true;
  Start(index);
}

void DataPath::Start(uint32_t index) {
  slots_[index].tag = kNoTag;
  if (held_back_.empty() && window_open()) {
    Send(index);
  } else {
    held_back_.push_back(index);
  }
}

// Reason 0, the session is closed; connection 0, libiscsi's only one (RFC 7143, 11.14).
void DataPath::LogOut() {
  AppendRequest(kLogoutRequest | kImmediate, kLogoutTag);
  logging_out_ = true;
}

void DataPath::Sent(size_t bytes) {
  queue_.Sent(bytes, [this](uint32_t owner, uint32_t data_bytes) {
    if (owner == kPing) {
      --pings_;
      return;
    }
    Slot& slot = slots_[owner];
    slot.unsent -= data_bytes;
    if (slot.is_answered && slot.unsent == 0) Complete(&slot);
  });
}

uint8_t* DataPath::Append(uint8_t opcode, uint32_t tag) {
  uint8_t* header = queue_.Append(kHeaderBytes);
  header[0] = opcode;
  header[1] = kFinal;
  PutBe32(header + 16, tag);
  PutBe32(header + 28, numbers_.exp_stat_sn);
  return header;
}

uint8_t* DataPath::AppendRequest(uint8_t opcode, uint32_t tag) {
  uint8_t* header = Append(opcode, tag);
  PutBe32(header + 24, numbers_.cmd_sn);
  return header;
}

// A command, and the data of a WRITE that the target takes without having asked for it: first in the command's own PDU,
// then in Data-Out PDUs, up to the FirstBurstLength together (RFC 7143, 4.2.5.2 and 13.10 to 13.14).
void DataPath::Send(uint32_t index) {
  const Negotiated& agreed = params_.negotiated;
  Slot& slot = slots_[index];
  const uint32_t burst = slot.from ? std::min(slot.bytes, agreed.first_burst_bytes) : 0;
  const uint32_t immediate = agreed.immediate_data ? std::min(burst, agreed.max_segment_bytes) : 0;
  const uint32_t unsolicited = agreed.initial_r2t ? 0 : burst - immediate;
  // An answer to an earlier command of the slot must not pass for one to this.
  slot.tag = numbers_.cmd_sn << 16 | index;
  uint8_t* header = AppendRequest(kCommand, slot.tag);
  ++numbers_.cmd_sn;
  const uint8_t moves = slot.flushes ? 0 : slot.from ? kWrite : kRead;
  header[1] = static_cast<uint8_t>((unsolicited > 0 ? 0 : kFinal) | moves | kSimple);
  PutBe24(header + 5, immediate);
  PutLun(header);
  PutBe32(header + 20, slot.bytes);
  FillCdb(slot, header + 32);
  if (immediate > 0) AppendData(&slot, immediate);
  if (unsolicited > 0) SendData(&slot, unsolicited, nullptr);
}

void DataPath::PutLun(uint8_t* header) const {
  header[8] = static_cast<uint8_t>(params_.lun >> 8);
  header[9] = static_cast<uint8_t>(params_.lun);
}

void DataPath::FillCdb(const Slot& slot, uint8_t* cdb) const {
  if (slot.flushes) {
    // From block 0, and no number of them: up to the last (SBC-4, 5.30). Without IMMED it is answered when it is done.
    cdb[0] = kSynchronizeCache10;
    return;
  }
  const uint64_t block = slot.offset / params_.block_bytes;
  const uint32_t blocks = slot.bytes / params_.block_bytes;
  if (params_.long_commands) {
    cdb[0] = slot.from ? kWrite16 : kRead16;
    PutBe32(cdb + 2, static_cast<uint32_t>(block >> 32));
    PutBe32(cdb + 6, static_cast<uint32_t>(block));
    PutBe32(cdb + 10, blocks);
  } else {
    cdb[0] = slot.from ? kWrite10 : kRead10;
    PutBe32(cdb + 2, static_cast<uint32_t>(block));
    cdb[7] = static_cast<uint8_t>(blocks >> 8);
    cdb[8] = static_cast<uint8_t>(blocks);
  }
}

// The next `bytes` of a WRITE, behind the header that was appended last.
void DataPath::AppendData(Slot* slot, uint32_t bytes) {
  queue_.AppendPiece(slot->from + slot->moved, bytes, IndexOf(slot));
  slot->moved += bytes;
  slot->unsent += bytes;
  if (const size_t padding = -bytes & 3; padding > 0) queue_.Append(padding);
}

// A sequence of Data-Out PDUs with the next `bytes` of a WRITE (RFC 7143, 11.7): the answer to `r2t`, or unsolicited
// where that is null.
void DataPath::SendData(Slot* slot, uint32_t bytes, const uint8_t* r2t) {
  for (uint32_t number = 0; bytes > 0; ++number) {
    const uint32_t some = std::min(bytes, params_.negotiated.max_segment_bytes);
    bytes -= some;
    uint8_t* header = Append(kDataOut, slot->tag);
    header[1] = bytes == 0 ? kFinal : 0;
    PutBe24(header + 5, some);
    if (r2t) {
      PutLun(header);
      memcpy(header + 20, r2t + 20, 4);  // target transfer tag
    } else {
      PutBe32(header + 20, kNoTag);
    }
    PutBe32(header + 36, number);
    PutBe32(header + 40, slot->moved);
    AppendData(slot, some);
  }
}

std::span<const iovec> DataPath::Space() {
  iovec* space = space_;
  if (data_left_ > 0) *space++ = {.iov_base = data_slot_->into + data_slot_->moved, .iov_len = data_left_};
  // The next header alone, or padding in its place: what follows it is known only then.
  const bool header_alone = last_data_bytes_ >= kLongDataBytes && staged_ < kHeaderBytes;
  const size_t room = header_alone ? kHeaderBytes : staging_.size();
  *space++ = {.iov_base = staging_.data() + staged_, .iov_len = room - staged_};
  return {space_, space};
}

bool DataPath::Took(size_t bytes) {
  const size_t direct = std::min(bytes, data_left_);
  if (direct > 0 && !TookData(direct)) return false;
  const uint8_t* at = staging_.data();
  const uint8_t* const end = at + staged_ + (bytes - direct);
  for (;;) {
    if (data_left_ > 0) {
      const size_t some = std::min(static_cast<size_t>(end - at), data_left_);
      memcpy(data_slot_->into + data_slot_->moved, at, some);
      at += some;
      if (some > 0 && !TookData(some)) return false;
      if (data_left_ > 0) break;
    }
    const size_t padding = std::min(static_cast<size_t>(end - at), padding_left_);
    at += padding;
    padding_left_ -= padding;
    const auto there = static_cast<size_t>(end - at);
    if (there < kHeaderBytes) break;
    if (at[4] != 0) return Fail("sent a PDU with additional headers");
    if ((at[0] & kOpcodeMask) == kDataIn) {
      if (!BeginDataIn(at)) return false;
      at += kHeaderBytes;
      continue;
    }
    const uint32_t data_bytes = Be24(at + 5);
    if (data_bytes > kMaxOtherDataBytes) return Fail("sent a longer data segment than fits its kind of PDU");
    const size_t whole = kHeaderBytes + ((data_bytes + 3) & ~3U);
    if (there < whole) break;
    if (!TakePdu(at)) return false;
    at += whole;
  }
  staged_ = static_cast<size_t>(end - at);
  memmove(staging_.data(), at, staged_);
  while (!held_back_.empty() && window_open()) {
    Send(held_back_.front());
    held_back_.pop_front();
  }
  return true;
}

// RFC 7143, 4.2.2.1: a window that ends before it begins is no news, nor is an earlier one.
void DataPath::NoteWindow(const uint8_t* header) {
  const uint32_t max = Be32(header + 32);
  const bool valid = static_cast<int32_t>(max - (Be32(header + 28) - 1)) >= 0;
  if (valid && static_cast<int32_t>(max - numbers_.max_cmd_sn) > 0) numbers_.max_cmd_sn = max;
}

void DataPath::NoteStatus(const uint8_t* header) {
  const uint32_t next = Be32(header + 24) + 1;
  if (static_cast<int32_t>(next - numbers_.exp_stat_sn) > 0) numbers_.exp_stat_sn = next;
}

DataPath::Slot* DataPath::Find(const uint8_t* header) {
  const uint32_t tag = Be32(header + 16);
  const uint32_t index = tag & 0xffff;
  if (index >= slots_.size()) return nullptr;
  Slot& slot = slots_[index];
  const bool in_flight = (slot.into || slot.from || slot.flushes) && !slot.is_answered;
  return in_flight && slot.tag == tag ? &slot : nullptr;
}

bool DataPath::BeginDataIn(const uint8_t* header) {
  NoteWindow(header);
  Slot* slot = Find(header);
  if (!slot || !slot->into) return Fail("sent data for a READ that is not in flight");
  const uint32_t bytes = Be24(header + 5);
  if (bytes > kMaxDataBytes) return Fail("sent a longer data segment than was agreed");
  // What only a higher ErrorRecoveryLevel has.
  if (header[1] & kAcknowledge) return Fail("asked for an acknowledgement of data");
  if (header[1] & kStatus && !(header[1] & kFinal)) return Fail("sent a status before the last of the data");
  if (Be32(header + 36) != slot->pdus++) return Fail("sent Data-In PDUs out of order");
  if (Be32(header + 40) != slot->moved || bytes > slot->bytes - slot->moved) {
    return Fail("sent data for another place than the next");
  }
  memcpy(data_header_, header, kHeaderBytes);
  data_slot_ = slot;
  data_left_ = last_data_bytes_ = bytes;
  padding_left_ = -bytes & 3;
  return bytes > 0 || TookData(0);
}

bool DataPath::TookData(size_t bytes) {
  data_slot_->moved += static_cast<uint32_t>(bytes);
  data_left_ -= bytes;
  return data_left_ > 0 || !(data_header_[1] & kStatus) || Finish(data_slot_, data_header_);
}

// One that is no Data-In PDU, all of it.
bool DataPath::TakePdu(const uint8_t* pdu) {
  NoteWindow(pdu);
  switch (pdu[0] & kOpcodeMask) {
    case kResponse: {
      Slot* slot = Find(pdu);
      return slot ? Finish(slot, pdu) : Fail("answered a command that is not in flight");
    }
    case kReadyToTransfer:
      return AnswerR2t(pdu);
    case kNopIn:
      return AnswerPing(pdu);
    case kAsyncMessage:
      NoteStatus(pdu);
      // Event 0 is sense data of the unit, which says nothing of a command (RFC 7143, 11.9.1).
      if (pdu[36] == 0) return true;
      return Fail("gives the session up (asynchronous event " + std::to_string(pdu[36]) + ")", "SESSION_LOST");
    case kLogoutResponse:
      if (!logging_out_) return Fail("answered a logout that was not asked for");
      logged_out_ = true;
      return true;
    case kReject:
      return Fail("rejected a request (reason " + std::to_string(pdu[2]) + ")");
    default:
      return Fail("sent a PDU that answers nothing (opcode " + std::to_string(pdu[0] & kOpcodeMask) + ")");
  }
}

// RFC 7143, 11.8. R2Ts of a command come one at a time, for one range after the other.
bool DataPath::AnswerR2t(const uint8_t* header) {
  Slot* slot = Find(header);
  if (!slot || !slot->from) return Fail("asked for data of a WRITE that is not in flight");
  if (Be32(header + 20) == kNoTag) return Fail("asked for data without a tag for it");
  if (slot->pdus > 0 && slot->unsent > 0) return Fail("asked for more data before it had what it asked for");
  if (Be32(header + 36) != slot->pdus++) return Fail("sent R2Ts out of order");
  const uint32_t bytes = Be32(header + 44);
  if (bytes > params_.negotiated.max_burst_bytes) return Fail("asked for more data at once than was agreed");
  if (Be32(header + 40) != slot->moved || bytes == 0 || bytes > slot->bytes - slot->moved) {
    return Fail("asked for data of another place than the next");
  }
  SendData(slot, bytes, header);
  return true;
}

// RFC 7143, 11.18 and 11.19.
bool DataPath::AnswerPing(const uint8_t* header) {
  if (Be32(header + 16) != kNoTag) return Fail("answered a ping that was not sent");
  if (Be32(header + 20) == kNoTag) return true;
  if (pings_ >= kMostPings) return Fail("sends pings and takes no answers");
  ++pings_;
  uint8_t* answer = AppendRequest(kNopOut | kImmediate, kNoTag);
  memcpy(answer + 8, header + 8, 8);    // LUN
  memcpy(answer + 20, header + 20, 4);  // target transfer tag
  queue_.AppendPiece(nullptr, 0, kPing);
  return true;
}

// The status of a command, in a SCSI Response or in its last Data-In PDU.
bool DataPath::Finish(Slot* slot, const uint8_t* header) {
  NoteStatus(header);
  const bool is_response = (header[0] & kOpcodeMask) == kResponse;
  const uint8_t status = header[3];
  int64_t outcome = 0;
  if (is_response && header[2] != 0) {
    outcome = -EREMOTEIO;  // the target failed, and there is no status (RFC 7143, 11.4.3)
  } else if (status == kCheckCondition && is_response) {
    outcome = CheckCondition(header + kHeaderBytes, Be24(header + 5));
  } else if (status != kGood) {
    outcome = StatusOutcome(status);
  } else if (!FinishGood(header, *slot, &outcome)) {
    return false;
  }
  slot->is_answered = true;
  slot->outcome = outcome;
  // The answer to a WRITE that failed may come before its data has gone out, which then still has to: the target takes
  // it for what the PDUs said that would come.
  if (slot->unsent == 0) Complete(slot);
  return true;
}

bool DataPath::FinishGood(const uint8_t* header, const Slot& slot, int64_t* outcome) {
  // It has no data of which any could be missing.
  if (slot.flushes) return true;
  const uint32_t missing = header[1] & kUnderflow ? Be32(header + 44) : 0;
  if (slot.into && (missing > slot.bytes || slot.moved != slot.bytes - missing)) {
    return Fail("says of a command that all its data was sent, and sent another number of bytes");
  }
  if (slot.from && (missing > slot.bytes || slot.moved - slot.unsent < slot.bytes - missing)) {
    return Fail("says of a command that all its data was taken, and has not got it all");
  }
  *outcome = slot.bytes - missing;
  // More than a command of whole blocks can have, or a part of a block, which no command can go on from.
  if (header[1] & kOverflow || *outcome % params_.block_bytes != 0) *outcome = -EPROTO;
  return true;
}

void DataPath::Complete(Slot* slot) {
  done_.push_back({.slot = IndexOf(slot), .outcome = slot->outcome});
  slot->into = nullptr;
  slot->from = nullptr;
  slot->flushes = false;
}

bool DataPath::Fail(const std::string& what, const char* code) {
  fault_ = Error{.message = params_.portal + " " + what, .code = code, .syscall = "SCSI"};
  return false;
}

}  // namespace lunpath::iscsi
