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

// Flags in byte 1 of a SCSI Command (11.3.1), a SCSI Response (11.4.1) and a Data-In PDU (11.7.1).
constexpr uint8_t kFinal = 0x80;
constexpr uint8_t kRead = 0x40;
constexpr uint8_t kSimple = 0x01;
constexpr uint8_t kAcknowledge = 0x40;
constexpr uint8_t kOverflow = 0x04;
constexpr uint8_t kUnderflow = 0x02;
constexpr uint8_t kStatus = 0x01;

constexpr uint8_t kRead10 = 0x28;
constexpr uint8_t kRead16 = 0x88;
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
  to_send_.reserve((params_.slots + kMostPings) * kHeaderBytes);
  done_.reserve(params_.slots);
}

void DataPath::Read(uint32_t index, uint64_t offset, uint32_t bytes, uint8_t* data) {
  slots_[index] = {.data = data, .offset = offset, .bytes = bytes, .received = 0, .pdus = 0, .tag = kNoTag};
  if (held_back_.empty() && window_open()) {
    Send(index);
  } else {
    held_back_.push_back(index);
  }
}

// Reason 0, the session is closed; connection 0, libiscsi's only one (RFC 7143, 11.14).
void DataPath::LogOut() {
  Append(kLogoutRequest | kImmediate, kLogoutTag);
  logging_out_ = true;
}

void DataPath::Sent(size_t bytes) {
  to_send_.erase(to_send_.begin(), to_send_.begin() + static_cast<ptrdiff_t>(bytes));
}

uint8_t* DataPath::Append(uint8_t opcode, uint32_t tag) {
  to_send_.resize(to_send_.size() + kHeaderBytes);
  uint8_t* header = to_send_.data() + to_send_.size() - kHeaderBytes;
  header[0] = opcode;
  header[1] = kFinal;
  PutBe32(header + 16, tag);
  PutBe32(header + 24, numbers_.cmd_sn);
  PutBe32(header + 28, numbers_.exp_stat_sn);
  return header;
}

void DataPath::Send(uint32_t index) {
  Slot& slot = slots_[index];
  // An answer to an earlier command of the slot must not pass for one to this.
  slot.tag = numbers_.cmd_sn << 16 | index;
  uint8_t* header = Append(kCommand, slot.tag);
  ++numbers_.cmd_sn;
  header[1] |= kRead | kSimple;
  header[8] = static_cast<uint8_t>(params_.lun >> 8);
  header[9] = static_cast<uint8_t>(params_.lun);
  PutBe32(header + 20, slot.bytes);
  const uint64_t block = slot.offset / params_.block_bytes;
  const uint32_t blocks = slot.bytes / params_.block_bytes;
  uint8_t* cdb = header + 32;
  if (params_.long_commands) {
    cdb[0] = kRead16;
    PutBe32(cdb + 2, static_cast<uint32_t>(block >> 32));
    PutBe32(cdb + 6, static_cast<uint32_t>(block));
    PutBe32(cdb + 10, blocks);
  } else {
    cdb[0] = kRead10;
    PutBe32(cdb + 2, static_cast<uint32_t>(block));
    cdb[7] = static_cast<uint8_t>(blocks >> 8);
    cdb[8] = static_cast<uint8_t>(blocks);
  }
}

std::span<const iovec> DataPath::Space() {
  iovec* space = space_;
  if (data_left_ > 0) *space++ = {.iov_base = data_slot_->data + data_slot_->received, .iov_len = data_left_};
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
      memcpy(data_slot_->data + data_slot_->received, at, some);
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
  return slot.data && slot.tag == tag ? &slot : nullptr;
}

bool DataPath::BeginDataIn(const uint8_t* header) {
  NoteWindow(header);
  Slot* slot = Find(header);
  if (!slot) return Fail("sent data for a command that is not in flight");
  const uint32_t bytes = Be24(header + 5);
  if (bytes > kMaxDataBytes) return Fail("sent a longer data segment than was agreed");
  // What only a higher ErrorRecoveryLevel has.
  if (header[1] & kAcknowledge) return Fail("asked for an acknowledgement of data");
  if (header[1] & kStatus && !(header[1] & kFinal)) return Fail("sent a status before the last of the data");
  if (Be32(header + 36) != slot->pdus++) return Fail("sent Data-In PDUs out of order");
  if (Be32(header + 40) != slot->received || bytes > slot->bytes - slot->received) {
    return Fail("sent data for another place than the next");
  }
  memcpy(data_header_, header, kHeaderBytes);
  data_slot_ = slot;
  data_left_ = last_data_bytes_ = bytes;
  padding_left_ = -bytes & 3;
  return bytes > 0 || TookData(0);
}

bool DataPath::TookData(size_t bytes) {
  data_slot_->received += static_cast<uint32_t>(bytes);
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

// RFC 7143, 11.18 and 11.19.
bool DataPath::AnswerPing(const uint8_t* header) {
  if (Be32(header + 16) != kNoTag) return Fail("answered a ping that was not sent");
  if (Be32(header + 20) == kNoTag) return true;
  if (to_send_.size() >= (slots_.size() + kMostPings) * kHeaderBytes) return Fail("sends pings and takes no answers");
  uint8_t* answer = Append(kNopOut | kImmediate, kNoTag);
  memcpy(answer + 8, header + 8, 8);    // LUN
  memcpy(answer + 20, header + 20, 4);  // target transfer tag
  return true;
}

// The status of a command, in a SCSI Response or in its last Data-In PDU.
bool DataPath::Finish(Slot* slot, const uint8_t* header) {
  NoteStatus(header);
  const bool is_response = (header[0] & kOpcodeMask) == kResponse;
  const uint8_t status = header[3];
  int64_t outcome = slot->received;
  if (is_response && header[2] != 0) {
    outcome = -EREMOTEIO;  // the target failed, and there is no status (RFC 7143, 11.4.3)
  } else if (status == kCheckCondition && is_response) {
    outcome = CheckCondition(header + kHeaderBytes, Be24(header + 5));
  } else if (status != kGood) {
    outcome = StatusOutcome(status);
  } else {
    const uint32_t missing = header[1] & kUnderflow ? Be32(header + 44) : 0;
    if (missing > slot->bytes || slot->received != slot->bytes - missing) {
      return Fail("says of a command that all its data was sent, and sent another number of bytes");
    }
    // More than a READ of whole blocks can have, or a part of a block, which no READ can go on from.
    if (header[1] & kOverflow || slot->received % params_.block_bytes != 0) outcome = -EPROTO;
  }
  done_.push_back({.slot = static_cast<uint32_t>(slot - slots_.data()), .outcome = outcome});
  slot->data = nullptr;
  return true;
}

bool DataPath::Fail(const std::string& what, const char* code) {
  fault_ = Error{.message = params_.portal + " " + what, .code = code, .syscall = "READ"};
  return false;
}

}  // namespace lunpath::iscsi
