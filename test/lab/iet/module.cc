// The double of IET's kernel module: a CUSE device that answers its ioctls, and a FUSE file system with its two
// listings.
//
//   iet-module --listings DIRECTORY --steering SOCKET --version VERSION
//
// README.md says what it does as the module does it, what it leaves out and how it is steered. /dev/cuse and /dev/fuse
// are spoken to directly (linux/fuse.h), since the traps hang on what a library would hide: when a release is answered,
// whether a signal ends a wait, and where a read of a listing ends.
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/fs.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <fstream>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <sstream>

#include "interface.h"
#include "steering.h"

namespace {

using steering::die;
using steering::Fd;
using steering::quoted;
using Clock = std::chrono::steady_clock;

constexpr size_t kPage = 4096;
constexpr size_t kLargestRequest = 256 * 1024;
// One FUSE request carries no more than 128 KiB. What arguments have beyond this is looked at for its last byte alone.
constexpr size_t kArgumentsRead = 64 * 1024;
constexpr uint32_t kArgumentsLimit = 4 * 1024 * 1024;
constexpr uint32_t kLargestLun = 0x3fff;

const std::map<std::string, uint32_t> kRequests = {
    {"GET_MODULE_INFO", iet::kGetModuleInfo},
    {"ADD_TARGET", iet::kAddTarget},
    {"DEL_TARGET", iet::kDelTarget},
    {"ADD_VOLUME", iet::kAddVolume},
    {"DEL_VOLUME", iet::kDelVolume},
    {"ADD_SESSION", iet::kAddSession},
    {"DEL_SESSION", iet::kDelSession},
    {"GET_SESSION_INFO", iet::kGetSessionInfo},
    {"ADD_CONN", iet::kAddConn},
    {"DEL_CONN", iet::kDelConn},
    {"GET_CONN_INFO", iet::kGetConnInfo},
    {"PARAM_SET", iet::kParamSet},
    {"PARAM_GET", iet::kParamGet},
};

// ---- What the module keeps ------------------------------------------------------------------------------------------

struct Range {
  uint32_t least, most;
};

constexpr uint32_t kAny = 0xffffffff;

// The defaults are observed. Which keys are checked is not, but for wthreads: these are the ranges of RFC 7143
// section 13.
constexpr std::array<uint32_t, iet::kSessionKeys> kSessionDefaults = {1, 1, 1, 8192, 8192, 262144, 65536, 2,    20,  1,
                                                                      1, 1, 0, 1,    1,    0,      0,     2048, 2048};
constexpr std::array<Range, iet::kSessionKeys> kSessionRanges = {{{0, 1},
                                                                  {0, 1},
                                                                  {1, 65535},
                                                                  {512, 16777215},
                                                                  {512, 16777215},
                                                                  {512, 16777215},
                                                                  {512, 16777215},
                                                                  {0, 3600},
                                                                  {0, 3600},
                                                                  {1, 65535},
                                                                  {0, 1},
                                                                  {0, 1},
                                                                  {0, 2},
                                                                  {1, 3},
                                                                  {1, 3},
                                                                  {0, 1},
                                                                  {0, 1},
                                                                  {0, 65535},
                                                                  {0, 65535}}};
constexpr size_t kRetainTime = 8;
constexpr std::array<uint32_t, iet::kTargetKeys> kTargetDefaults = {8, 0, 32, 0, 0};
constexpr std::array<Range, iet::kTargetKeys> kTargetRanges = {{{1, 128}, {0, kAny}, {1, 256}, {0, 90}, {0, 90}}};

struct Volume {
  uint32_t lun = 0;
  bool deleted = false;
  bool busy = false;
  std::string type = "fileio";
  std::string mode = "wt";
  std::string path;
  uint32_t block_size = 512;
  uint64_t blocks = 0;
  std::optional<std::string> scsi_id;
  std::optional<std::string> scsi_sn;
  Fd file;
};

struct Connection {
  uint32_t cid = 0;
  std::string ip;
  std::string state;
  std::string header_digest;
  std::string data_digest;
};

struct Session {
  uint64_t sid = 0;
  std::string initiator;
  // The target's name at the login. The kernel does not know it, and tests can see by it who has come to the wrong one.
  std::string asked;
  std::array<uint32_t, iet::kSessionKeys> params{};
  std::list<Connection> connections;
};

struct Target {
  uint32_t tid = 0;
  std::string name;
  std::list<Volume> volumes;
  std::list<Session> sessions;
  std::array<uint32_t, iet::kSessionKeys> session_params = kSessionDefaults;
  std::array<uint32_t, iet::kTargetKeys> target_params = kTargetDefaults;
  // REPORT LUNS counts by this, which a second deletion of a busy LUN spoils.
  int lun_count = 0;
};

template <class List, class Match>
auto* find(List& items, Match match) {
  const auto found = std::find_if(items.begin(), items.end(), match);
  return found == items.end() ? nullptr : &*found;
}

struct Module {
  std::string version;
  std::list<Target> targets;
  uint32_t last_tid = 0;
  uint64_t opens = 0, releases = 0, wipes = 0, oopses = 0;
  std::map<std::string, uint64_t> calls;

  bool old() const { return iet::before_1_4_20(version); }
  Target* target(uint32_t tid) {
    return find(targets, [&](const Target& target) { return target.tid == tid; });
  }
};

Volume* volume_of(Target& target, uint32_t lun) {
  return find(target.volumes, [&](const Volume& volume) { return volume.lun == lun; });
}

Session* session_of(Target& target, uint64_t sid) {
  return find(target.sessions, [&](const Session& session) { return session.sid == sid; });
}

// ---- Volumes --------------------------------------------------------------------------------------------------------

bool same_key(const std::string& a, const char* b) { return ::strcasecmp(a.c_str(), b) == 0; }

/** Fills the volume from ADD_VOLUME's arguments. A later good value hides an earlier error, as in the module. */
int parse_arguments(const std::string& text, Volume& volume) {
  int error = 0;
  int paths = 0;
  bool has_mode = false;
  bool has_sectors = false;
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    if (item.empty()) continue;
    const auto equals = item.find('=');
    const auto key = item.substr(0, equals);
    const auto value = equals == std::string::npos ? "" : item.substr(equals + 1);
    if (same_key(key, "Path")) {
      paths++;
      volume.path = value;
    } else if (same_key(key, "Type")) {
      if (value == "fileio" || value == "blockio" || value == "nullio") {
        volume.type = value;
      } else {
        error = ENOENT;
      }
    } else if (same_key(key, "IOMode")) {
      has_mode = true;
      error = value == "wt" || value == "wb" || value == "ro" ? 0 : EINVAL;
      if (error == 0) volume.mode = value;
    } else if (same_key(key, "BlockSize")) {
      char* end = nullptr;
      const auto size = std::strtoul(value.c_str(), &end, 10);
      const bool good = *end == 0 && size >= 512 && size <= 4096 && (size & (size - 1)) == 0;
      error = good ? 0 : EINVAL;
      if (good) volume.block_size = static_cast<uint32_t>(size);
    } else if (same_key(key, "Sectors")) {
      const bool digits = std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; });
      if (value.empty() || !digits) return EINVAL;
      has_sectors = true;
      volume.blocks = std::strtoull(value.c_str(), nullptr, 10);
    } else if (same_key(key, "ScsiId")) {
      error = !value.empty() && value.size() <= 16 ? 0 : EINVAL;
      if (error == 0) volume.scsi_id = value;
    } else if (same_key(key, "ScsiSN")) {
      const bool printable = std::all_of(value.begin(), value.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
      error = !value.empty() && value.size() <= 32 && printable ? 0 : EINVAL;
      if (error == 0) volume.scsi_sn = value;
    } else {
      error = EINVAL;
    }
  }
  if (error != 0) return error;
  if (volume.type == "nullio") return paths > 0 || has_mode ? EINVAL : 0;
  return paths == 1 && !volume.path.empty() && !has_sectors ? 0 : EINVAL;
}

/** Whose working directory, root and rights count. */
struct Caller {
  pid_t pid;
  uid_t uid;
  gid_t gid;
};

std::vector<gid_t> groups_of(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  std::vector<gid_t> groups;
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("Groups:", 0) != 0) continue;
    std::istringstream numbers(line.substr(7));
    for (gid_t group = 0; numbers >> group;) groups.push_back(group);
  }
  return groups;
}

/** This process in the caller's place as far as paths go, until it is destroyed. */
class InPlaceOf {
 public:
  explicit InPlaceOf(const Caller& caller) : own_root_(::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC)) {
    const auto process = "/proc/" + std::to_string(caller.pid);
    const Fd root(::open((process + "/root").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    const Fd cwd(::open((process + "/cwd").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    ready_ = root && cwd && ::fchdir(root.get()) == 0 && ::chroot(".") == 0 && ::fchdir(cwd.get()) == 0;
    // Root's groups give it nothing more.
    if (caller.uid != 0) {
      const auto groups = groups_of(caller.pid);
      if (::setgroups(groups.size(), groups.data()) != 0) ready_ = false;
    }
    ::setfsgid(caller.gid);
    ::setfsuid(caller.uid);
  }
  ~InPlaceOf() {
    ::setfsuid(0);
    ::setfsgid(0);
    if (::setgroups(0, nullptr) != 0 || ::fchdir(own_root_.get()) != 0 || ::chroot(".") != 0) {
      die("cannot return to the own root");
    }
  }
  InPlaceOf(const InPlaceOf&) = delete;
  InPlaceOf& operator=(const InPlaceOf&) = delete;
  bool ready() const { return ready_; }

 private:
  Fd own_root_;
  bool ready_ = false;
};

int attach(Volume& volume, const Caller& caller) {
  if (volume.type == "nullio") {
    // 64 GiB where no number of blocks is asked for.
    if (volume.blocks == 0) volume.blocks = (uint64_t{1} << 36) / volume.block_size;
    return 0;
  }
  const InPlaceOf place(caller);
  if (!place.ready()) return ESRCH;
  // Looked at first: opening a device of our own would wait for ourselves.
  const Fd looked(::open(volume.path.c_str(), O_PATH | O_CLOEXEC));
  if (!looked) return errno;
  struct stat status {};
  if (::fstat(looked.get(), &status) != 0) return errno;
  if (volume.type == "blockio" && !S_ISBLK(status.st_mode)) return ENOTBLK;
  if (S_ISDIR(status.st_mode)) return EISDIR;
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) return EINVAL;
  volume.file = Fd(::open(volume.path.c_str(), (volume.mode == "ro" ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK));
  if (!volume.file) return errno;
  auto bytes = static_cast<uint64_t>(status.st_size);
  if (S_ISBLK(status.st_mode) && ::ioctl(volume.file.get(), BLKGETSIZE64, &bytes) != 0) return errno;
  volume.blocks = bytes / volume.block_size;
  return 0;
}

// ---- Listings -------------------------------------------------------------------------------------------------------

enum class Listing { kVolume, kSession };

std::string rendered(const Target& target, Listing listing, bool old) {
  std::ostringstream text;
  text << "tid:" << target.tid << " name:" << target.name << '\n';
  if (listing == Listing::kVolume) {
    for (const auto& volume : target.volumes) {
      text << "\tlun:" << volume.lun << " state:" << (volume.deleted ? 1 : 0) << " iotype:" << volume.type
           << " iomode:" << volume.mode;
      if (!old) text << " blocks:" << volume.blocks << " blocksize:" << volume.block_size;
      if (!volume.path.empty()) text << " path:" << volume.path;
      text << '\n';
    }
    return text.str();
  }
  for (const auto& session : target.sessions) {
    text << "\tsid:" << session.sid << " initiator:" << session.initiator << '\n';
    for (const auto& connection : session.connections) {
      text << "\t\tcid:" << connection.cid << " ip:" << connection.ip << " state:" << connection.state
           << " hd:" << connection.header_digest << " dd:" << connection.data_digest << '\n';
    }
  }
  return text.str();
}

/** An open listing. It keeps a number of targets, not a place in the list, so a change between reads shifts it. */
struct Reader {
  Listing listing = Listing::kVolume;
  size_t passed = 0;
  size_t capacity = kPage;
  uint64_t offset = 0;
  std::string rest;

  std::string read(const Module& module, uint64_t from, size_t size) {
    if (from != offset) {
      passed = 0;
      rest.clear();
      for (offset = 0; offset < from;) {
        const auto skipped = next(module, std::min<uint64_t>(kPage, from - offset));
        if (skipped.empty()) return "";
        offset += skipped.size();
      }
    }
    auto bytes = next(module, size);
    offset += bytes.size();
    return bytes;
  }

 private:
  std::string next(const Module& module, size_t size) {
    if (rest.empty()) fill(module, size);
    auto bytes = rest.substr(0, size);
    rest.erase(0, bytes.size());
    return bytes;
  }

  void fill(const Module& module, size_t size) {
    auto target = module.targets.begin();
    for (size_t i = 0; i < passed && target != module.targets.end(); i++) ++target;
    for (; target != module.targets.end() && rest.size() < size; ++target, ++passed) {
      const auto text = rendered(*target, listing, module.old());
      if (rest.empty()) {
        while (text.size() >= capacity) capacity *= 2;
      } else if (rest.size() + text.size() >= capacity) {
        return;
      }
      rest += text;
    }
  }
};

std::string listed_address(const std::string& address) {
  std::array<uint8_t, 16> bytes{};
  if (::inet_pton(AF_INET6, address.c_str(), bytes.data()) != 1) return address;
  std::string text = "[";
  for (size_t i = 0; i < bytes.size(); i += 2) {
    char group[6];
    std::snprintf(group, sizeof(group), "%s%02x%02x", i == 0 ? "" : ":", bytes[i], bytes[i + 1]);
    text += group;
  }
  return text + ']';
}

// ---- The conversation with the kernel -------------------------------------------------------------------------------

enum class Channel { kDevice, kListings };

struct Request {
  Channel channel;
  std::vector<char> bytes;

  const fuse_in_header& header() const { return *reinterpret_cast<const fuse_in_header*>(bytes.data()); }
  template <class T>
  const T& body() const {
    return *reinterpret_cast<const T*>(bytes.data() + sizeof(fuse_in_header));
  }
  template <class T>
  const char* after() const {
    return bytes.data() + sizeof(fuse_in_header) + sizeof(T);
  }
  bool is_ioctl() const { return channel == Channel::kDevice && header().opcode == FUSE_IOCTL; }
  bool is_first_step() const {
    return is_ioctl() && body<fuse_ioctl_in>().in_size == 0 && body<fuse_ioctl_in>().out_size == 0;
  }
  /** When all is there that the call needs. It hangs there and not before: then it comes to its end afterwards. */
  bool is_last_step() const {
    if (!is_ioctl() || is_first_step()) return false;
    const auto& call = body<fuse_ioctl_in>();
    return call.cmd != iet::kAddVolume || call.in_size != sizeof(iet::VolumeInfo);
  }
  /** What takes the module's lock. */
  bool needs_lock() const {
    if (channel == Channel::kListings) return header().opcode == FUSE_READ;
    return is_ioctl() || header().opcode == FUSE_RELEASE;
  }
};

class Double {
 public:
  Double(std::string version, const std::string& listings, const std::string& steering)
      : listings_directory_(listings),
        device_(::open("/dev/cuse", O_RDWR | O_CLOEXEC | O_NONBLOCK)),
        listings_(::open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK)),
        steering_(steering::listen_at(steering)) {
    module_.version = std::move(version);
    if (!device_) die("/dev/cuse");
    if (!listings_) die("/dev/fuse");
  }

  void run() {
    const auto options = "fd=" + std::to_string(listings_.get()) + ",rootmode=40555,user_id=0,group_id=0,allow_other";
    if (::mount("iet", listings_directory_.c_str(), "fuse", MS_NOSUID | MS_NODEV | MS_NOEXEC, options.c_str()) != 0) {
      die("mount " + listings_directory_);
    }
    for (;;) {
      std::array<pollfd, 3> polled{
          {{device_.get(), POLLIN, 0}, {listings_.get(), POLLIN, 0}, {steering_.get(), POLLIN, 0}}};
      if (::poll(polled.data(), polled.size(), milliseconds_to_wait()) < 0 && errno != EINTR) die("poll");
      if (until_ && Clock::now() >= *until_) resume();
      if (polled[0].revents != 0) receive(Channel::kDevice);
      if (polled[1].revents != 0) receive(Channel::kListings);
      if (polled[2].revents != 0) steer();
    }
  }

 private:
  int fd(Channel channel) const { return channel == Channel::kDevice ? device_.get() : listings_.get(); }

  int milliseconds_to_wait() const {
    if (!until_) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*until_ - Clock::now()).count();
    return static_cast<int>(std::max<int64_t>(0, left));
  }

  void receive(Channel channel) {
    const auto length = ::read(fd(channel), received_.data(), received_.size());
    if (length < 0) {
      // ENOENT: the caller was killed before we read its request.
      if (errno == ENOENT || errno == EINTR || errno == EAGAIN) return;
      if (errno == ENODEV) std::exit(0);
      die("read");
    }
    Request request{channel, {received_.begin(), received_.begin() + length}};
    if (request.header().opcode == FUSE_INTERRUPT) {
      interrupt(request.body<fuse_interrupt_in>().unique);
      return;
    }
    if (request.is_first_step()) {
      const auto command = request.body<fuse_ioctl_in>().cmd ^ (module_.old() ? iet::kOldNumbers : 0);
      for (const auto& [name, code] : kRequests) {
        if (code == command) module_.calls[name]++;
      }
      if (command == iet::kAddVolume || command == iet::kDelVolume) fetch_volume(request, command);
    }
    admit(std::move(request));
  }

  /**
   * The caller's memory, read as a kernel module would: without it each call costs one or two more journeys through
   * CUSE, which is what a measurement would then see. What cannot be read is left to the kernel to ask for, and to
   * refuse.
   */
  static void fetch_volume(Request& request, uint32_t command) {
    const auto call = request.body<fuse_ioctl_in>();
    const auto pid = static_cast<pid_t>(request.header().pid);
    iet::VolumeInfo info{};
    if (!read_memory(pid, call.arg, &info, sizeof(info))) return;
    std::vector<char> data(sizeof(info));
    std::memcpy(data.data(), &info, sizeof(info));
    if (command == iet::kAddVolume && info.args_len > 0 && info.args_len <= kArgumentsRead) {
      data.resize(sizeof(info) + info.args_len);
      if (!read_memory(pid, info.args_ptr, data.data() + sizeof(info), info.args_len)) return;
    }
    request.bytes.insert(request.bytes.end(), data.begin(), data.end());
    reinterpret_cast<fuse_ioctl_in*>(request.bytes.data() + sizeof(fuse_in_header))->in_size =
        static_cast<uint32_t>(data.size());
  }

  static bool read_memory(pid_t pid, uint64_t from, void* to, size_t length) {
    const iovec local{to, length};
    // An address of the caller's.
    const iovec remote{reinterpret_cast<void*>(from), length};  // NOLINT(performance-no-int-to-ptr)
    return ::process_vm_readv(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(length);
  }

  // ---- The module's lock: who holds it while a call hangs, and who waits for it
  // --------------------------------------

  void admit(Request request) {
    if (holder_ && request.needs_lock()) {
      waiting_.push_back(std::move(request));
      return;
    }
    if (request.is_last_step()) {
      const auto command = request.body<fuse_ioctl_in>().cmd ^ (module_.old() ? iet::kOldNumbers : 0);
      if (hanging_ == command) {
        hanging_.reset();
        holder_ = std::make_unique<Request>(std::move(request));
        return;
      }
      if (delay_.count() > 0) {
        until_ = Clock::now() + delay_;
        holder_ = std::make_unique<Request>(std::move(request));
        return;
      }
    }
    serve(request);
  }

  void resume() {
    until_.reset();
    if (!holder_) return;
    const auto request = std::move(holder_);
    serve(*request);
    while (!holder_ && !waiting_.empty()) {
      Request next = std::move(waiting_.front());
      waiting_.pop_front();
      admit(std::move(next));
    }
  }

  /** A signal ends the wait for the lock, but neither the call that holds it nor the release of a closed file. */
  void interrupt(uint64_t unique) {
    const auto found = std::find_if(waiting_.begin(), waiting_.end(),
                                    [&](const Request& request) { return request.header().unique == unique; });
    if (found == waiting_.end() || (!found->is_ioctl() && found->channel == Channel::kDevice)) return;
    if (found->channel == Channel::kListings) {
      reply(*found, nullptr, 0);
    } else {
      fail(*found, EINTR);
    }
    waiting_.erase(found);
  }

  // ---- Answers
  // --------------------------------------------------------------------------------------------------------

  void write_parts(const Request& request, int error, std::vector<iovec> parts) {
    fuse_out_header header{};
    header.unique = request.header().unique;
    header.error = -error;
    header.len = sizeof(header);
    for (const auto& part : parts) header.len += static_cast<uint32_t>(part.iov_len);
    parts.insert(parts.begin(), {&header, sizeof(header)});
    // ENOENT: nobody waits for the answer any more.
    if (::writev(fd(request.channel), parts.data(), static_cast<int>(parts.size())) < 0 && errno != ENOENT) {
      die("answer to FUSE request " + std::to_string(request.header().opcode));
    }
  }

  void fail(const Request& request, int error) { write_parts(request, error, {}); }

  void reply(const Request& request, const void* bytes, size_t length) {
    write_parts(request, 0, {{const_cast<void*>(bytes), length}});
  }

  template <class T>
  void reply(const Request& request, const T& value) {
    reply(request, &value, sizeof(value));
  }

  void serve(const Request& request) {
    if (request.channel == Channel::kDevice) {
      serve_device(request);
    } else {
      serve_listings(request);
    }
  }

  void serve_device(const Request& request) {
    switch (request.header().opcode) {
      case CUSE_INIT: {
        cuse_init_out out{};
        out.major = FUSE_KERNEL_VERSION;
        out.minor = std::min<uint32_t>(FUSE_KERNEL_MINOR_VERSION, request.body<cuse_init_in>().minor);
        out.flags = CUSE_UNRESTRICTED_IOCTL;
        out.max_read = out.max_write = kPage;
        // The kernel names the range of device numbers in /proc/devices so as well.
        char name[] = "DEVNAME=ietctl";
        write_parts(request, 0, {{&out, sizeof(out)}, {name, sizeof(name)}});
        return;
      }
      case FUSE_OPEN: {
        module_.opens++;
        fuse_open_out out{};
        out.fh = module_.opens;
        reply(request, out);
        return;
      }
      case FUSE_RELEASE:
        module_.releases++;
        if (!module_.targets.empty()) module_.wipes++;
        module_.targets.clear();
        module_.last_tid = 0;
        fail(request, 0);
        return;
      case FUSE_IOCTL:
        serve_ioctl(request);
        return;
      case FUSE_READ:
      case FUSE_WRITE:
        fail(request, EINVAL);
        return;
      default:
        fail(request, ENOSYS);
    }
  }

  // ---- ioctl
  // ------------------------------------------------------------------------------------------------------------

  struct Span {
    uint64_t base;
    uint64_t length;
  };

  /** Has the kernel call again with the caller's memory at `in`, and prepared to write to that at `out`. */
  void want(const Request& request, std::vector<Span> in, const std::vector<Span>& out) {
    fuse_ioctl_out answer{};
    answer.flags = FUSE_IOCTL_RETRY;
    answer.in_iovs = static_cast<uint32_t>(in.size());
    answer.out_iovs = static_cast<uint32_t>(out.size());
    in.insert(in.end(), out.begin(), out.end());
    static_assert(sizeof(Span) == sizeof(fuse_ioctl_iovec));
    write_parts(request, 0, {{&answer, sizeof(answer)}, {in.data(), in.size() * sizeof(Span)}});
  }

  void finish(const Request& request, int error, const void* bytes = nullptr, size_t length = 0) {
    fuse_ioctl_out answer{};
    answer.result = -error;
    write_parts(request, 0, {{&answer, sizeof(answer)}, {const_cast<void*>(bytes), error == 0 ? length : 0}});
  }

  template <class Info>
  void serve_with(const Request& request, bool writes, int (Double::*act)(Info&)) {
    const auto& call = request.body<fuse_ioctl_in>();
    if (call.in_size == 0) {
      want(request, {{call.arg, sizeof(Info)}},
           writes ? std::vector<Span>{{call.arg, sizeof(Info)}} : std::vector<Span>{});
      return;
    }
    Info info;
    std::memcpy(&info, request.after<fuse_ioctl_in>(), sizeof(info));
    const int error = (this->*act)(info);
    finish(request, error, &info, writes ? sizeof(info) : 0);
  }

  void serve_ioctl(const Request& request) {
    const auto& call = request.body<fuse_ioctl_in>();
    const auto command = call.cmd ^ (module_.old() ? iet::kOldNumbers : 0);
    switch (module_.old() && command == iet::kGetModuleInfo ? 0 : command) {
      case iet::kGetModuleInfo: {
        if (call.out_size == 0) return want(request, {}, {{call.arg, sizeof(iet::ModuleInfo)}});
        iet::ModuleInfo info{};
        module_.version.copy(info.version, sizeof(info.version) - 1);
        return finish(request, 0, &info, sizeof(info));
      }
      case iet::kAddTarget:
        return serve_with<iet::TargetInfo>(request, true, &Double::add_target);
      case iet::kDelTarget:
        return serve_with<iet::TargetInfo>(request, false, &Double::delete_target);
      case iet::kAddVolume:
        return serve_add_volume(request);
      case iet::kDelVolume:
        return serve_with<iet::VolumeInfo>(request, false, &Double::delete_volume);
      case iet::kDelSession:
        return serve_with<iet::SessionInfo>(request, false, &Double::delete_session);
      case iet::kGetSessionInfo:
        return serve_with<iet::SessionInfo>(request, true, &Double::get_session);
      case iet::kDelConn:
        return serve_with<iet::ConnInfo>(request, false, &Double::delete_connection);
      case iet::kGetConnInfo:
        return serve_with<iet::ConnInfo>(request, true, &Double::get_connection);
      case iet::kParamSet:
        return serve_with<iet::ParamInfo>(request, false, &Double::set_params);
      case iet::kParamGet:
        return serve_with<iet::ParamInfo>(request, true, &Double::get_params);
      default:
        break;
    }
    if (call.in_size == 0) return want(request, {{call.arg, sizeof(uint32_t)}}, {});
    uint32_t tid = 0;
    std::memcpy(&tid, request.after<fuse_ioctl_in>(), sizeof(tid));
    if (module_.target(tid) == nullptr) return finish(request, ENOENT);
    if (command == iet::kAddSession || command == iet::kAddConn) {
      // The module's kernel would oops in the caller's context, which ends the caller.
      module_.oopses++;
      ::kill(static_cast<pid_t>(request.header().pid), SIGKILL);
    }
    finish(request, EINVAL);
  }

  int add_target(iet::TargetInfo& info) {
    info.name[sizeof(info.name) - 1] = 0;
    const std::string name = info.name;
    if (name.empty()) return EINVAL;
    const bool taken = std::any_of(module_.targets.begin(), module_.targets.end(),
                                   [&](const Target& target) { return target.tid == info.tid || target.name == name; });
    if (taken) return EEXIST;
    if (info.tid == 0) {
      do {
        module_.last_tid++;
      } while (module_.last_tid == 0 || module_.target(module_.last_tid) != nullptr);
      info.tid = module_.last_tid;
    }
    auto& target = module_.targets.emplace_front();
    target.tid = info.tid;
    target.name = name;
    if (module_.version == "trunk") target.session_params[kRetainTime] = 0;
    return 0;
  }

  int delete_target(iet::TargetInfo& info) {
    return module_.targets.remove_if([&](const Target& target) { return target.tid == info.tid; }) > 0 ? 0 : ENOENT;
  }

  void serve_add_volume(const Request& request) {
    const auto& call = request.body<fuse_ioctl_in>();
    iet::VolumeInfo info{};
    const Span itself{call.arg, sizeof(info)};
    if (call.in_size == 0) return want(request, {itself}, {});
    std::memcpy(&info, request.after<fuse_ioctl_in>(), sizeof(info));
    auto* target = module_.target(info.tid);
    if (target == nullptr) return finish(request, ENOENT);
    if (volume_of(*target, info.lun) != nullptr) return finish(request, EEXIST);
    if (info.lun > kLargestLun) return finish(request, EINVAL);
    if (info.args_len >= kArgumentsLimit) return finish(request, ENOMEM);
    const auto length = std::min<uint64_t>(info.args_len, kArgumentsRead);
    if (call.in_size == sizeof(info) && length > 0) {
      std::vector<Span> spans{itself, {info.args_ptr, length}};
      if (info.args_len > length) spans.push_back({info.args_ptr + info.args_len - 1, 1});
      return want(request, spans, {});
    }
    std::string arguments(request.after<fuse_ioctl_in>() + sizeof(info), length);
    arguments.resize(std::min(arguments.size(), arguments.find('\0')));

    Volume volume;
    volume.lun = info.lun;
    int error = parse_arguments(arguments, volume);
    if (error == 0) {
      const auto& header = request.header();
      error = attach(volume, {static_cast<pid_t>(header.pid), header.uid, header.gid});
    }
    if (error == 0) {
      target->volumes.push_back(std::move(volume));
      target->lun_count++;
    }
    finish(request, error);
  }

  int delete_volume(iet::VolumeInfo& info) {
    auto* target = module_.target(info.tid);
    auto* volume = target ? volume_of(*target, info.lun) : nullptr;
    if (volume == nullptr) return ENOENT;
    target->lun_count--;
    volume->deleted = true;
    if (!volume->busy) target->volumes.remove_if([&](const Volume& other) { return &other == volume; });
    return 0;
  }

  int delete_session(iet::SessionInfo& info) {
    auto* target = module_.target(info.tid);
    if (target == nullptr) return ENOENT;
    return target->sessions.remove_if([&](const Session& session) { return session.sid == info.sid; }) > 0 ? 0 : ENOENT;
  }

  int get_session(iet::SessionInfo& info) {
    auto* target = module_.target(info.tid);
    if (target == nullptr || session_of(*target, info.sid) == nullptr) return ENOENT;
    info.exp_cmd_sn = 1;
    info.max_cmd_sn = 33;
    return 0;
  }

  int delete_connection(iet::ConnInfo& info) {
    auto* target = module_.target(info.tid);
    auto* session = target ? session_of(*target, info.sid) : nullptr;
    if (session == nullptr) return ENOENT;
    const auto removed = session->connections.remove_if([&](const Connection& one) { return one.cid == info.cid; });
    if (removed == 0) return EEXIST;
    // A session goes with its last connection.
    if (session->connections.empty()) {
      target->sessions.remove_if([&](const Session& other) { return &other == session; });
    }
    return 0;
  }

  int get_connection(iet::ConnInfo& info) {
    auto* target = module_.target(info.tid);
    auto* session = target ? session_of(*target, info.sid) : nullptr;
    if (session == nullptr) return ENOENT;
    const auto* connection = find(session->connections, [&](const Connection& one) { return one.cid == info.cid; });
    if (connection == nullptr) return ENOENT;
    info.cid = connection->cid;
    info.stat_sn = 7;
    info.exp_stat_sn = 7;
    return 0;
  }

  template <size_t n>
  static void set_clamped(std::array<uint32_t, n>& params, const uint32_t (&given)[n],
                          const std::array<Range, n>& ranges, uint32_t partial) {
    for (size_t key = 0; key < n; key++) {
      if (partial != 0 && (partial >> key & 1) == 0) continue;
      const auto [least, most] = ranges[key];
      params[key] = given[key] < least || given[key] > most ? least : given[key];
    }
  }

  /** Where the session's parameters are: a session's, or a target's for those to come; nullptr where there is none. */
  std::array<uint32_t, iet::kSessionKeys>* session_params(const iet::ParamInfo& info) {
    auto* target = module_.target(info.tid);
    if (target == nullptr) return nullptr;
    if (info.sid == 0) return &target->session_params;
    auto* session = session_of(*target, info.sid);
    return session ? &session->params : nullptr;
  }

  int set_params(iet::ParamInfo& info) {
    auto* params = session_params(info);
    if (params == nullptr) return ENOENT;
    if (info.type > 1) return EINVAL;
    if (info.type == 1) {
      set_clamped(module_.target(info.tid)->target_params, info.target_param, kTargetRanges, info.partial);
      return 0;
    }
    set_clamped(*params, info.session_param, kSessionRanges, info.partial);
    if (module_.version == "trunk") (*params)[kRetainTime] = 0;
    return 0;
  }

  int get_params(iet::ParamInfo& info) {
    const auto* params = session_params(info);
    if (params == nullptr) return ENOENT;
    if (info.type > 1) return EINVAL;
    const auto& target_params = module_.target(info.tid)->target_params;
    if (info.type == 1) {
      std::copy(target_params.begin(), target_params.end(), info.target_param);
    } else {
      std::copy(params->begin(), params->end(), info.session_param);
    }
    return 0;
  }

  // ---- The listings' file system ------------------------------------------------------------------------------------

  static fuse_attr attributes_of(uint64_t node) {
    fuse_attr attributes{};
    attributes.ino = node;
    attributes.mode = node == FUSE_ROOT_ID ? S_IFDIR | 0555 : S_IFREG | 0444;
    attributes.nlink = node == FUSE_ROOT_ID ? 2 : 1;
    return attributes;
  }

  void serve_listings(const Request& request) {
    const auto node = request.header().nodeid;
    switch (request.header().opcode) {
      case FUSE_INIT: {
        fuse_init_out out{};
        out.major = FUSE_KERNEL_VERSION;
        out.minor = std::min<uint32_t>(FUSE_KERNEL_MINOR_VERSION, request.body<fuse_init_in>().minor);
        out.max_write = kPage;
        out.time_gran = 1;
        reply(request, out);
        return;
      }
      case FUSE_LOOKUP: {
        const std::string name = request.bytes.data() + sizeof(fuse_in_header);
        if (name != "volume" && name != "session") return fail(request, ENOENT);
        fuse_entry_out out{};
        out.nodeid = name == "volume" ? kVolumeNode : kSessionNode;
        out.attr = attributes_of(out.nodeid);
        reply(request, out);
        return;
      }
      case FUSE_GETATTR: {
        fuse_attr_out out{};
        out.attr = attributes_of(node);
        reply(request, out);
        return;
      }
      case FUSE_OPEN: {
        fuse_open_out out{};
        out.fh = ++last_reader_;
        // Each read comes to us, and a short one ends the caller's.
        out.open_flags = FOPEN_DIRECT_IO;
        readers_[out.fh].listing = node == kVolumeNode ? Listing::kVolume : Listing::kSession;
        reply(request, out);
        return;
      }
      case FUSE_READ: {
        const auto& in = request.body<fuse_read_in>();
        const auto bytes = readers_[in.fh].read(module_, in.offset, in.size);
        reply(request, bytes.data(), bytes.size());
        return;
      }
      case FUSE_RELEASE:
        readers_.erase(request.body<fuse_release_in>().fh);
        fail(request, 0);
        return;
      case FUSE_OPENDIR:
        reply(request, fuse_open_out{});
        return;
      case FUSE_READDIR:
        read_directory(request);
        return;
      case FUSE_RELEASEDIR:
        fail(request, 0);
        return;
      case FUSE_FORGET:
      case FUSE_BATCH_FORGET:
        return;
      default:
        fail(request, ENOSYS);
    }
  }

  void read_directory(const Request& request) {
    std::string entries;
    uint64_t next = 0;
    for (const auto& [node, name] : {std::pair{kVolumeNode, std::string("volume")}, {kSessionNode, "session"}}) {
      if (next++ < request.body<fuse_read_in>().offset) continue;
      fuse_dirent entry{};
      entry.ino = node;
      entry.off = next;
      entry.namelen = static_cast<uint32_t>(name.size());
      entry.type = DT_REG;
      entries.append(reinterpret_cast<const char*>(&entry), FUSE_NAME_OFFSET);
      entries += name;
      entries.resize(FUSE_DIRENT_ALIGN(entries.size()));
    }
    reply(request, entries.data(), entries.size());
  }

  // ---- Steering
  // -------------------------------------------------------------------------------------------------------

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
    if (what == "hang") {
      const auto found = kRequests.find(text(1));
      if (found == kRequests.end()) return refused("no such request");
      hanging_ = found->second;
      return "{}";
    }
    if (what == "resume") {
      hanging_.reset();
      resume();
      return "{}";
    }
    if (what == "slow") {
      delay_ = std::chrono::milliseconds(number(1));
      return "{}";
    }
    auto* target = module_.target(static_cast<uint32_t>(number(1)));
    if (target == nullptr) return refused("no such target");
    if (what == "sessions") return target->sessions.empty() ? "false" : "true";
    if (what == "busy" || what == "idle") {
      auto* volume = volume_of(*target, static_cast<uint32_t>(number(2)));
      if (volume == nullptr) return refused("no such LUN");
      volume->busy = what == "busy";
      if (!volume->busy && volume->deleted) {
        target->volumes.remove_if([&](const Volume& other) { return &other == volume; });
      }
      return "{}";
    }
    if (what == "session") {
      if (session_of(*target, number(2)) != nullptr) return refused("this session is there");
      auto& session = target->sessions.emplace_front();
      session.sid = number(2);
      session.initiator = text(3);
      session.asked = words.size() > 4 ? text(4) : target->name;
      session.params = target->session_params;
      return "{}";
    }
    auto* session = session_of(*target, number(2));
    if (session == nullptr) return refused("no such session");
    if (what == "connection") {
      session->connections.push_front(
          {static_cast<uint32_t>(number(3)), listed_address(text(4)), text(5), text(6), text(7)});
      return "{}";
    }
    if (what == "logout") {
      target->sessions.remove_if([&](const Session& other) { return &other == session; });
      return "{}";
    }
    return refused("no such word");
  }

  static std::string refused(const std::string& why) { return "{\"error\":" + quoted(why) + "}"; }

  std::string state() const {
    const auto number = [](auto value) { return std::to_string(value); };
    const auto optional = [](const std::optional<std::string>& value) {
      return value ? '"' + steering::hex(*value) + '"' : std::string("null");
    };
    const auto volume = [&](const Volume& one) {
      return "{\"lun\":" + number(one.lun) + ",\"state\":" + (one.deleted ? "1" : "0") +
             ",\"type\":" + quoted(one.type) + ",\"mode\":" + quoted(one.mode) + ",\"path\":" + quoted(one.path) +
             ",\"blocks\":" + number(one.blocks) + ",\"blockSize\":" + number(one.block_size) +
             ",\"scsiId\":" + optional(one.scsi_id) + ",\"scsiSn\":" + optional(one.scsi_sn) + "}";
    };
    const auto session = [&](const Session& one) {
      return "{\"sid\":\"" + number(one.sid) + "\",\"initiator\":" + quoted(one.initiator) +
             ",\"asked\":" + quoted(one.asked) + ",\"params\":" + steering::list(one.params, number) + ",\"cids\":" +
             steering::list(one.connections, [&](const Connection& connection) { return number(connection.cid); }) +
             "}";
    };
    const auto target = [&](const Target& one) {
      return "{\"tid\":" + number(one.tid) + ",\"name\":" + quoted(one.name) +
             ",\"lunCount\":" + number(one.lun_count) + ",\"volumes\":" + steering::list(one.volumes, volume) +
             ",\"sessions\":" + steering::list(one.sessions, session) +
             ",\"sessionParams\":" + steering::list(one.session_params, number) +
             ",\"targetParams\":" + steering::list(one.target_params, number) + "}";
    };
    std::string calls;
    for (const auto& [name, count] : module_.calls)
      calls += (calls.empty() ? "" : ",") + quoted(name) + ":" + number(count);
    return "{\"version\":" + quoted(module_.version) + ",\"opens\":" + number(module_.opens) +
           ",\"releases\":" + number(module_.releases) + ",\"wipes\":" + number(module_.wipes) +
           ",\"oopses\":" + number(module_.oopses) + ",\"hanging\":" + (holder_ ? "true" : "false") +
           ",\"waiting\":" + number(waiting_.size()) + ",\"calls\":{" + calls +
           "},\"targets\":" + steering::list(module_.targets, target) + "}";
  }

  static constexpr uint64_t kVolumeNode = 2;
  static constexpr uint64_t kSessionNode = 3;

  Module module_;
  std::vector<char> received_ = std::vector<char>(kLargestRequest);
  std::string listings_directory_;
  Fd device_;
  Fd listings_;
  Fd steering_;
  std::map<uint64_t, Reader> readers_;
  uint64_t last_reader_ = 0;
  std::optional<uint32_t> hanging_;
  std::chrono::milliseconds delay_{0};
  std::unique_ptr<Request> holder_;
  std::optional<Clock::time_point> until_;
  std::deque<Request> waiting_;
};

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> options;
  for (int i = 1; i + 1 < argc; i += 2) options[argv[i]] = argv[i + 1];
  const rlimit many{65536, 65536};
  if (::setrlimit(RLIMIT_NOFILE, &many) != 0) die("setrlimit");
  ::signal(SIGPIPE, SIG_IGN);
  Double(options["--version"], options["--listings"], options["--steering"]).run();
}
