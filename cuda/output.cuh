#pragma once

/// Where results go: straight to out and lse, or as float32 partials that the last CTA to arrive merges.

#include "ptx/barrier.cuh"
#include "ptx/mma.cuh"
#include "scales.cuh"
#include "smem.cuh"
#include "work.cuh"

namespace onewave {

__device__ __forceinline__ float4 times(const float4& x, float factor) {
  return make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
}

/// Four columns side by side.
__device__ __forceinline__ void store_4(float* target, const float4& x) {
  *reinterpret_cast<float4*>(target) = x;
}
template <class OutElement>
__device__ __forceinline__ void store_4(OutElement* target, const float4& x) {
  *reinterpret_cast<uint2*>(target) =
      make_uint2(ptx::pack<OutElement>(x.x, x.y), ptx::pack<OutElement>(x.z, x.w));
}

/// Rows of out and lse.
struct FinalRows {
  const KernelParams& params;

  template <class OutElement = Element>
  __device__ __forceinline__ OutElement* out_row(const QueryRow& row) const {
    return static_cast<OutElement*>(params.out) + static_cast<int64_t>(row.token) * params.out_token_stride +
           static_cast<int64_t>(row.head) * params.out_head_stride;
  }

  /// Columns col .. col + 3, a multiple of 4.
  __device__ __forceinline__ void store_4(const QueryRow& row, int col, float4 x) const {
    if (kFp8Queries && params.out_is_bf16) {
      onewave::store_4(out_row<__nv_bfloat16>(row) + col, x);
    } else {
      onewave::store_4(out_row(row) + col, x);
    }
  }

  __device__ __forceinline__ void store_lse(const QueryRow& row, float lse) const {
    if (params.lse == nullptr) return;
    const int num_qo_heads = plan_header(params)->num_qo_heads;
    params.lse[static_cast<int64_t>(row.token) * num_qo_heads + row.head] = lse * params.lse_unit;
  }

  /// Of a row as a whole, in base 2; -inf: it has none.
  __device__ __forceinline__ float sink(const QueryRow& row) const {
    if (!kMasked || params.sinks == nullptr) return -INFINITY;
    return params.sinks[row.head] * kLog2E;
  }
};

/// The destination of the kv heads of an item that are done together; `head` counts them from the first.
struct Output {
  const KernelParams& params;
  const WorkItem& item;
  const PackedRows& rows;
  int kv_head;              ///< the first
  bool is_split;            ///< the item is a part of a split tile
  int64_t partial_row = 0;  ///< of the first row of the first kv head

  __device__ __forceinline__ Output(const KernelParams& params, const WorkItem& item, const PackedRows& rows,
                                    int kv_head)
      : params(params), item(item), rows(rows), kv_head(kv_head), is_split(item.split_tile >= 0) {
    if (is_split)
      partial_row = split_tiles(plan_header(params))[split_tile_index(item, kv_head)].partial_row_begin +
                    static_cast<int64_t>(item.split_idx) * item.heads_per_step * item.num_rows;
  }

  __device__ __forceinline__ FinalRows final_rows() const { return {params}; }
  __device__ __forceinline__ QueryRow query_row(int head, int row) const {
    return rows.query_row(kv_head + head, row);
  }

  template <class OutElement = Element>
  __device__ __forceinline__ OutElement* out_row(int head, int row) const {
    return final_rows().out_row<OutElement>(query_row(head, row));
  }

  __device__ __forceinline__ float* partial_out_row(int head, int row) const {
    return params.partial_out + (partial_row + head * item.num_rows + row) * kHeadDimVo;
  }

  /// Of what this item makes of a row: where it is split, those who merge add it.
  __device__ __forceinline__ float item_sink(int head, int row) const {
    return kMasked && is_split ? -INFINITY : final_rows().sink(query_row(head, row));
  }

  __device__ __forceinline__ void store_lse(int head, int row, float lse) const {
    if (is_split) {
      params.partial_lse[partial_row + head * item.num_rows + row] = lse;
    } else {
      final_rows().store_lse(query_row(head, row), lse);
    }
  }

  /// Columns col .. col + 3, a multiple of 4.
  __device__ __forceinline__ void store_4(int head, int row, int col, float4 x) const {
    if (is_split) {
      onewave::store_4(partial_out_row(head, row) + col, x);
    } else {
      final_rows().store_4(query_row(head, row), col, x);
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
