#pragma once

/// Small types that the public C++ API and the kernel share.

#include <cstdint>

namespace onewave {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

constexpr int32_t dtype_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

/// K or V in pages: element (page, token, head, column) is at
/// data + page * page_stride + token * token_stride + head * head_stride + column. Strides are in elements.
struct PagedTensor {
  const void* data;
  int64_t page_stride;
  int64_t token_stride;
  int64_t head_stride;
};

}  // namespace onewave
