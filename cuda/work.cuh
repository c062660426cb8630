#pragma once

/// Reading the work list, and what an item means in tensors.

#include "config.cuh"
#include "ptx/copy.cuh"

#include <type_traits>

namespace onewave {

inline constexpr int kGroupUnit = 1 << 16;

/// The plan as this CTA sees it. Each role reads its own copy: what is held over the branch between the roles
/// counts against the producer's few registers.
struct Work {
  const PlanHeader* header;
  const WorkItem* items;
  CtaRecord cta;
  int group_size;
  int group_inverse;  ///< kGroupUnit / group_size, rounded up

  __device__ __forceinline__ explicit Work(const void* plan)
      : header(static_cast<const PlanHeader*>(plan)),
        items(plan_section<WorkItem>(plan, header->items_offset)),
        cta(plan_section<CtaRecord>(plan, kCtasOffset)[blockIdx.x]),
        group_size(header->group_size),
        group_inverse((kGroupUnit + header->group_size - 1) / header->group_size) {}
};

__device__ __forceinline__ bool has_work(const void* plan) {
  const PlanHeader* header = static_cast<const PlanHeader*>(plan);
  const CtaRecord cta = plan_section<CtaRecord>(plan, kCtasOffset)[blockIdx.x];  // beside the header
  return static_cast<int>(blockIdx.x) < header->num_ctas &&
         (cta.narrow_begin < cta.narrow_end || cta.first_item >= 0);
}

__device__ __forceinline__ const PlanHeader* plan_header(const KernelParams& params) {
  return static_cast<const PlanHeader*>(params.plan);
}

__device__ __forceinline__ const SplitTile* split_tiles(const PlanHeader* header) {
  return plan_section<SplitTile>(header, header->split_tiles_offset);
}

/// Index of the SplitTile of some of the kv heads of an item that has one.
__device__ __forceinline__ int split_tile_index(const WorkItem& item, int kv_head) {
  return item.split_tile + kv_head - item.kv_head_begin;
}

/// Wide items, which a CTA takes when its narrow ones are done.
__device__ __forceinline__ bool has_wide_items(const PlanHeader* header) {
  return header->wide_begin < header->num_items;
}

/// Planned with keys it may have lost them (update_kv_lens()): a wide one then has one tile of none.
__device__ __forceinline__ bool has_keys(const WorkItem& item) { return item.kv_begin < item.kv_end; }

/// Walks the items [begin, end), step by step of kv heads; the producer and the consumers do so identically.
/// An item stays in (cached) global memory: a user copies what its inner loop needs, the rest holds no
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
    kv_head_ += item_->heads_per_step;
    if (kv_head_ < item_->kv_head_end) return;
    if (++item_ >= end_) return;
    kv_head_ = item_->kv_head_begin;
    prefetch(item_ + 1);
  }

  __device__ __forceinline__ void skip_keyless() {
    while (valid() && !has_keys(*item_)) advance();
  }

 private:
  /// The sectors of 32 bytes that an item spans, so that its first use does not wait for L2.
  __device__ __forceinline__ void prefetch(const WorkItem* item) const {
    const int lane = threadIdx.x % 32;
    constexpr int kLastByte = sizeof(WorkItem) - 1;
    if (item < end_ && lane <= (kLastByte + 31) / 32)
      ptx::prefetch_global_l1(reinterpret_cast<const unsigned char*>(item) + min(32 * lane, kLastByte));
  }

  const WorkItem* item_;
  const WorkItem* end_;
  int kv_head_ = 0;
};

/// log2 of the kv heads that an item takes together.
template <Kind kKind>
__device__ __forceinline__ int step_heads_shift(const WorkItem& item) {
  return kKind == Kind::kNarrow ? __ffs(item.heads_per_step) - 1 : 0;
}

/// First key of the last tile of [kv_begin, kv_end); of no keys there is one tile too.
__device__ __forceinline__ int last_tile_begin(int kv_begin, int kv_end, int step_heads_shift) {
  const int tile_keys = kStageKv >> step_heads_shift;
  return kv_begin + ((max(kv_end - kv_begin, 1) - 1) & -tile_keys);
}

/// Of an item with a custom mask, the keys from `tile_begin` on, which the item counts by MaskTiles.
__device__ __forceinline__ const MaskTile& mask_tile(const KernelParams& params, int mask_begin,
                                                     int tile_begin) {
  const auto* header = static_cast<const PlanHeader*>(params.plan);
  return plan_section<MaskTile>(header, header->mask_tiles_offset)[mask_begin + tile_begin / kTileKv];
}

/// First key in the window of a tile's first row; where it has none, far below 0.
__device__ __forceinline__ int first_in_window(const KernelParams& params, const WorkItem& item) {
  return item.window_shift + item.row_begin / static_cast<const PlanHeader*>(params.plan)->group_size;
}

/// Where in the request the keys are that an item counts from `tile_begin` on, as far as they are one tile.
__device__ __forceinline__ int key_of_request(const KernelParams& params, const WorkItem& item,
                                              int tile_begin) {
  if (!kMasked || item.mask_begin < 0) return tile_begin;
  return mask_tile(params, item.mask_begin, tile_begin).tile * kTileKv + tile_begin % kTileKv;
}

/// A packed row as a row of q, out and lse.
struct QueryRow {
  int token;
  int head;
};

/// Row `row` of the kv head number `head` of a split tile.
__device__ __forceinline__ QueryRow query_row(const PlanHeader* header, const SplitTile& tile, int head,
                                              int row) {
  const int group_size = header->group_size;
  const int packed_row = tile.row_begin + row;
  const int token = packed_row / group_size;
  return {tile.q_token_begin + token,
          (tile.kv_head_begin + head) * group_size + packed_row - token * group_size};
}

/// What the query tokens of an item see beside the causal mask. Tokens count from its first.
class TokenMasks {
 public:
  __device__ __forceinline__ bool has_custom_mask() const { return mask_begin_ >= 0; }

 protected:
  /// `first_token`: of the request.
  __device__ __forceinline__ void set_mask(const WorkItem& item, int first_token) {
    window_begin_ = item.window_shift + first_token;
    mask_begin_ = item.mask_begin;
    last_row_ = item.num_rows - 1;
  }

  /// Of the item, whose tile may have more.
  __device__ __forceinline__ int last_row() const { return last_row_; }

  __device__ __forceinline__ int window_begin_of(int token) const { return window_begin_ + token; }

  __device__ __forceinline__ const uint32_t* mask_words_of(const KernelParams& params, int token,
                                                           int tile_begin) const {
    if (!has_custom_mask()) return nullptr;
    const int first_row = mask_tile(params, mask_begin_, tile_begin).first_row;
    if (first_row < 0) return nullptr;
    const auto* header = static_cast<const PlanHeader*>(params.plan);
    return plan_section<MaskRow>(header, header->mask_rows_offset)[first_row + token].words +
           tile_begin % kTileKv / 32;
  }

 private:
  int window_begin_;  ///< of the first token
  int mask_begin_;
  int last_row_;
};

/// The same in kernels that look at none of it: it takes no room in a record, or ptxas orders their loops
/// otherwise, which cost head_dim 64 up to 5 % (bench/NOTES.md).
class NoTokenMasks {
 public:
  __device__ __forceinline__ bool has_custom_mask() const { return false; }

 protected:
  __device__ __forceinline__ void set_mask(const WorkItem&, int) {}
  __device__ __forceinline__ int last_row() const { return 0; }
  __device__ __forceinline__ int window_begin_of(int) const { return kNoWindow; }
  __device__ __forceinline__ const uint32_t* mask_words_of(const KernelParams&, int, int) const {
    return nullptr;
  }
};

/// The packed rows of one item, by their index in its tile: one division here, none for a row.
class PackedRows : public std::conditional_t<kMasked, TokenMasks, NoTokenMasks> {
 public:
  PackedRows() = default;

  __device__ __forceinline__ PackedRows(const Work& work, const WorkItem& item)
      : group_size_(work.group_size), group_inverse_(work.group_inverse) {
    const int first_token = item.row_begin / group_size_;
    first_head_ = item.row_begin - first_token * group_size_;
    q_token_begin_ = item.q_token_begin + first_token;
    first_visible_ = item.causal_shift + first_token + 1;
    kv_end_ = item.kv_end;
    set_mask(item, first_token);
  }

  __device__ __forceinline__ QueryRow query_row(int kv_head, int row) const {
    const int token = num_tokens(first_head_ + row);
    return {q_token_begin_ + token, kv_head * group_size_ + first_head_ + row - token * group_size_};
  }

  /// First key that a row does not see.
  __device__ __forceinline__ int visible_end(int row) const {
    return min(kv_end_, first_visible_ + num_tokens(first_head_ + row));
  }

  /// First key in the window of a row; where there is none, far below 0.
  __device__ __forceinline__ int visible_begin(int row) const {
    return window_begin_of(num_tokens(first_head_ + row));
  }

  /// The words of a row's custom mask for the keys from `tile_begin` on; null: it sees all of them.
  __device__ __forceinline__ const uint32_t* mask_words(const KernelParams& params, int row,
                                                        int tile_begin) const {
    return mask_words_of(params, num_tokens(first_head_ + min(row, last_row())), tile_begin);
  }

 private:
  /// n / group_size_, for n up to a tile's rows and a group more: exact, since
  /// n (group_inverse_ * group_size_ - kGroupUnit) < kGroupUnit (groups are of up to 64, kMaxGroupSize).
  __device__ __forceinline__ int num_tokens(int n) const { return n * group_inverse_ / kGroupUnit; }

  int group_size_;
  int group_inverse_;  ///< as in Work
  int first_head_;     ///< of row 0, in its group
  int q_token_begin_;  ///< of row 0, a row of q
  int first_visible_;  ///< first key that row 0 does not see
  int kv_end_;
};

/// One kv head of an item, as the consumers read it from shared memory.
struct HeadItem {
  bool valid;  ///< false behind the last
  WorkItem item;
  PackedRows rows;
  int kv_head;
};

}  // namespace onewave
