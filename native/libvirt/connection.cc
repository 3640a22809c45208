#include "libvirt/connection.h"

#include <libvirt/virterror.h>

#include <utility>

#include "libvirt/event_loop.h"

namespace lunpath::libvirt {

namespace {

// Seconds between probes of a peer, and how many may stay unanswered. Often, because of libvirt 9.0: while one thread
// waits for a long call's answer it sends the others' requests, and now and then it is not woken for one
// (g_main_loop_quit comes before g_main_loop_run in virNetClientIOEventLoop). The next probe gets it sent.
constexpr int kKeepaliveSeconds = 1;
constexpr unsigned kKeepaliveCount = 20;

struct FreeDomain {
  void operator()(virDomainPtr domain) const {
    if (domain != nullptr) virDomainFree(domain);
  }
};
using DomainHandle = std::shared_ptr<virDomain>;

DomainHandle Own(virDomainPtr domain) { return {domain, FreeDomain()}; }

// As many domains as a host may have. With more, they are looked up again now and then.
constexpr size_t kMostHandles = 1024;

struct FreeSecret {
  void operator()(virSecretPtr secret) const { virSecretFree(secret); }
};
using SecretHandle = std::unique_ptr<virSecret, FreeSecret>;

struct FreeMemory {
  void operator()(char* text) const { free(text); }
};
using Text = std::unique_ptr<char, FreeMemory>;

// As virConnectListAllDomains() gives it: a null pointer is behind the last one.
struct FreeDomains {
  void operator()(virDomainPtr* list) const {
    for (virDomainPtr* at = list; *at != nullptr; ++at) virDomainFree(*at);
    free(list);
  }
};
using DomainList = std::unique_ptr<virDomainPtr, FreeDomains>;

// The calling thread's last error. libvirt resets it at the next public call, virDomainFree included, so this comes
// first after a failure.
Error LastError(const char* function) {
  virErrorPtr error = virGetLastError();
  if (error == nullptr) {
    return Error{.message = std::string(function) + " failed without an error", .code = "VIR_ERR", .syscall = function};
  }
  return Error{.message = error->message ? error->message : "unknown error",
               .code = "VIR_ERR",
               .number = error->code,
               .syscall = function,
               .domain = error->domain};
}

bool LooksLikeUuid(const std::string& text) {
  return text.size() == VIR_UUID_STRING_BUFLEN - 1 &&
         text.find_first_not_of("0123456789abcdefABCDEF-") == std::string::npos;
}

Result<DomainHandle> LookUp(virConnectPtr connection, const std::string& domain) {
  if (LooksLikeUuid(domain)) {
    DomainHandle found = Own(virDomainLookupByUUIDString(connection, domain.c_str()));
    if (found) return found;
    Error error = LastError("virDomainLookupByUUIDString");
    if (error.number != VIR_ERR_NO_DOMAIN) return error;
  }
  DomainHandle found = Own(virDomainLookupByName(connection, domain.c_str()));
  if (!found) return LastError("virDomainLookupByName");
  return found;
}

std::string Uuid(virDomainPtr domain) {
  char text[VIR_UUID_STRING_BUFLEN] = "";
  virDomainGetUUIDString(domain, text);
  return text;
}

Result<DomainInfo> Describe(virDomainPtr domain) {
  DomainInfo info;
  int reason = 0;
  if (virDomainGetState(domain, &info.state, &reason, 0) < 0) return LastError("virDomainGetState");
  int persistent = virDomainIsPersistent(domain);
  if (persistent < 0) return LastError("virDomainIsPersistent");
  info.persistent = persistent == 1;
  info.name = TextOrEmpty(virDomainGetName(domain));
  info.uuid = Uuid(domain);
  // The handle's id is of the time of its look-up; the state is newer.
  unsigned id = virDomainGetID(domain);
  if (id != static_cast<unsigned>(-1) && info.state != VIR_DOMAIN_SHUTOFF) info.id = id;
  return info;
}

}  // namespace

// Callbacks may still run while, or after, the connection goes: they share this, and see that it is closed.
struct Connection::Sink {
  std::mutex mutex;
  EventSink deliver;

  // `make` gives the event. libvirt's loop, which is C, calls: without the memory for an event it is lost, as one is
  // that libvirtd does not send; whoever waits for one has a deadline.
  template <class Make>
  void Deliver(Make make) noexcept {
    try {
      std::lock_guard lock(mutex);
      if (deliver) deliver(make());
    } catch (...) {
      return;
    }
  }

  static void* Share(const std::shared_ptr<Sink>& sink) { return new std::shared_ptr<Sink>(sink); }
  static void Free(void* opaque) { delete static_cast<std::shared_ptr<Sink>*>(opaque); }
  static Sink& Of(void* opaque) { return **static_cast<std::shared_ptr<Sink>*>(opaque); }

  static int OnLifecycle(virConnectPtr, virDomainPtr domain, int event, int detail, void* opaque) {
    Of(opaque).Deliver([&] {
      return Event{.kind = Event::Kind::kLifecycle,
                   .domain = TextOrEmpty(virDomainGetName(domain)),
                   .uuid = Uuid(domain),
                   .event = event,
                   .detail = detail};
    });
    return 0;
  }

  template <Event::Kind kind>
  static void OnDevice(virConnectPtr, virDomainPtr domain, const char* alias, void* opaque) {
    Of(opaque).Deliver([&] {
      return Event{.kind = kind,
                   .domain = TextOrEmpty(virDomainGetName(domain)),
                   .uuid = Uuid(domain),
                   .alias = TextOrEmpty(alias)};
    });
  }

  static void OnClosed(virConnectPtr, int reason, void* opaque) {
    Of(opaque).Deliver([&] { return Event{.kind = Event::Kind::kClosed, .reason = reason}; });
  }
};

// One call in progress: holds the connection open, so that Close waits for it.
class Connection::Call {
 public:
  explicit Call(Connection& owner) : owner_(owner) {
    std::lock_guard lock(owner_.mutex_);
    if (owner_.connection_ == nullptr || owner_.closed_) return;
    connection_ = owner_.connection_;
    ++owner_.calls_;
  }
  ~Call() {
    if (connection_ == nullptr) return;
    std::lock_guard lock(owner_.mutex_);
    if (--owner_.calls_ == 0) owner_.idle_.notify_all();
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  explicit operator bool() const { return connection_ != nullptr; }
  virConnectPtr get() const { return connection_; }
  static Error NotOpen() { return Error{.message = "The connection to libvirt is not open", .code = "ERR_NOT_OPEN"}; }

 private:
  Connection& owner_;
  virConnectPtr connection_ = nullptr;
};

Connection::Connection(EventSink sink) : sink_(std::make_shared<Sink>()) { sink_->deliver = std::move(sink); }

Connection::~Connection() { Close(); }

void Connection::DropEvents() {
  std::lock_guard lock(sink_->mutex);
  sink_->deliver = nullptr;
}

// A connection with what is registered on it: goes with its scope, whichever way that is left.
struct Connection::Link {
  virConnectPtr connection = nullptr;
  std::vector<int> callbacks{};

  ~Link() {
    if (connection == nullptr) return;
    for (int id : callbacks) virConnectDomainEventDeregisterAny(connection, id);
    // A registered close callback holds a reference, which would keep the connection open.
    virConnectUnregisterCloseCallback(connection, &Sink::OnClosed);
    virConnectClose(connection);
  }

  std::optional<Error> Listen(int event, virConnectDomainEventGenericCallback callback,
                              const std::shared_ptr<Sink>& sink) {
    callbacks.reserve(callbacks.size() + 1);
    void* shared = Sink::Share(sink);
    const int id = virConnectDomainEventRegisterAny(connection, nullptr, event, callback, shared, &Sink::Free);
    if (id < 0) {
      Error failure = LastError("virConnectDomainEventRegisterAny");
      Sink::Free(shared);
      return failure;
    }
    callbacks.push_back(id);
    return std::nullopt;
  }
};

Status Connection::Open(const std::string& uri) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return Call::NotOpen();
    if (opening_ || connection_ != nullptr) return Error{.message = "Already open", .code = "ERR_ALREADY_OPEN"};
    opening_ = true;
  }
  struct Opening {
    Connection& owner;
    ~Opening() {
      std::lock_guard lock(owner.mutex_);
      owner.opening_ = false;
      owner.idle_.notify_all();
    }
  } opening{*this};
  if (Status runs = EnsureEventLoop(); !runs.ok()) return runs;
  Link link{.connection = virConnectOpen(uri.c_str())};
  if (link.connection == nullptr) return LastError("virConnectOpen");

  // Drivers without a remote peer (test:///) have neither; there a connection is not lost.
  virConnectSetKeepAlive(link.connection, kKeepaliveSeconds, kKeepaliveCount);
  void* shared = Sink::Share(sink_);
  if (virConnectRegisterCloseCallback(link.connection, &Sink::OnClosed, shared, &Sink::Free) != 0) Sink::Free(shared);

  const std::pair<int, virConnectDomainEventGenericCallback> wanted[] = {
      {VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(&Sink::OnLifecycle)},
      {VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, VIR_DOMAIN_EVENT_CALLBACK(&Sink::OnDevice<Event::Kind::kDeviceRemoved>)},
      {VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED,
       VIR_DOMAIN_EVENT_CALLBACK(&Sink::OnDevice<Event::Kind::kDeviceRemovalFailed>)},
  };
  for (const auto& [event, callback] : wanted) {
    if (auto failure = link.Listen(event, callback, sink_)) return std::move(*failure);
  }
  std::lock_guard lock(mutex_);
  std::swap(connection_, link.connection);
  std::swap(callbacks_, link.callbacks);
  return Nothing{};
}

Status Connection::Close() {
  Link link;
  // A handle, too, holds a reference to the connection.
  std::unordered_map<std::string, DomainHandle> handles;
  {
    std::unique_lock lock(mutex_);
    closed_ = true;
    idle_.wait(lock, [&] { return calls_ == 0 && !opening_; });
    std::swap(link.connection, connection_);
    std::swap(link.callbacks, callbacks_);
    std::swap(handles, handles_);
  }
  DropEvents();
  return Nothing{};
}

Result<bool> Connection::IsAlive() {
  Call call(*this);
  if (!call) return false;
  return virConnectIsAlive(call.get()) == 1;
}

Result<std::vector<DomainInfo>> Connection::Domains() {
  Call call(*this);
  if (!call) return Call::NotOpen();
  virDomainPtr* list = nullptr;
  const int count = virConnectListAllDomains(call.get(), &list, 0);
  if (count < 0) return LastError("virConnectListAllDomains");
  const DomainList all(list);
  std::vector<DomainInfo> domains;
  std::optional<Error> failure;
  for (int i = 0; i < count; ++i) {
    Result<DomainInfo> info = Describe(list[i]);
    if (info.ok()) {
      domains.push_back(std::move(info.value()));
    } else if (info.error().number != VIR_ERR_NO_DOMAIN) {  // gone since the listing
      failure = info.error();
    }
  }
  if (failure) return *failure;
  return domains;
}

Result<DomainInfo> Connection::Domain(const std::string& name) {
  Call call(*this);
  if (!call) return Call::NotOpen();
  Result<DomainHandle> domain = LookUp(call.get(), name);
  if (!domain.ok()) return domain.error();
  return Describe(domain.value().get());
}

Result<std::shared_ptr<virDomain>> Connection::Find(virConnectPtr connection, const std::string& domain) {
  // A handle holds the name of the time of its look-up, which may be another domain's by now.
  if (!LooksLikeUuid(domain)) return LookUp(connection, domain);
  {
    std::lock_guard lock(mutex_);
    auto known = handles_.find(domain);
    if (known != handles_.end()) return known->second;
  }
  Result<DomainHandle> found = LookUp(connection, domain);
  if (!found.ok() || Uuid(found.value().get()) != domain) return found;
  std::lock_guard lock(mutex_);
  if (handles_.size() >= kMostHandles) handles_.clear();
  handles_.insert_or_assign(domain, found.value());
  return found;
}

Result<std::string> Connection::Xml(const std::string& name) {
  Call call(*this);
  if (!call) return Call::NotOpen();
  Result<DomainHandle> domain = Find(call.get(), name);
  if (!domain.ok()) return domain.error();
  Text xml(virDomainGetXMLDesc(domain.value().get(), 0));
  if (!xml) return LastError("virDomainGetXMLDesc");
  return std::string(xml.get());
}

Result<std::optional<std::string>> Connection::InactiveXml(const std::string& name) {
  Call call(*this);
  if (!call) return Call::NotOpen();
  Result<DomainHandle> domain = Find(call.get(), name);
  if (!domain.ok()) return domain.error();
  virDomainPtr handle = domain.value().get();
  int persistent = virDomainIsPersistent(handle);
  if (persistent < 0) return LastError("virDomainIsPersistent");
  // With VIR_DOMAIN_XML_INACTIVE a transient domain has a definition too: the one in force.
  if (persistent == 0) return std::optional<std::string>();
  Text xml(virDomainGetXMLDesc(handle, VIR_DOMAIN_XML_INACTIVE));
  if (!xml) return LastError("virDomainGetXMLDesc");
  return std::optional<std::string>(xml.get());
}

template <class Make>
Result<DomainInfo> Connection::MakeDomain(const char* function, const Make& make) {
  Call call(*this);
  if (!call) return Call::NotOpen();
  DomainHandle domain = Own(make(call.get()));
  if (!domain) return LastError(function);
  return Describe(domain.get());
}

Result<DomainInfo> Connection::Define(const std::string& xml) {
  return MakeDomain("virDomainDefineXMLFlags", [&](virConnectPtr connection) {
    return virDomainDefineXMLFlags(connection, xml.c_str(), VIR_DOMAIN_DEFINE_VALIDATE);
  });
}

Result<DomainInfo> Connection::Create(const std::string& xml) {
  return MakeDomain("virDomainCreateXML", [&](virConnectPtr connection) {
    return virDomainCreateXML(connection, xml.c_str(), VIR_DOMAIN_START_VALIDATE);
  });
}

Status Connection::OnDomain(const std::string& name, const char* function,
                            const std::function<int(virDomainPtr)>& action, Handle handle) {
  Call call(*this);
  if (!call) return Call::NotOpen();
  Result<DomainHandle> domain = handle == Handle::kKept ? Find(call.get(), name) : LookUp(call.get(), name);
  if (!domain.ok()) return domain.error();
  if (action(domain.value().get()) < 0) return LastError(function);
  return Nothing{};
}

Status Connection::Start(const std::string& domain) {
  return OnDomain(
      domain, "virDomainCreate", [](virDomainPtr handle) { return virDomainCreate(handle); }, Handle::kOwn);
}

Status Connection::Destroy(const std::string& domain) {
  return OnDomain(
      domain, "virDomainDestroy", [](virDomainPtr handle) { return virDomainDestroy(handle); }, Handle::kOwn);
}

Status Connection::Undefine(const std::string& domain) {
  return OnDomain(domain, "virDomainUndefine", [](virDomainPtr handle) { return virDomainUndefine(handle); });
}

Status Connection::Suspend(const std::string& domain) {
  return OnDomain(domain, "virDomainSuspend", [](virDomainPtr handle) { return virDomainSuspend(handle); });
}

Status Connection::Resume(const std::string& domain) {
  return OnDomain(domain, "virDomainResume", [](virDomainPtr handle) { return virDomainResume(handle); });
}

Status Connection::AttachDevice(const std::string& domain, const std::string& xml, unsigned flags) {
  return OnDomain(domain, "virDomainAttachDeviceFlags",
                  [&](virDomainPtr handle) { return virDomainAttachDeviceFlags(handle, xml.c_str(), flags); });
}

Status Connection::DetachAlias(const std::string& domain, const std::string& alias, unsigned flags) {
  return OnDomain(domain, "virDomainDetachDeviceAlias",
                  [&](virDomainPtr handle) { return virDomainDetachDeviceAlias(handle, alias.c_str(), flags); });
}

Status Connection::BlockResize(const std::string& domain, const std::string& disk, uint64_t bytes) {
  return OnDomain(domain, "virDomainBlockResize", [&](virDomainPtr handle) {
    return virDomainBlockResize(handle, disk.c_str(), bytes, VIR_DOMAIN_BLOCK_RESIZE_BYTES);
  });
}

Result<BlockStats> Connection::Stats(const std::string& domain, const std::string& disk) {
  virDomainBlockStatsStruct stats;
  Status status = OnDomain(domain, "virDomainBlockStats", [&](virDomainPtr handle) {
    return virDomainBlockStats(handle, disk.c_str(), &stats, sizeof(stats));
  });
  if (!status.ok()) return status.error();
  return BlockStats{stats.rd_req, stats.rd_bytes, stats.wr_req, stats.wr_bytes, stats.errs};
}

Result<std::string> Connection::DefineSecret(const std::string& xml) {
  Call call(*this);
  if (!call) return Call::NotOpen();
  SecretHandle secret(virSecretDefineXML(call.get(), xml.c_str(), 0));
  if (!secret) return LastError("virSecretDefineXML");
  char uuid[VIR_UUID_STRING_BUFLEN];
  if (virSecretGetUUIDString(secret.get(), uuid) < 0) return LastError("virSecretGetUUIDString");
  return std::string(uuid);
}

Status Connection::SetSecret(const std::string& uuid, const Secret& value) {
  Call call(*this);
  if (!call) return Call::NotOpen();
  SecretHandle secret(virSecretLookupByUUIDString(call.get(), uuid.c_str()));
  if (!secret) return LastError("virSecretLookupByUUIDString");
  const auto* bytes = reinterpret_cast<const unsigned char*>(value.data());
  if (virSecretSetValue(secret.get(), bytes, value.size(), 0) < 0) return LastError("virSecretSetValue");
  return Nothing{};
}

Status Connection::UndefineSecret(const std::string& uuid) {
  Call call(*this);
  if (!call) return Call::NotOpen();
  SecretHandle secret(virSecretLookupByUUIDString(call.get(), uuid.c_str()));
  if (!secret) return LastError("virSecretLookupByUUIDString");
  if (virSecretUndefine(secret.get()) < 0) return LastError("virSecretUndefine");
  return Nothing{};
}

Result<std::optional<std::string>> Connection::FindSecret(const std::string& usage) {
  Call call(*this);
  if (!call) return Call::NotOpen();
  SecretHandle secret(virSecretLookupByUsage(call.get(), VIR_SECRET_USAGE_TYPE_ISCSI, usage.c_str()));
  if (!secret) {
    Error error = LastError("virSecretLookupByUsage");
    if (error.number == VIR_ERR_NO_SECRET) return std::optional<std::string>();
    return error;
  }
  char uuid[VIR_UUID_STRING_BUFLEN];
  if (virSecretGetUUIDString(secret.get(), uuid) < 0) return LastError("virSecretGetUUIDString");
  return std::optional<std::string>(uuid);
}

}  // namespace lunpath::libvirt
