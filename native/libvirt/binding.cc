// libvirt.node: Connection as a JS class. Every method returns a promise and takes settled arguments; src/compute and
// src/sandbox are its callers and validate them.
#include <napi.h>

#include "libvirt/connection.h"
#include "napi/promise_worker.h"
#include "napi/secret.h"

namespace lunpath::libvirt {

namespace {

// libvirtd serves five requests of one client at a time (max_client_requests); more threads would only wait there.
// They start on demand, and one is left over while detaches or unreachable portals hold the others.
constexpr int kThreads = 4;

const char* KindName(Event::Kind kind) {
  switch (kind) {
    case Event::Kind::kLifecycle:
      return "lifecycle";
    case Event::Kind::kDeviceRemoved:
      return "deviceRemoved";
    case Event::Kind::kDeviceRemovalFailed:
      return "deviceRemovalFailed";
    case Event::Kind::kClosed:
      return "closed";
  }
  return "unknown";
}

// Passes events from libvirt's thread to JS. It never keeps the process alive: who waits for an event has a timer.
class EventPort {
 public:
  EventPort(Napi::Env env, Napi::Function listener) : state_(std::make_shared<State>()), env_(env) {
    state_->call = Call::New(env, listener, "libvirt events", 0, 1, static_cast<std::nullptr_t*>(nullptr));
    state_->call.Unref(env);
    state_->open = true;
    napi_add_env_cleanup_hook(env_, &EventPort::OnCleanup, this);
    hooked_ = true;
  }
  ~EventPort() { Close(); }
  EventPort(const EventPort&) = delete;
  EventPort& operator=(const EventPort&) = delete;

  EventSink Sink() {
    return [state = state_](Event event) {
      std::lock_guard lock(state->mutex);
      if (state->open) state->call.NonBlockingCall(new Delivery{state, std::move(event)});
    };
  }

  // Main thread only. Safe to call twice.
  void Close() {
    if (hooked_) napi_remove_env_cleanup_hook(env_, &EventPort::OnCleanup, this);
    hooked_ = false;
    std::lock_guard lock(state_->mutex);
    if (state_->open) state_->call.Release();
    state_->open = false;
  }

 private:
  struct State;
  struct Delivery {
    std::shared_ptr<State> state;
    Event event;
  };
  static void OnEvent(Napi::Env env, Napi::Function listener, std::nullptr_t*, Delivery* delivery) {
    std::unique_ptr<Delivery> owner(delivery);
    if (static_cast<napi_env>(env) == nullptr || listener.IsEmpty()) return;  // the environment is going down
    // What was under way when close() was called is not delivered after it. Only this thread ever closes.
    if (!delivery->state->open) return;
    const Event& told = delivery->event;
    Napi::HandleScope scope(env);
    Napi::Object js = Napi::Object::New(env);
    js.Set("kind", KindName(told.kind));
    if (told.kind == Event::Kind::kClosed) {
      js.Set("reason", told.reason);
    } else {
      js.Set("domain", told.domain);
      js.Set("uuid", told.uuid);
    }
    if (told.kind == Event::Kind::kLifecycle) {
      js.Set("event", told.event);
      js.Set("detail", told.detail);
    } else if (told.kind != Event::Kind::kClosed) {
      js.Set("alias", told.alias);
    }
    listener.Call({js});
  }
  using Call = Napi::TypedThreadSafeFunction<std::nullptr_t, Delivery, &EventPort::OnEvent>;
  static void OnCleanup(void* self) {
    static_cast<EventPort*>(self)->hooked_ = false;
    static_cast<EventPort*>(self)->Close();
  }

  struct State {
    std::mutex mutex;  // guards both below
    Call call;
    bool open = false;
  };
  std::shared_ptr<State> state_;
  napi_env env_;
  bool hooked_ = false;
};

Napi::Value ToJs(Napi::Env env, const DomainInfo& info) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("name", info.name);
  js.Set("uuid", info.uuid);
  js.Set("id", info.id ? Napi::Value(Napi::Number::New(env, *info.id)) : Napi::Value(env.Null()));
  js.Set("state", info.state);
  js.Set("persistent", Napi::Boolean::New(env, info.persistent));
  return js;
}

Napi::Value ToJs(Napi::Env env, const std::optional<std::string>& text) {
  return text ? Napi::Value(Napi::String::New(env, *text)) : Napi::Value(env.Null());
}

std::string StringAt(const Napi::CallbackInfo& info, size_t index) {
  if (!info[index].IsString()) {
    throw Napi::TypeError::New(info.Env(), "argument " + std::to_string(index + 1) + " must be a string");
  }
  return info[index].As<Napi::String>().Utf8Value();
}

double NumberAt(const Napi::CallbackInfo& info, size_t index) {
  if (!info[index].IsNumber()) {
    throw Napi::TypeError::New(info.Env(), "argument " + std::to_string(index + 1) + " must be a number");
  }
  return info[index].As<Napi::Number>().DoubleValue();
}

}  // namespace

// new Connection(listener): listener gets the events. Not connected until open(uri).
class ConnectionWrap : public Napi::ObjectWrap<ConnectionWrap> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "Connection",
                       {
                           InstanceMethod<&ConnectionWrap::Open>("open"),
                           InstanceMethod<&ConnectionWrap::Close>("close"),
                           InstanceMethod<&ConnectionWrap::Abandon>("abandon"),
                           InstanceMethod<&ConnectionWrap::IsAlive>("isAlive"),
                           InstanceMethod<&ConnectionWrap::Domains>("domains"),
                           InstanceMethod<&ConnectionWrap::Domain>("domain"),
                           InstanceMethod<&ConnectionWrap::Xml>("xml"),
                           InstanceMethod<&ConnectionWrap::InactiveXml>("inactiveXml"),
                           InstanceMethod<&ConnectionWrap::DefineXml>("defineXml"),
                           InstanceMethod<&ConnectionWrap::CreateXml>("createXml"),
                           InstanceMethod<&ConnectionWrap::Start>("start"),
                           InstanceMethod<&ConnectionWrap::Destroy>("destroy"),
                           InstanceMethod<&ConnectionWrap::Undefine>("undefine"),
                           InstanceMethod<&ConnectionWrap::Suspend>("suspend"),
                           InstanceMethod<&ConnectionWrap::Resume>("resume"),
                           InstanceMethod<&ConnectionWrap::AttachDevice>("attachDevice"),
                           InstanceMethod<&ConnectionWrap::DetachAlias>("detachAlias"),
                           InstanceMethod<&ConnectionWrap::BlockResize>("blockResize"),
                           InstanceMethod<&ConnectionWrap::BlockStats>("blockStats"),
                           InstanceMethod<&ConnectionWrap::DefineSecret>("defineSecret"),
                           InstanceMethod<&ConnectionWrap::SetSecret>("setSecret"),
                           InstanceMethod<&ConnectionWrap::UndefineSecret>("undefineSecret"),
                           InstanceMethod<&ConnectionWrap::FindSecret>("findSecret"),
                       });
  }

  explicit ConnectionWrap(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<ConnectionWrap>(info), worker_(info.Env(), this, "libvirt call", kThreads) {
    if (!info[0].IsFunction()) throw Napi::TypeError::New(info.Env(), "argument 1 must be a function");
    events_ = std::make_unique<EventPort>(info.Env(), info[0].As<Napi::Function>());
    connection_ = std::make_shared<Connection>(events_->Sink());
    // Disconnecting talks to libvirtd, which may hang: not on this thread, and another one is perhaps not to be had any
    // more. One that was never opened has nothing to close.
    worker_.AtEnd([connection = connection_] { connection->Close(); });
  }

  ~ConnectionWrap() override {
    if (events_) events_->Close();
  }

 private:
  Napi::Value Refused(Napi::Env env) {
    auto deferred = Napi::Promise::Deferred::New(env);
    deferred.Reject(ToJsError(env, Error{.message = "The connection to libvirt is closed", .code = "ERR_CLOSED"}));
    return deferred.Promise();
  }

  template <class T>
  Napi::Value Run(Napi::Env env, std::function<Result<T>(Connection&)> call,
                  std::function<Napi::Value(Napi::Env, T&)> convert) {
    if (closing_) return Refused(env);
    return worker_.Run<T>([connection = connection_, call = std::move(call)] { return call(*connection); },
                          std::move(convert));
  }

  Napi::Value RunStatus(Napi::Env env, std::function<Status(Connection&)> call) {
    return Run<Nothing>(env, std::move(call), [](Napi::Env env, Nothing&) { return env.Undefined(); });
  }

  Napi::Value RunInfo(Napi::Env env, std::function<Result<DomainInfo>(Connection&)> call) {
    return Run<DomainInfo>(env, std::move(call), [](Napi::Env env, DomainInfo& info) { return ToJs(env, info); });
  }

  // open(uri)
  Napi::Value Open(const Napi::CallbackInfo& info) {
    return RunStatus(info.Env(), [uri = StringAt(info, 0)](Connection& connection) { return connection.Open(uri); });
  }

  // close(): settles when pending calls have and libvirt is disconnected. Later calls reject with ERR_CLOSED.
  Napi::Value Close(const Napi::CallbackInfo& info) {
    closing_ = true;
    events_->Close();
    return worker_.Run<Nothing>([connection = connection_] { return connection->Close(); },
                                [](Napi::Env env, Nothing&) { return env.Undefined(); }, PromiseWorker::Settles::kLast);
  }

  // abandon(): for a peer that hangs. Later calls reject, pending ones no longer keep the process alive; their threads
  // end when libvirt lets them.
  Napi::Value Abandon(const Napi::CallbackInfo& info) {
    closing_ = true;
    events_->Close();
    worker_.LetGo();
    return info.Env().Undefined();
  }

  // isAlive()
  Napi::Value IsAlive(const Napi::CallbackInfo& info) {
    return Run<bool>(
        info.Env(), [](Connection& connection) { return connection.IsAlive(); },
        [](Napi::Env env, bool& alive) { return Napi::Boolean::New(env, alive); });
  }

  // domains()
  Napi::Value Domains(const Napi::CallbackInfo& info) {
    return Run<std::vector<DomainInfo>>(
        info.Env(), [](Connection& connection) { return connection.Domains(); },
        [](Napi::Env env, std::vector<DomainInfo>& domains) {
          Napi::Array js = Napi::Array::New(env, domains.size());
          for (uint32_t i = 0; i < domains.size(); ++i) js.Set(i, ToJs(env, domains[i]));
          return js;
        });
  }

  // domain(nameOrUuid)
  Napi::Value Domain(const Napi::CallbackInfo& info) {
    return RunInfo(info.Env(), [name = StringAt(info, 0)](Connection& connection) { return connection.Domain(name); });
  }

  // xml(nameOrUuid)
  Napi::Value Xml(const Napi::CallbackInfo& info) {
    return Run<std::string>(
        info.Env(), [name = StringAt(info, 0)](Connection& connection) { return connection.Xml(name); },
        [](Napi::Env env, std::string& xml) { return Napi::String::New(env, xml); });
  }

  // inactiveXml(nameOrUuid): null where it is transient
  Napi::Value InactiveXml(const Napi::CallbackInfo& info) {
    return Run<std::optional<std::string>>(
        info.Env(), [name = StringAt(info, 0)](Connection& connection) { return connection.InactiveXml(name); },
        [](Napi::Env env, std::optional<std::string>& xml) { return ToJs(env, xml); });
  }

  // defineXml(xml)
  Napi::Value DefineXml(const Napi::CallbackInfo& info) {
    return RunInfo(info.Env(), [xml = StringAt(info, 0)](Connection& connection) { return connection.Define(xml); });
  }

  // createXml(xml): a transient domain, started
  Napi::Value CreateXml(const Napi::CallbackInfo& info) {
    return RunInfo(info.Env(), [xml = StringAt(info, 0)](Connection& connection) { return connection.Create(xml); });
  }

  template <Status (Connection::*action)(const std::string&)>
  Napi::Value Act(const Napi::CallbackInfo& info) {
    return RunStatus(info.Env(),
                     [name = StringAt(info, 0)](Connection& connection) { return (connection.*action)(name); });
  }
  Napi::Value Start(const Napi::CallbackInfo& info) { return Act<&Connection::Start>(info); }
  Napi::Value Destroy(const Napi::CallbackInfo& info) { return Act<&Connection::Destroy>(info); }
  Napi::Value Undefine(const Napi::CallbackInfo& info) { return Act<&Connection::Undefine>(info); }
  Napi::Value Suspend(const Napi::CallbackInfo& info) { return Act<&Connection::Suspend>(info); }
  Napi::Value Resume(const Napi::CallbackInfo& info) { return Act<&Connection::Resume>(info); }
  Napi::Value UndefineSecret(const Napi::CallbackInfo& info) { return Act<&Connection::UndefineSecret>(info); }

  // attachDevice(domain, xml, flags)
  Napi::Value AttachDevice(const Napi::CallbackInfo& info) {
    return RunStatus(info.Env(), [name = StringAt(info, 0), xml = StringAt(info, 1),
                                  flags = static_cast<unsigned>(NumberAt(info, 2))](Connection& connection) {
      return connection.AttachDevice(name, xml, flags);
    });
  }

  // detachAlias(domain, alias, flags)
  Napi::Value DetachAlias(const Napi::CallbackInfo& info) {
    return RunStatus(info.Env(), [name = StringAt(info, 0), alias = StringAt(info, 1),
                                  flags = static_cast<unsigned>(NumberAt(info, 2))](Connection& connection) {
      return connection.DetachAlias(name, alias, flags);
    });
  }

  // blockResize(domain, disk, bytes)
  Napi::Value BlockResize(const Napi::CallbackInfo& info) {
    return RunStatus(info.Env(), [name = StringAt(info, 0), disk = StringAt(info, 1),
                                  bytes = static_cast<uint64_t>(NumberAt(info, 2))](Connection& connection) {
      return connection.BlockResize(name, disk, bytes);
    });
  }

  // blockStats(domain, disk)
  Napi::Value BlockStats(const Napi::CallbackInfo& info) {
    return Run<libvirt::BlockStats>(
        info.Env(),
        [name = StringAt(info, 0), disk = StringAt(info, 1)](Connection& connection) {
          return connection.Stats(name, disk);
        },
        [](Napi::Env env, libvirt::BlockStats& stats) {
          Napi::Object js = Napi::Object::New(env);
          js.Set("readRequests", static_cast<double>(stats.read_requests));
          js.Set("readBytes", static_cast<double>(stats.read_bytes));
          js.Set("writeRequests", static_cast<double>(stats.write_requests));
          js.Set("writtenBytes", static_cast<double>(stats.write_bytes));
          js.Set("errors", static_cast<double>(stats.errors));
          return js;
        });
  }

  // defineSecret(xml) → uuid
  Napi::Value DefineSecret(const Napi::CallbackInfo& info) {
    return Run<std::string>(
        info.Env(), [xml = StringAt(info, 0)](Connection& connection) { return connection.DefineSecret(xml); },
        [](Napi::Env env, std::string& uuid) { return Napi::String::New(env, uuid); });
  }

  // setSecret(uuid, value: Uint8Array)
  Napi::Value SetSecret(const Napi::CallbackInfo& info) {
    if (!info[1].IsTypedArray()) throw Napi::TypeError::New(info.Env(), "argument 2 must be a Uint8Array");
    auto bytes = info[1].As<Napi::Uint8Array>();
    return RunStatus(info.Env(), [uuid = StringAt(info, 0), value = ToSecret(bytes)](Connection& connection) {
      return connection.SetSecret(uuid, value);
    });
  }

  // findSecret(usage) → uuid or null
  Napi::Value FindSecret(const Napi::CallbackInfo& info) {
    return Run<std::optional<std::string>>(
        info.Env(), [usage = StringAt(info, 0)](Connection& connection) { return connection.FindSecret(usage); },
        [](Napi::Env env, std::optional<std::string>& uuid) { return ToJs(env, uuid); });
  }

  std::unique_ptr<EventPort> events_;
  std::shared_ptr<Connection> connection_;
  PromiseWorker worker_;
  bool closing_ = false;
};

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("Connection", ConnectionWrap::Define(env));
  return exports;
}

NODE_API_MODULE(libvirt, Init)

}  // namespace lunpath::libvirt
