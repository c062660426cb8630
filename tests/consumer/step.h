#pragma once

/// A serving step as an engine has it: the lengths of its requests, tensors in bfloat16, pages in random
/// order.

#include <onewave/planner.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

inline uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline double from_bfloat16(uint16_t value) { return std::bit_cast<float>(uint32_t{value} << 16); }

inline constexpr onewave::AttentionShape kShape = {.num_qo_heads = 8,
                                                   .num_kv_heads = 2,
                                                   .head_dim_qk = 64,
                                                   .head_dim_vo = 64,
                                                   .page_size = 16,
                                                   .dtype = onewave::DType::kBFloat16};
inline constexpr float kScale = 0.125;  // head_dim^-0.5

/// In elements: q and out are [total_qo_len, num_qo_heads, head_dim], the cache is
/// [num_pages, 2, page_size, num_kv_heads, head_dim], of each page K and then V.
inline constexpr int64_t kQueryStride = int64_t{kShape.num_qo_heads} * kShape.head_dim_qk;
inline constexpr int64_t kKeyStride = int64_t{kShape.num_kv_heads} * kShape.head_dim_qk;
inline constexpr int64_t kPageStride = 2 * kShape.page_size * kKeyStride;
inline constexpr int64_t kValueOffset = kPageStride / 2;

struct Step {
  /// Two decodes, a verification of four tokens, and the last chunk of a prompt.
  std::vector<int32_t> qo_indptr = {0, 1, 2, 6, 156};
  std::vector<int32_t> kv_len_arr = {3000, 33, 500, 350};
  std::vector<int32_t> kv_indptr = {0};
  std::vector<int32_t> kv_indices;
  std::vector<uint16_t> q;
  std::vector<uint16_t> kv_cache;

  Step() {
    for (const int32_t kv_len : kv_len_arr)
      kv_indptr.push_back(kv_indptr.back() + (kv_len + kShape.page_size - 1) / kShape.page_size);
    kv_indices.resize(kv_indptr.back());
    q.resize(qo_indptr.back() * kQueryStride);
    kv_cache.resize(kv_indices.size() * kPageStride);

    std::mt19937 random(2);
    std::iota(kv_indices.begin(), kv_indices.end(), 0);
    std::shuffle(kv_indices.begin(), kv_indices.end(), random);
    std::normal_distribution<float> normal;
    for (uint16_t& value : q) value = to_bfloat16(normal(random));
    for (uint16_t& value : kv_cache) value = to_bfloat16(normal(random));
  }

  int32_t batch_size() const { return static_cast<int32_t>(kv_len_arr.size()); }

  onewave::PlanLimits limits(int32_t num_ctas) const {
    return {.max_batch_size = batch_size(),
            .max_total_qo_len = qo_indptr.back(),
            .max_kv_len = *std::max_element(kv_len_arr.begin(), kv_len_arr.end()),
            .num_ctas = num_ctas};
  }

  /// `page_table`: where kv_indices is, on the side that runs the plan.
  onewave::BatchSpec batch(const int32_t* page_table) const {
    return {.shape = kShape,
            .causal = true,
            .sm_scale = kScale,
            .batch_size = batch_size(),
            .qo_indptr = qo_indptr.data(),
            .kv_indptr = kv_indptr.data(),
            .kv_len_arr = kv_len_arr.data(),
            .kv_indices = page_table};
  }
};
