#pragma once

/// What a thread's calls of the driver depend on: the primary context of a device, the one that the CUDA
/// runtime and torch use too, and the capture mode.

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

/// Until the end of the scope, this thread's calls that may synchronise (allocations, waits, loading of code)
/// are no error while another stream of the process is in a capture of global mode; they would invalidate
/// that capture. For work that is part of no capture.
class RelaxedCaptureScope {
 public:
  RelaxedCaptureScope() { driver().thread_exchange_stream_capture_mode.result_of(&mode_); }
  ~RelaxedCaptureScope() { driver().thread_exchange_stream_capture_mode.result_of(&mode_); }
  RelaxedCaptureScope(const RelaxedCaptureScope&) = delete;
  RelaxedCaptureScope& operator=(const RelaxedCaptureScope&) = delete;

 private:
  /// The mode to set; once set, the one that the thread had before.
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

}  // namespace onewave
