// Requests to a tgtd over its control socket. Blocking, free of state, any thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sys/result.h"
#include "sys/secret.h"

namespace lunpath::tgt {

// One request; the fields carry tgtd's own numbers (abi.h). `parameters` is `key=value,key=value` without a NUL and may
// hold a secret: it appears in no error, and is wiped from the bytes that were sent too.
struct Request {
  uint32_t mode = 0;
  uint32_t op = 0;
  int32_t tid = 0;
  uint64_t sid = 0;
  uint64_t lun = 0;
  uint32_t cid = 0;
  uint32_t account_direction = 0;
  bool force = false;
  Secret parameters;
};

struct Reply {
  uint32_t error = 0;  // tgtd's code, 0 is success
  std::string text;
};

using Sequence = std::vector<Request>;
using Clock = std::chrono::steady_clock;

// What became of the sequences: replies[i] holds the answers to sequence i, up to and with its first error.
struct Outcome {
  std::vector<std::vector<Reply>> replies;
  pid_t pid = 0;                 // of the tgtd that answered, as SO_PEERCRED tells it; 0 where none did
  std::optional<Error> failure;  // why the exchange broke off: all before this point was answered
};

// Sends each sequence's requests in order, each after the answer to the one before. An error of tgtd ends its sequence,
// not the ones after it. A failure of the exchange itself ends everything: no tgtd there (ECONNREFUSED, ENOENT …),
// ETIMEDOUT at `deadline`, TGT_CLOSED, TGT_PROTOCOL for an answer that is none; and TGT_RESTARTED where `expected_pid`
// is not 0 and another process listens now, to which no request is sent: tids of the old one mean nothing there.
// The request in hand at a failure may or may not have taken effect.
Outcome Run(const std::string& socket_path, const std::vector<Sequence>& sequences, Clock::time_point deadline,
            pid_t expected_pid);

}  // namespace lunpath::tgt
