#pragma once

/// Device memory by the CUDA driver's own functions, declared here: the program builds without CUDA's
/// headers. Who has those, or a framework's allocator, needs none of this.

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

/// The driver's result of calling `name`: 0 for success.
template <class... Args>
int result_of(const char* name, Args... args) {
  static void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  void* const symbol = driver != nullptr ? dlsym(driver, name) : nullptr;
  return symbol != nullptr ? reinterpret_cast<int (*)(Args...)>(symbol)(args...) : -1;
}

template <class... Args>
void call(const char* name, Args... args) {
  const int result = result_of(name, args...);
  if (result != 0) throw std::runtime_error(name + (" failed with error " + std::to_string(result)));
}

/// The device's primary context, current in this thread until the end of the scope.
class ContextScope {
 public:
  explicit ContextScope(int32_t device) : device_(device) {
    void* context = nullptr;
    call("cuInit", 0u);
    call("cuDevicePrimaryCtxRetain", &context, device_);
    call("cuCtxPushCurrent_v2", context);
  }
  ~ContextScope() {
    void* context = nullptr;
    result_of("cuCtxPopCurrent_v2", &context);
    result_of("cuDevicePrimaryCtxRelease_v2", device_);
  }
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  int32_t device_;
};

/// Needs a current context.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t num_bytes) { call("cuMemAlloc_v2", &address_, num_bytes); }
  template <class Element>
  explicit DeviceMemory(const std::vector<Element>& values) : DeviceMemory(values.size() * sizeof(Element)) {
    call("cuMemcpyHtoD_v2", address_, static_cast<const void*>(values.data()),
         values.size() * sizeof(Element));
  }
  ~DeviceMemory() { result_of("cuMemFree_v2", address_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  template <class Element = void>
  Element* get() const {
    return reinterpret_cast<Element*>(address_);
  }

  /// Waits for what was enqueued on the default stream.
  template <class Element>
  void copy_to(std::vector<Element>& values) const {
    call("cuMemcpyDtoH_v2", static_cast<void*>(values.data()), address_, values.size() * sizeof(Element));
  }

 private:
  unsigned long long address_ = 0;
};
