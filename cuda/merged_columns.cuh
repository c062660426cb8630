#pragma once

/// Partial results of one row become one:
///
///   lse = log2(sum_s 2^lse_s)        out = sum_s 2^(lse_s - lse) out_s
///
/// (Milakov and Gimelshein, "Online normalizer calculation for softmax", in base 2.)

#include "softmax.cuh"

namespace onewave {

/// Some columns of the parts so far. A part whose lse is -inf counts for nothing, and must be 0.
template <int kCols>
struct MergedColumns {
  float m = -INFINITY;  ///< the largest lse
  float total = 0.f;    ///< of 2^(lse_s - m)
  float sum[kCols] = {};

  template <int kBatch>
  __device__ __forceinline__ void add(const float (&lse)[kBatch], const float (&part)[kBatch][kCols]) {
    const float previous = m;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) m = fmaxf(m, lse[b]);
    const float factor = ptx::ex2(previous - finite_max(m));
    total *= factor;
#pragma unroll
    for (float& x : sum) x *= factor;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const float weight = ptx::ex2(lse[b] - finite_max(m));
      total += weight;
#pragma unroll
      for (int col = 0; col < kCols; ++col) sum[col] = fmaf(weight, part[b][col], sum[col]);
    }
  }

  /// The factor of the sums; 0 for a row of no keys.
  __device__ __forceinline__ float scale() const { return total == 0.f ? 0.f : 1.f / total; }
  __device__ __forceinline__ float lse() const { return row_lse(m, total, 1.f); }
};

}  // namespace onewave
