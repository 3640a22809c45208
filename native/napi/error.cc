#include "napi/error.h"

namespace lunpath {

Napi::Value ToJsError(Napi::Env env, const Error& error) {
  Napi::Object js = Napi::Error::New(env, error.message).Value();
  js.Set("code", error.code);
  js.Set("errno", error.number);
  if (!error.syscall.empty()) js.Set("syscall", error.syscall);
  if (error.domain != 0) js.Set("domain", error.domain);
  return js;
}

}  // namespace lunpath
