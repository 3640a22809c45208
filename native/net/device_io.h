// Calls on SCSI devices that the kernel may keep for as long as the device's recovery takes: minutes. Blocking, free of
// state, any thread.
#pragma once

#include <string>

#include "sys/result.h"

namespace lunpath::net {

// Writes `text` to an attribute in sysfs with one write(2), as its store function expects.
Status WriteAttribute(const std::string& path, const std::string& text);

// Opens a block device exclusively, which fails with EBUSY where it is mounted or held by another device, and makes
// what is written to it durable.
Status Flush(const std::string& path);

}  // namespace lunpath::net
