#pragma once

/// Reading the work list, and what an item means in tensors.

#include "config.cuh"
#include "ptx/copy.cuh"

namespace onewave {

/// The plan as this CTA sees it. Each role reads its own copy: what is held over the branch between the roles
/// counts against the producer's few registers.
struct Work {
  const PlanHeader* header;
  const WorkItem* items;
  CtaRecord cta;
  int group_size;

  __device__ __forceinline__ explicit Work(const void* plan)
      : header(static_cast<const PlanHeader*>(plan)),
        items(plan_section<WorkItem>(plan, header->items_offset)),
        cta(plan_section<CtaRecord>(plan, header->ctas_offset)[blockIdx.x]),
        group_size(header->group_size) {}
};

__device__ __forceinline__ bool has_work(const void* plan) {
  const PlanHeader* header = static_cast<const PlanHeader*>(plan);
  if (static_cast<int>(blockIdx.x) >= header->num_ctas) return false;
  const CtaRecord& cta = plan_section<CtaRecord>(plan, header->ctas_offset)[blockIdx.x];
  return cta.narrow_begin < cta.end;
}

__device__ __forceinline__ bool has_keys(const WorkItem& item) { return item.kv_begin < item.kv_end; }

/// Walks the items [begin, end), kv head by kv head; the producer and the consumers do so identically. An
/// item stays in (cached) global memory: a user copies what its inner loop needs, the rest holds no
/// registers.
class HeadCursor {
 public:
  __device__ __forceinline__ HeadCursor(const Work& work, int begin, int end)
      : item_(work.items + begin), end_(work.items + end) {
    if (valid()) kv_head_ = item_->kv_head_begin;
  }

  __device__ __forceinline__ bool valid() const { return item_ < end_; }
  __device__ __forceinline__ const WorkItem& item() const { return *item_; }
  __device__ __forceinline__ int kv_head() const { return kv_head_; }

  __device__ __forceinline__ void advance() {
    if (++kv_head_ < item_->kv_head_end) return;
    if (++item_ >= end_) return;
    kv_head_ = item_->kv_head_begin;
    prefetch(item_ + 1);
  }

  __device__ __forceinline__ void skip_keyless() {
    while (valid() && !has_keys(*item_)) advance();
  }

 private:
  /// The two sectors of 32 bytes that an item spans, so that its first use does not wait for L2.
  __device__ __forceinline__ void prefetch(const WorkItem* item) const {
    const int lane = threadIdx.x % 32;
    if (item < end_ && lane < 2)
      ptx::prefetch_global_l1(reinterpret_cast<const unsigned char*>(item) + 32 * lane);
  }

  const WorkItem* item_;
  const WorkItem* end_;
  int kv_head_ = 0;
};

__device__ __forceinline__ int num_kv_tiles(const WorkItem& item) {
  return (item.kv_end - item.kv_begin + kTileKv - 1) / kTileKv;
}

__device__ __forceinline__ int last_tile_begin(const WorkItem& item) {
  return item.kv_begin + (num_kv_tiles(item) - 1) * kTileKv;
}

/// First key that row `row` of the tile does not see.
__device__ __forceinline__ int visible_end(const WorkItem& item, int row, int group_size) {
  return min(item.kv_end, item.causal_shift + (item.row_begin + row) / group_size + 1);
}

/// A packed row as a row of q, out and lse.
struct QueryRow {
  int64_t token;
  int head;
};

__device__ __forceinline__ QueryRow query_row(const WorkItem& item, int kv_head, int row, int group_size) {
  const int packed = item.row_begin + row;
  const int token = packed / group_size;
  return {static_cast<int64_t>(item.q_token_begin) + token,
          kv_head * group_size + packed - token * group_size};
}

}  // namespace onewave
