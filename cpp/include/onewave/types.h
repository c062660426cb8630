#pragma once

/// Small types that the public C++ API and the kernel share.

#include <cstdint>

namespace onewave {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

constexpr int32_t dtype_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

/// How K and V reach shared memory.
enum class Loader : int32_t { kTma, kGather };

/// TMA boxes need pages of a power of two of at least 8 tokens; everything else is gathered row by row.
Loader choose_loader(int32_t page_size);

/// The model's side of a batch.
struct AttentionShape {
  int32_t num_qo_heads;
  int32_t num_kv_heads;
  int32_t head_dim_qk;  ///< columns of a row of Q and K
  int32_t head_dim_vo;  ///< of V and the output
  int32_t page_size;    ///< tokens
  DType dtype;          ///< of q, k, v and out
};

/// K or V in pages: element (page, token, head, column) is at
/// data + page * page_stride + token * token_stride + head * head_stride + column. Strides are in elements.
struct PagedTensor {
  const void* data;
  int64_t page_stride;
  int64_t token_stride;
  int64_t head_stride;
};

}  // namespace onewave
