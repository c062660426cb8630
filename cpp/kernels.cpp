#include "kernels.h"

#include <onewave/error.h>

#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <span>
#include <string>

#include "context.h"
#include "driver.h"

namespace onewave {
namespace {

/// A cubin that was handed to the driver, and the devices whose attributes were set.
struct LoadedKernel {
  CUkernel kernel = nullptr;
  std::set<CUdevice> prepared_devices;
};

std::span<const EmbeddedKernel> embedded_kernels() { return {kEmbeddedKernels, kNumEmbeddedKernels}; }

/// Of a row or a shape.
template <class Kernel>
std::string describe(const Kernel& kernel, Loader loader, bool is_profiled) {
  std::string words = dtype_name(kernel.dtype);
  if (kernel.kv_dtype != kernel.dtype) words += std::string(" with kv ") + dtype_name(kernel.kv_dtype);
  words += " head_dim " + std::to_string(kernel.head_dim_qk);
  if (kernel.head_dim_vo != kernel.head_dim_qk) words += " and " + std::to_string(kernel.head_dim_vo);
  words += loader == Loader::kTma ? " tma" : " gather";
  return is_profiled ? words + " with the profiler" : words;
}

CUkernel load_cubin(const Cubin& cubin, const KernelInterface& interface) {
  const Driver& cuda = driver();
  CUlibrary library = nullptr;
  cuda.library_load_data(&library, cubin.begin, nullptr, nullptr, 0u, nullptr, nullptr, 0u);
  CUkernel kernel = nullptr;
  cuda.library_get_kernel(&kernel, library, interface.entry_name);
  size_t param_offset = 0;
  size_t param_bytes = 0;
  cuda.kernel_get_param_info(kernel, size_t{0}, &param_offset, &param_bytes);
  if (param_bytes != interface.param_bytes) {
    throw DeviceError("the kernel " + std::string(cubin.name) + " takes " + std::to_string(param_bytes) +
                      " bytes of parameters, the library passes " + std::to_string(interface.param_bytes) +
                      ": they were not built together");
  }
  return kernel;
}

}  // namespace

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat8E4M3:
      return "float8_e4m3fn";
  }
  return "unknown";
}

Loader choose_loader(int32_t page_size) {
  // Eight rows are the unit of the 128-byte swizzle: a smaller box could not be a part of a tile.
  bool is_power_of_two = std::has_single_bit(static_cast<uint32_t>(page_size));
  return page_size >= 8 && is_power_of_two ? Loader::kTma : Loader::kGather;
}

std::vector<KernelInfo> list_kernels() {
  std::vector<KernelInfo> infos;
  for (const EmbeddedKernel& row : embedded_kernels()) {
    infos.push_back({.dtype = row.dtype,
                     .kv_dtype = row.kv_dtype,
                     .head_dim_qk = row.head_dim_qk,
                     .head_dim_vo = row.head_dim_vo,
                     .loader = row.loader,
                     .is_masked = row.is_masked,
                     .is_profiled = row.is_profiled,
                     .num_bytes = static_cast<size_t>(row.cubin.end - row.cubin.begin)});
  }
  return infos;
}

const EmbeddedKernel& find_kernel(const AttentionShape& shape, const KernelVariant& variant) {
  const Loader loader = choose_loader(shape.page_size);
  // Another loader is another page_size, another type of elements more than another number of columns.
  const auto distance = [&](const EmbeddedKernel& row) {
    constexpr int32_t kOther = 1 << 10;
    return std::abs(row.head_dim_qk - shape.head_dim_qk) + std::abs(row.head_dim_vo - shape.head_dim_vo) +
           (row.dtype != shape.dtype ? kOther : 0) +
           (row.kv_dtype != shape.kv_dtype && (row.kv_dtype != row.dtype || shape.kv_dtype != shape.dtype)
                ? kOther
                : 0) +
           (row.loader != loader ? 2 * kOther : 0) + (row.is_masked != variant.is_masked ? 4 * kOther : 0) +
           (row.is_profiled != variant.is_profiled ? 8 * kOther : 0);
  };
  const EmbeddedKernel* nearest = nullptr;
  for (const EmbeddedKernel& row : embedded_kernels()) {
    if (nearest == nullptr || distance(row) < distance(*nearest)) nearest = &row;
  }
  if (nearest != nullptr && distance(*nearest) == 0) return *nearest;
  std::string message = "there is no kernel for " + describe(shape, loader, variant.is_profiled);
  if (nearest != nullptr)
    message += "; the nearest is " + describe(*nearest, nearest->loader, nearest->is_profiled);
  throw InvalidArgument(message);
}

CUfunction load_kernel(const Cubin& cubin, const KernelInterface& interface, CUdevice device) {
  // Never destroyed, and the libraries never unloaded: at exit the driver may be gone before statics are.
  static std::mutex& mutex = *new std::mutex;
  static auto& loaded_kernels = *new std::map<const Cubin*, LoadedKernel>;

  const Driver& cuda = driver();
  const RelaxedCaptureScope relaxed;
  std::lock_guard lock(mutex);
  LoadedKernel& loaded = loaded_kernels[&cubin];
  if (loaded.kernel == nullptr) loaded.kernel = load_cubin(cubin, interface);
  if (!loaded.prepared_devices.contains(device)) {
    cuda.kernel_set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, interface.shared_bytes,
                              loaded.kernel, device);
    loaded.prepared_devices.insert(device);
  }
  CUfunction function = nullptr;
  cuda.kernel_get_function(&function, loaded.kernel);
  // Brings the code into the context now: lazily, that would happen at a launch, which may be captured.
  cuda.func_load(function);
  return function;
}

void launch_kernel(CUfunction kernel, const LaunchShape& shape, void* params, CUstream stream) {
  void* kernel_params[] = {params};
  CUlaunchConfig config{};
  config.gridDimX = shape.num_ctas;
  config.gridDimY = 1;
  config.gridDimZ = 1;
  config.blockDimX = shape.block_x;
  config.blockDimY = shape.block_y;
  config.blockDimZ = 1;
  config.sharedMemBytes = static_cast<unsigned>(shape.shared_bytes);
  config.hStream = stream;
  CUlaunchAttribute overlaps{};
  overlaps.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  overlaps.value.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlaps;
  config.numAttrs = shape.enable_pdl ? 1 : 0;
  driver().launch_kernel_ex(&config, kernel, kernel_params, nullptr);
}

}  // namespace onewave
