#pragma once

/// The primary context of a device, the one that the CUDA runtime and torch use too, and making it current.

#include <cudaTypedefs.h>

#include "driver.h"

namespace onewave {

/// Holds a reference to the device's primary context.
class PrimaryContext {
 public:
  explicit PrimaryContext(CUdevice device) : device_(device) {
    driver().device_primary_ctx_retain(&context_, device);
  }
  ~PrimaryContext() { driver().device_primary_ctx_release.result_of(device_); }
  PrimaryContext(const PrimaryContext&) = delete;
  PrimaryContext& operator=(const PrimaryContext&) = delete;

  CUcontext get() const { return context_; }

 private:
  CUdevice device_;
  CUcontext context_ = nullptr;
};

/// Makes a context current in this thread, until the end of the scope; costs one query where it already is.
class ContextScope {
 public:
  explicit ContextScope(const PrimaryContext& context) {
    CUcontext current = nullptr;
    driver().ctx_get_current(&current);
    if (current == context.get()) return;
    driver().ctx_push_current(context.get());
    is_pushed_ = true;
  }
  ~ContextScope() {
    CUcontext popped = nullptr;
    if (is_pushed_) driver().ctx_pop_current.result_of(&popped);
  }
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  bool is_pushed_ = false;
};

}  // namespace onewave
