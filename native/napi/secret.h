// A JS string or bytes as a Secret. Main thread only.
#pragma once

#include <napi.h>

#include <cstring>

#include "sys/secret.h"

namespace lunpath {

// The string in UTF-8, written straight into its block; empty for any other value.
inline Secret ToSecret(const Napi::Value& value) {
  size_t bytes = 0;
  if (napi_get_value_string_utf8(value.Env(), value, nullptr, 0, &bytes) != napi_ok) return {};
  Secret secret(bytes);
  napi_get_value_string_utf8(value.Env(), value, secret.data(), bytes + 1, &bytes);
  return secret;
}

inline Secret ToSecret(const Napi::Uint8Array& bytes) {
  Secret secret(bytes.ByteLength());
  if (!secret.empty()) std::memcpy(secret.data(), bytes.Data(), secret.size());
  return secret;
}

}  // namespace lunpath
