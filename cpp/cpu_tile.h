#pragma once

/// The arithmetic of one work item and kv head on the CPU: online softmax over tiles of kTileKv keys, in
/// float32, with scores in base 2.

#include <onewave/plan_format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace onewave {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// out[0 .. num_cols) += x[0 .. num_rows) * matrix[num_rows, num_cols]; num_cols is a multiple of 32. Columns
/// are the inner loop, so that no sum has to be reordered for it to vectorise.
inline void add_vector_matrix(const float* x, const float* matrix, int32_t num_rows, int32_t num_cols,
                              float* out) {
  constexpr int32_t kBlock = 32;
  for (int32_t col = 0; col < num_cols; col += kBlock) {
    float sums[kBlock];
    std::copy_n(out + col, kBlock, sums);
    for (int32_t row = 0; row < num_rows; ++row) {
      const float* values = matrix + static_cast<int64_t>(row) * num_cols + col;
      for (int32_t i = 0; i < kBlock; ++i) sums[i] += x[row] * values[i];
    }
    std::copy_n(sums, kBlock, out + col);
  }
}

/// What one thread works in, reused from item to item.
struct TileScratch {
  TileScratch(int32_t head_dim_qk, int32_t head_dim_vo)
      : q(static_cast<size_t>(kWideTileQ) * head_dim_qk),
        k_transposed(static_cast<size_t>(head_dim_qk) * kTileKv),
        v(static_cast<size_t>(kTileKv) * head_dim_vo),
        out(static_cast<size_t>(kWideTileQ) * head_dim_vo),
        head_dim_qk(head_dim_qk),
        head_dim_vo(head_dim_vo) {}

  std::vector<float> q;             ///< [row, column]
  std::vector<float> k_transposed;  ///< [column, key]
  std::vector<float> v;             ///< [key, column]
  std::vector<float> out;           ///< [row, column], not yet normalised
  int32_t head_dim_qk;
  int32_t head_dim_vo;
  float m[kWideTileQ];  ///< largest score of a row so far
  float l[kWideTileQ];  ///< sum of 2^(score - m)
  float scores[kTileKv];

  /// Before the first tile of keys; `num_rows` rows of q are there.
  void reset(int32_t num_rows) {
    std::fill_n(out.begin(), static_cast<size_t>(num_rows) * head_dim_vo, 0.0f);
    std::fill_n(m, num_rows, kMinusInfinity);
    std::fill_n(l, num_rows, 0.0f);
  }

  /// One row against the keys [first_key, num_keys) of the tile in k_transposed and v, and of those where
  /// there is a `mask` the ones it has; other keys are not looked at. `soft_cap`: of the scores in base 2; 0:
  /// none.
  void add_keys(int32_t row, int32_t first_key, int32_t num_keys, const MaskRow* mask, float score_scale,
                float soft_cap) {
    std::fill_n(scores, kTileKv, 0.0f);
    add_vector_matrix(&q[static_cast<size_t>(row) * head_dim_qk], k_transposed.data(), head_dim_qk, kTileKv,
                      scores);
    float max_score = m[row];
    for (int32_t key = first_key; key < num_keys; ++key) {
      scores[key] *= score_scale;
      if (soft_cap > 0) scores[key] = soft_cap * std::tanh(scores[key] / soft_cap);
      if (mask != nullptr && (mask->words[key / 32] >> key % 32 & 1) == 0) scores[key] = kMinusInfinity;
      max_score = std::max(max_score, scores[key]);
    }
    // Where all scores are -inf, so is the maximum, and their weights are to be 0.
    const float reference = max_score == kMinusInfinity ? 0.0f : max_score;
    const float decay = std::exp2(m[row] - reference);
    float* out_row = &out[static_cast<size_t>(row) * head_dim_vo];
    for (int32_t column = 0; column < head_dim_vo; ++column) out_row[column] *= decay;
    float sum = 0.0f;
    for (int32_t key = first_key; key < num_keys; ++key) {
      scores[key] = std::exp2(scores[key] - reference);
      sum += scores[key];
    }
    m[row] = max_score;
    l[row] = l[row] * decay + sum;
    add_vector_matrix(scores + first_key, v.data() + static_cast<ptrdiff_t>(first_key) * head_dim_vo,
                      num_keys - first_key, head_dim_vo, out_row);
  }
};

/// What a row comes to.
struct RowEnd {
  float out_scale;  ///< that normalises its output: 0 where it saw no key
  float lse;        ///< log-sum-exp in base 2; -inf where there is nothing
};

/// Of a row whose weights, relative to 2^m, sum up to l, and which has a sink of that many bits beside them
/// (-inf: none).
inline RowEnd finish_row(float m, float l, float sink) {
  const float seen = l == 0.0f ? kMinusInfinity : m;
  const float reference = std::max(seen, sink);
  if (reference == kMinusInfinity) return {.out_scale = 0.0f, .lse = kMinusInfinity};
  const float part = std::exp2(seen - reference);
  const float total = l * part + std::exp2(sink - reference);
  return {.out_scale = part / total, .lse = reference + std::log2(total)};
}

}  // namespace onewave
