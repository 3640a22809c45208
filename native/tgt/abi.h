// The control protocol of tgtd 1.0.85, as its clients and it lay it out in memory. One request per connection on an
// AF_UNIX stream socket; tgtd answers and closes. Native byte order and alignment on both sides: the layout below is
// that of a 64-bit little-endian machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lunpath::tgt {

struct [[gnu::packed]] RequestHeader {
  uint32_t mode;
  uint32_t op;
  char lld[64];
  uint32_t len;  // of the header, the parameters and their NUL
  int32_t tid;
  uint64_t sid;
  uint64_t lun;
  uint32_t cid;
  uint32_t host_no;
  uint32_t device_type;
  uint32_t account_direction;
  uint32_t pack;
  uint32_t force;
};

static_assert(sizeof(RequestHeader) == 120, "must match the request of tgtd 1.0.85");
static_assert(offsetof(RequestHeader, lld) == 8);
static_assert(offsetof(RequestHeader, len) == 72);
static_assert(offsetof(RequestHeader, tid) == 76);
static_assert(offsetof(RequestHeader, sid) == 80);
static_assert(offsetof(RequestHeader, lun) == 88);
static_assert(offsetof(RequestHeader, cid) == 96);
static_assert(offsetof(RequestHeader, device_type) == 104);
static_assert(offsetof(RequestHeader, account_direction) == 108);
static_assert(offsetof(RequestHeader, force) == 116);

struct [[gnu::packed]] ReplyHeader {
  uint32_t error;
  uint32_t len;  // of this header and the text
};

static_assert(sizeof(ReplyHeader) == 8, "must match the reply of tgtd 1.0.85");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the layout above was taken from a little-endian machine");

}  // namespace lunpath::tgt
