#pragma once

/// Merging the splits of a tile, by the last CTA that finishes one of them:
///
///   lse = log2(sum_s 2^lse_s)        out = sum_s 2^(lse_s - lse) out_s,   s in the order of the plan
///
/// so that the bits do not depend on who was last. No CTA ever waits for another.

#include "output.cuh"

namespace onewave {

/// The kv heads of one split tile, by all consumer threads.
__device__ __forceinline__ void merge_splits(const Output& output, const SplitTile& tile, int thread) {
  constexpr int kBatch = 4;  ///< splits that are on their way together
  const int num_rows = output.item.num_rows;
  const int split_rows = output.item.heads_per_step * num_rows;
  for (int i = thread; i < split_rows * (kHeadDimVo / 4); i += kConsumerThreads) {
    const int step_row = i / (kHeadDimVo / 4);
    const int col = i % (kHeadDimVo / 4) * 4;
    int64_t partial_row = int64_t{tile.partial_row_begin} + step_row;
    float m = -INFINITY;
    float total = 0.f;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 1
    for (int split = 0; split < tile.num_splits; split += kBatch) {
      float lse[kBatch];
      float4 part[kBatch];
      const float previous = m;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        lse[b] = -INFINITY;
        part[b] = make_float4(0.f, 0.f, 0.f, 0.f);
        if (split + b < tile.num_splits) {
          lse[b] = output.params.partial_lse[partial_row];
          part[b] =
              *reinterpret_cast<const float4*>(output.params.partial_out + partial_row * kHeadDimVo + col);
        }
        partial_row += split_rows;
        m = fmaxf(m, lse[b]);
      }
      const float factor = ptx::ex2(previous - finite_max(m));
      total *= factor;
      sum = make_float4(sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const float weight = ptx::ex2(lse[b] - finite_max(m));
        total += weight;
        sum.x = fmaf(weight, part[b].x, sum.x);
        sum.y = fmaf(weight, part[b].y, sum.y);
        sum.z = fmaf(weight, part[b].z, sum.z);
        sum.w = fmaf(weight, part[b].w, sum.w);
      }
    }
    const int head = step_row / num_rows;
    const int row = step_row - head * num_rows;
    const RowEnd end(m, total, output.sink(head, row), 1.f, 1.f);
    const float scale = end.out_scale;
    output.store_final_4(head, row, col,
                         make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale));
    if (col == 0) output.store_final_lse(head, row, end.lse);
  }
}

/// After the partials of an item are stored, by all consumer threads, where one CTA has all items of the
/// tile.
__device__ __forceinline__ void finish_own_split(const KernelParams& params, const Work& work,
                                                 const WorkItem& item, const PackedRows& rows, int kv_head,
                                                 int thread) {
  const SplitTile& tile = split_tile(work, item);
  if (item.split_idx + 1 < tile.num_splits) return;
  ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
  merge_splits(Output(params, work, item, rows, kv_head), tile, thread);
}

/// After the partials of a split item are stored, by all consumer threads: counts it, and merges the
/// tile if it was the last. The barriers carry the threads' stores to the one that fences, and its fence back
/// to the readers.
__device__ __forceinline__ void finish_split(const KernelParams& params, const Work& work,
                                             const WorkItem& item, const PackedRows& rows, int kv_head,
                                             int thread, int32_t& is_last_arrival) {
  if (item.split_tile < 0) return;
  const Output output(params, work, item, rows, kv_head);
  const SplitTile& tile = split_tile(work, item);
  ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
  if (thread == 0) {
    uint32_t* counter = reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(output.params.plan) +
                                                    work.header->counters_offset) +
                        item.split_tile;
    ptx::fence_acq_rel_gpu();
    const bool is_last = atomicAdd(counter, 1u) + 1 == static_cast<uint32_t>(tile.num_splits);
    if (is_last) *counter = 0;  // for a graph's next replay
    ptx::fence_acq_rel_gpu();
    is_last_arrival = is_last;
  }
  ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
  if (is_last_arrival) merge_splits(output, tile, thread);
}

}  // namespace onewave
