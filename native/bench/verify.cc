#include "bench/verify.h"

#include <sys/mman.h>

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#include "bench/random.h"

namespace lunpath::bench {
namespace {

constexpr uint64_t kMagic = 0x314b4c4248504e4c;  // "LNPHBLK1"

struct Header {
  uint64_t magic;
  uint64_t offset;
  uint64_t seed;
  uint32_t generation;
  uint32_t checksum;  // over the whole block, with zeros here
};

static_assert(sizeof(Header) == 32);

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < table.size(); ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ ((value & 1) != 0 ? 0x82f63b78 : 0);
    table[i] = value;
  }
  return table;
}

constexpr auto kTable = MakeTable();

uint32_t CrcByTable(uint32_t crc, const uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) crc = crc >> 8 ^ kTable[(crc ^ data[i]) & 0xff];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t CrcByInstruction(uint32_t crc, const uint8_t* data, size_t bytes) {
  uint64_t wide = crc;
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word;
    memcpy(&word, data + i, sizeof word);
    wide = _mm_crc32_u64(wide, word);
  }
  return static_cast<uint32_t>(wide);
}
#endif

uint32_t Update(uint32_t crc, const uint8_t* data, size_t bytes) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  if (has_instruction) return CrcByInstruction(crc, data, bytes);
#endif
  return CrcByTable(crc, data, bytes);
}

uint32_t ChecksumOf(Header header, const uint8_t* data, size_t bytes) {
  header.checksum = 0;
  const auto whole = std::bit_cast<std::array<uint8_t, sizeof header>>(header);
  return ~Update(Update(UINT32_MAX, whole.data(), whole.size()), data + sizeof header, bytes - sizeof header);
}

}  // namespace

uint32_t Crc32c(const uint8_t* data, size_t bytes) { return ~Update(UINT32_MAX, data, bytes); }

Verifier::Verifier(uint64_t offset, uint64_t size, uint32_t block_bytes, uint64_t seed)
    : offset_(offset), blocks_(size / block_bytes), block_bytes_(block_bytes), seed_(seed), locked_(blocks_) {
  // Pages of it come into being where blocks are written.
  void* mapped = mmap(nullptr, blocks_ * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped != MAP_FAILED) generations_ = static_cast<uint32_t*>(mapped);
}

Verifier::~Verifier() {
  if (generations_) munmap(generations_, blocks_ * sizeof(uint32_t));
}

bool Verifier::Lock(uint64_t offset) {
  const uint64_t index = Index(offset);
  if (locked_[index]) return false;
  locked_[index] = true;
  return true;
}

void Verifier::Unlock(uint64_t offset) { locked_[Index(offset)] = false; }

void Verifier::Stamp(uint8_t* data, uint64_t offset) const {
  const uint32_t before = generations_[Index(offset)];
  Header header{.magic = kMagic,
                .offset = offset,
                .seed = seed_,
                .generation = before == kUnknown ? 1 : before + 1,
                .checksum = 0};
  Random random(seed_ ^ offset ^ uint64_t{header.generation} << 40);
  for (size_t at = sizeof header; at + 8 <= block_bytes_; at += 8) {
    const uint64_t word = random.Next();
    memcpy(data + at, &word, sizeof word);
  }
  header.checksum = ChecksumOf(header, data, block_bytes_);
  memcpy(data, &header, sizeof header);
}

void Verifier::Written(uint64_t offset) {
  uint32_t& generation = generations_[Index(offset)];
  generation = generation == kUnknown ? 1 : generation + 1;
}

void Verifier::Unknown(uint64_t offset) { generations_[Index(offset)] = kUnknown; }

std::optional<const char*> Verifier::Check(const uint8_t* data, uint64_t offset) const {
  Header header;
  memcpy(&header, data, sizeof header);
  if (header.magic != kMagic) return "magic";
  if (header.checksum != ChecksumOf(header, data, block_bytes_)) return "checksum";
  if (header.offset != offset) return "offset";
  if (header.seed != seed_) return "seed";
  if (header.generation != Generation(offset)) return "generation";
  return std::nullopt;
}

std::optional<uint64_t> Verifier::NextKnown(uint64_t offset) const {
  for (uint64_t index = Index(offset); index < blocks_; ++index) {
    const uint64_t at = offset_ + index * block_bytes_;
    if (Knows(at)) return at;
  }
  return std::nullopt;
}

}  // namespace lunpath::bench
