#pragma once

/// What attention is, naively and in float64, and how far a result is from it.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <limits>
#include <vector>

#include "step.h"

/// Of out as a whole; a bfloat16 has 8 bits.
constexpr double kMaxOutError = 0.003;
/// Absolute, in units of log2.
constexpr double kMaxLseError = 1e-3;

/// What a run writes: out in bfloat16, lse of base 2. NaN before.
struct Result {
  explicit Result(const Step& step)
      : out(step.q.size(), 0x7fff),
        lse(step.q.size() / kShape.head_dim_qk, std::numeric_limits<float>::quiet_NaN()) {}
  std::vector<uint16_t> out;
  std::vector<float> lse;
};

class Reference {
 public:
  explicit Reference(const Step& step) : out_(step.q.size()), lse_(step.q.size() / kShape.head_dim_qk) {
    for (int32_t request = 0; request < step.batch_size(); ++request) {
      const int32_t qo_end = step.qo_indptr[request + 1];
      for (int32_t token = step.qo_indptr[request]; token < qo_end; ++token) {
        // Causal: the last query is aligned with the last key.
        const int32_t num_keys = step.kv_len_arr[request] - (qo_end - 1 - token);
        for (int32_t head = 0; head < kShape.num_qo_heads; ++head)
          attend(step, request, num_keys, token, head);
      }
    }
  }

  /// Says so, too. A NaN is wrong.
  bool agrees(const char* device, const Result& result) const {
    double error = 0, norm = 0, lse_error = 0;
    for (size_t i = 0; i < out_.size(); ++i) {
      error += std::pow(from_bfloat16(result.out[i]) - out_[i], 2);
      norm += out_[i] * out_[i];
    }
    const double out_error = std::sqrt(error / norm);
    for (size_t i = 0; i < lse_.size(); ++i) {
      const double difference = std::abs(result.lse[i] - lse_[i]);
      if (!(difference <= lse_error)) lse_error = difference;
    }
    const bool is_right = out_error <= kMaxOutError && lse_error <= kMaxLseError;
    std::cout << device << ": " << (is_right ? "right" : "WRONG") << ", relative error of out " << out_error
              << ", largest error of lse " << lse_error << "\n";
    return is_right;
  }

 private:
  /// softmax(sm_scale q K^T) V of one row of q.
  void attend(const Step& step, int32_t request, int32_t num_keys, int32_t token, int32_t head) {
    const int64_t row = token * kQueryStride + head * kShape.head_dim_qk;
    const int64_t kv_head = head / (kShape.num_qo_heads / kShape.num_kv_heads);
    const int32_t* const pages = &step.kv_indices[step.kv_indptr[request]];
    double total = 0;
    for (int32_t key = 0; key < num_keys; ++key) {
      const uint16_t* const k =
          &step.kv_cache[pages[key / kShape.page_size] * kPageStride + key % kShape.page_size * kKeyStride +
                         kv_head * kShape.head_dim_qk];
      const uint16_t* const v = k + kValueOffset;
      double score = 0;
      for (int32_t i = 0; i < kShape.head_dim_qk; ++i)
        score += from_bfloat16(step.q[row + i]) * from_bfloat16(k[i]);
      const double weight = std::exp(kScale * score);  // of such inputs nothing overflows
      total += weight;
      for (int32_t i = 0; i < kShape.head_dim_qk; ++i) out_[row + i] += weight * from_bfloat16(v[i]);
    }
    for (int32_t i = 0; i < kShape.head_dim_qk; ++i) out_[row + i] /= total;
    lse_[row / kShape.head_dim_qk] = std::log2(total);
  }

  std::vector<double> out_;
  std::vector<double> lse_;
};
