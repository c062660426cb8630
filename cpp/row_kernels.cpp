#include <onewave/row_kernels.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "context.h"
#include "driver.h"
#include "kernels.h"
#include "row_threads.h"
#include "run_checks.h"

namespace onewave {
namespace {

constexpr uint32_t kWarpLanes = 32;

constexpr KernelInterface kAppend = {
    .entry_name = "onewave_append", .param_bytes = sizeof(AppendArgs), .shared_bytes = 0};
constexpr KernelInterface kAppendFp8 = {
    .entry_name = "onewave_append_fp8", .param_bytes = sizeof(AppendArgs), .shared_bytes = 0};
constexpr KernelInterface kMergeStates = {
    .entry_name = "onewave_merge_states", .param_bytes = sizeof(MergeArgs), .shared_bytes = 0};

/// A kernel on one device.
class DeviceKernel {
 public:
  DeviceKernel(const Cubin& cubin, const KernelInterface& interface, CUdevice device) : context_(device) {
    const ContextScope scope(context_);
    function_ = load_kernel(cubin, interface, device);
  }

  void launch(const LaunchShape& shape, void* params, void* stream) const {
    const ContextScope scope(context_);
    launch_kernel(function_, shape, params, static_cast<CUstream>(stream));
  }

 private:
  PrimaryContext context_;
  CUfunction function_ = nullptr;
};

/// Made at the first call for a device.
const DeviceKernel& device_kernel(const Cubin& cubin, const KernelInterface& interface, int32_t device) {
  // Never destroyed: at exit the driver may be gone before statics are.
  static std::mutex& mutex = *new std::mutex;
  static auto& kernels = *new std::map<std::pair<const Cubin*, int32_t>, DeviceKernel>;

  std::lock_guard lock(mutex);
  const auto found = kernels.find({&cubin, device});
  if (found != kernels.end()) return found->second;
  return kernels.try_emplace(std::pair(&cubin, device), cubin, interface, hopper_device(device))
      .first->second;
}

uint32_t row_chunks(DType dtype, int32_t head_dim) {
  return static_cast<uint32_t>(head_dim) * static_cast<uint32_t>(dtype_bytes(dtype)) / kChunkBytes;
}

uint32_t ceil_div(uint64_t x, uint32_t divisor) { return static_cast<uint32_t>((x + divisor - 1) / divisor); }

}  // namespace

void append_paged_kv_cache(int32_t device, const AppendArgs& args, void* stream) {
  check_append_args(args);
  if (args.num_rows == 0) return;
  const uint64_t num_threads =
      uint64_t{row_chunks(args.kv_dtype, std::max(args.head_dim_qk, args.head_dim_vo))} *
      static_cast<uint32_t>(args.num_kv_heads) * static_cast<uint32_t>(args.num_rows);
  AppendArgs params = args;
  const DeviceKernel& kernel = args.kv_dtype == args.dtype
                                   ? device_kernel(kAppendCubin, kAppend, device)
                                   : device_kernel(kAppendFp8Cubin, kAppendFp8, device);
  kernel.launch({.num_ctas = ceil_div(num_threads, kRowThreads), .block_x = kRowThreads}, &params, stream);
}

void merge_states(int32_t device, const MergeArgs& args, void* stream) {
  check_merge_args(args);
  if (args.num_tokens == 0) return;
  // Rows share a warp, and none is in two: lane 0 stores the lse that all of a row's lanes have read.
  const uint32_t lanes = std::min(std::bit_ceil(row_chunks(args.dtype, args.head_dim)), kWarpLanes);
  const uint32_t cta_rows = kRowThreads / lanes;
  const uint64_t num_rows =
      uint64_t{static_cast<uint32_t>(args.num_tokens)} * static_cast<uint32_t>(args.num_heads);
  MergeArgs params = args;
  device_kernel(kMergeStatesCubin, kMergeStates, device)
      .launch({.num_ctas = ceil_div(num_rows, cta_rows), .block_x = lanes, .block_y = cta_rows}, &params,
              stream);
}

}  // namespace onewave
