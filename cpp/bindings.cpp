/// The private extension module onewave._core: the public C++ API with addresses as plain integers, so that
/// nothing here depends on the ABI of a tensor library. Checks of shapes and types are the business of the
/// Python callers.

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>
#include <onewave/cost_model.h>
#include <onewave/device.h>
#include <onewave/error.h>
#include <onewave/executor.h>
#include <onewave/planner.h>
#include <onewave/version.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings.h"

namespace onewave {
namespace {

nb::bytes to_bytes(const PlanHeader* plan) { return nb::bytes(plan, plan->num_bytes); }

/// The header at the start of a copy of a plan that came back from Python.
const PlanHeader* plan_header(const nb::bytes& plan) {
  const auto* header = reinterpret_cast<const PlanHeader*>(plan.c_str());
  if (plan.size() < sizeof(PlanHeader) || header->magic != kPlanMagic || header->num_bytes > plan.size()) {
    throw InvalidArgument("plan: these " + std::to_string(plan.size()) + " bytes are not a whole plan");
  }
  if (header->version != kPlanVersion) {
    throw InvalidArgument("plan: it has version " + std::to_string(header->version) + ", it must be " +
                          std::to_string(kPlanVersion));
  }
  return header;
}

BatchSpec batch_spec(const AttentionShape& shape, bool causal, float sm_scale, int32_t batch_size,
                     uintptr_t qo_indptr, uintptr_t kv_indptr, uintptr_t kv_len_arr, uintptr_t kv_indices,
                     int32_t block_table_width, int64_t block_table_stride, uintptr_t actual_kv_len_arr,
                     const MaskSpec& masks, uintptr_t prefix_groups, int32_t num_prefix_groups) {
  return {
      .shape = shape,
      .causal = causal,
      .sm_scale = sm_scale,
      .batch_size = batch_size,
      .qo_indptr = pointer<const int32_t>(qo_indptr),
      .kv_indptr = pointer<const int32_t>(kv_indptr),
      .kv_len_arr = pointer<const int32_t>(kv_len_arr),
      .kv_indices = pointer<const int32_t>(kv_indices),
      .block_table_width = block_table_width,
      .block_table_stride = block_table_stride,
      .actual_kv_len_arr = pointer<const int32_t>(actual_kv_len_arr),
      .masks = masks,
      .prefix_groups = pointer<const PrefixGroup>(prefix_groups),
      .num_prefix_groups = num_prefix_groups,
  };
}

MaskSpec mask_spec(float logits_soft_cap, uintptr_t causal_arr, uintptr_t custom_mask,
                   uintptr_t mask_indptr) {
  return {
      .logits_soft_cap = logits_soft_cap,
      .causal_arr = pointer<const uint8_t>(causal_arr),
      .custom_mask = pointer<const uint8_t>(custom_mask),
      .mask_indptr = pointer<const int64_t>(mask_indptr),
  };
}

/// The caller's, or where there are none an H200's, made in `fallback`.
const CostModel& costs_or_default(const CostModel* costs, const AttentionShape& shape,
                                  std::optional<CostModel>& fallback) {
  return costs != nullptr ? *costs : fallback.emplace(shape, calibration_of(""));
}

nb::bytes plan_batch_to_bytes(const PlanLimits& limits, const AttentionShape& shape, bool causal,
                              float sm_scale, int32_t batch_size, uintptr_t qo_indptr, uintptr_t kv_indptr,
                              uintptr_t kv_len_arr, uintptr_t kv_indices, const CostModel* costs,
                              int32_t block_table_width, int64_t block_table_stride,
                              uintptr_t actual_kv_len_arr, int32_t window_left, float logits_soft_cap,
                              uintptr_t causal_arr, uintptr_t custom_mask, uintptr_t mask_indptr,
                              uintptr_t prefix_groups, int32_t num_prefix_groups) {
  struct alignas(kPlanAlignment) Block {
    std::byte bytes[kPlanAlignment];
  };
  const size_t capacity = workspace_layout(limits, shape).plan_bytes;
  const auto buffer = std::make_unique_for_overwrite<Block[]>(capacity / sizeof(Block) + 1);
  MaskSpec masks = mask_spec(logits_soft_cap, causal_arr, custom_mask, mask_indptr);
  masks.window_left = window_left;
  const BatchSpec batch = batch_spec(shape, causal, sm_scale, batch_size, qo_indptr, kv_indptr, kv_len_arr,
                                     kv_indices, block_table_width, block_table_stride, actual_kv_len_arr,
                                     masks, prefix_groups, num_prefix_groups);
  std::optional<CostModel> fallback;
  return to_bytes(plan_batch(batch, limits, costs_or_default(costs, shape, fallback), buffer.get()));
}

std::vector<double> predict_item_bytes(const nb::bytes& plan, const AttentionShape& shape, int32_t batch_size,
                                       uintptr_t qo_indptr, const CostModel* costs, uintptr_t prefix_groups,
                                       int32_t num_prefix_groups) {
  const PlanHeader* header = plan_header(plan);
  if (header->batch_size != batch_size) {
    throw InvalidArgument("plan: it is of " + std::to_string(header->batch_size) + " requests, not of " +
                          std::to_string(batch_size));
  }
  std::vector<double> us(header->num_items);
  const BatchSpec batch = batch_spec(shape, true, 1, batch_size, qo_indptr, 0, 0, 0, 0, 0, 0, {},
                                     prefix_groups, num_prefix_groups);
  std::optional<CostModel> fallback;
  predict_items(header, batch, costs_or_default(costs, shape, fallback), us.data());
  return us;
}

/// A copy with the lengths of now.
nb::bytes update_kv_len_bytes(const nb::bytes& plan) {
  const PlanHeader* header = plan_header(plan);
  nb::bytes copy(header, header->num_bytes);
  update_kv_lens(const_cast<PlanHeader*>(plan_header(copy)));
  return copy;
}

void execute_plan_bytes(const nb::bytes& plan, const RunArgs& args, int num_threads) {
  const PlanHeader* header = plan_header(plan);
  const nb::gil_scoped_release unlocked;
  execute_plan(header, args, num_threads);
}

/// A DeviceAttention and the shape that each of its batches must have.
struct BoundAttention {
  BoundAttention(int32_t device, const PlanLimits& limits, const AttentionShape& shape, uintptr_t workspace,
                 const Calibration* calibration)
      : shape(shape),
        num_windows(limits.num_windows),
        attention(std::in_place, device, limits, shape, pointer<void>(workspace), calibration) {}

  /// Waits for uploads in flight, and lets other threads go on meanwhile.
  ~BoundAttention() {
    const nb::gil_scoped_release unlocked;
    attention.reset();
  }
  BoundAttention(const BoundAttention&) = delete;
  BoundAttention& operator=(const BoundAttention&) = delete;

  void plan(bool causal, float sm_scale, int32_t batch_size, uintptr_t qo_indptr, uintptr_t kv_indptr,
            uintptr_t kv_len_arr, uintptr_t kv_indices, uintptr_t stream, int32_t block_table_width,
            int64_t block_table_stride, uintptr_t actual_kv_len_arr, const std::vector<int32_t>& window_lefts,
            float logits_soft_cap, uintptr_t causal_arr, uintptr_t custom_mask, uintptr_t mask_indptr,
            uintptr_t prefix_groups, int32_t num_prefix_groups) {
    if (window_lefts.size() != static_cast<size_t>(num_windows)) {
      throw InvalidArgument("window_lefts has " + std::to_string(window_lefts.size()) +
                            " windows; it must have " + std::to_string(num_windows));
    }
    attention->plan(batch_spec(shape, causal, sm_scale, batch_size, qo_indptr, kv_indptr, kv_len_arr,
                               kv_indices, block_table_width, block_table_stride, actual_kv_len_arr,
                               mask_spec(logits_soft_cap, causal_arr, custom_mask, mask_indptr),
                               prefix_groups, num_prefix_groups),
                    pointer<void>(stream), window_lefts.data());
  }

  void run(const RunArgs& args, uintptr_t stream, bool enable_pdl) {
    attention->run(args, pointer<void>(stream), enable_pdl);
  }

  void load_profiler() { attention->load_profiler(); }

  void update_kv_lens(uintptr_t stream) { attention->update_kv_lens(pointer<void>(stream)); }

  nb::bytes plan_bytes(int32_t window) const {
    const PlanHeader* plan = attention->last_plan(window);
    if (plan == nullptr) throw InvalidArgument("plan_bytes(): there is no plan yet, call plan()");
    return to_bytes(plan);
  }

  AttentionShape shape;
  int32_t num_windows;
  std::optional<DeviceAttention> attention;  ///< until the destructor
};

void bind_enums(nb::module_& m) {
  nb::enum_<DType>(m, "DType")
      .value("FLOAT32", DType::kFloat32)
      .value("FLOAT16", DType::kFloat16)
      .value("BFLOAT16", DType::kBFloat16)
      .value("FLOAT8_E4M3", DType::kFloat8E4M3);
  nb::enum_<SplitPolicy>(m, "SplitPolicy")
      .value("BALANCED", SplitPolicy::kBalanced)
      .value("FIXED", SplitPolicy::kFixed);
  nb::enum_<Loader>(m, "Loader").value("TMA", Loader::kTma).value("GATHER", Loader::kGather);
}

void bind_planner(nb::module_& m) {
  nb::class_<PlanLimits>(m, "PlanLimits")
      .def(nb::init<int32_t, int32_t, int32_t, int32_t, SplitPolicy, int32_t, int32_t, int32_t>(),
           "max_batch_size"_a, "max_total_qo_len"_a, "max_kv_len"_a, "num_ctas"_a,
           "split_policy"_a = SplitPolicy::kBalanced, "num_windows"_a = 1, "max_mask_bytes"_a = 0,
           "max_shared_qo_len"_a = 0)
      .def_ro("max_batch_size", &PlanLimits::max_batch_size)
      .def_ro("max_total_qo_len", &PlanLimits::max_total_qo_len)
      .def_ro("max_kv_len", &PlanLimits::max_kv_len)
      .def_ro("num_ctas", &PlanLimits::num_ctas)
      .def_ro("split_policy", &PlanLimits::split_policy)
      .def_ro("num_windows", &PlanLimits::num_windows)
      .def_ro("max_mask_bytes", &PlanLimits::max_mask_bytes)
      .def_ro("max_shared_qo_len", &PlanLimits::max_shared_qo_len);
  nb::class_<AttentionShape>(m, "AttentionShape")
      .def(
          "__init__",
          [](AttentionShape* self, int32_t num_qo_heads, int32_t num_kv_heads, int32_t head_dim_qk,
             int32_t head_dim_vo, int32_t page_size, DType dtype, std::optional<DType> kv_dtype,
             std::optional<DType> out_dtype) {
            new (self) AttentionShape{.num_qo_heads = num_qo_heads,
                                      .num_kv_heads = num_kv_heads,
                                      .head_dim_qk = head_dim_qk,
                                      .head_dim_vo = head_dim_vo,
                                      .page_size = page_size,
                                      .dtype = dtype,
                                      .kv_dtype = kv_dtype.value_or(dtype),
                                      .out_dtype = out_dtype.value_or(default_out_dtype(dtype))};
          },
          "num_qo_heads"_a, "num_kv_heads"_a, "head_dim_qk"_a, "head_dim_vo"_a, "page_size"_a, "dtype"_a,
          "kv_dtype"_a = nb::none(), "out_dtype"_a = nb::none())
      .def_ro("num_qo_heads", &AttentionShape::num_qo_heads)
      .def_ro("num_kv_heads", &AttentionShape::num_kv_heads)
      .def_ro("head_dim_qk", &AttentionShape::head_dim_qk)
      .def_ro("head_dim_vo", &AttentionShape::head_dim_vo)
      .def_ro("page_size", &AttentionShape::page_size)
      .def_ro("dtype", &AttentionShape::dtype)
      .def_ro("kv_dtype", &AttentionShape::kv_dtype)
      .def_ro("out_dtype", &AttentionShape::out_dtype);
  nb::class_<WorkspaceLayout>(m, "WorkspaceLayout")
      .def_ro("plan_bytes", &WorkspaceLayout::plan_bytes)
      .def_ro("partial_lse_offset", &WorkspaceLayout::partial_lse_offset)
      .def_ro("partial_out_offset", &WorkspaceLayout::partial_out_offset)
      .def_ro("total_bytes", &WorkspaceLayout::total_bytes)
      .def_ro("max_partial_rows", &WorkspaceLayout::max_partial_rows);
  m.def("workspace_layout", &workspace_layout, "limits"_a, "shape"_a);
  m.def("plan_batch", &plan_batch_to_bytes, "limits"_a, "shape"_a, "causal"_a, "sm_scale"_a, "batch_size"_a,
        "qo_indptr"_a, "kv_indptr"_a, "kv_len_arr"_a, "kv_indices"_a, "costs"_a = nb::none(),
        "block_table_width"_a = 0, "block_table_stride"_a = 0, "actual_kv_len_arr"_a = 0,
        "window_left"_a = -1, "logits_soft_cap"_a = 0.f, "causal_arr"_a = 0, "custom_mask"_a = 0,
        "mask_indptr"_a = 0, "prefix_groups"_a = 0, "num_prefix_groups"_a = 0);
  m.def("predict_items", &predict_item_bytes, "plan"_a, "shape"_a, "batch_size"_a, "qo_indptr"_a,
        "costs"_a = nb::none(), "prefix_groups"_a = 0, "num_prefix_groups"_a = 0);
}

void bind_cost_model(nb::module_& m) {
  nb::class_<MemoryRate>(m, "MemoryRate")
      .def(
          "__init__",
          [](MemoryRate* self, int32_t num_ctas, float gb_per_s) {
            new (self) MemoryRate{.num_ctas = num_ctas, .gb_per_s = gb_per_s};
          },
          "num_ctas"_a, "gb_per_s"_a);
  nb::class_<KernelRates>(m, "KernelRates")
      .def(
          "__init__",
          [](KernelRates* self, int32_t head_dim, Loader loader, int32_t q_bytes, int32_t kv_bytes,
             float wide_step_us, float wide_unit_us, float wide_slowdown, float wide_unit_slowdown,
             float narrow_unit_us, const std::array<float, kNumRowClasses>& narrow_gb_per_s) {
            new (self) KernelRates{.head_dim = head_dim,
                                   .loader = loader,
                                   .q_bytes = q_bytes,
                                   .kv_bytes = kv_bytes,
                                   .wide_step_us = wide_step_us,
                                   .wide_unit_us = wide_unit_us,
                                   .wide_slowdown = wide_slowdown,
                                   .wide_unit_slowdown = wide_unit_slowdown,
                                   .narrow_unit_us = narrow_unit_us,
                                   .narrow_gb_per_s = narrow_gb_per_s};
          },
          "head_dim"_a, "loader"_a, "q_bytes"_a, "kv_bytes"_a, "wide_step_us"_a, "wide_unit_us"_a,
          "wide_slowdown"_a, "wide_unit_slowdown"_a, "narrow_unit_us"_a, "narrow_gb_per_s"_a);
  nb::class_<Calibration>(m, "Calibration")
      .def(
          "__init__",
          [](Calibration* self, std::string gpu, float launch_us, float split_us, float partial_gb_per_s,
             std::vector<MemoryRate> memory, std::vector<KernelRates> kernels) {
            new (self) Calibration{.gpu = std::move(gpu),
                                   .launch_us = launch_us,
                                   .split_us = split_us,
                                   .partial_gb_per_s = partial_gb_per_s,
                                   .memory = std::move(memory),
                                   .kernels = std::move(kernels)};
          },
          "gpu"_a, "launch_us"_a, "split_us"_a, "partial_gb_per_s"_a, "memory"_a, "kernels"_a)
      .def_ro("gpu", &Calibration::gpu)
      .def("memory_gb_per_s", &Calibration::memory_gb_per_s, "num_ctas"_a);
  nb::class_<CostModel>(m, "CostModel")
      .def(nb::init<const AttentionShape&, const Calibration&>(), "shape"_a, "calibration"_a)
      .def_prop_ro("launch_us", &CostModel::launch_us);
  m.def("calibrations", &calibrations);
  m.def("calibration_of", &calibration_of, "gpu"_a);
}

void bind_executor(nb::module_& m) {
  nb::class_<RunArgs>(m, "RunArgs")
      .def(
          "__init__",
          [](RunArgs* self, DType dtype, uintptr_t q, int64_t q_token_stride, int64_t q_head_stride,
             uintptr_t k, int64_t k_page_stride, int64_t k_token_stride, int64_t k_head_stride, uintptr_t v,
             int64_t v_page_stride, int64_t v_token_stride, int64_t v_head_stride, int64_t num_pages,
             uintptr_t out, int64_t out_token_stride, int64_t out_head_stride, int64_t num_rows,
             uintptr_t lse, float sm_scale, float k_scale, float v_scale, uintptr_t sm_scale_ptr,
             uintptr_t k_scale_ptr, uintptr_t v_scale_ptr, std::optional<DType> kv_dtype,
             std::optional<DType> out_dtype) {
            new (self) RunArgs{
                .dtype = dtype,
                .q = pointer<const void>(q),
                .q_token_stride = q_token_stride,
                .q_head_stride = q_head_stride,
                .kv_dtype = kv_dtype.value_or(dtype),
                .k = {pointer<const void>(k), k_page_stride, k_token_stride, k_head_stride},
                .v = {pointer<const void>(v), v_page_stride, v_token_stride, v_head_stride},
                .num_pages = num_pages,
                .out_dtype = out_dtype.value_or(default_out_dtype(dtype)),
                .out = pointer<void>(out),
                .out_token_stride = out_token_stride,
                .out_head_stride = out_head_stride,
                .num_rows = num_rows,
                .lse = pointer<float>(lse),
                .sm_scale = sm_scale,
                .k_scale = k_scale,
                .v_scale = v_scale,
                .sm_scale_ptr = pointer<const float>(sm_scale_ptr),
                .k_scales = {.data = pointer<const float>(k_scale_ptr)},
                .v_scales = {.data = pointer<const float>(v_scale_ptr)},
            };
          },
          "dtype"_a, "q"_a, "q_token_stride"_a, "q_head_stride"_a, "k"_a, "k_page_stride"_a,
          "k_token_stride"_a, "k_head_stride"_a, "v"_a, "v_page_stride"_a, "v_token_stride"_a,
          "v_head_stride"_a, "num_pages"_a, "out"_a, "out_token_stride"_a, "out_head_stride"_a, "num_rows"_a,
          "lse"_a, "sm_scale"_a, "k_scale"_a, "v_scale"_a, "sm_scale_ptr"_a, "k_scale_ptr"_a, "v_scale_ptr"_a,
          "kv_dtype"_a = nb::none(), "out_dtype"_a = nb::none())
      .def(
          "at",
          [](const RunArgs& self, uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t out, uintptr_t lse) {
            RunArgs args = self;
            args.q = pointer<const void>(q);
            args.k.data = pointer<const void>(k);
            args.v.data = pointer<const void>(v);
            args.out = pointer<void>(out);
            args.lse = pointer<float>(lse);
            return args;
          },
          "q"_a, "k"_a, "v"_a, "out"_a, "lse"_a)
      .def(
          "set_scales",
          [](RunArgs& self, float sm_scale, float k_scale, float v_scale, uintptr_t sm_scale_ptr,
             uintptr_t k_scale_ptr, uintptr_t v_scale_ptr, int64_t k_scale_page_stride,
             int64_t k_scale_group_stride, int64_t k_scale_head_stride, int32_t k_group_tokens,
             int64_t v_scale_page_stride, int64_t v_scale_group_stride, int64_t v_scale_head_stride,
             int32_t v_group_tokens, uintptr_t q_scale_ptr, int64_t q_scale_head_stride) {
            self.sm_scale = sm_scale;
            self.k_scale = k_scale;
            self.v_scale = v_scale;
            self.sm_scale_ptr = pointer<const float>(sm_scale_ptr);
            self.k_scales = {.data = pointer<const float>(k_scale_ptr),
                             .page_stride = k_scale_page_stride,
                             .group_stride = k_scale_group_stride,
                             .head_stride = k_scale_head_stride,
                             .group_tokens = k_group_tokens};
            self.v_scales = {.data = pointer<const float>(v_scale_ptr),
                             .page_stride = v_scale_page_stride,
                             .group_stride = v_scale_group_stride,
                             .head_stride = v_scale_head_stride,
                             .group_tokens = v_group_tokens};
            self.q_scales = pointer<const float>(q_scale_ptr);
            self.q_scale_head_stride = q_scale_head_stride;
          },
          "sm_scale"_a, "k_scale"_a, "v_scale"_a, "sm_scale_ptr"_a, "k_scale_ptr"_a, "v_scale_ptr"_a,
          "k_scale_page_stride"_a = 0, "k_scale_group_stride"_a = 0, "k_scale_head_stride"_a = 0,
          "k_group_tokens"_a = 1, "v_scale_page_stride"_a = 0, "v_scale_group_stride"_a = 0,
          "v_scale_head_stride"_a = 0, "v_group_tokens"_a = 1, "q_scale_ptr"_a = 0,
          "q_scale_head_stride"_a = 0)
      .def_prop_ro(
          "is_scaled_by_group",
          [](const RunArgs& self) { return self.k_scales.is_by_group() || self.v_scales.is_by_group(); })
      .def(
          "set_options",
          [](RunArgs& self, uintptr_t sinks, bool natural_lse, int32_t window) {
            self.sinks = pointer<const float>(sinks);
            self.natural_lse = natural_lse;
            self.window = window;
          },
          "sinks"_a, "natural_lse"_a, "window"_a)
      .def(
          "set_profile",
          [](RunArgs& self, uintptr_t profile, int64_t num_bytes) {
            self.profile = pointer<void>(profile);
            self.num_profile_bytes = num_bytes;
          },
          "profile"_a, "num_bytes"_a);
  m.def("update_kv_lens", &update_kv_len_bytes, "plan"_a);
  m.def("execute_plan", &execute_plan_bytes, "plan"_a, "args"_a, "num_threads"_a);
}

void bind_device(nb::module_& m) {
  nb::class_<DeviceInfo>(m, "DeviceInfo")
      .def_ro("name", &DeviceInfo::name)
      .def_ro("num_sms", &DeviceInfo::num_sms)
      .def_ro("capability_major", &DeviceInfo::capability_major)
      .def_ro("capability_minor", &DeviceInfo::capability_minor)
      .def_ro("driver_version", &DeviceInfo::driver_version);
  nb::class_<KernelInfo>(m, "KernelInfo")
      .def_ro("dtype", &KernelInfo::dtype)
      .def_ro("kv_dtype", &KernelInfo::kv_dtype)
      .def_ro("head_dim_qk", &KernelInfo::head_dim_qk)
      .def_ro("head_dim_vo", &KernelInfo::head_dim_vo)
      .def_ro("loader", &KernelInfo::loader)
      .def_ro("is_masked", &KernelInfo::is_masked)
      .def_ro("is_profiled", &KernelInfo::is_profiled)
      .def_ro("num_bytes", &KernelInfo::num_bytes);
  m.def("device_info", &device_info, "device"_a);
  m.def("list_kernels", &list_kernels);
  m.def("choose_loader", &choose_loader, "page_size"_a);

  // plan() may wait for a buffer of the ring and run() for room in the launch queue: both let other threads
  // go on.
  nb::class_<BoundAttention>(m, "DeviceAttention")
      .def(nb::init<int32_t, const PlanLimits&, const AttentionShape&, uintptr_t, const Calibration*>(),
           "device"_a, "limits"_a, "shape"_a, "workspace"_a, "calibration"_a = nb::none())
      .def("plan", &BoundAttention::plan, nb::call_guard<nb::gil_scoped_release>(), "causal"_a, "sm_scale"_a,
           "batch_size"_a, "qo_indptr"_a, "kv_indptr"_a, "kv_len_arr"_a, "kv_indices"_a, "stream"_a,
           "block_table_width"_a = 0, "block_table_stride"_a = 0, "actual_kv_len_arr"_a = 0,
           "window_lefts"_a = std::vector<int32_t>{-1}, "logits_soft_cap"_a = 0.f, "causal_arr"_a = 0,
           "custom_mask"_a = 0, "mask_indptr"_a = 0, "prefix_groups"_a = 0, "num_prefix_groups"_a = 0)
      .def("run", &BoundAttention::run, nb::call_guard<nb::gil_scoped_release>(), "args"_a, "stream"_a,
           "enable_pdl"_a = false)
      .def("load_profiler", &BoundAttention::load_profiler, nb::call_guard<nb::gil_scoped_release>())
      .def("update_kv_lens", &BoundAttention::update_kv_lens, nb::call_guard<nb::gil_scoped_release>(),
           "stream"_a)
      .def("plan_bytes", &BoundAttention::plan_bytes, "window"_a = 0);
}

/// The two are built together: where their versions fit but differ, files of two wheels were mixed.
void check_library() {
  if (std::strcmp(library_version(), kVersion) == 0) return;
  const std::string message =
      "onewave._core is of version " + std::string(kVersion) + ", libonewave.so is of version " +
      library_version() + "; they must be the same: install onewave anew, and load no other libonewave.so";
  throw nb::import_error(message.c_str());
}

}  // namespace
}  // namespace onewave

NB_MODULE(_core, m) {
  onewave::check_library();
  // What an interpreter that ends leaves alive is not ours to tell: torch without numpy keeps frames of the
  // caller.
  nanobind::set_leak_warnings(false);
  m.attr("version") = onewave::kVersion;
  nanobind::exception<onewave::DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  onewave::bind_enums(m);
  onewave::bind_cost_model(m);
  onewave::bind_layouts(m);
  onewave::bind_planner(m);
  onewave::bind_executor(m);
  onewave::bind_device(m);
  onewave::bind_row_kernels(m);
}
