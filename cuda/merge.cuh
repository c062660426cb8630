#pragma once

/// Merging the splits of a tile, by the last CTA that finishes one of them:
///
///   lse = log2(sum_s 2^lse_s)        out = sum_s 2^(lse_s - lse) out_s,   s in the order of the plan
///
/// so that the bits do not depend on who was last. No CTA ever waits for another.

#include "output.cuh"

namespace onewave {

/// All consumer threads.
__device__ __forceinline__ void merge_splits(const Output& output, int thread) {
  const int num_splits = output.split->num_splits;
  const int num_rows = output.item.num_rows;
  const int64_t first_row = output.first_partial_row(0);
  for (int i = thread; i < num_rows * (kHeadDim / 4); i += kConsumerThreads) {
    const int row = i / (kHeadDim / 4);
    const int col = i % (kHeadDim / 4) * 4;
    const float* partial_lse = output.params.partial_lse + first_row + row;
    float max_lse = -INFINITY;
    for (int s = 0; s < num_splits; ++s) max_lse = fmaxf(max_lse, partial_lse[s * num_rows]);
    const float reference = max_lse == -INFINITY ? 0.f : max_lse;
    float total = 0.f;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int s = 0; s < num_splits; ++s) {
      const float weight = ptx::ex2(partial_lse[s * num_rows] - reference);
      const float4 part = *reinterpret_cast<const float4*>(
          output.params.partial_out + (first_row + static_cast<int64_t>(s) * num_rows + row) * kHeadDim +
          col);
      total += weight;
      sum.x += weight * part.x;
      sum.y += weight * part.y;
      sum.z += weight * part.z;
      sum.w += weight * part.w;
    }
    const float scale = total == 0.f ? 0.f : 1.f / total;
    output.store_final_4(row, col, make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale));
    if (col == 0) output.store_final_lse(row, total == 0.f ? -INFINITY : reference + ptx::lg2(total));
  }
}

/// After the partials of a split item are stored, by all consumer threads: counts the split, and merges the
/// tile if it was the last. The barriers carry the threads' stores to the one that fences, and its fence back
/// to the readers.
__device__ __forceinline__ void finish_split(const KernelParams& params, const Work& work,
                                             const WorkItem& item, const PackedRows& rows, int kv_head,
                                             int thread, int32_t& is_last_arrival) {
  if (item.split_tile < 0) return;
  const Output output(params, work, item, rows, kv_head);
  ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
  if (thread == 0) {
    uint32_t* counter = reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(output.params.plan) +
                                                    work.header->counters_offset) +
                        output.split->counter_begin + output.kv_head - output.split->kv_head_begin;
    ptx::fence_acq_rel_gpu();
    const bool is_last = atomicAdd(counter, 1u) + 1 == static_cast<uint32_t>(output.split->num_splits);
    if (is_last) *counter = 0;  // for a graph's next replay
    ptx::fence_acq_rel_gpu();
    is_last_arrival = is_last;
  }
  ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
  if (is_last_arrival) merge_splits(output, thread);
}

}  // namespace onewave
