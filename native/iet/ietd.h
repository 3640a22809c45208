// Requests to ietd over its socket. Blocking, free of state, any thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "iet/abi.h"
#include "sys/result.h"
#include "sys/secret.h"

namespace lunpath::iet {

using Clock = std::chrono::steady_clock;

// What the sessions of a target are offered (19 values), or how the target itself works (5).
struct Parameters {
  ParameterType type = kSessionParameters;
  uint32_t partial = 0;  // a bit for each key that is meant
  std::vector<uint32_t> values{};
};

// One request to ietd. Texts are without NUL and fit their fields; `secret` appears in no error and is wiped, from the
// bytes that were sent and received too.
struct Message {
  Command command = kSystemShow;
  uint32_t tid = 0;
  uint64_t sid = 0;
  uint32_t cid = 0;
  uint32_t lun = 0;
  std::string text{};       // name of a target or account, a volume's arguments, a redirection
  Secret secret{};          // of kAccountNew; with kAccountShow what the account's is compared with
  uint32_t direction = 0;   // of accounts: 0 incoming, 1 outgoing
  uint32_t most = 0;        // of kAccountList: names that there is room for
  Parameters parameters{};  // of kTargetUpdate; of the two that show, the type alone
  int wanted = 0;           // the errno with which its sequence goes on; 0 is success
};

struct Answer {
  int error = 0;     // errno, 0 is success
  uint32_t tid = 0;  // of kTargetNew
  // Parameters; of kAccountList how many names there are beyond those told; of kAccountShow 1 where the secret is that.
  std::vector<uint32_t> numbers{};
  std::vector<std::string> names{};  // of kAccountList
};

// What became of sequences of requests or calls: answers[i] holds those to sequence i, up to and with its first error,
// or the first answer that is not the one that was wanted.
struct Outcome {
  std::vector<std::vector<Answer>> answers;
  pid_t pid = 0;                 // of the ietd that answered, as SO_PEERCRED tells it; 0 where none did
  std::optional<Error> failure;  // why it broke off: all before this point was answered
};

// Sends each sequence's messages in order, a connection for each, the next one after the answer. An answer
// that is not the one that was wanted ends its sequence, not the ones after it. A failure of the exchange ends
// everything: nobody there (ECONNREFUSED), ETIMEDOUT at `deadline`, IET_CLOSED, IET_PROTOCOL for an answer that is
// none; and IET_RESTARTED where `expected_pid` is not 0 and another process listens now. The message in hand at a
// failure may or may not have taken effect. `name` is that of the abstract socket, without its leading NUL.
Outcome Exchange(const std::string& name, const std::vector<std::vector<Message>>& sequences,
                 Clock::time_point deadline, pid_t expected_pid);

}  // namespace lunpath::iet
