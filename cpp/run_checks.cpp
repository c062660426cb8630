#include "run_checks.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "fail.h"
#include "kernels.h"
#include "params.h"
#include "row_threads.h"

namespace onewave {
namespace {

/// Rows are read by 16-byte copies, so every one must start at a multiple of this.
constexpr int64_t kRowAlignment = 16;
/// A gathering kernel counts a row's offset in 32 bits of 16 bytes; the last value means no row
/// (cuda/load.cuh).
constexpr double kMaxGatherBytes = 16.0 * std::numeric_limits<uint32_t>::max();
/// What a tensor map can hold: its strides are of 40 bits.
constexpr int64_t kMaxCacheStrideBytes = int64_t{1} << 40;

void check_not_null(const char* name, const void* address) {
  if (address == nullptr) fail(name, " is null; it must be device memory");
}

void check_address(const char* name, const void* address) {
  check_not_null(name, address);
  if (reinterpret_cast<uintptr_t>(address) % kRowAlignment != 0) {
    fail(name, " must start at a multiple of 16 bytes");
  }
}

/// `size`: of the dimension that the stride belongs to; a stride that is never taken may be anything.
void check_stride(const char* name, const char* dimension, int64_t stride, int64_t size, DType dtype) {
  if (size > 1 && stride % (kRowAlignment / dtype_bytes(dtype)) != 0) {
    fail(name, " ", dimension, " stride is ", stride, " elements; it must be a multiple of 16 bytes");
  }
}

void check_cache_stride(const char* name, const char* dimension, int64_t stride, int64_t size,
                        const RunSituation& situation) {
  const DType dtype = situation.shape.kv_dtype;
  check_stride(name, dimension, stride, size, dtype);
  if (size <= 1) return;
  if (stride < 0 || stride >= kMaxCacheStrideBytes / dtype_bytes(dtype)) {
    fail(name, " ", dimension, " stride is ", stride,
         " elements; it must not be negative, and must be below 2^40 bytes");
  }
  if (stride == 0 && situation.loader == Loader::kTma) {
    fail(name, " ", dimension, " stride is 0; it must not be with pages of ", situation.shape.page_size,
         " tokens, which TMA loads: an expanded dimension has to be copied");
  }
}

/// To the start of the last row. In double: a product of what the other checks allow is more than an int64
/// holds.
double cache_span_bytes(const PagedTensor& cache, int64_t num_pages, const AttentionShape& shape) {
  const auto reach = [](int64_t stride, int64_t size) {
    return size > 1 ? static_cast<double>(stride) * static_cast<double>(size - 1) : 0.0;
  };
  return (reach(cache.page_stride, num_pages) + reach(cache.token_stride, shape.page_size) +
          reach(cache.head_stride, shape.num_kv_heads)) *
         dtype_bytes(shape.kv_dtype);
}

void check_cache(const char* name, const PagedTensor& cache, int64_t num_pages,
                 const RunSituation& situation) {
  check_address(name, cache.data);
  check_cache_stride(name, "page", cache.page_stride, num_pages, situation);
  check_cache_stride(name, "token", cache.token_stride, situation.shape.page_size, situation);
  check_cache_stride(name, "head", cache.head_stride, situation.shape.num_kv_heads, situation);
  if (situation.loader == Loader::kGather &&
      cache_span_bytes(cache, num_pages, situation.shape) >= kMaxGatherBytes) {
    fail(name, " reaches over 64 GiB or more; with pages of ", situation.shape.page_size,
         " tokens, which are gathered, it must be less (TMA, for powers of two from 8, takes any)");
  }
}

/// The kernel multiplies 32 bits by 32.
void check_row_stride(const char* name, const char* dimension, int64_t stride, int64_t size, DType dtype) {
  check_stride(name, dimension, stride, size, dtype);
  if (size > 1 && stride != static_cast<int32_t>(stride)) {
    fail(name, " ", dimension, " stride is ", stride, " elements; it must be an int32");
  }
}

void check_rows(const char* name, const void* address, int64_t token_stride, int64_t head_stride, DType dtype,
                const RunSituation& situation) {
  // An empty tensor may have no address, unless a later plan can give it rows.
  if (situation.plan.total_qo_len == 0 && !situation.is_capturing) return;
  check_address(name, address);
  check_row_stride(name, "token", token_stride, situation.max_total_qo_len, dtype);
  check_row_stride(name, "head", head_stride, situation.shape.num_qo_heads, dtype);
}

bool has_keys(const PlanHeader& plan) {
  const auto* items = plan_section<WorkItem>(&plan, plan.items_offset);
  return std::any_of(items, items + plan.num_items,
                     [](const WorkItem& item) { return item.kv_end > item.kv_begin; });
}

void check_num_pages(int64_t num_pages, const RunSituation& situation) {
  if (num_pages < 0 || num_pages > std::numeric_limits<int32_t>::max()) {
    fail("num_pages is ", num_pages, "; it must be at least 0 and fit in an int32");
  }
  if (num_pages > 0) return;
  if (situation.is_capturing) fail("num_pages is 0; it must be positive in a capture, which bakes it in");
  if (has_keys(situation.plan)) fail("num_pages is 0; it must be positive, the plan has keys");
}

void check_scales(float sm_scale, float k_scale, float v_scale) {
  if (!(sm_scale >= 0) || !std::isfinite(sm_scale)) {
    fail("sm_scale is ", sm_scale, "; it must be positive and finite, or 0 for the plan's");
  }
  if (!(k_scale > 0) || !std::isfinite(k_scale)) {
    fail("k_scale is ", k_scale, "; it must be positive and finite");
  }
  if (!std::isfinite(v_scale)) fail("v_scale is ", v_scale, "; it must be finite");
}

/// A factor for each kv head, or more of them, is what only kernels of an fp8 cache look at.
void check_kv_scales(const char* name, const KvScales& scales, const AttentionShape& shape) {
  if (scales.is_one_factor()) return;
  if (shape.kv_dtype != DType::kFloat8E4M3) {
    fail(name, " has more than one factor; it must have one where k and v are ", dtype_name(shape.kv_dtype));
  }
  for (const int64_t stride : {scales.page_stride, scales.group_stride, scales.head_stride}) {
    if (stride < 0) fail(name, " has a stride of ", stride, "; it must not be negative");
  }
  if (scales.group_stride > std::numeric_limits<int32_t>::max() ||
      scales.head_stride > std::numeric_limits<int32_t>::max()) {
    fail(name, " has strides of groups and heads of ", scales.group_stride, " and ", scales.head_stride,
         "; they must each be an int32");
  }
  if (scales.is_by_group() && shape.head_dim_vo > kMaxScaledHeadDim) {
    fail(name, " are of groups of tokens; head_dim must be at most ", kMaxScaledHeadDim, " for them, not ",
         shape.head_dim_vo);
  }
  if (scales.is_by_group() && shape.dtype == DType::kFloat8E4M3) {
    fail(name, " are of groups of tokens; q must be of 16 bits for them, not ", dtype_name(shape.dtype));
  }
  // The kernel multiplies the two in 31 bits.
  constexpr int32_t kMaxPageSize = 1 << 15;
  if (scales.is_by_group() && shape.page_size > kMaxPageSize) {
    fail(name, " are of groups of tokens; pages must have at most ", kMaxPageSize, " tokens for them, not ",
         shape.page_size);
  }
  if (scales.group_tokens < 1 || shape.page_size % scales.group_tokens != 0) {
    fail(name, " has groups of ", scales.group_tokens, " tokens; they must divide pages of ",
         shape.page_size);
  }
}

void check_q_scales(const RunArgs& args) {
  if (args.q_scales == nullptr) return;
  if (args.dtype != DType::kFloat8E4M3) {
    fail("q_scales are given; they must be null where q is ", dtype_name(args.dtype), ", not ",
         dtype_name(DType::kFloat8E4M3));
  }
  if (args.q_scale_head_stride < 0 || args.q_scale_head_stride > std::numeric_limits<int32_t>::max()) {
    fail("q_scale_head_stride is ", args.q_scale_head_stride,
         "; it must not be negative, and must be an int32");
  }
}

void check_size(const char* name, int64_t size, int64_t minimum) {
  if (size < minimum) fail(name, " is ", size, "; it must be at least ", minimum);
}

/// Rows that are copied in chunks of 16 bytes.
void check_head_dim(const char* name, int32_t head_dim, DType dtype) {
  check_size(name, head_dim, 1);
  if (head_dim * int64_t{dtype_bytes(dtype)} % kRowAlignment != 0) {
    fail(name, " is ", head_dim, " elements of ", dtype_name(dtype), "; it must be a multiple of 16 bytes");
  }
}

void check_row_tensor(const char* name, const RowTensor& rows, int64_t num_tokens, int64_t num_heads,
                      DType dtype) {
  check_address(name, rows.data);
  check_stride(name, "token", rows.token_stride, num_tokens, dtype);
  check_stride(name, "head", rows.head_stride, num_heads, dtype);
}

/// The kernels count in 32 bits, up to the end of the last CTA. In double: the product may exceed an int64.
void check_count(const char* what, double count) {
  constexpr double kMaxCount = double{std::numeric_limits<uint32_t>::max()} - kRowThreads;
  if (count > kMaxCount) fail(what, " are ", count, "; they must be at most ", kMaxCount);
}

void check_appended_cache(const char* name, const PagedTensor& cache, const AppendArgs& args) {
  if (args.num_pages == 0) return;
  check_address(name, cache.data);
  check_stride(name, "page", cache.page_stride, args.num_pages, args.kv_dtype);
  check_stride(name, "token", cache.token_stride, args.page_size, args.kv_dtype);
  check_stride(name, "head", cache.head_stride, args.num_kv_heads, args.kv_dtype);
}

/// The kernel multiplies with 1 / scale.
void check_append_scale(const char* name, const HeadScales& scales, const AppendArgs& args) {
  const bool is_neutral = scales.data == nullptr && scales.scale == 1;
  if (args.dtype == args.kv_dtype && !is_neutral) {
    fail(name, " is given; it must not be where dtype is kv_dtype, ", dtype_name(args.dtype),
         ": such rows are copied");
  }
  if (scales.data == nullptr &&
      (!(scales.scale > 0) || !std::isfinite(scales.scale) || !std::isfinite(1 / scales.scale))) {
    fail(name, " is ", scales.scale, "; it and its reciprocal must be positive and finite");
  }
}

void check_states(const StateSet& states, const MergeArgs& args) {
  check_size("num_states", states.num_states, 0);
  if (states.num_states == 0) return;
  check_address("v", states.v);
  check_stride("v", "token", states.v_token_stride, args.num_tokens, args.dtype);
  check_stride("v", "state", states.v_state_stride, states.num_states, args.dtype);
  check_stride("v", "head", states.v_head_stride, args.num_heads, args.dtype);
  check_not_null("s", states.s);
}

void check_output_type(DType dtype, DType out_dtype, bool is_on_cpu) {
  if (dtype != DType::kFloat8E4M3) {
    if (out_dtype == dtype) return;
    fail("out_dtype is ", dtype_name(out_dtype), "; it must be that of q, ", dtype_name(dtype));
  }
  if (out_dtype == DType::kBFloat16 || out_dtype == DType::kFloat16) return;
  if (out_dtype == DType::kFloat32 && is_on_cpu) return;
  fail("out_dtype is ", dtype_name(out_dtype), "; it must be ",
       is_on_cpu ? "bfloat16, float16 or float32" : "bfloat16 or float16", " where q is ", dtype_name(dtype));
}

}  // namespace

void check_out_dtype(DType dtype, DType out_dtype) { check_output_type(dtype, out_dtype, false); }

void check_cpu_dtypes(const RunArgs& args) {
  if (args.kv_dtype != args.dtype && args.kv_dtype != DType::kFloat8E4M3) {
    fail("kv_dtype is ", dtype_name(args.kv_dtype), "; it must be ", dtype_name(DType::kFloat8E4M3),
         ", or that of q, ", dtype_name(args.dtype));
  }
  check_output_type(args.dtype, args.out_dtype, true);
  check_q_scales(args);
}

void check_run_args(const RunArgs& args, const RunSituation& situation) {
  const DType planned = situation.shape.dtype;
  if (args.dtype != planned) {
    fail("dtype of q is ", dtype_name(args.dtype), "; the plan was made for ", dtype_name(planned));
  }
  if (args.kv_dtype != situation.shape.kv_dtype) {
    fail("kv_dtype is ", dtype_name(args.kv_dtype), "; the plan was made for ",
         dtype_name(situation.shape.kv_dtype));
  }
  if (args.out_dtype != situation.shape.out_dtype) {
    fail("out_dtype is ", dtype_name(args.out_dtype), "; the plan was made for ",
         dtype_name(situation.shape.out_dtype));
  }
  if (args.num_rows < situation.plan.total_qo_len) {
    fail("num_rows is ", args.num_rows,
         "; it must be at least the plan's total_qo_len = ", situation.plan.total_qo_len);
  }
  check_scales(args.sm_scale, args.k_scale, args.v_scale);
  check_kv_scales("k_scales", args.k_scales, situation.shape);
  check_kv_scales("v_scales", args.v_scales, situation.shape);
  check_q_scales(args);
  check_rows("q", args.q, args.q_token_stride, args.q_head_stride, args.dtype, situation);
  check_rows("out", args.out, args.out_token_stride, args.out_head_stride, args.out_dtype, situation);
  check_profile(args, situation.num_ctas);
  check_num_pages(args.num_pages, situation);
  if (args.num_pages == 0) return;
  check_cache("k", args.k, args.num_pages, situation);
  check_cache("v", args.v, args.num_pages, situation);
}

void check_profile(const RunArgs& args, int32_t num_ctas) {
  if (args.profile == nullptr) return;
  check_address("profile", args.profile);
  if (max_profile_items(args.num_profile_bytes, num_ctas) < 1) {
    fail("num_profile_bytes is ", args.num_profile_bytes, "; it must be at least ",
         profile_bytes(num_ctas, 1), " for ", num_ctas, " CTAs");
  }
}

void check_append_args(const AppendArgs& args) {
  if (args.kv_dtype != args.dtype && args.kv_dtype != DType::kFloat8E4M3) {
    fail("kv_dtype is ", dtype_name(args.kv_dtype), "; it must be that of the new rows, ",
         dtype_name(args.dtype), ", or ", dtype_name(DType::kFloat8E4M3));
  }
  // The new rows' elements are as large, or larger by a power of two.
  check_head_dim("head_dim_qk", args.head_dim_qk, args.kv_dtype);
  check_head_dim("head_dim_vo", args.head_dim_vo, args.kv_dtype);
  check_size("num_kv_heads", args.num_kv_heads, 1);
  check_size("page_size", args.page_size, 1);
  check_size("num_rows", args.num_rows, 0);
  check_size("batch_size", args.batch_size, 0);
  check_size("num_pages", args.num_pages, 0);
  check_size("num_kv_indices", args.num_kv_indices, 0);
  check_append_scale("k_scale", args.k_scale, args);
  check_append_scale("v_scale", args.v_scale, args);
  if (args.num_rows == 0) return;
  check_count("16-byte chunks of append_key", 1.0 * dtype_bytes(args.kv_dtype) *
                                                  std::max(args.head_dim_qk, args.head_dim_vo) / kChunkBytes *
                                                  args.num_kv_heads * args.num_rows);
  check_row_tensor("append_key", args.append_key, args.num_rows, args.num_kv_heads, args.dtype);
  check_row_tensor("append_value", args.append_value, args.num_rows, args.num_kv_heads, args.dtype);
  check_not_null("batch_indices", args.batch_indices);
  check_not_null("positions", args.positions);
  check_not_null("kv_indptr", args.kv_indptr);
  if (args.num_kv_indices > 0) check_not_null("kv_indices", args.kv_indices);
  check_appended_cache("k", args.k, args);
  check_appended_cache("v", args.v, args);
}

void check_merge_args(const MergeArgs& args) {
  if (args.dtype == DType::kFloat8E4M3) {
    fail("dtype of v and out is ", dtype_name(args.dtype), "; it must be of 16 or 32 bits");
  }
  check_head_dim("head_dim", args.head_dim, args.dtype);
  check_size("num_heads", args.num_heads, 1);
  check_size("num_tokens", args.num_tokens, 0);
  if (args.num_tokens == 0) return;
  check_count("rows of v", 1.0 * args.num_tokens * args.num_heads);
  check_states(args.first, args);
  check_states(args.second, args);
  check_row_tensor("out", args.out, args.num_tokens, args.num_heads, args.dtype);
  check_not_null("lse", args.lse);
}

}  // namespace onewave
