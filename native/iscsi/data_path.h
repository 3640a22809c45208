// The commands of a session that reads and writes, without its socket (RFC 7143): READs and WRITEs become PDUs to send;
// bytes that came in become data in the READs' buffers, requests for more of the WRITEs', and outcomes. Nothing that
// the target sends is trusted.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "iscsi/negotiated.h"
#include "iscsi/send_queue.h"
#include "iscsi/session.h"
#include "sys/result.h"

namespace lunpath::iscsi {

// One thread at a time. The session was logged in by libiscsi, and what it has negotiated is usable: no digests;
// DataPDUInOrder and DataSequenceInOrder, so that data goes from the first byte to the last; one R2T of a command at a
// time; no recovery of a command.
class DataPath {
 public:
  static constexpr uint32_t kMostSlots = 65'534;
  static constexpr size_t kLeastStaging = 16 * 1024;

  struct Params {
    std::string portal{};  // in messages
    int lun = 0;
    uint32_t block_bytes = 512;
    bool long_commands = false;  // READ (16) and WRITE (16), else READ (10) and WRITE (10)
    CommandNumbers numbers{};
    Negotiated negotiated{};
    uint32_t slots = 0;                 // at most kMostSlots
    size_t staging_bytes = 256 * 1024;  // what one system call can take, at least kLeastStaging
  };

  struct Done {
    uint32_t slot;
    int64_t outcome;  // bytes, or as outcome.h has it
  };

  explicit DataPath(Params params);

  // A READ of whole blocks into `data`, which is the slot's until it is done. A slot takes one command at a time.
  void Read(uint32_t slot, uint64_t offset, uint32_t bytes, uint8_t* data);
  // A WRITE of whole blocks, likewise: nothing reads `data` once it is done.
  void Write(uint32_t slot, uint64_t offset, uint32_t bytes, const uint8_t* data);
  // A SYNCHRONIZE CACHE of all blocks, whose outcome is 0.
  void Flush(uint32_t slot);
  // The last request, while no command is in flight.
  void LogOut();
  bool logged_out() const { return logged_out_; }

  bool has_to_send() const { return !queue_.empty(); }
  // The next to be sent, as much as one system call takes well. Valid until any other call.
  std::span<const iovec> NextToSend() { return queue_.Next(outgoing_); }
  void Sent(size_t bytes);

  // Where the next bytes of the stream go: what is left of a command's data first, then room of our own. Never empty.
  std::span<const iovec> Space();
  // `bytes` were put there, at least one. False: the session is of no more use, and fault() says why: PROTOCOL, or
  // SESSION_LOST where the target gives it up.
  bool Took(size_t bytes);
  const Error& fault() const { return fault_; }

  // To be emptied by the caller.
  std::vector<Done>& done() { return done_; }

 private:
  struct Slot {
    uint8_t* into;        // of a READ
    const uint8_t* from;  // of a WRITE
    bool flushes;         // of neither; false: no command
    uint64_t offset;
    uint32_t bytes;
    uint32_t moved;   // data that has come in, or that is queued or sent
    uint32_t unsent;  // of that which is queued
    uint32_t pdus;    // Data-In PDUs or R2Ts of it, which is the number of the next
    uint32_t tag;
    bool is_answered;  // with `outcome`, before its data was sent
    int64_t outcome;
  };

  void Start(uint32_t slot);
  uint8_t* Append(uint8_t opcode, uint32_t tag);
  uint8_t* AppendRequest(uint8_t opcode, uint32_t tag);
  void Send(uint32_t slot);
  void PutLun(uint8_t* header) const;
  void FillCdb(const Slot& slot, uint8_t* cdb) const;
  void AppendData(Slot* slot, uint32_t bytes);
  void SendData(Slot* slot, uint32_t bytes, const uint8_t* r2t);
  bool window_open() const { return static_cast<int32_t>(numbers_.max_cmd_sn - numbers_.cmd_sn) >= 0; }
  void NoteWindow(const uint8_t* header);
  void NoteStatus(const uint8_t* header);

  bool BeginDataIn(const uint8_t* header);
  bool TookData(size_t bytes);
  bool TakePdu(const uint8_t* pdu);
  bool AnswerR2t(const uint8_t* header);
  bool AnswerPing(const uint8_t* header);
  bool Finish(Slot* slot, const uint8_t* header);
  bool FinishGood(const uint8_t* header, const Slot& slot, int64_t* outcome);
  void Complete(Slot* slot);
  uint32_t IndexOf(const Slot* slot) const { return static_cast<uint32_t>(slot - slots_.data()); }
  Slot* Find(const uint8_t* header);
  bool Fail(const std::string& what, const char* code = "PROTOCOL");

  Params params_;
  CommandNumbers numbers_;
  std::vector<Slot> slots_;
  std::deque<uint32_t> held_back_;  // by the target's command window
  SendQueue queue_;
  iovec outgoing_[128]{};
  size_t pings_ = 0;  // answers to pings in the queue
  std::vector<Done> done_;
  std::vector<uint8_t> staging_;
  size_t staged_ = 0;
  iovec space_[2]{};
  // The Data-In PDU whose data comes in: its header, its command, and what is left of its data and padding.
  uint8_t data_header_[48]{};
  Slot* data_slot_ = nullptr;
  size_t data_left_ = 0;
  size_t padding_left_ = 0;
  size_t last_data_bytes_ = 0;
  bool logging_out_ = false;
  bool logged_out_ = false;
  Error fault_;
};

}  // namespace lunpath::iscsi
