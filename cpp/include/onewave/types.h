#pragma once

/// Small types that the public C++ API and the kernel share.

#include <cstdint>

namespace onewave {

/// kFloat8E4M3: of a KV cache, and of queries beside such a one, as OCP has it: no infinities, and the
/// largest is 448.
enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kFloat8E4M3 };

constexpr int32_t dtype_bytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat8E4M3 ? 1 : 2;
}

/// That of queries of 16 or 32 bits has no other.
constexpr DType default_out_dtype(DType q_dtype) {
  return q_dtype == DType::kFloat8E4M3 ? DType::kBFloat16 : q_dtype;
}

/// How K and V reach shared memory.
enum class Loader : int32_t { kTma, kGather };

/// TMA boxes need pages of a power of two of at least 8 tokens; everything else is gathered row by row.
Loader choose_loader(int32_t page_size);

/// The model's side of a batch.
struct AttentionShape {
  int32_t num_qo_heads;
  int32_t num_kv_heads;
  int32_t head_dim_qk;     ///< columns of a row of Q and K
  int32_t head_dim_vo;     ///< of V and the output
  int32_t page_size;       ///< tokens
  DType dtype;             ///< of q
  DType kv_dtype = dtype;  ///< of k and v: the same, or kFloat8E4M3
  /// Of out: dtype, or beside a dtype of kFloat8E4M3 kBFloat16, kFloat16 or, on a CPU, kFloat32.
  DType out_dtype = default_out_dtype(dtype);
};

/// K or V in pages: element (page, token, head, column) is at
/// data + page * page_stride + token * token_stride + head * head_stride + column. Strides are in elements.
struct PagedTensor {
  const void* data;
  int64_t page_stride;
  int64_t token_stride;
  int64_t head_stride;
};

/// Factors of the rows of K or V, float32: element (page, token, head) has the one at data + page *
/// page_stride + token / group_tokens * group_stride + head * head_stride. Strides are in elements; where all
/// are 0 there is one factor.
struct KvScales {
  const float* data = nullptr;  ///< null: all are 1
  int64_t page_stride = 0;
  int64_t group_stride = 0;
  int64_t head_stride = 0;
  int32_t group_tokens = 1;  ///< divides page_size

  /// Whether tokens have factors of their own, and not heads alone.
  constexpr bool is_by_group() const { return page_stride != 0 || group_stride != 0; }
  constexpr bool is_one_factor() const { return !is_by_group() && head_stride == 0; }
};

}  // namespace onewave
