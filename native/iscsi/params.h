// LoginParams from the object that JS made of settled arguments.
#pragma once

#include <napi.h>

#include "iscsi/session.h"
#include "napi/secret.h"

namespace lunpath::iscsi {

// Main thread. All properties are there and checked: src/iscsi-login.ts makes the object.
inline LoginParams ToLoginParams(const Napi::Object& js) {
  const auto text = [&js](const char* key) {
    Napi::Value value = js.Get(key);
    return value.IsString() ? value.As<Napi::String>().Utf8Value() : std::string();
  };
  const auto number = [&js](const char* key) { return js.Get(key).ToNumber().Int32Value(); };
  LoginParams params{
      .portal = text("portal"),
      .target = text("target"),
      .initiator = text("initiator"),
      .lun = number("lun"),
      .chap = {.user = text("user"), .secret = {}, .target_user = text("targetUser"), .target_secret = {}},
      .login_timeout_ms = number("loginTimeoutMs"),
      .command_timeout_ms = number("commandTimeoutMs"),
      .reconnect = js.Get("reconnect").ToBoolean().Value(),
  };
  params.chap.secret = ToSecret(js.Get("secret"));
  params.chap.target_secret = ToSecret(js.Get("targetSecret"));
  return params;
}

}  // namespace lunpath::iscsi
