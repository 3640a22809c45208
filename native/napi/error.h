// The core's Error as a JS Error.
#pragma once

#include <napi.h>

#include "sys/result.h"

namespace lunpath {

// A JS Error with `code`, `errno`, `syscall` and, for libvirt, `domain`. Main thread of `env` only.
Napi::Value ToJsError(Napi::Env env, const Error& error);

}  // namespace lunpath
