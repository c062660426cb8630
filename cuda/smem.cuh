#pragma once

/// The shared-memory plan of a CTA. The kinds' parts are the same bytes:
///
///   wide     Q stages of 128 rows | K stages | V stages | records of items | page ids, rings, queue, flag
///   narrow   Q stages of 64 rows  | K stages | V stages | join buffer      |
///
/// Where K and V are e4m3, so are the narrow stages; the wide ones are made from others (config.cuh).
///
/// The kinds overlay each other; the producer begins to fill the wide one when every consumer warp has
/// arrived on narrow_done.

#include "config.cuh"
#include "pipeline.cuh"
#include "profile.cuh"
#include "queue.cuh"
#include "work.cuh"

#include <type_traits>

namespace onewave {

/// Page ids of the tiles that are on their way, by the producer's threads. (In registers ptxas would have a
/// warp wait for those that it has just asked for when it uses the ones before.)
///
/// Where a stage has 64 rows, pairs of threads look up the same: beside the longest rows that are widened
/// there is room for one of each pair's alone, and for three tiles', which is as many as there are. (Beside
/// those that are transposed there would be more.)
inline constexpr bool kSharePageIds = kFp8Kv && kHeadDimVo > 192;
inline constexpr int kPageIdSlots = kSharePageIds ? 3 : 4;
struct GatheredPageIds {
  int32_t of_thread[kPageIdSlots][kSharePageIds ? kStageKv : kWarpgroupThreads];
};
struct NoPageIds {};
using PageIds = std::conditional_t<kGather, GatheredPageIds, NoPageIds>;

/// A stage of rows of head_dim columns, in as many panels as they take.
template <class StageElement>
constexpr int stage_elements(int head_dim) {
  return kStageKv * num_panels(head_dim, sizeof(StageElement)) * panel_cols(sizeof(StageElement));
}

template <int kQueryRows, int kStages, class K, class V, int kStageElementsOfV>
struct Tiles {
  alignas(1024) QueryElement q[kQueryStages][kQueryRows * kQkPanels * kPanelCols];
  alignas(1024) K k[kStages][stage_elements<K>(kHeadDimQk)];
  alignas(1024) V v[kStages][kStageElementsOfV];
};

using WideTiles = Tiles<kWideTileQ, kWideStages, WideKey, WideValue, kWideValueBytes / sizeof(WideValue)>;
using NarrowTiles =
    Tiles<kNarrowStepRows, kNarrowStages, KvElement, KvElement, stage_elements<KvElement>(kHeadDimVo)>;

/// What wide stages are made from.
struct NoTiles {};
struct LoadedKeys {
  alignas(1024) KvElement k[stage_elements<KvElement>(kHeadDimQk)];
};
struct LoadedValues {
  alignas(1024) KvElement v[kLoadedValueStages][stage_elements<KvElement>(kHeadDimVo)];
};
struct LoadedTiles : std::conditional_t<kWidens, LoadedKeys, NoTiles>, LoadedValues {};
/// And the barriers on which it is loaded, one for each producer warp.
struct LoadedBarriers {
  uint64_t k[kProducerWarps];
  uint64_t v[kLoadedValueStages][kProducerWarps];

  __device__ void init() {
    constexpr uint32_t kArrivals = kGather ? 32 : kArrivingLanes + kScaleArrivals;
    for (int warp = 0; warp < kProducerWarps; ++warp) {
      ptx::mbarrier_init(&k[warp], kArrivals);
      for (auto& stage : v) ptx::mbarrier_init(&stage[warp], kArrivals);
    }
  }
};
struct NoBarriers {
  __device__ void init() {}
};

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

/// Factors of the rows of stages of K and V, kv head by kv head. V's are in K's stage, with which they come.
struct NarrowScales {
  float k[kNarrowStages][kStageKv];
  float v[kNarrowStages][kStageKv];
};
/// Those of the tiles that are loaded, and of the stages.
struct WideScales {
  float loaded_k[kStageKv];
  float loaded_v[kStageKv];
  float k[kWideStages][kStageKv];
  float v[kWideStages][kStageKv];  ///< 1 where groups of tokens have none
};
struct NoScales {};

struct WideStorage {
  WideTiles tiles;
  [[no_unique_address]] std::conditional_t<kFp8Kv, LoadedTiles, NoTiles> loaded;
  HeadItem items[kHeadItems];
  [[no_unique_address]] std::conditional_t<kGroupScales, WideScales, NoScales> scales;
};

struct NarrowStorage {
  NarrowTiles tiles;
  [[no_unique_address]] std::conditional_t<kGroupScales, NarrowScales, NoScales> scales;
  JoinBuffer join;
};

/// What the consumers are told when an item is done (merge.cuh).
struct Arrivals {
  int32_t is_last;
  uint32_t ready_members[kWideTileQ / 32];  ///< of a prefix, a bit for each
};

struct SharedStorage {
  union {
    WideStorage wide;
    NarrowStorage narrow;
  };
  PageIds page_ids;
  WideRings wide_rings;
  NarrowRings narrow_rings;
  [[no_unique_address]] std::conditional_t<kFp8Kv, LoadedBarriers, NoBarriers> loaded;
  ItemSlots wide_items;
  uint64_t narrow_done;
  Arrivals arrivals;
  [[no_unique_address]] ProfileStorage profile;
};
static_assert(sizeof(SharedStorage) <= kSharedBytes);

/// Where the rows of a wide stage of V lie. A TMA box brings all panels of a page at once, so a stage is a
/// row of boxes, and a box panels of the page's tokens; K, whose 8-row groups must be 1024 bytes apart for
/// wgmma, is a box for each panel. A gathered stage is one box, and so is one that was widened.
template <int kNumPanels>
struct BoxLayout {
  int box_shift;  ///< log2 of the tokens of a box, 3 .. 7

  /// Bytes to the row of a key, in the first panel.
  __device__ __forceinline__ uint32_t row_offset(int key) const {
    if constexpr (kNumPanels == 1) return key * kPanelRowBytes;
    const int box = key >> box_shift;
    return (box * kNumPanels << box_shift) * kPanelRowBytes + (key & ((1 << box_shift) - 1)) * kPanelRowBytes;
  }
  /// The same of key 8 * group.
  __device__ __forceinline__ uint32_t group_offset(int group) const {
    const int first_group_of_box = group & -1 << (box_shift - 3);
    return (group + first_group_of_box * (kNumPanels - 1)) * 8 * kPanelRowBytes;
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

/// As it is loaded.
template <int kNumPanels>
__device__ __forceinline__ BoxLayout<kNumPanels> box_layout(const KernelParams& params) {
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
__device__ __forceinline__ uint32_t tile_offset(int num_rows, int row, int chunk, int swizzle) {
  const int panel = chunk / kPanelChunks;
  return nth_chunk(first_chunk((panel * num_rows + row) * kPanelRowBytes, swizzle), chunk % kPanelChunks);
}
__device__ __forceinline__ uint32_t tile_offset(int num_rows, int row, int chunk) {
  return tile_offset(num_rows, row, chunk, row);
}

/// What a row of a query tile has in place of its number in the swizzle. Beside a cache of e4m3 a narrow
/// consumer reads eight bytes a lane, of four rows two chunks at a time: so those of one read are different
/// ones.
template <Kind kKind>
__device__ __forceinline__ int query_swizzle(int row) {
  return kWidens && kKind == Kind::kNarrow ? row % 4 * 2 + row / 4 % 2 : row;
}

}  // namespace onewave
