#pragma once

/// Where results go: straight to out and lse, or as float32 partials that the last CTA to arrive merges.

#include "ptx/barrier.cuh"
#include "ptx/mma.cuh"
#include "scales.cuh"
#include "smem.cuh"
#include "work.cuh"

namespace onewave {

/// The destination of the kv heads of an item that are done together; `head` counts them from the first.
struct Output {
  const KernelParams& params;
  const WorkItem& item;
  const PackedRows& rows;
  int kv_head;              ///< the first
  bool is_split;            ///< the item is a part of a split tile
  int64_t partial_row = 0;  ///< of the first row of the first kv head

  __device__ __forceinline__ Output(const KernelParams& params, const Work& work, const WorkItem& item,
                                    const PackedRows& rows, int kv_head)
      : params(params), item(item), rows(rows), kv_head(kv_head), is_split(item.split_tile >= 0) {
    if (is_split)
      partial_row = split_tile(work, item).partial_row_begin +
                    static_cast<int64_t>(item.split_idx) * item.heads_per_step * item.num_rows;
  }

  __device__ __forceinline__ Element* out_row(int head, int row) const {
    const QueryRow target = rows.query_row(kv_head + head, row);
    return static_cast<Element*>(params.out) + static_cast<int64_t>(target.token) * params.out_token_stride +
           static_cast<int64_t>(target.head) * params.out_head_stride;
  }

  __device__ __forceinline__ float* partial_out_row(int head, int row) const {
    return params.partial_out + (partial_row + head * item.num_rows + row) * kHeadDimVo;
  }

  __device__ __forceinline__ void store_final_lse(int head, int row, float lse) const {
    if (params.lse == nullptr) return;
    const QueryRow target = rows.query_row(kv_head + head, row);
    params.lse[static_cast<int64_t>(target.token) * num_qo_heads() + target.head] = lse * params.lse_unit;
  }

  /// Of a row as a whole, in base 2; -inf: it has none.
  __device__ __forceinline__ float sink(int head, int row) const {
    if (!kMasked || params.sinks == nullptr) return -INFINITY;
    return params.sinks[rows.query_row(kv_head + head, row).head] * kLog2E;
  }
  /// Of what this item makes of it: where it is split, those who merge add it.
  __device__ __forceinline__ float item_sink(int head, int row) const {
    return kMasked && is_split ? -INFINITY : sink(head, row);
  }

  __device__ __forceinline__ void store_lse(int head, int row, float lse) const {
    if (is_split) {
      params.partial_lse[partial_row + head * item.num_rows + row] = lse;
    } else {
      store_final_lse(head, row, lse);
    }
  }

  __device__ __forceinline__ int num_qo_heads() const {
    return static_cast<const PlanHeader*>(params.plan)->num_qo_heads;
  }

  __device__ __forceinline__ void store_final_4(int head, int row, int col, float4 x) const {
    *reinterpret_cast<uint2*>(out_row(head, row) + col) =
        make_uint2(ptx::pack<Element>(x.x, x.y), ptx::pack<Element>(x.z, x.w));
  }

  /// Columns col .. col + 3, a multiple of 4.
  __device__ __forceinline__ void store_4(int head, int row, int col, float4 x) const {
    if (is_split) {
      *reinterpret_cast<float4*>(partial_out_row(head, row) + col) = x;
    } else {
      store_final_4(head, row, col, x);
    }
  }
};

/// Rows that see no key: all consumer threads.
__device__ __forceinline__ void store_empty(const Output& output, int thread) {
  const int num_rows = output.item.num_rows;
  for (int i = thread; i < output.item.heads_per_step * num_rows * (kHeadDimVo / 4); i += kConsumerThreads) {
    const int head = i / (kHeadDimVo / 4) / num_rows;
    const int row = i / (kHeadDimVo / 4) - head * num_rows;
    const int col = i % (kHeadDimVo / 4) * 4;
    output.store_4(head, row, col, make_float4(0.f, 0.f, 0.f, 0.f));
    if (col == 0) output.store_lse(head, row, output.item_sink(head, row));
  }
}

}  // namespace onewave
