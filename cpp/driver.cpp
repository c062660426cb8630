#include "driver.h"

#include <dlfcn.h>
#include <onewave/device.h>
#include <onewave/error.h>

#include <string>

namespace onewave {
namespace {

// The cubins are CUDA 13.0's; 580 is the first driver branch that loads them.
constexpr int kMinDriverVersion = 13000;
constexpr const char* kNeeded = "onewave needs NVIDIA driver 580 (CUDA 13.0) or newer";

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// The handle of libcuda.so.1, never closed: the driver does not survive that.
void* library_handle() {
  static void* const handle = [] {
    void* opened = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr) {
      throw DeviceError(std::string("no NVIDIA driver was found (") + dlerror() + "); " + kNeeded);
    }
    return opened;
  }();
  return handle;
}

/// An export of libcuda.so.1; null where it has none of that name.
template <class Function>
Function exported(const char* name) {
  return reinterpret_cast<Function>(dlsym(library_handle(), name));
}

}  // namespace

void check_driver(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return;
  // Looked up here and not in Driver: this reports the failures of Driver's own constructor too.
  const char* text = nullptr;
  if (auto get_error_string = exported<PFN_cuGetErrorString_v6000>("cuGetErrorString")) {
    get_error_string(result, &text);
  }
  throw DeviceError(std::string(call) + " failed with error " + std::to_string(result) + ": " +
                    (text != nullptr ? text : "unknown to this driver"));
}

DriverLibrary::DriverLibrary() {
  auto driver_get_version = exported<PFN_cuDriverGetVersion_v2020>("cuDriverGetVersion");
  if (driver_get_version == nullptr) throw DeviceError(std::string("libcuda.so.1 is no driver; ") + kNeeded);
  check_driver(driver_get_version(&version_), "cuDriverGetVersion");
  if (version_ < kMinDriverVersion) {
    throw DeviceError("the NVIDIA driver is too old: it supports CUDA " + version_text(version_) + "; " +
                      kNeeded);
  }
  get_proc_address_ = exported<PFN_cuGetProcAddress_v12000>("cuGetProcAddress_v2");
  if (get_proc_address_ == nullptr) throw DeviceError("libcuda.so.1 has no cuGetProcAddress_v2");
}

void* DriverLibrary::resolve(const char* name, int version) const {
  void* function = nullptr;
  CUdriverProcAddressQueryResult query = CU_GET_PROC_ADDRESS_SUCCESS;
  CUresult result = get_proc_address_(name, &function, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &query);
  check_driver(result, "cuGetProcAddress");
  if (function == nullptr) {
    throw DeviceError(std::string("the NVIDIA driver has no ") + name + " of CUDA " + version_text(version));
  }
  return function;
}

Driver::Driver() {
  CUresult result = init.result_of(0);
  if (result == CUDA_ERROR_NO_DEVICE) throw DeviceError("the NVIDIA driver sees no CUDA device");
  check_driver(result, "cuInit");
}

const Driver& driver() {
  static const Driver instance;
  return instance;
}

DeviceInfo device_info(int32_t device) {
  const Driver& cuda = driver();
  int num_devices = 0;
  cuda.device_get_count(&num_devices);
  if (device < 0 || device >= num_devices) {
    throw DeviceError("device is " + std::to_string(device) + "; the NVIDIA driver sees " +
                      std::to_string(num_devices) + " CUDA device(s), numbered from 0");
  }
  CUdevice handle = 0;
  cuda.device_get(&handle, device);
  auto attribute = [&](CUdevice_attribute which) {
    int value = 0;
    cuda.device_get_attribute(&value, which, handle);
    return value;
  };
  char name[256] = {};
  cuda.device_get_name(name, static_cast<int>(sizeof(name)), handle);
  DeviceInfo info{.name = name,
                  .num_sms = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
                  .capability_major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                  .capability_minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
                  .driver_version = cuda.version()};
  // sm_90a code runs on compute capability 9.0 and on nothing else, newer GPUs included.
  if (info.capability_major != 9 || info.capability_minor != 0) {
    throw DeviceError("device " + std::to_string(device) + " is " + info.name + " of compute capability " +
                      std::to_string(info.capability_major) + "." + std::to_string(info.capability_minor) +
                      "; onewave needs a Hopper GPU (9.0)");
  }
  return info;
}

CUdevice hopper_device(int32_t ordinal) {
  device_info(ordinal);
  CUdevice device = 0;
  driver().device_get(&device, ordinal);
  return device;
}

}  // namespace onewave
