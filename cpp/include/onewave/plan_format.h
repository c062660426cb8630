#pragma once

/// The byte layout of a plan: what the planner writes, what is uploaded, and what the kernel and the CPU
/// executor read. This is the only definition; host and device share it, and Python reads the field offsets
/// from it (onewave.plan_format).
///
///   PlanHeader | CtaRecord[num_ctas] | WorkItem[num_items] | SplitTile[num_split_tiles]
///   | PartialRows[], int32 row_members[], of shared prefixes
///   | ItemBounds[num_items], where the lengths are upper bounds | MaskTile[], MaskRow[], of custom masks
///   | uint32 counters[num_split_tiles + 1]
///
/// Sections start at the header's *_offset fields, in bytes from the start of the plan, multiples of 16.
/// Everything is little-endian; lengths are tokens, rows are packed rows.
///
/// Packed rows (GQA): the queries of one request that share a kv head are one matrix. Row r of that matrix is
/// query token r / group_size and query head kv_head * group_size + r % group_size.

#include <cstdint>

#ifdef __CUDACC__
#define ONEWAVE_HOST_DEVICE __host__ __device__
#else
#define ONEWAVE_HOST_DEVICE
#endif

namespace onewave {

inline constexpr uint32_t kPlanMagic = 0x4e4c5057;  // "WPLN"
inline constexpr uint32_t kPlanVersion = 9;

/// Keys of one kv head per step, in which keys are counted and cut. A narrow item may take several kv heads
/// together, and then so many fewer keys.
inline constexpr int32_t kTileKv = 128;
/// Those of a stage of the kernel's rings: a step, or half of one where rows are long.
ONEWAVE_HOST_DEVICE constexpr int32_t stage_kv(int32_t head_dim_vo) {
  return head_dim_vo <= 128 ? kTileKv : kTileKv / 2;
}
/// kv heads that a narrow item takes together at most: each has at least one warp to itself, and 16 keys of
/// every stage.
ONEWAVE_HOST_DEVICE constexpr int32_t max_heads_per_step(int32_t head_dim_vo) {
  return stage_kv(head_dim_vo) / 16;
}
/// Packed rows of one wide item at most (64 for each of two consumer warpgroups).
inline constexpr int32_t kWideTileQ = 128;
/// Packed rows of one narrow item at most. One without keys may have kWideTileQ.
inline constexpr int32_t kNarrowTileQ = 32;
/// Packed rows, padded to 8, 16 or 32, times the kv heads of a step: at most.
inline constexpr int32_t kNarrowStepRows = 64;
/// CTAs of one launch at most: bounds the work list, not a property of a GPU.
inline constexpr int32_t kMaxNumCtas = 1024;

struct PlanHeader {
  uint32_t magic;
  uint32_t version;
  uint32_t num_bytes;  ///< bytes in use, counters included: what plan() uploads
  int32_t num_ctas;    ///< CTAs beyond it return at once
  int32_t num_items;
  int32_t wide_begin;  ///< items [wide_begin, num_items) are wide, in the order in which CTAs take them
  int32_t num_split_tiles;
  int32_t num_partial_rows;  ///< rows of partial_out and partial_lse in use
  uint32_t ctas_offset;      ///< kCtasOffset
  uint32_t items_offset;
  uint32_t split_tiles_offset;
  uint32_t counters_offset;
  int32_t
      num_narrow_ctas;  ///< for which the narrow items were cut; their costs are of as many reading at once
  int32_t num_first_items;  ///< wide items that are some CTA's first_item
  uint32_t
      num_draws;  ///< of the queue's counter in a launch: the other wide items, and an empty one by every CTA
  uint32_t item_bounds_offset;  ///< 0: there are none, the lengths are those of the plan
  uint64_t actual_kv_lens;      ///< address of [batch_size] int32 that update_kv_lens() reads, on the side of
                                ///< kv_indices; 0: there are none
  uint64_t kv_indices;  ///< address of the page table, int32 page ids: host for the executor, device for the
                        ///< kernel
  int32_t batch_size;
  int32_t total_qo_len;
  int32_t num_qo_heads;
  int32_t num_kv_heads;
  int32_t group_size;  ///< num_qo_heads / num_kv_heads
  uint16_t head_dim_qk;
  uint16_t head_dim_vo;
  int32_t page_size;
  float sm_scale_log2;    ///< sm_scale * log2(e): scores are exponents of two
  float logits_soft_cap;  ///< c: a scaled score s becomes c tanh(s / c); 0: it stays
  uint32_t mask_tiles_offset;
  uint32_t mask_rows_offset;
  uint32_t partial_rows_offset;
  uint32_t row_members_offset;
  uint32_t is_masked;  ///< not 0: there is a window, a soft cap or a custom_mask, which only the masked
                       ///< kernels look at
};

/// What one CTA does: its narrow items [narrow_begin, narrow_end), then wide ones, until there are no more:
/// first_item, and then whatever the queue gives it.
///
/// The queue: counters[num_split_tiles] counts the items taken beside the first ones. A CTA that draws n from
/// it takes item wide_begin + num_first_items + n, and is done when that is num_items or more. num_draws
/// draws later the counter is 0 again (atomicInc wraps it), and so it is when a graph replays.
struct CtaRecord {
  int32_t narrow_begin;
  int32_t narrow_end;
  int32_t first_item;  ///< -1: none; a CTA that has no narrow items either does nothing
  float predicted_us;  ///< when it is done, the launch included, if every item costs what the planner takes
                       ///< it to
};

/// Below the first key of every row, and a key's number can be taken from it.
inline constexpr int32_t kNoWindow = -(1 << 30);
inline constexpr int32_t kNoMask = -1;

/// One tile of packed rows against one range of keys, for each kv head of a range.
///
/// A tile with a custom mask counts its keys by MaskTiles: key k of a range is key k % kTileKv of the tile of
/// keys in MaskTile mask_begin + k / kTileKv. Those that no row sees are left out.
///
/// heads_per_step kv heads are done together (1, or as cpp/head_groups.h has it; 1 where the item is wide or
/// is planned without keys), in steps of kTileKv / heads_per_step keys: where K and V of a token's heads lie
/// side by side, memory is then read in longer runs.
///
/// A prefix that requests share has items of its own: their rows are those of several requests, which lie one
/// after another in q, and their keys the first one's.
struct WorkItem {
  int32_t request;        ///< index in the batch; of a prefix, the first that shares it
  int32_t q_token_begin;  ///< row of q and out at which the request starts
  int32_t row_begin;      ///< first packed row of the tile
  int32_t num_rows;
  int32_t causal_shift;  ///< row r sees the keys < min(kv_end, causal_shift + r / group_size + 1)
  int32_t window_shift;  ///< and the keys >= window_shift + r / group_size; kNoWindow: all
  int32_t mask_begin;    ///< index of the tile's first MaskTile; kNoMask: it has none
  int32_t kv_begin;      ///< a multiple of kTileKv / heads_per_step
  int32_t kv_end;        ///< == kv_begin: nothing to see; the output is 0 and the lse -inf
  int32_t page_begin;    ///< index in kv_indices of the request's first page
  int32_t kv_head_begin;
  int32_t kv_head_end;     ///< heads_per_step divides the range
  int32_t heads_per_step;  ///< where kv heads have one SplitTile together, all of the item's
  int32_t split_tile;      ///< index of the SplitTile that this item is a part of, and those of its further
                           ///< kv heads follow it; -1: it writes the output itself
  int32_t split_idx;
};

/// A tile whose keys several items share: the merge record. Each split leaves num_rows partial rows for each
/// kv head,
///   partial row of r
///     = partial_row_begin + (split_idx * (kv_head_end - kv_head_begin) + kv_head - kv_head_begin) * num_rows
///     + r,
/// and, with all heads, counts itself in the tile's counter (counters[i] is of split tile i). The last to
/// arrive merges them in the order of split_idx and sets the counter back to 0. Where one CTA has all of them
/// it merges after the last, the counter is not used, and the same partial rows may be those of its next such
/// tile.
///
/// Shared prefixes. A prefix's tile has the rows of its members, which are tiles of requests, one after
/// another. Nothing is merged for the prefix itself: when its splits are there, it counts itself in the
/// counter of each member, and those that have then all they wait for, their own splits and their prefixes,
/// are merged. A member's row is merged from the PartialRows of its prefixes and its own. Each such tile has
/// a SplitTile for each kv head, one after another.
struct SplitTile {
  int32_t q_token_begin;
  int32_t row_begin;
  int32_t num_rows;
  int32_t kv_head_begin;
  int32_t kv_head_end;
  int32_t num_splits;
  int32_t partial_row_begin;
  int32_t
      is_of_one_cta;   ///< not 0: one CTA has all of its items, narrow ones, in this order one after another
  int32_t list_begin;  ///< of a member, the index of its first PartialRows: one for each prefix, the
                       ///< outermost first, and its own; of a prefix, the index in row_members of its first
                       ///< row's, the number of the member that has it
  int32_t num_prefixes;  ///< of a member; else 0
  int32_t first_member;  ///< of a prefix, its first member's SplitTile of the same kv head; the next ones'
                         ///< follow num_kv_heads apart
  int32_t num_members;   ///< 0: the tile is no prefix
};

/// Where partials of the rows of a tile lie: split s has that of row r in partial row first + s * stride + r.
struct PartialRows {
  int32_t first;
  int32_t stride;
  int32_t num_splits;
  int32_t reserved;  ///< 0: a multiple of 16 bytes
};

/// Splits of a tile and prefixes that it waits for.
ONEWAVE_HOST_DEVICE constexpr int32_t num_arrivals(const SplitTile& tile) {
  return tile.num_splits + tile.num_prefixes;
}

/// An item as planned, where a request may turn out to have fewer keys: what update_kv_lens() starts from
/// each time.
struct ItemBounds {
  int32_t causal_shift;
  int32_t window_shift;
  int32_t kv_begin;
  int32_t kv_end;
  int32_t kv_len;  ///< keys of the request: its upper bound; of a prefix, its own
};

/// kTileKv keys that some row of a tile with a custom mask sees.
struct MaskTile {
  int32_t tile;       ///< of the request's keys: the first is tile * kTileKv
  int32_t first_row;  ///< index of the MaskRow of the tile's first query token, then one for each; -1: all
                      ///< rows see all keys
};

/// Which keys of a tile a query token sees: key k if bit k % 32 of word k / 32 is set.
struct MaskRow {
  uint32_t words[kTileKv / 32];
};

/// Where the CTA records begin in every plan: a CTA reads its own beside the header, not after it.
inline constexpr uint32_t kCtasOffset = 144;

static_assert(sizeof(PlanHeader) == 136 && sizeof(CtaRecord) == 16);
static_assert(sizeof(WorkItem) == 60 && sizeof(SplitTile) == 48 && sizeof(PartialRows) == 16 &&
              sizeof(ItemBounds) == 20);
static_assert(sizeof(MaskTile) == 8 && sizeof(MaskRow) == 16);

/// First bytes of every section are multiples of this.
inline constexpr uint32_t kPlanAlignment = 16;

/// log2 of a narrow item's packed rows for each kv head, padded to 8, 16 or 32: as the kernel takes them.
ONEWAVE_HOST_DEVICE inline int32_t narrow_rows_shift(int32_t num_rows) {
  return num_rows <= 8 ? 3 : num_rows <= 16 ? 4 : 5;
}

/// Gives an item the keys that its request has: `actual_kv_len` of them, but at least 0, and at most as many
/// as were planned. Its range may end sooner then, or have no keys, and the mask moves with the last key.
/// With a window so does the range, in whole tiles: the planner has given it one more at its start.
ONEWAVE_HOST_DEVICE inline void set_kv_len(WorkItem& item, const ItemBounds& bounds, int32_t actual_kv_len) {
  int32_t kv_len = actual_kv_len < bounds.kv_len ? actual_kv_len : bounds.kv_len;
  if (kv_len < 0) kv_len = 0;
  const int32_t num_missing = bounds.kv_len - kv_len;
  const bool has_window = bounds.window_shift != kNoWindow;
  const int32_t moved = has_window ? num_missing / kTileKv * kTileKv : 0;
  const int32_t kv_begin = bounds.kv_begin - moved;
  const int32_t kv_end = bounds.kv_end - moved;
  item.kv_begin = kv_begin > 0 ? kv_begin : 0;
  item.kv_end = kv_len < kv_end ? kv_len : kv_end;
  if (item.kv_end < item.kv_begin) item.kv_end = item.kv_begin;
  item.causal_shift = bounds.causal_shift - num_missing;
  item.window_shift = has_window ? bounds.window_shift - num_missing : kNoWindow;
}

/// The records of the section at `offset` bytes.
template <class Record>
ONEWAVE_HOST_DEVICE inline const Record* plan_section(const void* plan, uint32_t offset) {
  return reinterpret_cast<const Record*>(static_cast<const unsigned char*>(plan) + offset);
}

}  // namespace onewave
