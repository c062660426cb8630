#pragma once

/// Online softmax in base 2: with c = sm_scale * log2(e), a score s weighs 2^(c s - c m), m the largest score
/// so far.

#include "ptx/mma.cuh"

namespace onewave {

/// A maximum that may be subtracted: rows that have seen no key keep -inf as their maximum.
__device__ __forceinline__ float finite_max(float m) { return m == -INFINITY ? 0.f : m; }

/// Running maximum and sum of one row. A thread's `l` covers the columns it holds, `m` the row. Keep arrays
/// of it one-dimensional: in a two-dimensional one nvcc 13.0 initialises only the first row as written here,
/// the rest to zero.
struct RowState {
  float m = -INFINITY;
  float l = 0.f;

  /// Takes the maximum of new scores; returns the factor for what was accumulated before.
  __device__ __forceinline__ float raise_max(float tile_max, float scale_log2) {
    const float previous = m;
    m = fmaxf(m, tile_max);
    const float factor = ptx::ex2((previous - finite_max(m)) * scale_log2);
    l *= factor;
    return factor;
  }

  /// A score's weight, added to the sum.
  __device__ __forceinline__ float add(float score, float scale_log2, float scaled_max) {
    const float weight = ptx::ex2(fmaf(score, scale_log2, -scaled_max));
    l += weight;
    return weight;
  }
};

/// What the sum and the maximum of a whole row come to.
__device__ __forceinline__ float row_lse(float m, float l, float scale_log2) {
  return l == 0.f ? -INFINITY : fmaf(m, scale_log2, ptx::lg2(l));
}

/// The factor that normalises a row's output; a row that saw no key gets 0.
__device__ __forceinline__ float row_out_scale(float l, float v_scale) {
  return l == 0.f ? 0.f : v_scale * ptx::rcp(l);
}

}  // namespace onewave
