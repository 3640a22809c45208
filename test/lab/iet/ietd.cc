// The double of ietd: it holds the control device open and answers one request per connection on its abstract socket.
//
//   ietd --device NODE --config DIRECTORY --pid-file FILE --steering SOCKET --module SOCKET --version VERSION
//
// It goes into the background when it can be asked. README.md says what it does as ietd does
// it.
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <regex.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <list>
#include <map>
#include <sstream>
#include <thread>

#include "interface.h"
#include "steering.h"

namespace {

using steering::die;
using steering::Fd;
using steering::quoted;

constexpr char kSocketName[] = "IET_ABSTRACT_NAMESPACE";
constexpr int kBacklog = 32;
constexpr size_t kLongestLine = 8191;

struct Target {
  uint32_t tid;
  std::string name;
  std::string redirect;
};

struct Account {
  uint32_t tid;
  uint32_t direction;
  std::string name;
  std::string pass;
};

/** What the next answers on the socket are like, for clients that must bear with it. */
struct Manner {
  std::string name = "normal";
  uint64_t left = 0;
  std::chrono::milliseconds delay{0};
};

std::string text_of(const char* bytes, size_t size) { return {bytes, ::strnlen(bytes, size)}; }

bool same_name(const std::string& a, const std::string& b) { return ::strcasecmp(a.c_str(), b.c_str()) == 0; }

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// ---- Access rules ---------------------------------------------------------------------------------------------------

bool matches_mask(const std::string& rule, const std::string& address) {
  auto base = rule;
  std::string mask;
  if (const auto slash = rule.find('/'); slash != std::string::npos) {
    base = rule.substr(0, slash);
    mask = rule.substr(slash + 1);
  }
  const bool bracketed = base.size() > 2 && base.front() == '[' && base.back() == ']';
  if (bracketed) base = base.substr(1, base.size() - 2);
  const int family = bracketed ? AF_INET6 : AF_INET;
  const size_t length = bracketed ? 16 : 4;
  std::array<uint8_t, 16> wanted{};
  std::array<uint8_t, 16> given{};
  if (::inet_pton(family, base.c_str(), wanted.data()) != 1) return false;
  if (::inet_pton(family, address.c_str(), given.data()) != 1) return false;
  std::array<uint8_t, 16> bits{};
  if (mask.find('.') != std::string::npos) {
    if (::inet_pton(AF_INET, mask.c_str(), bits.data()) != 1) return false;
  } else {
    const auto prefix = mask.empty() ? length * 8 : std::strtoul(mask.c_str(), nullptr, 10);
    for (size_t i = 0; i < std::min(prefix, length * 8); i++) bits[i / 8] |= static_cast<uint8_t>(0x80 >> i % 8);
  }
  for (size_t i = 0; i < length; i++) {
    if (((wanted[i] ^ given[i]) & bits[i]) != 0) return false;
  }
  return true;
}

bool matches_expression(const std::string& rule, const std::string& name) {
  regex_t expression;
  if (::regcomp(&expression, ("^" + rule + "$").c_str(), REG_NOSUB) != 0) return false;
  const bool matches = ::regexec(&expression, name.c_str(), 0, nullptr, 0) == 0;
  ::regfree(&expression);
  return matches;
}

/** Reads the file anew: the first line that names the target or ALL decides. */
bool access_allowed(const std::string& file, const std::string& target, const std::string& initiator,
                    const std::string& address) {
  std::ifstream stream(file);
  if (!stream) return true;
  for (std::string line; std::getline(stream, line);) {
    // At the end of the stream the line had no newline.
    if (stream.eof() || line.size() > kLongestLine) continue;
    line = trimmed(line);
    const auto blank = line.find_first_of(" \t");
    const auto subject = line.substr(0, blank);
    if (!same_name(subject, target) && subject != "ALL") continue;
    std::istringstream rules(blank == std::string::npos ? "" : line.substr(blank));
    for (std::string rule; std::getline(rules, rule, ',');) {
      rule = trimmed(rule);
      if (rule.empty()) continue;
      if (rule == "ALL" || matches_mask(rule, address) || matches_expression(rule, initiator)) return true;
    }
    return false;
  }
  return false;
}

// ---- The daemon -----------------------------------------------------------------------------------------------------

class Daemon {
 public:
  explicit Daemon(std::map<std::string, std::string> options) : options_(std::move(options)) {
    version_ = options_["--version"];
  }

  /** Up to 1.4.20.1 the device is opened first and the socket listens before the fork. */
  void start() {
    const bool early = iet::before_1_4_20(version_) || version_ == "1.4.20" || version_ == "1.4.20.1";
    if (early) {
      open_device();
      listen_on_socket();
      into_background();
    } else {
      into_background();
      listen_on_socket();
      open_device();
    }
    steering_ = steering::listen_at(options_["--steering"]);
    read_configuration();
    std::ofstream(options_["--pid-file"]) << ::getpid() << '\n';
    if (::write(ready_.get(), "", 1) != 1) die("write");
    ready_ = Fd();
  }

  [[noreturn]] void run() {
    for (;;) {
      std::array<pollfd, 2> polled{{{socket_.get(), POLLIN, 0}, {steering_.get(), POLLIN, 0}}};
      if (::poll(polled.data(), polled.size(), -1) < 0) die("poll");
      if (polled[0].revents != 0) serve();
      if (polled[1].revents != 0) steer();
    }
  }

 private:
  void open_device() {
    device_ = Fd(::open(options_["--device"].c_str(), O_RDWR | O_CLOEXEC));
    if (!device_) die(options_["--device"]);
    if (iet::before_1_4_20(version_)) return;
    iet::ModuleInfo info{};
    if (::ioctl(device_.get(), iet::kGetModuleInfo, &info) != 0) die("GET_MODULE_INFO");
    if (version_ != text_of(info.version, sizeof(info.version))) {
      std::fprintf(stderr, "the module is of version %s, and this is %s\n", info.version, version_.c_str());
      std::exit(1);
    }
  }

  void listen_on_socket() {
    socket_ = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, kSocketName, sizeof(kSocketName));
    // All of sun_path is the name, so its zero bytes count as well.
    if (::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) die("bind");
    if (::listen(socket_.get(), kBacklog) != 0) die("listen");
  }

  /** The one that was started exits when the daemon can be asked, with 1 where it could not start. */
  void into_background() {
    std::array<int, 2> pipe{};
    if (::pipe2(pipe.data(), O_CLOEXEC) != 0) die("pipe2");
    Fd reading(pipe[0]);
    ready_ = Fd(pipe[1]);
    const pid_t child = ::fork();
    if (child < 0) die("fork");
    if (child > 0) {
      ready_ = Fd();
      char byte = 0;
      ::_exit(::read(reading.get(), &byte, 1) == 1 ? 0 : 1);
    }
    ::setsid();
    if (::chdir("/") != 0) die("chdir");
  }

  /** Of ietd.conf only what this double can have: targets, their LUNs and accounts. */
  void read_configuration() {
    std::ifstream stream(options_["--config"] + "/ietd.conf");
    uint32_t tid = 0;
    for (std::string line; std::getline(stream, line);) {
      std::istringstream words(line);
      std::string key;
      words >> key;
      if (key == "Target") {
        std::string name;
        words >> name;
        tid = 0;
        add_target(tid, name);
      } else if (key == "Lun") {
        uint32_t lun = 0;
        std::string args;
        words >> lun >> args;
        add_volume(tid, lun, args);
      } else if (key == "IncomingUser" || key == "OutgoingUser") {
        std::string name;
        std::string pass;
        words >> name >> pass;
        add_account({tid, key == "OutgoingUser" ? 1U : 0U, name, pass});
      }
    }
  }

  // ---- Calls to the module ------------------------------------------------------------------------------------------

  template <class Info>
  int call(uint32_t request, Info& info) {
    const auto code = iet::before_1_4_20(version_) ? request ^ iet::kOldNumbers : request;
    return ::ioctl(device_.get(), code, &info) < 0 ? -errno : 0;
  }

  int add_target(uint32_t& tid, const std::string& name) {
    const bool taken =
        std::any_of(targets_.begin(), targets_.end(), [&](const Target& one) { return same_name(one.name, name); });
    if (taken) return -EINVAL;
    iet::TargetInfo info{};
    info.tid = tid;
    name.copy(info.name, sizeof(info.name));
    const int error = call(iet::kAddTarget, info);
    if (error != 0) return error;
    tid = info.tid;
    targets_.push_back({tid, name.substr(0, sizeof(info.name) - 1), ""});
    return 0;
  }

  Target* target_of(uint32_t tid) {
    const auto found =
        std::find_if(targets_.begin(), targets_.end(), [&](const Target& one) { return one.tid == tid; });
    return found == targets_.end() ? nullptr : &*found;
  }

  int delete_target(uint32_t tid) {
    auto* target = target_of(tid);
    if (target == nullptr) return -ENOENT;
    const bool looks = version_ != "1.4.20" && version_ != "1.4.20.1";
    if (looks && steering::ask(options_["--module"], "sessions " + std::to_string(tid)) == "true") return -EBUSY;
    iet::TargetInfo info{};
    info.tid = tid;
    const int error = call(iet::kDelTarget, info);
    if (error != 0) return error;
    accounts_.remove_if([&](const Account& account) { return account.tid == tid; });
    targets_.remove_if([&](const Target& one) { return &one == target; });
    return 0;
  }

  int add_volume(uint32_t tid, uint32_t lun, const std::string& args) {
    iet::VolumeInfo info{};
    info.tid = tid;
    info.lun = lun;
    info.args_ptr = reinterpret_cast<uint64_t>(args.data());
    info.args_len = static_cast<uint32_t>(args.size());
    return call(iet::kAddVolume, info);
  }

  int update_params(const iet::Message& message, uint64_t sid) {
    const auto& given = message.u.target;
    for (const uint32_t type : {0U, 1U}) {
      if ((given.type >> type & 1) == 0) continue;
      iet::ParamInfo info{};
      info.tid = message.tid;
      info.sid = sid;
      info.type = type;
      info.partial = type == 0 ? given.session_partial : given.target_partial;
      for (size_t key = 0; key < iet::kSessionKeys; key++) info.session_param[key] = given.session_param[key].value;
      for (size_t key = 0; key < iet::kTargetKeys; key++) info.target_param[key] = given.target_param[key].value;
      const int error = call(iet::kParamSet, info);
      if (error != 0) return error;
    }
    return 0;
  }

  int show_params(iet::Message& message, uint64_t sid) {
    auto& shown = message.u.target;
    for (const uint32_t type : {0U, 1U}) {
      if ((shown.type >> type & 1) == 0) continue;
      iet::ParamInfo info{};
      info.tid = message.tid;
      info.sid = sid;
      info.type = type;
      const int error = call(iet::kParamGet, info);
      if (error != 0) return error;
      for (size_t key = 0; key < iet::kSessionKeys && type == 0; key++) {
        shown.session_param[key].value = info.session_param[key];
      }
      for (size_t key = 0; key < iet::kTargetKeys && type == 1; key++) {
        shown.target_param[key].value = info.target_param[key];
      }
    }
    return 0;
  }

  // ---- Accounts -----------------------------------------------------------------------------------------------------

  /** The newest is first, and so the one that counts. */
  int add_account(Account account) {
    if (account.direction == 1) {
      accounts_.remove_if([&](const Account& one) { return one.tid == account.tid && one.direction == 1; });
    }
    accounts_.push_front(std::move(account));
    return 0;
  }

  std::list<Account>::iterator account_of(const iet::Message& message) {
    const auto& given = message.u.account;
    const auto name = text_of(given.u.user.name, sizeof(given.u.user.name));
    return std::find_if(accounts_.begin(), accounts_.end(), [&](const Account& one) {
      return one.tid == message.tid && one.direction == given.direction && one.name == name;
    });
  }

  int show_account(iet::Message& message) {
    const auto found = account_of(message);
    if (found == accounts_.end()) return -ENOENT;
    auto& user = message.u.account.u.user;
    std::memset(user.pass, 0, sizeof(user.pass));
    found->pass.copy(user.pass, sizeof(user.pass) - 1);
    return 0;
  }

  int delete_account(const iet::Message& message) {
    const auto found = account_of(message);
    if (found == accounts_.end()) return -ENOENT;
    accounts_.erase(found);
    return 0;
  }

  int list_accounts(iet::Message& message, std::string& data) {
    constexpr size_t kName = 256;
    auto& list = message.u.account.u.list;
    data.assign(list.alloc_len, '\0');
    list.count = list.overflow = 0;
    for (const auto& account : accounts_) {
      if (account.tid != message.tid || account.direction != message.u.account.direction) continue;
      if ((list.count + 1) * kName > data.size()) {
        list.overflow++;
        continue;
      }
      account.name.copy(data.data() + list.count * kName, kName - 1);
      list.count++;
    }
    return 0;
  }

  // ---- The socket ---------------------------------------------------------------------------------------------------

  void serve() {
    Fd client(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!client) return;
    ucred peer{};
    socklen_t length = sizeof(peer);
    if (::getsockopt(client.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return;
    std::string data;
    if (peer.uid != 0 || peer.gid != 0) {
      refused_++;
      // What an earlier caller asked for is still in there.
      reply_.error = -EPERM;
    } else {
      // One read, without a deadline: who connects and says nothing stops everything.
      if (::read(client.get(), &reply_.echo, sizeof(reply_.echo)) != static_cast<ssize_t>(sizeof(reply_.echo))) return;
      requests_[reply_.echo.command]++;
      reply_.error = execute(reply_.echo, data);
    }
    answer(std::move(client), data);
  }

  int execute(iet::Message& message, std::string& data) {
    auto& u = message.u;
    switch (message.command) {
      case iet::kTargetNew:
        return add_target(message.tid, text_of(u.target.name, sizeof(u.target.name)));
      case iet::kTargetDel:
        return delete_target(message.tid);
      case iet::kTargetUpdate:
        return update_params(message, 0);
      case iet::kTargetShow:
        return show_params(message, 0);
      case iet::kTargetRedirect: {
        auto* target = target_of(message.tid);
        if (target == nullptr) return -ENOENT;
        target->redirect = text_of(u.redirect, sizeof(u.redirect));
        return 0;
      }
      case iet::kSessionDel: {
        iet::SessionInfo info{};
        info.tid = message.tid;
        info.sid = message.sid;
        return call(iet::kDelSession, info);
      }
      case iet::kSessionUpdate:
        return update_params(message, message.sid);
      case iet::kSessionShow:
        return show_params(message, message.sid);
      case iet::kConnDel: {
        iet::ConnInfo info{};
        info.tid = message.tid;
        info.sid = message.sid;
        info.cid = message.cid;
        return call(iet::kDelConn, info);
      }
      case iet::kLunNew:
        return add_volume(message.tid, message.lun, text_of(u.lun_args, sizeof(u.lun_args) - 1));
      case iet::kLunDel: {
        iet::VolumeInfo info{};
        info.tid = message.tid;
        info.lun = message.lun;
        return call(iet::kDelVolume, info);
      }
      case iet::kAccountNew:
        return add_account({message.tid, u.account.direction,
                            text_of(u.account.u.user.name, sizeof(u.account.u.user.name)),
                            text_of(u.account.u.user.pass, sizeof(u.account.u.user.pass))});
      case iet::kAccountDel:
        return delete_account(message);
      case iet::kAccountShow:
        return show_account(message);
      case iet::kAccountList:
        return list_accounts(message, data);
      default:
        return 0;
    }
  }

  void answer(Fd client, const std::string& data) {
    auto manner = std::string("normal");
    if (manner_.left > 0) {
      manner_.left--;
      manner = manner_.name;
      std::this_thread::sleep_for(manner_.delay);
    }
    const std::string_view whole(reinterpret_cast<const char*>(&reply_), iet::kReplyBytes);
    if (manner == "close") return;
    if (manner == "never") {
      unanswered_.push_back(std::move(client));
      return;
    }
    std::string bytes(whole);
    if (manner == "short") bytes.resize(100);
    if (manner == "echo") bytes[0] = static_cast<char>(bytes[0] ^ 0x15);
    bytes += data;
    if (manner == "long") bytes.append(64, 'x');
    if (manner == "huge") bytes.append(size_t{64} << 20, 'x');
    steering::write_all(client.get(), bytes);
  }

  // ---- Steering, and what initiators would do -----------------------------------------------------------------------

  void steer() {
    const Fd client(::accept4(steering_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!client) return;
    const auto words = steering::words_of(steering::read_line(client.get()));
    steering::write_all(client.get(), obey(words) + "\n");
  }

  std::string obey(const std::vector<std::string>& words) {
    const auto text = [&](size_t i) { return i < words.size() ? words[i] : std::string(); };
    const auto number = [&](size_t i) { return std::strtoull(text(i).c_str(), nullptr, 10); };
    const auto& what = text(0);
    if (what == "state") return state();
    if (what == "answer") {
      manner_ = {text(1), number(2), std::chrono::milliseconds(number(3))};
      return "{}";
    }
    if (what == "login") return log_in(words);
    if (what == "discover") {
      std::vector<std::string> names;
      const bool may = account_matches(0, text(3), text(4));
      for (const auto& target : targets_) {
        if (may && allowed(target.name, text(1), text(2))) names.push_back(target.name);
      }
      return steering::list(names, [](const std::string& name) { return quoted(name); });
    }
    return "{\"error\":\"no such word\"}";
  }

  bool allowed(const std::string& target, const std::string& initiator, const std::string& address) const {
    return access_allowed(options_.at("--config") + "/initiators.allow", target, initiator, address);
  }

  bool account_matches(uint32_t tid, const std::string& name, const std::string& pass) const {
    bool any = false;
    for (const auto& account : accounts_) {
      if (account.tid != tid || account.direction != 0) continue;
      any = true;
      if (account.name == name) return account.pass == pass;
    }
    return !any;
  }

  /** With a stale target and a new one of one number the new one's rules hold for both names, as its accounts do. */
  std::string ruling_name(uint32_t tid) const {
    const auto newest =
        std::find_if(targets_.rbegin(), targets_.rend(), [&](const Target& one) { return one.tid == tid; });
    return newest->name;
  }

  /** login TARGET INITIATOR ADDRESS [USER PASS]: what an initiator would be told, and a session where it may. */
  std::string log_in(const std::vector<std::string>& words) {
    const auto text = [&](size_t i) { return i < words.size() ? words[i] : std::string(); };
    const auto status = [](const std::string& code) { return "{\"status\":\"" + code + "\"}"; };
    const auto found =
        std::find_if(targets_.begin(), targets_.end(), [&](const Target& one) { return same_name(one.name, text(1)); });
    if (found == targets_.end()) return status("0x0203");
    if (!allowed(ruling_name(found->tid), text(2), text(3))) return status("denied");
    if (!account_matches(found->tid, text(4), text(5))) return status("0x0201");
    if (!found->redirect.empty()) return status("redirect " + found->redirect);
    const uint64_t sid = ++sessions_made_ << 48 | 0x023d000080;
    const auto session = std::to_string(found->tid) + " " + std::to_string(sid);
    if (steering::ask(options_["--module"], "session " + session + " " + text(2) + " " + found->name) != "{}")
      return status("0x0201");
    steering::ask(options_["--module"], "connection " + session + " 0 " + text(3) + " active none none");
    return "{\"status\":\"ok\",\"tid\":" + std::to_string(found->tid) + ",\"sid\":\"" + std::to_string(sid) + "\"}";
  }

  std::string state() const {
    const auto target = [](const Target& one) {
      return "{\"tid\":" + std::to_string(one.tid) + ",\"name\":" + quoted(one.name) +
             ",\"redirect\":" + quoted(one.redirect) + "}";
    };
    const auto account = [](const Account& one) {
      return "{\"tid\":" + std::to_string(one.tid) + ",\"direction\":" + std::to_string(one.direction) +
             ",\"name\":" + quoted(one.name) + "}";
    };
    std::string requests;
    for (const auto& [command, count] : requests_) {
      requests += (requests.empty() ? "\"" : ",\"") + std::to_string(command) + "\":" + std::to_string(count);
    }
    return "{\"version\":" + quoted(version_) + ",\"pid\":" + std::to_string(::getpid()) +
           ",\"refused\":" + std::to_string(refused_) + ",\"requests\":{" + requests +
           "},\"targets\":" + steering::list(targets_, target) + ",\"accounts\":" + steering::list(accounts_, account) +
           "}";
  }

  std::map<std::string, std::string> options_;
  std::string version_;
  Fd ready_;
  Fd device_;
  Fd socket_;
  Fd steering_;
  std::list<Target> targets_;
  std::list<Account> accounts_;
  iet::Reply reply_{};
  std::map<uint32_t, uint64_t> requests_;
  uint64_t refused_ = 0;
  uint64_t sessions_made_ = 0;
  Manner manner_;
  std::vector<Fd> unanswered_;
};

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> options;
  for (int i = 1; i + 1 < argc; i += 2) options[argv[i]] = argv[i + 1];
  ::signal(SIGPIPE, SIG_IGN);
  Daemon daemon(std::move(options));
  daemon.start();
  daemon.run();
}
