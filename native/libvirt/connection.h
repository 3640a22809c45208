// A connection to libvirt: the calls that lunpath needs, each blocking, each returning a value or libvirt's error.
#pragma once

#include <libvirt/libvirt.h>

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "sys/result.h"
#include "sys/secret.h"

namespace lunpath::libvirt {

struct DomainInfo {
  std::string name;
  std::string uuid;
  std::optional<unsigned> id;  // while active
  int state = 0;               // virDomainState
  bool persistent = false;
};

struct BlockStats {
  int64_t read_requests, read_bytes, write_requests, write_bytes, errors;
};

// What libvirt told on its own. `alias` belongs to the device events, `event` and `detail` to lifecycle
// (virDomainEventType and its detail), `reason` to closed (virConnectCloseReason).
struct Event {
  enum class Kind { kLifecycle, kDeviceRemoved, kDeviceRemovalFailed, kClosed };
  Kind kind;
  std::string domain{};
  std::string uuid{};
  std::string alias{};
  int event = 0;
  int detail = 0;
  int reason = 0;
};

// Runs on the event thread, and never again once DropEvents() has returned.
using EventSink = std::function<void(Event)>;

// All functions may be called from any thread, several at once, and block until libvirt answers. `domain` is a UUID or
// a name. An Error has code VIR_ERR with libvirt's code and domain, ERR_NOT_OPEN before Open and after Close.
class Connection {
 public:
  explicit Connection(EventSink sink);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Connects, with keepalive (a dead peer is noticed after about 20 s) and with the events registered.
  Status Open(const std::string& uri);
  // Waits for calls in other threads, then disconnects. Calls after it fail. Safe to call twice and before Open.
  Status Close();
  // No event is delivered after this has returned. Waits for one that is being delivered.
  void DropEvents();

  Result<bool> IsAlive();
  Result<std::vector<DomainInfo>> Domains();
  Result<DomainInfo> Domain(const std::string& domain);
  // The definition in force, whose root has an id while the domain is active. Secrets are left out, here and below.
  Result<std::string> Xml(const std::string& domain);
  // The definition that the domain's next start takes; nothing where it is transient.
  Result<std::optional<std::string>> InactiveXml(const std::string& domain);

  Result<DomainInfo> Define(const std::string& xml);
  Result<DomainInfo> Create(const std::string& xml);
  Status Start(const std::string& domain);
  Status Destroy(const std::string& domain);
  Status Undefine(const std::string& domain);
  Status Suspend(const std::string& domain);
  Status Resume(const std::string& domain);

  // `flags` of virDomainDeviceModifyFlags: 1 live, 2 config.
  Status AttachDevice(const std::string& domain, const std::string& xml, unsigned flags);
  // Only asks: the guest's release comes as an event. Returns at once, unlike virDomainDetachDeviceFlags.
  Status DetachAlias(const std::string& domain, const std::string& alias, unsigned flags);
  Status BlockResize(const std::string& domain, const std::string& disk, uint64_t bytes);
  Result<BlockStats> Stats(const std::string& domain, const std::string& disk);

  // Returns the secret's UUID.
  Result<std::string> DefineSecret(const std::string& xml);
  Status SetSecret(const std::string& uuid, const Secret& value);
  Status UndefineSecret(const std::string& uuid);
  // Of usage type iscsi; nothing where there is none.
  Result<std::optional<std::string>> FindSecret(const std::string& usage);

 private:
  struct Sink;
  struct Link;
  class Call;
  // The domain, looked up at its first use where `domain` is a UUID.
  Result<std::shared_ptr<virDomain>> Find(virConnectPtr connection, const std::string& domain);
  // Starting and destroying write the domain's id to their handle, so they have one of their own.
  enum class Handle { kKept, kOwn };
  Status OnDomain(const std::string& domain, const char* function, const std::function<int(virDomainPtr)>& call,
                  Handle handle = Handle::kKept);
  template <class Make>
  Result<DomainInfo> MakeDomain(const char* function, const Make& make);

  std::shared_ptr<Sink> sink_;
  std::mutex mutex_;  // guards all below
  std::condition_variable idle_;
  virConnectPtr connection_ = nullptr;
  std::vector<int> callbacks_;
  // By UUID. libvirt finds a domain by that in every call, so a handle serves as long as the connection, also a domain
  // that was renamed or defined anew.
  std::unordered_map<std::string, std::shared_ptr<virDomain>> handles_;
  int calls_ = 0;
  bool opening_ = false;
  bool closed_ = false;
};

}  // namespace lunpath::libvirt
