#pragma once

/// What a launch multiplies with, and what its rows come to, soft caps and sinks included.

#include "config.cuh"
#include "softmax.cuh"

#include <onewave/plan_format.h>

namespace onewave {

inline constexpr float kLog2E = 1.44269504f;

/// What the sum and the maximum of a whole row come to. `sink`: a logit beside those of the keys, in base 2;
/// -inf: none, as always in the kernels without masks.
struct RowEnd {
  float lse;        ///< in base 2; -inf where there is nothing
  float out_scale;  ///< the factor that normalises the row's output; 0 where it saw no key

  __device__ __forceinline__ RowEnd(float m, float l, float sink, float scale_log2, float v_scale)
      : lse(row_lse(m, l, scale_log2)), out_scale(row_out_scale(l, v_scale)) {
    if (!kMasked || sink == -INFINITY) return;
    const float keys_lse = lse;
    const float reference = fmaxf(keys_lse, sink);
    lse = reference + ptx::lg2(ptx::ex2(keys_lse - reference) + ptx::ex2(sink - reference));
    out_scale *= ptx::ex2(keys_lse - lse);
  }
};

/// tanh(s / cap) of a product s: 1 - 2 / (1 + e^2x). tanh.approx is one instruction for these two, and its
/// error, 2^-11 of a score of 25, would be 1 % of a weight.
__device__ __forceinline__ float cap_score(float score, float cap_log2) {
  return fmaf(-2.f, ptx::rcp(1.f + ptx::ex2(score * cap_log2)), 1.f);
}

/// The factor of one row of K or V, where groups of tokens have them.
__device__ __forceinline__ const float* group_scale(const float* scales, const ScaleStrides& strides,
                                                    int page, int token, int kv_head) {
  const uint32_t group = __umulhi(2 * token, strides.group_inverse);
  return scales + page * strides.page + static_cast<int64_t>(group) * strides.group +
         static_cast<int64_t>(kv_head) * strides.head;
}

/// The factors of one launch, or where K and V are e4m3 of a kv head.
struct Scales {
  float score_log2;  ///< sm_scale * log2(e) * q_scale * k_scale; with a soft cap, of what cap_score() makes
                     ///< of one: the cap * log2(e)
  float v;
  float cap_log2 = 0.f;  ///< as cap_score() takes it; 0: there is no soft cap

  __device__ __forceinline__ Scales(const KernelParams& params, const PlanHeader* header, int kv_head)
      : score_log2((params.sm_scale_log2 > 0 ? params.sm_scale_log2 : header->sm_scale_log2) *
                   value_or_1(params.sm_scale_ptr) * params.k_scale *
                   head_scale(params.k_scale_ptr, params.k_scale_strides, kv_head) *
                   query_scale(params, kv_head)),
        v(params.v_scale * head_scale(params.v_scale_ptr, params.v_scale_strides, kv_head)) {
    if constexpr (kMasked) {
      const float cap = header->logits_soft_cap;
      if (cap > 0) {
        cap_log2 = 2.f / cap * score_log2;
        score_log2 = cap * kLog2E;
      }
    }
  }

 private:
  __device__ __forceinline__ static float query_scale(const KernelParams& params, int kv_head) {
    if (!kFp8Queries || params.q_scale_ptr == nullptr) return 1.f;
    return params.q_scale_ptr[int64_t{kv_head} * params.q_scale_head_stride];
  }
  __device__ __forceinline__ static float value_or_1(const float* pointer) {
    return pointer ? *pointer : 1.f;
  }

  /// That of all rows of a kv head.
  __device__ __forceinline__ static float head_scale(const float* scales, const ScaleStrides& strides,
                                                     int kv_head) {
    if constexpr (!kFp8Kv) return value_or_1(scales);
    if (kMasked && strides.group_inverse > 0) return 1.f;
    return value_or_1(scales == nullptr ? nullptr : scales + int64_t{kv_head} * strides.head);
  }
};

}  // namespace onewave
