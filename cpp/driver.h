#pragma once

/// The CUDA driver: libcuda.so.1 opened at first use, so that the library imports and plans where there is
/// none.

#include <cudaTypedefs.h>

#include <cstdint>

namespace onewave {

/// Throws DeviceError with the call's name and the driver's text for `result`, unless it is CUDA_SUCCESS.
void check_driver(CUresult result, const char* call);

/// libcuda.so.1, checked to be new enough for the cubins before anything is looked up in it.
class DriverLibrary {
 public:
  DriverLibrary();

  /// The entry point `name` as it was at CUDA `version` (12040 for 12.4), for the legacy default stream.
  void* resolve(const char* name, int version) const;

  /// What cuDriverGetVersion says: 13000 for CUDA 13.0.
  int32_t version() const { return version_; }

 private:
  PFN_cuGetProcAddress_v12000 get_proc_address_ = nullptr;
  int version_ = 0;
};

/// One function of the driver, typed. Calling it throws where it fails.
template <class Function>
class EntryPoint {
 public:
  EntryPoint(const DriverLibrary& library, const char* name, int version)
      : name_(name), function_(reinterpret_cast<Function>(library.resolve(name, version))) {}

  template <class... Args>
  void operator()(Args... args) const {
    check_driver(function_(args...), name_);
  }

  /// The bare result: for destructors, which must not throw, and for results that are no failure.
  template <class... Args>
  CUresult result_of(Args... args) const {
    return function_(args...);
  }

 private:
  const char* name_;
  Function function_;
};

/// The functions this library calls.
class Driver {
  // Declared first: the entry points are initialised from it, in the order of their declaration.
  DriverLibrary library_;

 public:
  Driver();

  int32_t version() const { return library_.version(); }

// Spells the version once, so that the looked-up function always has the type it is called by.
#define ONEWAVE_ENTRY_POINT(member, symbol, version) \
  EntryPoint<PFN_##symbol##_v##version> member { library_, #symbol, version }

  ONEWAVE_ENTRY_POINT(init, cuInit, 2000);
  ONEWAVE_ENTRY_POINT(device_get_count, cuDeviceGetCount, 2000);
  ONEWAVE_ENTRY_POINT(device_get, cuDeviceGet, 2000);
  ONEWAVE_ENTRY_POINT(device_get_name, cuDeviceGetName, 2000);
  ONEWAVE_ENTRY_POINT(device_get_attribute, cuDeviceGetAttribute, 2000);
  ONEWAVE_ENTRY_POINT(device_primary_ctx_retain, cuDevicePrimaryCtxRetain, 7000);
  ONEWAVE_ENTRY_POINT(device_primary_ctx_release, cuDevicePrimaryCtxRelease, 11000);
  ONEWAVE_ENTRY_POINT(ctx_get_current, cuCtxGetCurrent, 4000);
  ONEWAVE_ENTRY_POINT(ctx_push_current, cuCtxPushCurrent, 4000);
  ONEWAVE_ENTRY_POINT(ctx_pop_current, cuCtxPopCurrent, 4000);
  ONEWAVE_ENTRY_POINT(library_load_data, cuLibraryLoadData, 12000);
  ONEWAVE_ENTRY_POINT(library_get_kernel, cuLibraryGetKernel, 12000);
  ONEWAVE_ENTRY_POINT(kernel_get_function, cuKernelGetFunction, 12000);
  ONEWAVE_ENTRY_POINT(func_load, cuFuncLoad, 12040);
  ONEWAVE_ENTRY_POINT(kernel_get_param_info, cuKernelGetParamInfo, 12040);
  ONEWAVE_ENTRY_POINT(kernel_set_attribute, cuKernelSetAttribute, 12000);
  ONEWAVE_ENTRY_POINT(mem_host_alloc, cuMemHostAlloc, 2020);
  ONEWAVE_ENTRY_POINT(mem_free_host, cuMemFreeHost, 2000);
  ONEWAVE_ENTRY_POINT(memcpy_host_to_device_async, cuMemcpyHtoDAsync, 3020);
  ONEWAVE_ENTRY_POINT(event_create, cuEventCreate, 2000);
  ONEWAVE_ENTRY_POINT(event_record, cuEventRecord, 2000);
  ONEWAVE_ENTRY_POINT(event_synchronize, cuEventSynchronize, 2000);
  ONEWAVE_ENTRY_POINT(event_destroy, cuEventDestroy, 4000);
  ONEWAVE_ENTRY_POINT(stream_is_capturing, cuStreamIsCapturing, 10000);
  ONEWAVE_ENTRY_POINT(thread_exchange_stream_capture_mode, cuThreadExchangeStreamCaptureMode, 10010);
  ONEWAVE_ENTRY_POINT(tensor_map_encode_tiled, cuTensorMapEncodeTiled, 12000);
  ONEWAVE_ENTRY_POINT(launch_kernel_ex, cuLaunchKernelEx, 11060);

#undef ONEWAVE_ENTRY_POINT
};

/// The driver, opened and initialised at the first call, from any thread. Throws DeviceError where there is
/// none, it is too old, or it sees no device; a later call tries again.
const Driver& driver();

/// The driver's handle of a device that was found to be usable. Throws DeviceError as device_info() does.
CUdevice hopper_device(int32_t ordinal);

}  // namespace onewave
