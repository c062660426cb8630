#pragma once

/// Merging the splits of a tile, by the last CTA that finishes one of them:
///
///   lse = log2(sum_s 2^lse_s)        out = sum_s 2^(lse_s - lse) out_s,   s in the order of the plan
///
/// so that the bits do not depend on who was last. No CTA ever waits for another. A shared prefix that is
/// complete counts itself in its members, and all of these that are complete then are merged at once.

#include "output.cuh"

namespace onewave {

/// Walks the partial rows that one row of a split tile is merged from: of its prefixes, and then its own.
class PartialCursor {
 public:
  __device__ __forceinline__ PartialCursor(const PlanHeader* header, const SplitTile* tile, int row)
      : header_(header), tile_(tile), row_(row) {
    if (tile_ != nullptr) next_tile();
  }

  __device__ __forceinline__ bool valid() const { return num_left_ > 0; }

  __device__ __forceinline__ int take() {
    const int row = partial_row_;
    partial_row_ += stride_;
    if (--num_left_ == 0 && prefix_ <= tile_->num_prefixes) next_tile();
    return row;
  }

 private:
  __device__ __forceinline__ void next_tile() {
    const SplitTile* from = tile_;
    int row = row_;
    if (prefix_ < tile_->num_prefixes) {
      const int32_t* links = plan_section<int32_t>(header_, header_->links_offset);
      from = split_tiles(header_) + links[tile_->link_begin + prefix_] + tile_->kv_head_begin;
      row += (tile_->q_token_begin - from->q_token_begin) * header_->group_size + tile_->row_begin -
             from->row_begin;
    }
    ++prefix_;
    partial_row_ = from->partial_row_begin + row;
    stride_ = (from->kv_head_end - from->kv_head_begin) * from->num_rows;
    num_left_ = from->num_splits;
  }

  const PlanHeader* header_;
  const SplitTile* tile_;  ///< null: of no row
  int row_;                ///< in the tile, its kv heads one after another
  int prefix_ = 0;         ///< the next; behind the last comes the tile itself
  int partial_row_ = 0;
  int stride_ = 0;
  int num_left_ = 0;  ///< splits of the prefix, or of the tile
};

/// The tiles that are merged together: one, or those members of a prefix that are ready.
struct MergedTiles {
  const PlanHeader* header;
  const SplitTile& tile;
  const uint32_t* ready;  ///< a bit for each member

  __device__ __forceinline__ int num_rows() const {
    return (tile.kv_head_end - tile.kv_head_begin) * tile.num_rows;
  }

  /// The tile that a row is to be merged in, and which of that tile's rows it is; null: it is not.
  __device__ __forceinline__ const SplitTile* tile_of(int& row) const {
    if (row >= num_rows()) return nullptr;
    if (tile.num_members == 0) return &tile;
    const int32_t* member_of_row = plan_section<int32_t>(header, header->links_offset) + tile.link_begin;
    const int member = member_of_row[row];
    if ((ready[member / 32] >> member % 32 & 1) == 0) return nullptr;
    const SplitTile* merged = split_tiles(header) + tile.first_member + member * header->num_kv_heads;
    row -= (merged->q_token_begin - tile.q_token_begin) * header->group_size + merged->row_begin -
           tile.row_begin;
    return merged;
  }
};

/// What a row is so far. Its sink is a part without output.
struct MergedRow {
  float m;
  float total;
  float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);

  __device__ __forceinline__ explicit MergedRow(float sink) : m(sink), total(sink == -INFINITY ? 0.f : 1.f) {}

  template <int kBatch>
  __device__ __forceinline__ void add(const float (&lse)[kBatch], const float4 (&part)[kBatch]) {
    const float previous = m;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) m = fmaxf(m, lse[b]);
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
};

/// By all consumer threads.
__device__ __forceinline__ void merge(const KernelParams& params, const MergedTiles& tiles, int thread) {
  constexpr int kBatch = 4;  ///< splits that are on their way together
  constexpr int kChunks = kHeadDimVo / 4;
  const FinalRows final_rows{params};
  for (int i = thread; i < tiles.num_rows() * kChunks; i += kConsumerThreads) {
    int tile_row = i / kChunks;
    const int col = i % kChunks * 4;
    const SplitTile* tile = tiles.tile_of(tile_row);
    if (tile == nullptr) continue;
    PartialCursor cursor(tiles.header, tile, tile_row);
    const int head = tile_row / tile->num_rows;
    const QueryRow row = query_row(tiles.header, *tile, head, tile_row - head * tile->num_rows);
    MergedRow merged(final_rows.sink(row));
#pragma unroll 1
    while (cursor.valid()) {
      float lse[kBatch];
      float4 part[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        lse[b] = -INFINITY;
        part[b] = make_float4(0.f, 0.f, 0.f, 0.f);
        if (!cursor.valid()) continue;
        const int64_t partial_row = cursor.take();
        lse[b] = params.partial_lse[partial_row];
        part[b] = *reinterpret_cast<const float4*>(params.partial_out + partial_row * kHeadDimVo + col);
      }
      merged.add(lse, part);
    }
    const RowEnd end(merged.m, merged.total, -INFINITY, 1.f, 1.f);
    const float scale = end.out_scale;
    const float4 sum = merged.sum;
    final_rows.store_4(row, col, make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale));
    if (col == 0) final_rows.store_lse(row, end.lse);
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
__device__ __forceinline__ void finish_split(const KernelParams& params, const WorkItem& item, int kv_head,
                                             int thread, Arrivals& arrivals) {
  if (item.split_tile < 0) return;
  const int index = split_tile_index(item, kv_head);
  const SplitTile& tile = split_tiles(plan_header(params))[index];
  if (tile.is_of_one_cta) {
    if (item.split_idx + 1 < tile.num_splits) return;
    ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
  } else {
    ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    if (thread == 0) arrivals.is_last = count_arrival(params, index);
    ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    if (!arrivals.is_last) return;
    if (tile.num_members > 0) {
      // What comes of the thread's number is made anew here: kept over the items it would be spilled.
      count_in_members(params, tile, ptx::opaque(thread), arrivals.ready_members);
      ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    }
  }
  merge(params, {plan_header(params), tile, arrivals.ready_members}, thread);
}

}  // namespace onewave
