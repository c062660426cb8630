#pragma once

/// Where results go: straight to out and lse, or as float32 partials that the last CTA to arrive merges.

#include "ptx/barrier.cuh"
#include "ptx/mma.cuh"
#include "smem.cuh"
#include "work.cuh"

namespace onewave {

/// The destination of one (item, kv head).
struct Output {
  const KernelParams& params;
  const WorkItem& item;
  const PackedRows& rows;
  int kv_head;
  const SplitTile* split;  ///< null: the item is the whole tile
  int64_t partial_row;     ///< of the tile's first row, for this split

  __device__ __forceinline__ Output(const KernelParams& params, const Work& work, const WorkItem& item,
                                    const PackedRows& rows, int kv_head)
      : params(params), item(item), rows(rows), kv_head(kv_head), split(nullptr), partial_row(0) {
    if (item.split_tile < 0) return;
    split = plan_section<SplitTile>(work.header, work.header->split_tiles_offset) + item.split_tile;
    partial_row = first_partial_row(item.split_idx);
  }

  __device__ __forceinline__ int64_t first_partial_row(int split_idx) const {
    return split->partial_row_begin +
           (static_cast<int64_t>(kv_head - split->kv_head_begin) * split->num_splits + split_idx) *
               split->num_rows;
  }

  __device__ __forceinline__ Element* out_row(int row) const {
    const QueryRow target = rows.query_row(kv_head, row);
    return static_cast<Element*>(params.out) + static_cast<int64_t>(target.token) * params.out_token_stride +
           static_cast<int64_t>(target.head) * params.out_head_stride;
  }

  __device__ __forceinline__ float* partial_out_row(int row) const {
    return params.partial_out + (partial_row + row) * kHeadDim;
  }

  __device__ __forceinline__ void store_final_lse(int row, float lse) const {
    if (params.lse == nullptr) return;
    const QueryRow target = rows.query_row(kv_head, row);
    params.lse[static_cast<int64_t>(target.token) * work_num_qo_heads() + target.head] = lse;
  }

  __device__ __forceinline__ void store_lse(int row, float lse) const {
    if (split != nullptr) {
      params.partial_lse[partial_row + row] = lse;
    } else {
      store_final_lse(row, lse);
    }
  }

  __device__ __forceinline__ int work_num_qo_heads() const {
    return static_cast<const PlanHeader*>(params.plan)->num_qo_heads;
  }

  __device__ __forceinline__ void store_final_4(int row, int col, float4 x) const {
    *reinterpret_cast<uint2*>(out_row(row) + col) =
        make_uint2(ptx::pack<Element>(x.x, x.y), ptx::pack<Element>(x.z, x.w));
  }

  /// Columns col .. col + 3, a multiple of 4.
  __device__ __forceinline__ void store_4(int row, int col, float4 x) const {
    if (split != nullptr) {
      *reinterpret_cast<float4*>(partial_out_row(row) + col) = x;
    } else {
      store_final_4(row, col, x);
    }
  }
};

/// Rows that see no key: all consumer threads.
__device__ __forceinline__ void store_empty(const Output& output, int thread) {
  for (int i = thread; i < output.item.num_rows * (kHeadDim / 4); i += kConsumerThreads) {
    const int row = i / (kHeadDim / 4);
    const int col = i % (kHeadDim / 4) * 4;
    output.store_4(row, col, make_float4(0.f, 0.f, 0.f, 0.f));
    if (col == 0) output.store_lse(row, -INFINITY);
  }
}

}  // namespace onewave
