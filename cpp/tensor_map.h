#pragma once

/// How a TMA kernel sees K or V: a tensor map over all pages of the cache.

#include <cudaTypedefs.h>
#include <onewave/planner.h>
#include <onewave/types.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "driver.h"
#include "params.h"

namespace onewave {

/// What one copy brings, in shared memory as the 128-byte swizzle lays it out.
struct TmaBox {
  int32_t tokens;  ///< of one page
  int32_t panels;
  int32_t heads;
};

/// Whether the last panel of a row has all its columns. Where it has not, the columns are one dimension, and
/// a box of one panel may reach out of it: TMA fills with zeros what lies beyond.
inline bool has_full_panels(int32_t head_dim, DType kv_dtype) {
  return head_dim % panel_cols(dtype_bytes(kv_dtype)) == 0;
}

inline CUtensorMapDataType tensor_map_type(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kFloat8E4M3:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  }
}

/// Rank 5: column in panel, token, panel, kv head, page. Without full panels: column, token, 1, kv head,
/// page.
inline TensorMap make_tensor_map(const PagedTensor& tensor, int64_t num_pages, const AttentionShape& shape,
                                 int32_t head_dim, const TmaBox& box_shape) {
  const int32_t element_bytes = dtype_bytes(shape.kv_dtype);
  const int32_t cols = panel_cols(element_bytes);
  const bool has_panels = has_full_panels(head_dim, shape.kv_dtype);
  // A dimension of size 1 may come with any stride, and the driver wants a valid one.
  auto stride_bytes = [&](int64_t stride, int64_t size) {
    return size > 1 ? static_cast<cuuint64_t>(stride * element_bytes) : kPanelRowBytes;
  };
  const cuuint64_t dims[5] = {
      static_cast<cuuint64_t>(has_panels ? cols : head_dim), static_cast<cuuint64_t>(shape.page_size),
      static_cast<cuuint64_t>(has_panels ? num_panels(head_dim, element_bytes) : 1),
      static_cast<cuuint64_t>(shape.num_kv_heads), static_cast<cuuint64_t>(num_pages)};
  const cuuint64_t strides[4] = {stride_bytes(tensor.token_stride, shape.page_size), kPanelRowBytes,
                                 stride_bytes(tensor.head_stride, shape.num_kv_heads),
                                 stride_bytes(tensor.page_stride, num_pages)};
  const cuuint32_t box[5] = {static_cast<cuuint32_t>(cols), static_cast<cuuint32_t>(box_shape.tokens),
                             static_cast<cuuint32_t>(box_shape.panels),
                             static_cast<cuuint32_t>(box_shape.heads), 1};
  const cuuint32_t element_strides[5] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  // An L2 promotion of 256 bytes measured a tenth slower.
  driver().tensor_map_encode_tiled(&map, tensor_map_type(shape.kv_dtype), 5u, const_cast<void*>(tensor.data),
                                   dims, strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                   CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TensorMap opaque;
  static_assert(sizeof(opaque) == sizeof(map));
  std::memcpy(&opaque, &map, sizeof(map));
  return opaque;
}

/// The tensor map of the last run, encoded anew when the tensor is another one.
class CachedTensorMap {
 public:
  CachedTensorMap(const TmaBox& box, int32_t head_dim) : box_(box), head_dim_(head_dim) {}

  const TensorMap& get(const PagedTensor& tensor, int64_t num_pages, const AttentionShape& shape) {
    bool is_same = num_pages == num_pages_ && tensor.data == tensor_.data &&
                   tensor.page_stride == tensor_.page_stride && tensor.token_stride == tensor_.token_stride &&
                   tensor.head_stride == tensor_.head_stride;
    if (!is_same) {
      num_pages_ = kNone;  // in case the driver refuses
      map_ = make_tensor_map(tensor, num_pages, shape, head_dim_, box_);
      tensor_ = tensor;
      num_pages_ = num_pages;
    }
    return map_;
  }

 private:
  static constexpr int64_t kNone = -1;
  TmaBox box_;
  int32_t head_dim_;
  int64_t num_pages_ = kNone;
  PagedTensor tensor_{};
  TensorMap map_{};
};

}  // namespace onewave
