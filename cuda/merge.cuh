#pragma once

/// Merging the splits of a tile, by the last CTA that finishes one of them:
///
///   lse = log2(sum_s 2^lse_s)        out = sum_s 2^(lse_s - lse) out_s,   s in the order of the plan
///
/// so that the bits do not depend on who was last. No CTA ever waits for another. A shared prefix that is
/// complete counts itself in its members, and all of these that are complete then are merged at once.

#include "output.cuh"

namespace onewave {

/// The tiles that are merged together: one, or those members of a prefix that are ready.
struct MergedTiles {
  const PlanHeader* header;
  const SplitTile& tile;
  const uint32_t* ready;  ///< a bit for each member

  __device__ __forceinline__ int num_rows() const {
    return (tile.kv_head_end - tile.kv_head_begin) * tile.num_rows;
  }

  /// The tile that a row is to be merged in, and which of that one's rows it is; null: it is not.
  __device__ __forceinline__ const SplitTile* tile_of(int& row) const {
    if (tile.num_members == 0) return &tile;
    const int32_t* member_of_row =
        plan_section<int32_t>(header, header->row_members_offset) + tile.list_begin;
    const int member = member_of_row[row];
    if ((ready[member / 32] >> member % 32 & 1) == 0) return nullptr;
    const SplitTile* merged = split_tiles(header) + tile.first_member + member * header->num_kv_heads;
    row -= (merged->q_token_begin - tile.q_token_begin) * header->group_size;
    return merged;
  }
};

/// What a row is merged from: its prefixes, and last its own splits.
__device__ __forceinline__ PartialRows partial_rows(const PlanHeader* header, const SplitTile& tile,
                                                    int source) {
  if (tile.num_prefixes > 0)
    return plan_section<PartialRows>(header, header->partial_rows_offset)[tile.list_begin + source];
  return {tile.partial_row_begin, (tile.kv_head_end - tile.kv_head_begin) * tile.num_rows, tile.num_splits,
          0};
}

/// By all consumer threads. A thread has kVectors times four columns of a row. Its maximum is taken over
/// kBatch splits at a time, whoever merges, or the bits would depend on it; kLoaded of these are on their way
/// together. Few instructions: a CTA as a rule comes here once, and each 128 bytes of them are then a miss
/// (bench/NOTES.md).
template <int kVectors, int kLoaded>
__device__ __forceinline__ void merge(const KernelParams& params, const MergedTiles& tiles, int thread) {
  constexpr int kBatch = 4;
  constexpr int kRowThreads = kHeadDimVo / 4 / kVectors;
  const FinalRows final_rows{params};
#pragma unroll 1
  for (int i = thread; i < tiles.num_rows() * kRowThreads; i += kConsumerThreads) {
    int tile_row = i / kRowThreads;
    const int first_col = i % kRowThreads * 4;
    const SplitTile* tile = tiles.tile_of(tile_row);
    if (tile == nullptr) continue;
    float m = -INFINITY;
    float total = 0.f;
    float4 sums[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) sums[v] = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 1
    for (int source = 0; source <= tile->num_prefixes; ++source) {
      const PartialRows rows = partial_rows(tiles.header, *tile, source);
      int64_t partial_row = rows.first + tile_row;
#pragma unroll 1
      for (int split = 0; split < rows.num_splits; split += kBatch) {
        float lse[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const bool valid = split + b < rows.num_splits;
          lse[b] = valid ? params.partial_lse[partial_row + b * rows.stride] : -INFINITY;
        }
#pragma unroll
        for (int begin = 0; begin < kBatch; begin += kLoaded) {
          float4 part[kLoaded][kVectors];
#pragma unroll
          for (int b = 0; b < kLoaded; ++b) {
            const bool valid = split + begin + b < rows.num_splits;
            const float* values = params.partial_out + partial_row * kHeadDimVo + first_col;
#pragma unroll
            for (int v = 0; v < kVectors; ++v) {
              part[b][v] = valid ? *reinterpret_cast<const float4*>(values + v * kRowThreads * 4)
                                 : make_float4(0.f, 0.f, 0.f, 0.f);
            }
            partial_row += rows.stride;
          }
          if (begin == 0) {
            const float previous = m;
#pragma unroll
            for (int b = 0; b < kBatch; ++b) m = fmaxf(m, lse[b]);
            const float factor = ptx::ex2(previous - finite_max(m));
            total *= factor;
#pragma unroll
            for (int v = 0; v < kVectors; ++v) sums[v] = times(sums[v], factor);
          }
#pragma unroll
          for (int b = 0; b < kLoaded; ++b) {
            const float weight = ptx::ex2(lse[begin + b] - finite_max(m));
            total += weight;
#pragma unroll
            for (int v = 0; v < kVectors; ++v) {
              sums[v].x = fmaf(weight, part[b][v].x, sums[v].x);
              sums[v].y = fmaf(weight, part[b][v].y, sums[v].y);
              sums[v].z = fmaf(weight, part[b][v].z, sums[v].z);
              sums[v].w = fmaf(weight, part[b][v].w, sums[v].w);
            }
          }
        }
      }
    }
    const int head = tile_row / tile->num_rows;
    const QueryRow row = query_row(tiles.header, *tile, head, tile_row - head * tile->num_rows);
    const RowEnd end(m, total, final_rows.sink(row), 1.f, 1.f);
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      final_rows.store_4(row, first_col + v * kRowThreads * 4, times(sums[v], end.out_scale));
    if (first_col == 0) final_rows.store_lse(row, end.lse);
  }
}

/// Counts an arrival at a split tile; whether it was the last.
__device__ __forceinline__ bool count_arrival(const KernelParams& params, int split_tile) {
  const PlanHeader* header = plan_header(params);
  uint32_t* counter =
      reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(params.plan) + header->counters_offset) +
      split_tile;
  ptx::fence_acq_rel_gpu();
  const bool is_last =
      atomicAdd(counter, 1u) + 1 == static_cast<uint32_t>(num_arrivals(split_tiles(header)[split_tile]));
  if (is_last) *counter = 0;  // for a graph's next replay
  ptx::fence_acq_rel_gpu();
  return is_last;
}

/// Of a prefix that is complete: which of its members are, too.
__device__ __forceinline__ void count_in_members(const KernelParams& params, const SplitTile& tile,
                                                 int thread, uint32_t* ready) {
  if (thread >= kWideTileQ) return;
  const int member = tile.first_member + thread * plan_header(params)->num_kv_heads;
  const bool is_ready = thread < tile.num_members && count_arrival(params, member);
  const uint32_t mask = __ballot_sync(0xffffffff, is_ready);
  if (thread % 32 == 0) ready[thread / 32] = mask;
}

/// After the partials of a split item are stored, by all consumer threads: counts it, and merges if it was
/// the last. The barriers carry the threads' stores to the one that fences, and its fence back to the
/// readers. Where one CTA has all items of the tile, they need no counter.
template <Kind kKind>
__device__ __forceinline__ void finish_split(const KernelParams& params, const WorkItem& item, int kv_head,
                                             int thread, Arrivals& arrivals, const Profiler& profiler) {
  if (item.split_tile < 0) return;
  const PlanHeader* header = plan_header(params);
  const int index = split_tile_index(item, kv_head);
  const SplitTile& tile = split_tiles(header)[index];
  if (tile.is_of_one_cta) {
    if (item.split_idx + 1 < tile.num_splits) return;
    profiler.begin(ProfilePhase::kArrive);
    ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    profiler.end(ProfilePhase::kArrive);
  } else {
    profiler.begin(ProfilePhase::kArrive);
    ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    if (thread == 0) arrivals.is_last = count_arrival(params, index);
    ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    profiler.end(ProfilePhase::kArrive);
    if (!arrivals.is_last) return;
    if (tile.num_members > 0) {
      profiler.begin(ProfilePhase::kArrive);
      // What comes of the thread's number is made anew here: kept over the items it would be spilled.
      count_in_members(params, tile, ptx::opaque(thread), arrivals.ready_members);
      ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
      profiler.end(ProfilePhase::kArrive);
    }
  }
  // A narrow tile has few rows, and a wide one as a rule few splits.
  constexpr int kVectors = kKind == Kind::kNarrow ? 1 : 4;
  constexpr int kLoaded = kKind == Kind::kNarrow ? 4 : 2;
  profiler.begin(ProfilePhase::kMerge);
  merge<kVectors, kLoaded>(params, {header, tile, arrivals.ready_members}, thread);
  profiler.end(ProfilePhase::kMerge);
}

}  // namespace onewave
