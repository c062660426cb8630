#include <onewave/device.h>
#include <onewave/error.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <numbers>
#include <string>
#include <vector>

#include "context.h"
#include "driver.h"
#include "head_groups.h"
#include "kernels.h"
#include "kv_lens.h"
#include "params.h"
#include "plan_ring.h"
#include "run_checks.h"
#include "tensor_map.h"

namespace onewave {
namespace {

/// A plan, and the partials behind it, start at multiples of this.
constexpr uintptr_t kWorkspaceAlignment = 128;

constexpr KernelInterface kAttention = {
    .entry_name = "onewave_attention", .param_bytes = sizeof(KernelParams), .shared_bytes = kSharedBytes};
constexpr KernelInterface kProfiledAttention = {.entry_name = "onewave_attention_profiled",
                                                .param_bytes = sizeof(ProfiledParams),
                                                .shared_bytes = kSharedBytes};
constexpr KernelInterface kUpdateKvLens = {
    .entry_name = "onewave_update_kv_lens", .param_bytes = sizeof(void*), .shared_bytes = 0};

/// Those for a shape, of the plain and the masked kind.
struct LoadedKernels {
  CUfunction plain = nullptr;
  CUfunction masked = nullptr;
};

LoadedKernels load_kernels(const AttentionShape& shape, bool is_profiled, CUdevice device) {
  const KernelInterface& interface = is_profiled ? kProfiledAttention : kAttention;
  const auto load = [&](bool is_masked) {
    const KernelVariant variant{.is_masked = is_masked, .is_profiled = is_profiled};
    return load_kernel(find_kernel(shape, variant).cubin, interface, device);
  };
  return {.plain = load(false), .masked = load(true)};
}

bool operator==(const AttentionShape& a, const AttentionShape& b) {
  return a.num_qo_heads == b.num_qo_heads && a.num_kv_heads == b.num_kv_heads &&
         a.head_dim_qk == b.head_dim_qk && a.head_dim_vo == b.head_dim_vo && a.page_size == b.page_size &&
         a.dtype == b.dtype && a.kv_dtype == b.kv_dtype && a.out_dtype == b.out_dtype;
}

bool is_capturing(CUstream stream) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  driver().stream_is_capturing(stream, &status);
  return status != CU_STREAM_CAPTURE_STATUS_NONE;
}

/// Of powers of two; of other page sizes, which no box is made for, something.
int32_t log2_of(int32_t x) { return std::countr_zero(static_cast<uint32_t>(x)); }

/// Of one panel and kv head. Of a cache of e4m3 each of the producer's warps loads its own rows.
TmaBox make_panel_box(const AttentionShape& shape) {
  const int32_t stage = stage_kv(shape.head_dim_vo);
  const int32_t rows = shape.kv_dtype == DType::kFloat8E4M3 ? stage / kProducerWarps : stage;
  return {.tokens = std::min(shape.page_size, rows), .panels = 1, .heads = 1};
}

int32_t box_panels(int32_t head_dim, DType kv_dtype) {
  return has_full_panels(head_dim, kv_dtype) ? num_panels(head_dim, dtype_bytes(kv_dtype)) : 1;
}

/// Of one kv head, with all panels where that can be.
TmaBox make_box(const AttentionShape& shape, int32_t head_dim) {
  TmaBox box = make_panel_box(shape);
  box.panels = box_panels(head_dim, shape.kv_dtype);
  return box;
}

/// The tokens that every number of kv heads that may go together leaves a stage.
TmaBox make_group_box(const AttentionShape& shape, int32_t head_dim) {
  const HeadGroups groups = head_groups(shape);
  const bool has_panels = has_full_panels(shape.head_dim_qk, shape.kv_dtype) &&
                          has_full_panels(shape.head_dim_vo, shape.kv_dtype);
  return {.tokens = std::min(shape.page_size, stage_kv(shape.head_dim_vo) / groups.most),
          .panels = box_panels(head_dim, shape.kv_dtype),
          .heads = has_panels ? groups.box : 1};
}

/// Strides are not negative where they are taken, and the low 32 bits are what counts (cuda/load.cuh).
GatheredTensor gathered_tensor(const PagedTensor& tensor, DType dtype) {
  constexpr int kChunkBytes = 16;
  const auto chunks = [dtype](int64_t stride) {
    return static_cast<uint32_t>(static_cast<uint64_t>(stride) / (kChunkBytes / dtype_bytes(dtype)));
  };
  return {.data = tensor.data,
          .page_chunks = chunks(tensor.page_stride),
          .token_chunks = chunks(tensor.token_stride),
          .head_chunks = chunks(tensor.head_stride)};
}

/// What the kernel finds a token's group by (cuda/scales.cuh).
uint32_t group_inverse(const KvScales& scales) {
  if (!scales.is_by_group()) return 0;
  const auto tokens = static_cast<uint32_t>(scales.group_tokens);
  return ((1u << 31) + tokens - 1) / tokens;
}

ScaleStrides scale_strides(const KvScales& scales) {
  return {.page = scales.page_stride,
          .group = static_cast<int32_t>(scales.group_stride),
          .head = static_cast<int32_t>(scales.head_stride),
          .group_inverse = group_inverse(scales)};
}

}  // namespace

struct DeviceAttention::Impl {
  Impl(int32_t device_ordinal, const PlanLimits& plan_limits, const AttentionShape& attention_shape,
       void* memory, const Calibration& calibration);
  ~Impl();

  KernelParams make_params(const RunArgs& args);
  void update_kv_lens(CUstream stream);
  unsigned char* plan_address(int32_t window) const { return workspace + window * layout.plan_bytes; }

  const PlanLimits limits;
  const AttentionShape shape;
  const WorkspaceLayout layout;
  const CostModel costs;
  const Loader loader;
  unsigned char* const workspace;
  const CUdevice device;
  const PrimaryContext context;
  std::unique_ptr<PlanRing> ring;
  LoadedKernels kernels;
  LoadedKernels profiled_kernels;  ///< null until they are asked for
  CUfunction kv_lens_kernel = nullptr;
  const TmaBox panel_box = make_panel_box(shape);
  const TmaBox group_box = make_group_box(shape, shape.head_dim_qk);
  CachedTensorMap k_panel_map{panel_box, shape.head_dim_qk};
  CachedTensorMap k_map{make_box(shape, shape.head_dim_qk), shape.head_dim_qk};
  CachedTensorMap v_map{make_box(shape, shape.head_dim_vo), shape.head_dim_vo};
  CachedTensorMap k_group_map{group_box, shape.head_dim_qk};
  CachedTensorMap v_group_map{make_group_box(shape, shape.head_dim_vo), shape.head_dim_vo};
  const PlanHeader* last_plan = nullptr;  ///< in the ring, the first of num_windows
  std::vector<size_t> plan_sizes;         ///< of these, in bytes
};

DeviceAttention::Impl::Impl(int32_t device_ordinal, const PlanLimits& plan_limits,
                            const AttentionShape& attention_shape, void* memory,
                            const Calibration& calibration)
    : limits(plan_limits),
      shape(attention_shape),
      layout(workspace_layout(plan_limits, attention_shape)),
      costs(attention_shape, calibration),
      loader(choose_loader(attention_shape.page_size)),
      workspace(static_cast<unsigned char*>(memory)),
      device(hopper_device(device_ordinal)),
      context(device),
      plan_sizes(plan_limits.num_windows) {
  check_out_dtype(shape.dtype, shape.out_dtype);
  if (memory == nullptr || reinterpret_cast<uintptr_t>(memory) % kWorkspaceAlignment != 0) {
    throw InvalidArgument("workspace must be device memory that starts at a multiple of 128 bytes");
  }
  ContextScope scope(context);
  kernels = load_kernels(shape, false, device);
  kv_lens_kernel = load_kernel(kUpdateKvLensCubin, kUpdateKvLens, device);
  ring = std::make_unique<PlanRing>(layout.plan_bytes * limits.num_windows);
}

DeviceAttention::Impl::~Impl() {
  try {
    ContextScope scope(context);
    ring.reset();
  } catch (...) {
    // The driver is gone, as at the end of a process; so is what the ring held, and nothing may be freed.
    static_cast<void>(ring.release());
  }
}

KernelParams DeviceAttention::Impl::make_params(const RunArgs& args) {
  KernelParams params{.plan = plan_address(args.window),
                      .num_pages = static_cast<int32_t>(args.num_pages),
                      .num_rows = static_cast<int32_t>(std::min<int64_t>(args.num_rows, INT32_MAX)),
                      .box_shift = log2_of(panel_box.tokens),
                      .group_box_shift = log2_of(group_box.tokens),
                      .group_heads_shift = log2_of(group_box.heads),
                      .out_is_bf16 = args.out_dtype == DType::kBFloat16 ? 1 : 0,
                      .q = args.q,
                      .out = args.out,
                      .q_token_stride = static_cast<int32_t>(args.q_token_stride),
                      .q_head_stride = static_cast<int32_t>(args.q_head_stride),
                      .out_token_stride = static_cast<int32_t>(args.out_token_stride),
                      .out_head_stride = static_cast<int32_t>(args.out_head_stride),
                      .lse = args.lse,
                      .partial_out = reinterpret_cast<float*>(workspace + layout.partial_out_offset),
                      .partial_lse = reinterpret_cast<float*>(workspace + layout.partial_lse_offset),
                      .sm_scale_ptr = args.sm_scale_ptr,
                      .k_scale_ptr = args.k_scales.data,
                      .v_scale_ptr = args.v_scales.data,
                      .sm_scale_log2 = args.sm_scale * std::numbers::log2e_v<float>,
                      .k_scale = args.k_scale,
                      .v_scale = args.v_scale,
                      .lse_unit = args.natural_lse ? std::numbers::ln2_v<float> : 1.f,
                      .sinks = args.sinks,
                      .k = gathered_tensor(args.k, shape.kv_dtype),
                      .v = gathered_tensor(args.v, shape.kv_dtype),
                      .q_scale_ptr = args.q_scales,
                      .k_panel_map = {},
                      .k_map = {},
                      .v_map = {},
                      .k_group_map = {},
                      .v_group_map = {},
                      .k_scale_strides = scale_strides(args.k_scales),
                      .v_scale_strides = scale_strides(args.v_scales),
                      .q_scale_head_stride = static_cast<int32_t>(args.q_scale_head_stride)};
  if (loader == Loader::kTma && args.num_pages > 0) {
    params.k_panel_map = k_panel_map.get(args.k, args.num_pages, shape);
    params.k_map = k_map.get(args.k, args.num_pages, shape);
    params.v_map = v_map.get(args.v, args.num_pages, shape);
    if (head_groups(shape).most > 1) {
      params.k_group_map = k_group_map.get(args.k, args.num_pages, shape);
      params.v_group_map = v_group_map.get(args.v, args.num_pages, shape);
    }
  }
  return params;
}

void DeviceAttention::Impl::update_kv_lens(CUstream stream) {
  for (int32_t window = 0; window < limits.num_windows; ++window) {
    void* plan = plan_address(window);
    launch_kernel(kv_lens_kernel, {.num_ctas = kKvLensCtas, .block_x = kKvLensThreads}, &plan, stream);
  }
}

DeviceAttention::DeviceAttention(int32_t device, const PlanLimits& limits, const AttentionShape& shape,
                                 void* workspace, const Calibration* calibration)
    : impl_(std::make_unique<Impl>(
          device, limits, shape, workspace,
          calibration != nullptr ? *calibration : calibration_of(device_info(device).name))) {}

DeviceAttention::~DeviceAttention() = default;

const PlanHeader* DeviceAttention::plan(const BatchSpec& batch, void* stream, const int32_t* window_lefts) {
  Impl& impl = *impl_;
  const int32_t num_windows = impl.limits.num_windows;
  if (window_lefts == nullptr && num_windows != 1) {
    throw InvalidArgument("window_lefts is null; it must be " + std::to_string(num_windows) +
                          " of them, the limits' num_windows");
  }
  if (!(batch.shape == impl.shape)) throw InvalidArgument("batch.shape must equal the constructor's shape");
  ContextScope scope(impl.context);
  auto cuda_stream = static_cast<CUstream>(stream);
  if (is_capturing(cuda_stream)) {
    throw InvalidArgument(
        "stream is being captured; plan() must run outside the capture, a replay reads the last plan");
  }
  auto* buffer = static_cast<unsigned char*>(impl.ring->acquire());
  BatchSpec windowed = batch;
  for (int32_t window = 0; window < num_windows; ++window) {
    if (window_lefts != nullptr) windowed.masks.window_left = window_lefts[window];
    const PlanHeader* plan =
        plan_batch(windowed, impl.limits, impl.costs, buffer + window * impl.layout.plan_bytes);
    impl.plan_sizes[window] = plan->num_bytes;
  }
  // Until all of the upload has succeeded: should it fail, what the device has is not known.
  impl.last_plan = nullptr;
  impl.ring->upload(reinterpret_cast<CUdeviceptr>(impl.workspace), impl.plan_sizes, impl.layout.plan_bytes,
                    cuda_stream);
  if (batch.actual_kv_len_arr != nullptr) impl.update_kv_lens(cuda_stream);
  impl.last_plan = reinterpret_cast<const PlanHeader*>(buffer);
  return impl.last_plan;
}

void DeviceAttention::update_kv_lens(void* stream) {
  Impl& impl = *impl_;
  if (impl.last_plan == nullptr) throw InvalidArgument("update_kv_lens() needs a plan; call plan() first");
  ContextScope scope(impl.context);
  impl.update_kv_lens(static_cast<CUstream>(stream));
}

void DeviceAttention::load_profiler() {
  Impl& impl = *impl_;
  if (impl.profiled_kernels.masked != nullptr) return;
  ContextScope scope(impl.context);
  impl.profiled_kernels = load_kernels(impl.shape, true, impl.device);
}

void DeviceAttention::run(const RunArgs& args, void* stream, bool enable_pdl) {
  Impl& impl = *impl_;
  if (impl.last_plan == nullptr) throw InvalidArgument("run() needs a plan; call plan() first");
  const PlanHeader* plan = last_plan(args.window);
  const bool is_profiled = args.profile != nullptr;
  if (is_profiled && impl.profiled_kernels.masked == nullptr) {
    throw InvalidArgument("profile is given; call load_profiler() first");
  }
  ContextScope scope(impl.context);
  auto cuda_stream = static_cast<CUstream>(stream);
  check_run_args(args, {.shape = impl.shape,
                        .loader = impl.loader,
                        .max_total_qo_len = impl.limits.max_total_qo_len,
                        .plan = *plan,
                        .is_capturing = is_capturing(cuda_stream),
                        .num_ctas = impl.limits.num_ctas});
  ProfiledParams params{impl.make_params(args), args.profile, 0, args.window};
  if (is_profiled) {
    params.max_profile_items = static_cast<int32_t>(
        std::min<int64_t>(max_profile_items(args.num_profile_bytes, impl.limits.num_ctas), INT32_MAX));
  }
  const LoadedKernels& kernels = is_profiled ? impl.profiled_kernels : impl.kernels;
  const bool is_masked = plan->is_masked != 0 || args.sinks != nullptr || args.k_scales.is_by_group() ||
                         args.v_scales.is_by_group();
  // A kernel without the profiler takes the first part of the parameters.
  launch_kernel(is_masked ? kernels.masked : kernels.plain,
                {.num_ctas = static_cast<uint32_t>(impl.limits.num_ctas),
                 .block_x = kNumThreads,
                 .shared_bytes = kSharedBytes,
                 .enable_pdl = enable_pdl},
                &params, cuda_stream);
}

const PlanHeader* DeviceAttention::last_plan(int32_t window) const {
  const Impl& impl = *impl_;
  if (window < 0 || window >= impl.limits.num_windows) {
    throw InvalidArgument("window is " + std::to_string(window) + "; it must be in 0.." +
                          std::to_string(impl.limits.num_windows - 1));
  }
  if (impl.last_plan == nullptr) return nullptr;
  return plan_section<PlanHeader>(impl.last_plan, static_cast<uint32_t>(window * impl.layout.plan_bytes));
}

}  // namespace onewave
