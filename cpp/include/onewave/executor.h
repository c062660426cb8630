#pragma once

#include <onewave/planner.h>
#include <onewave/profile.h>

#include <cstdint>

namespace onewave {

/// The tensors of one run(), for the executor (host addresses) and the launcher (device addresses) alike.
struct RunArgs {
  DType dtype;    ///< of q
  const void* q;  ///< [total_qo_len, num_qo_heads, head_dim]
  int64_t q_token_stride;
  int64_t q_head_stride;
  DType kv_dtype = dtype;  ///< of k and v
  PagedTensor k;           ///< num_pages pages of page_size tokens of num_kv_heads rows of head_dim
  PagedTensor v;
  int64_t num_pages;
  DType out_dtype = default_out_dtype(dtype);  ///< as AttentionShape has it
  void* out;                                   ///< [total_qo_len, num_qo_heads, head_dim]
  int64_t out_token_stride;
  int64_t out_head_stride;
  int64_t num_rows;  ///< that q, out and lse have: the plan's total_qo_len or more
  float* lse;        ///< [total_qo_len, num_qo_heads], contiguous; may be null
  /// Of all scores, in place of the plan's: finite and > 0; 0: the plan's.
  float sm_scale = 0;
  /// Of all scores: finite and > 0, since maxima are taken before it is applied.
  float k_scale = 1;
  /// Of the output: finite.
  float v_scale = 1;
  /// Multiplies sm_scale or that of the plan, where not null: an address of the same side as the tensors. The
  /// value, which nothing checks, must be as sm_scale's.
  const float* sm_scale_ptr = nullptr;
  /// Multiply k_scale and v_scale, likewise; more than one factor each only where kv_dtype is kFloat8E4M3.
  KvScales k_scales{};
  KvScales v_scales{};
  /// Multiply k_scale, likewise, where dtype is kFloat8E4M3: that of kv head h, whose query heads it is for,
  /// is at q_scales + h * q_scale_head_stride elements; a stride of 0: there is one. Null: all are 1.
  const float* q_scales = nullptr;
  int64_t q_scale_head_stride = 0;
  /// [num_qo_heads], or null: an attention sink, a logit that every row of a head has beside its keys' scaled
  /// scores, and that no value belongs to. The lse has it too.
  const float* sinks = nullptr;
  bool natural_lse = false;  ///< lse in base e, not 2
  int32_t window = 0;        ///< of a DeviceAttention's plans, by the order of the windows
  /// Where the run's time goes (onewave/profile.h), or null: profile_bytes(CTAs of the launch, 1) or more,
  /// from a multiple of 16. On a CPU threads take the place of CTAs.
  void* profile = nullptr;
  int64_t num_profile_bytes = 0;
};

/// Gives the items of a plan on the host the keys that its requests have by now, in
/// BatchSpec::actual_kv_len_arr; any number of times, before a run each. Without such an array it does
/// nothing. A plan that is fresh from plan_batch() has the upper bounds.
void update_kv_lens(PlanHeader* plan);

/// Runs a plan on the CPU, item by item, partials and merges included: float32 arithmetic on queries of any
/// type, and keys and values of that type or e4m3. All it does comes from the plan's records, which it
/// does not change: several calls may run one plan at the same time. Allocates the partials; uses
/// `num_threads` threads (0: one per core), of which the caller's is one, and joins the others. Throws
/// InvalidArgument where num_rows is less than the plan's rows, and for types that are not to be.
void execute_plan(const PlanHeader* plan, const RunArgs& args, int num_threads);

}  // namespace onewave
