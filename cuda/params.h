#pragma once

/// The kernel's parameters: one struct by value, shared by cpp/launch.cpp and cuda/attention.cu. Baked into a
/// CUDA graph at capture; what a plan may change lies in the plan (onewave/plan_format.h).

#include <onewave/plan_format.h>
#include <onewave/profile.h>

#include <cstdint>

namespace onewave {

/// Threads of a CTA: a producer warpgroup and two consumer warpgroups.
inline constexpr int32_t kNumThreads = 384;
inline constexpr int32_t kProducerWarps = 4;
/// Dynamic shared memory of a CTA: all of it, since one CTA runs on an SM.
inline constexpr int32_t kSharedBytes = 227 * 1024;

/// Tiles of Q, K and V lie in shared memory as panels of 128 bytes a row, the span of the swizzle.
inline constexpr int32_t kPanelRowBytes = 128;
ONEWAVE_HOST_DEVICE constexpr int32_t panel_cols(int32_t element_bytes) {
  return kPanelRowBytes / element_bytes;
}
ONEWAVE_HOST_DEVICE constexpr int32_t num_panels(int32_t head_dim, int32_t element_bytes) {
  return (head_dim + panel_cols(element_bytes) - 1) / panel_cols(element_bytes);
}

/// A CUtensorMap: 128 opaque bytes.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

/// K or V where it is gathered. In chunks of 16 bytes 32 bits reach over 64 GiB (cpp/run_checks.cpp).
struct GatheredTensor {
  const void* data;
  uint32_t page_chunks;  ///< from a page to the next
  uint32_t token_chunks;
  uint32_t head_chunks;
};

/// Where the factor of a row of K or V lies, from k_scale_ptr or v_scale_ptr on. Only kernels of a
/// cache of e4m3 look: at that of a kv head, and masked ones that widen at that of a group of tokens in a
/// page too.
struct ScaleStrides {
  int64_t page;
  int32_t group;
  int32_t head;
  uint32_t
      group_inverse;  ///< 2^31 / the tokens of a group, rounded up; 0: factors are not of some tokens alone
};

/// Longer rows have no factors of groups of tokens.
inline constexpr int32_t kMaxScaledHeadDim = 128;

/// What every CTA reads first stands together. The tensor maps are for kernels that load by TMA, the gathered
/// tensors for the others.
struct KernelParams {
  void* plan;  ///< the workspace: a PlanHeader at its start
  int32_t num_pages;
  int32_t num_rows;           ///< of q, out and lse
  int32_t box_shift;          ///< log2 of the tokens of a TMA box: a page, or a stage or a warp's rows of it
  int32_t group_box_shift;    ///< the same of a box of several kv heads
  int32_t group_heads_shift;  ///< log2 of its kv heads
  int32_t out_is_bf16;        ///< or fp16: of the kernels of e4m3 queries, whose output is of either
  const void* q;              ///< [total_qo_len, num_qo_heads, head_dim]
  void* out;                  ///< [total_qo_len, num_qo_heads, head_dim]
  int32_t q_token_stride;
  int32_t q_head_stride;
  int32_t out_token_stride;
  int32_t out_head_stride;
  float* lse;                 ///< [total_qo_len, num_qo_heads]; may be null
  float* partial_out;         ///< [max_partial_rows, head_dim]
  float* partial_lse;         ///< [max_partial_rows], base 2
  const float* sm_scale_ptr;  ///< times sm_scale_log2 or the plan's, where not null
  const float* k_scale_ptr;   ///< times k_scale
  const float* v_scale_ptr;
  float sm_scale_log2;  ///< in place of the plan's, where not 0
  float k_scale;
  float v_scale;
  float lse_unit;      ///< of an lse in base 2: 1, or log(2) for one in base e
  const float* sinks;  ///< [num_qo_heads], or null; of the masked kernels
  GatheredTensor k;
  GatheredTensor v;
  const float* q_scale_ptr;  ///< times k_scale, where not null: of the kernels of e4m3 queries
  TensorMap k_panel_map;     ///< rank 5: column in panel, token, panel, head, page; a box is of one panel
  TensorMap k_map;           ///< a box has all panels, where all are full (cpp/tensor_map.h)
  TensorMap v_map;
  TensorMap k_group_map;  ///< a box has all panels of several kv heads
  TensorMap v_group_map;
  ScaleStrides k_scale_strides;
  ScaleStrides v_scale_strides;
  int32_t q_scale_head_stride;  ///< from the factor of a kv head to that of the next
};

static_assert(sizeof(KernelParams) == 896, "host and device must agree");

/// Of the kernels with the profiler.
struct ProfiledParams : KernelParams {
  void* profile;  ///< profile_bytes(CTAs of the launch, max_profile_items)
  int32_t max_profile_items;
  int32_t window;  ///< of the plans, which the run takes
};

static_assert(sizeof(ProfiledParams) == 960, "host and device must agree");

}  // namespace onewave
