// What a session has to send, in order: bytes of its own (headers, padding), and between them data where its owner has
// it, which is not copied.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lunpath::iscsi {

// One thread at a time.
class SendQueue {
 public:
  void Reserve(size_t own_bytes, size_t pieces) {
    own_.reserve(own_bytes);
    pieces_.reserve(pieces);
  }

  // Zeros of our own, to be filled in before the next call.
  uint8_t* Append(size_t bytes) {
    Compact();
    own_.resize(own_.size() + bytes);
    return own_.data() + own_.size() - bytes;
  }

  // `owner` is told by Sent() when the data, or what was appended before a piece of no bytes, is sent.
  void AppendPiece(const uint8_t* data, uint32_t bytes, uint32_t owner) {
    pieces_.push_back({.own_end = own_.size(), .data = data, .bytes = bytes, .owner = owner});
  }

  bool empty() const { return own_at_ == own_.size() && piece_at_ == pieces_.size(); }

  // The first of what is left, until Append() or Sent(). Empty: nothing is left.
  std::span<const iovec> Next(std::span<iovec> into) const {
    size_t count = 0;
    size_t own = own_at_;
    uint32_t sent = piece_sent_;
    const auto add_own = [&](size_t end) {
      if (end > own) into[count++] = Vector(own_.data() + own, end - own);
      own = end;
    };
    size_t i = piece_at_;
    for (; i < pieces_.size() && count + 2 <= into.size(); ++i, sent = 0) {
      const Piece& piece = pieces_[i];
      add_own(piece.own_end);
      if (piece.bytes > sent) into[count++] = Vector(piece.data + sent, piece.bytes - sent);
    }
    if (i == pieces_.size() && count < into.size()) add_own(own_.size());
    return into.first(count);
  }

  // Calls on_piece(owner, bytes) for each piece that is sent with these bytes.
  template <class OnPiece>
  void Sent(size_t bytes, OnPiece on_piece) {
    for (; piece_at_ < pieces_.size(); ++piece_at_, piece_sent_ = 0) {
      const Piece& piece = pieces_[piece_at_];
      const size_t own = std::min(bytes, piece.own_end - own_at_);
      own_at_ += own;
      bytes -= own;
      if (own_at_ < piece.own_end) return;
      const auto data = static_cast<uint32_t>(std::min<size_t>(bytes, piece.bytes - piece_sent_));
      piece_sent_ += data;
      bytes -= data;
      if (piece_sent_ < piece.bytes) return;
      on_piece(piece.owner, piece.bytes);
    }
    own_at_ += bytes;
  }

 private:
  struct Piece {
    size_t own_end;  // it comes after our own bytes up to here
    const uint8_t* data;
    uint32_t bytes;
    uint32_t owner;
  };

  static iovec Vector(const uint8_t* data, size_t bytes) {
    return {.iov_base = const_cast<uint8_t*>(data), .iov_len = bytes};  // sendmsg(2) only reads from it
  }

  // Where the other side is slow the queue may never be empty.
  void Compact() {
    constexpr size_t worth_it = 4096;
    const bool all = empty();
    if (!all && (own_at_ < worth_it || own_at_ < own_.size() / 2)) return;
    own_.erase(own_.begin(), own_.begin() + static_cast<ptrdiff_t>(own_at_));
    pieces_.erase(pieces_.begin(), pieces_.begin() + static_cast<ptrdiff_t>(piece_at_));
    for (Piece& piece : pieces_) piece.own_end -= own_at_;
    own_at_ = 0;
    piece_at_ = 0;
  }

  std::vector<uint8_t> own_;
  std::vector<Piece> pieces_;
  size_t own_at_ = 0;
  size_t piece_at_ = 0;
  uint32_t piece_sent_ = 0;
};

}  // namespace lunpath::iscsi
