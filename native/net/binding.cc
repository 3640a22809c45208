// net.node: what the kernel's iSCSI initiator is asked for natively.
#include <napi.h>

#include "napi/promise_worker.h"
#include "net/device_io.h"
#include "net/iscsi_stats.h"

namespace lunpath::net {
namespace {

// Sixteen for calls on devices, of which src/initiators/kernel-io.ts begins no more at once, so that none waits here;
// and one for the counters, which never hang.
constexpr int kThreads = 17;

Napi::Value ToJs(Napi::Env env, std::vector<ConnectionStats>& all) {
  Napi::Array list = Napi::Array::New(env, all.size());
  for (uint32_t i = 0; i < all.size(); ++i) {
    Napi::HandleScope scope(env);
    const auto& [id, stats] = all[i];
    Napi::Object js = Napi::Object::New(env);
    js.Set("sid", id.sid);
    js.Set("cid", id.cid);
    js.Set("sentBytes", static_cast<double>(stats.txdata_octets));
    js.Set("receivedBytes", static_cast<double>(stats.rxdata_octets));
    js.Set("commandPdus", stats.scsicmd_pdus);
    js.Set("responsePdus", stats.scsirsp_pdus);
    js.Set("digestErrors", stats.digest_err);
    js.Set("timeoutErrors", stats.timeout_err);
    list.Set(i, js);
  }
  return list;
}

// class KernelInitiator {
//   stats(handle: bigint, connections: [sid, cid, sid, cid …], timeoutMs: number): Promise<ConnectionCounters[]>
//   writeAttribute(path: string, text: string): Promise<void>
//   flush(path: string): Promise<void>
//   close(): void
// }
class KernelInitiator : public Napi::ObjectWrap<KernelInitiator> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(
        env, "KernelInitiator",
        {InstanceMethod<&KernelInitiator::ReadAll>("stats"), InstanceMethod<&KernelInitiator::Write>("writeAttribute"),
         InstanceMethod<&KernelInitiator::FlushDevice>("flush"), InstanceMethod<&KernelInitiator::Close>("close")});
  }

  explicit KernelInitiator(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<KernelInitiator>(info), worker_(info.Env(), this, "lunpath.net", kThreads) {}

 private:
  Napi::Value ReadAll(const Napi::CallbackInfo& info) {
    bool lossless;
    const uint64_t handle = info[0].As<Napi::BigInt>().Uint64Value(&lossless);
    auto numbers = info[1].As<Napi::Array>();
    std::vector<ConnectionId> connections(numbers.Length() / 2);
    for (uint32_t i = 0; i < connections.size(); ++i) {
      auto number = [&](uint32_t index) { return numbers.Get(index).As<Napi::Number>().Uint32Value(); };
      connections[i] = {.sid = number(2 * i), .cid = number(2 * i + 1)};
    }
    const auto deadline = Clock::now() + std::chrono::milliseconds(info[2].As<Napi::Number>().Int64Value());
    return worker_.Run<std::vector<ConnectionStats>>(
        [handle, connections = std::move(connections), deadline] { return ReadStats(handle, connections, deadline); },
        ToJs);
  }

  Napi::Value Write(const Napi::CallbackInfo& info) {
    return worker_.Run<Nothing>([path = info[0].As<Napi::String>().Utf8Value(),
                                 text = info[1].As<Napi::String>().Utf8Value()] { return WriteAttribute(path, text); },
                                Undefined);
  }

  Napi::Value FlushDevice(const Napi::CallbackInfo& info) {
    return worker_.Run<Nothing>([path = info[0].As<Napi::String>().Utf8Value()] { return Flush(path); }, Undefined);
  }

  // A call that hangs in the kernel must not keep the process from ending.
  void Close(const Napi::CallbackInfo& info) { worker_.LetGo(); }

  static Napi::Value Undefined(Napi::Env env, Nothing& nothing) { return env.Undefined(); }

  PromiseWorker worker_;
};

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("KernelInitiator", KernelInitiator::Define(env));
  return exports;
}

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)

}  // namespace
}  // namespace lunpath::net
