// iscsi.node: sessions, and the benchmark engine that runs over them.
#include "bench/binding.h"

#include <napi.h>

#include "iscsi/params.h"
#include "iscsi/session.h"
#include "napi/promise_worker.h"

namespace lunpath::iscsi {
namespace {

Napi::Value ToJs(Napi::Env env, Identity& identity) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("wwid", identity.wwid);
  js.Set("serial", identity.serial);
  js.Set("sizeBytes", static_cast<double>(identity.size_bytes));
  js.Set("blockSizeBytes", identity.block_bytes);
  js.Set("vendor", identity.vendor);
  js.Set("product", identity.product);
  return js;
}

Napi::Value ToJs(Napi::Env env, std::vector<DiscoveredTarget>& targets) {
  Napi::Array js = Napi::Array::New(env);
  for (uint32_t i = 0; i < targets.size(); ++i) {
    Napi::Object target = Napi::Object::New(env);
    Napi::Array portals = Napi::Array::New(env);
    for (uint32_t j = 0; j < targets[i].portals.size(); ++j) {
      portals.Set(j, targets[i].portals[j]);
    }
    target.Set("iqn", targets[i].name);
    target.Set("portals", portals);
    js.Set(i, target);
  }
  return js;
}

Napi::Value Undefined(Napi::Env env, Nothing&) { return env.Undefined(); }

using Bytes = std::unique_ptr<std::vector<uint8_t>>;

Napi::Value ToBuffer(Napi::Env env, Bytes& bytes) {
  auto buffer = Napi::Buffer<uint8_t>::New(
      env, bytes->data(), bytes->size(), [](Napi::Env, uint8_t*, std::vector<uint8_t>* hint) { delete hint; },
      bytes.get());
  static_cast<void>(bytes.release());  // the buffer's now
  return buffer;
}

// One session and its thread: calls run one after the other, in the order made. JS has checked all arguments.
class SessionObject : public Napi::ObjectWrap<SessionObject> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "Session",
                       {
                           InstanceMethod<&SessionObject::Discover>("discover"),
                           InstanceMethod<&SessionObject::Login>("login"),
                           InstanceMethod<&SessionObject::Read>("read"),
                           InstanceMethod<&SessionObject::Write>("write"),
                           InstanceMethod<&SessionObject::Flush>("flush"),
                           InstanceMethod<&SessionObject::Page>("page"),
                           InstanceMethod<&SessionObject::Close>("close"),
                           InstanceMethod<&SessionObject::Interrupt>("interrupt"),
                       });
  }

  explicit SessionObject(const Napi::CallbackInfo& info)
      : ObjectWrap(info),
        session_(std::make_shared<Session>(ToLoginParams(info[0].As<Napi::Object>()))),
        worker_(info.Env(), this, "lunpath.iscsi.Session", 1) {}

  // Nobody can wait for a call any more: the thread shall not stay in one until its deadline.
  ~SessionObject() override { session_->Interrupt(); }

 private:
  Napi::Value Discover(const Napi::CallbackInfo&) {
    return worker_.Run<std::vector<DiscoveredTarget>>(
        [session = session_] { return session->Discover(); },
        [](Napi::Env env, std::vector<DiscoveredTarget>& targets) { return ToJs(env, targets); });
  }

  Napi::Value Login(const Napi::CallbackInfo&) {
    return worker_.Run<Identity>([session = session_] { return session->Login(); },
                                 [](Napi::Env env, Identity& identity) { return ToJs(env, identity); });
  }

  Napi::Value Read(const Napi::CallbackInfo& info) {
    const auto offset = static_cast<uint64_t>(info[0].ToNumber().Int64Value());
    const uint32_t length = info[1].ToNumber().Uint32Value();
    return worker_.Run<Bytes>(
        [session = session_, offset, length]() -> Result<Bytes> {
          auto bytes = std::make_unique<std::vector<uint8_t>>(length);
          Status status = session->Read(offset, bytes->data(), length);
          if (!status.ok()) return status.error();
          return bytes;
        },
        ToBuffer);
  }

  // Copies the data: JS may change or drop its buffer before the session's thread comes to it.
  Napi::Value Write(const Napi::CallbackInfo& info) {
    const auto offset = static_cast<uint64_t>(info[0].ToNumber().Int64Value());
    auto data = info[1].As<Napi::Uint8Array>();
    auto bytes = std::make_shared<std::vector<uint8_t>>(data.Data(), data.Data() + data.ByteLength());
    return worker_.Run<Nothing>(
        [session = session_, offset, bytes] {
          return session->Write(offset, bytes->data(), static_cast<uint32_t>(bytes->size()));
        },
        Undefined);
  }

  Napi::Value Flush(const Napi::CallbackInfo&) {
    return worker_.Run<Nothing>([session = session_] { return session->Flush(); }, Undefined);
  }

  Napi::Value Page(const Napi::CallbackInfo& info) {
    const int page = info[0].ToNumber().Int32Value();
    return worker_.Run<Bytes>(
        [session = session_, page]() -> Result<Bytes> {
          auto bytes = session->VitalPage(page);
          if (!bytes.ok()) return bytes.error();
          return std::make_unique<std::vector<uint8_t>>(std::move(bytes.value()));
        },
        ToBuffer);
  }

  // Logs out after the calls that were made before; later ones are refused.
  Napi::Value Close(const Napi::CallbackInfo&) {
    Napi::Promise closed =
        worker_.Run<Nothing>([session = session_] { return session->End(); }, Undefined, PromiseWorker::Settles::kLast);
    worker_.RefuseNew();
    return closed;
  }

  Napi::Value Interrupt(const Napi::CallbackInfo& info) {
    session_->Interrupt();
    return info.Env().Undefined();
  }

  std::shared_ptr<Session> session_;
  PromiseWorker worker_;
};

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("Session", SessionObject::Define(env));
  bench::Define(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(iscsi, Init)

}  // namespace lunpath::iscsi
