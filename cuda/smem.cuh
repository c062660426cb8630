#pragma once

/// The shared-memory plan of a CTA. The kinds' parts are the same bytes:
///
///   wide     Q stages of 128 rows | K stages | V stages | records of items | page ids, rings, queue, flag
///   narrow   Q stages of 64 rows  | K stages | V stages | join buffer      |
///
/// The kinds overlay each other; the producer begins to fill the wide one when every consumer warp has
/// arrived on narrow_done.

#include "config.cuh"
#include "pipeline.cuh"
#include "queue.cuh"
#include "work.cuh"

#include <type_traits>

namespace onewave {

inline constexpr int kKStageElements = kStageKv * kQkPanels * kPanelCols;
inline constexpr int kVStageElements = kStageKv * kVoPanels * kPanelCols;

/// Page ids of the tiles that are on their way, by the producer's threads. (In registers ptxas would have a
/// warp wait for those that it has just asked for when it uses the ones before.)
inline constexpr int kPageIdSlots = 4;
struct GatheredPageIds {
  int32_t of_thread[kPageIdSlots][kWarpgroupThreads];
};
struct NoPageIds {};
using PageIds = std::conditional_t<kGather, GatheredPageIds, NoPageIds>;

template <int kQueryRows>
struct Tiles {
  alignas(1024) Element q[kQueryStages][kQueryRows * kQkPanels * kPanelCols];
  alignas(1024) Element k[kNumStages][kKStageElements];
  alignas(1024) Element v[kNumStages][kVStageElements];
};

using WideTiles = Tiles<kWideTileQ>;
using NarrowTiles = Tiles<kNarrowStepRows>;

/// Columns of O^T that the join of a narrow item of `num_rows` padded rows adds up at a time, of each part of
/// the columns: fewer as rows grow, and whole blocks of 16.
__host__ __device__ constexpr int join_slice_cols(int num_rows) {
  int cols = kPartCols * 8 / num_rows / 16 * 16;
  while (kPartCols % cols != 0) cols -= 16;
  return cols;
}
/// Floats between rows of a slice: 4 of padding keep the transposed stores free of bank conflicts.
__host__ __device__ constexpr int join_pitch(int num_rows) { return join_slice_cols(num_rows) + 4; }

__host__ __device__ constexpr int join_floats(int num_rows) {
  return kConsumerWarps * num_rows * join_pitch(num_rows);
}
__host__ __device__ constexpr int max_join_floats() {
  int most = 0;
  for (int num_rows = 8; num_rows <= kNarrowTileQ; num_rows *= 2)
    most = join_floats(num_rows) > most ? join_floats(num_rows) : most;
  return most;
}

/// Where the eight consumer warps of a narrow item meet.
struct JoinBuffer {
  float2 states[kNarrowTileQ][kConsumerWarps];  ///< maximum and sum
  float weights[kConsumerWarps][kNarrowTileQ];
  alignas(16) float out[max_join_floats()];  ///< [warp, row, column of the slice]
};

struct WideStorage {
  WideTiles tiles;
  HeadItem items[kHeadItems];
};

struct NarrowStorage {
  NarrowTiles tiles;
  JoinBuffer join;
};

struct SharedStorage {
  union {
    WideStorage wide;
    NarrowStorage narrow;
  };
  PageIds page_ids;
  KindRings wide_rings;
  KindRings narrow_rings;
  ItemSlots wide_items;
  uint64_t narrow_done;
  int32_t is_last_arrival;
};
static_assert(sizeof(SharedStorage) <= kSharedBytes);

/// Where the rows of a wide stage of V lie. A TMA box brings all panels of a page at once, so a stage is a
/// row of boxes, and a box panels of the page's tokens; K, whose 8-row groups must be 1024 bytes apart for
/// wgmma, is a box for each panel. A gathered stage is one box.
struct BoxLayout {
  static constexpr int kNumPanels = kVoPanels;

  int box_shift;  ///< log2 of the tokens of a box, 3 .. 7

  /// Bytes to the row of a key, in the first panel.
  __device__ __forceinline__ uint32_t row_offset(int key) const {
    if constexpr (kNumPanels == 1) return key * kPanelRowBytes;
    const int box = key >> box_shift;
    return (box * kNumPanels << box_shift) * kPanelRowBytes + (key & ((1 << box_shift) - 1)) * kPanelRowBytes;
  }
  /// The same of key 16 * step, for a whole number of steps: a box of few tokens is all in one step.
  __device__ __forceinline__ uint32_t step_offset(int step) const {
    const int first_step_of_box = step & -1 << max(box_shift - 4, 0);
    return (step + first_step_of_box * (kNumPanels - 1)) * 16 * kPanelRowBytes;
  }
  __device__ __forceinline__ uint32_t panel_bytes() const { return kPanelRowBytes << box_shift; }
  /// From 8 keys to the next 8, where both lie in one multiple of 16.
  __device__ __forceinline__ uint32_t group_bytes() const {
    return kNumPanels > 1 && box_shift == 3 ? 8 * kPanelRowBytes * kNumPanels : 8 * kPanelRowBytes;
  }
};

__device__ __forceinline__ BoxLayout box_layout(const KernelParams& params) {
  return {kGather ? kStageKvShift : params.box_shift};
}

/// Tokens and kv heads of the boxes that a stage is loaded with.
struct TmaBox {
  int tokens_shift;
  int heads_shift;

  /// `step_heads_shift`: log2 of the kv heads that the item takes together.
  __device__ __forceinline__ TmaBox(const KernelParams& params, int step_heads_shift)
      : tokens_shift(step_heads_shift > 0 ? params.group_box_shift : params.box_shift),
        heads_shift(step_heads_shift > 0 ? params.group_heads_shift : 0) {}

  __device__ __forceinline__ int rows_shift() const { return tokens_shift + heads_shift; }
};

/// Where the rows of a narrow stage lie, K's or V's: boxes by tokens, then by kv heads; a box holds for each
/// kv head panels of its tokens. A gathered stage is panels of all its rows, kv head by kv head.
template <int kNumPanels>
struct NarrowLayout {
  TmaBox box;
  int step_heads_shift;

  __device__ __forceinline__ NarrowLayout(const KernelParams& params, int step_heads_shift)
      : box(params, step_heads_shift), step_heads_shift(step_heads_shift) {}

  /// Bytes to the row of a key of the step, in the first panel.
  __device__ __forceinline__ uint32_t row_offset(int head, int key) const {
    if constexpr (kGather) return ((head * kStageKv >> step_heads_shift) + key) * kPanelRowBytes;
    const int box_idx =
        (key >> box.tokens_shift << (step_heads_shift - box.heads_shift)) + (head >> box.heads_shift);
    const int box_head = head & ((1 << box.heads_shift) - 1);
    const int token = key & ((1 << box.tokens_shift) - 1);
    return ((((box_idx << box.heads_shift) + box_head) * kNumPanels << box.tokens_shift) + token) *
           kPanelRowBytes;
  }
  __device__ __forceinline__ uint32_t panel_bytes() const {
    return kGather ? kStageKv * kPanelRowBytes : kPanelRowBytes << box.tokens_shift;
  }
};

/// The 16-byte chunk `chunk` (0 .. 7) of a row of 128 bytes under the 128-byte swizzle: address bits 4-6 are
/// exchanged with bits 7-9, the row in its group of 8. So from chunk 0's address every other's is one XOR
/// away.
__device__ __forceinline__ uint32_t first_chunk(uint32_t row_address, int row) {
  return row_address + row % 8 * 16;
}
__device__ __forceinline__ uint32_t nth_chunk(uint32_t first_chunk, int chunk) {
  return first_chunk ^ chunk * 16;
}

/// Bytes from the start of a tile of `num_rows` rows to the 16-byte chunk `chunk` of row `row`.
__device__ __forceinline__ uint32_t tile_offset(int num_rows, int row, int chunk) {
  const int panel = chunk / kPanelChunks;
  return nth_chunk(first_chunk((panel * num_rows + row) * kPanelRowBytes, row), chunk % kPanelChunks);
}

}  // namespace onewave
