#pragma once

/// K and V of e4m3 for the wide kind beside queries of 16 bits, whose products want such operands in shared
/// memory: a producer warp loads its rows of a tile of K and of V as they are, and widens each into the
/// stages of the rings, by turns:
///
///   loaded.k   | K_n lands    | K_n-1 lands     | ...
///   the warp   | widens V_n+1 | widens K_n      | widens V_n | ...
///   loaded.v   |              | V_n lands       | ...

#include "loaded.cuh"

namespace onewave {

/// Where a lane reads and writes in eight rows: of every eight it has one, and of every four chunks one,
/// which are a panel's when they are widened. Eight lanes that read or write together have two rows, whose
/// numbers differ in bits 0 and 2: so the swizzle keeps the 16-byte chunks apart that they read, four of each
/// row side by side, and those that they write, every second one of each.
struct WidenLane {
  uint32_t from;  ///< bytes from the first of the eight rows to the chunk; the lane's next is kNextChunk away
  uint32_t to;    ///< to the first of its two; the second is one XOR 16 away

  static constexpr uint32_t kNextChunk = 64;  ///< an XOR

  __device__ __forceinline__ WidenLane() {
    const int lane = ptx::opaque(threadIdx.x) % 32;
    const int chunk = lane % 4;
    const int row = lane / 8 ^ (lane / 4 % 2 * 5);
    from = nth_chunk(first_chunk(row * kPanelRowBytes, row), chunk);
    to = nth_chunk(first_chunk(row * kPanelRowBytes, row), 2 * chunk);
  }
};

/// A warp's rows of a tile. `kHeadDim`: columns of a row. (Of 96, what lies behind them is widened too, into
/// what is never multiplied.)
template <int kHeadDim, class Operand>
__device__ __forceinline__ void widen_rows(const KvElement* loaded,
                                           const BoxLayout<num_panels(kHeadDim, 1)>& layout, int warp,
                                           Operand* stage) {
  constexpr int kPanels = num_panels(kHeadDim, sizeof(Operand));
  constexpr int kGroups = kWarpRows / 8;
  constexpr int kChunks = kGroups * kPanels;  ///< of a lane
  constexpr int kBatch =
      kHeadDim > 128 || kMasked ? 2 : 4;  ///< that it reads before it writes: latencies overlap
  const WidenLane lane;
  const uint32_t from = ptx::shared_address(loaded) + lane.from;
  const uint32_t to = ptx::shared_address(stage) + warp * kWarpRows * kPanelRowBytes + lane.to;
#pragma unroll
  for (int first = 0; first < kChunks; first += kBatch) {
    uint4 bytes[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int group = (first + i) / kPanels;
      const int panel = (first + i) % kPanels;  // when widened: half of one
      const uint32_t chunk =
          from + layout.group_offset(warp * kGroups + group) + panel / 2 * layout.panel_bytes();
      bytes[i] = ptx::load_shared_16(panel % 2 == 0 ? chunk : chunk ^ WidenLane::kNextChunk);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int group = (first + i) / kPanels;
      const int panel = (first + i) % kPanels;
      const uint32_t offset = (panel * kStageKv + group * 8) * kPanelRowBytes;
      const uint2 pairs[4] = {ptx::widen<Operand>(bytes[i].x), ptx::widen<Operand>(bytes[i].y),
                              ptx::widen<Operand>(bytes[i].z), ptx::widen<Operand>(bytes[i].w)};
      ptx::store_shared_16(to + offset, make_uint4(pairs[0].x, pairs[0].y, pairs[1].x, pairs[1].y));
      ptx::store_shared_16((to ^ 16) + offset, make_uint4(pairs[2].x, pairs[2].y, pairs[3].x, pairs[3].y));
    }
  }
}

/// The widening of one tile of K or V after another, by each warp of its rows.
template <int kHeadDim, class Operand>
struct WidenedStream {
  KvElement* loaded;
  uint64_t* is_loaded;  ///< this warp's
  Ring<kWideStages>& ring;
  Operand (&stages)[kWideStages][stage_elements<Operand>(kHeadDim)];
  BoxLayout<num_panels(kHeadDim, 1)> layout;
  float* scales;                    ///< of the loaded rows; null: they have none
  float (*stage_scales)[kStageKv];  ///< where they go

  /// The tile that was asked for last, into the stage at `at`. Then there is room for the next.
  __device__ __forceinline__ void widen(const RingPosition<kWideStages>& at, int warp, int num_rows) const {
    // Or the compiler keeps in registers what is made of it and of the lane.
    const BoxLayout<num_panels(kHeadDim, 1)> layout{ptx::opaque(this->layout.box_shift)};
    ptx::mbarrier_wait(is_loaded, at.count % 2);
    // What is gathered has zeros there.
    if (!kGather && num_rows < kStageKv) clear_rows(loaded, scales, layout, warp, num_rows);
    ring.wait_empty(at);
    if constexpr (kGroupScales) {
      const int row = warp * kWarpRows + threadIdx.x % 32;
      if (row < (warp + 1) * kWarpRows) stage_scales[at.stage()][row] = scales != nullptr ? scales[row] : 1.f;
    }
    widen_rows<kHeadDim>(loaded, layout, warp, stages[at.stage()]);
    arrive_warp(&ring.full[at.stage()]);
  }
};

/// Where tiles are widened: every producer warp its rows, one tile of K or V after another. K is a tile ahead
/// of V, as the consumers take them, and a tile is asked for when the one before it has been widened.
template <class Items, class Loader, class Queue, class Queries>
__device__ __forceinline__ void load_and_widen(const KernelParams& params, const Loader& loader,
                                               const typename Items::Cursor& cursor, Queue& queue,
                                               SharedStorage& storage, Queries& queries) {
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  KvTileStream<Items, Loader, Queue> stream(loader, cursor, queue);
  // Of the loaded rows, where groups of tokens have them, and of the stages.
  float *k_scales = nullptr, *v_scales = nullptr;
  float (*k_stage_scales)[kStageKv] = nullptr;
  float (*v_stage_scales)[kStageKv] = nullptr;
  const auto find_scales = [&](auto& scales) {
    if (params.k_scale_strides.group_inverse > 0) k_scales = scales.loaded_k;
    if (params.v_scale_strides.group_inverse > 0) v_scales = scales.loaded_v;
    k_stage_scales = scales.k;
    v_stage_scales = scales.v;
  };
  if constexpr (kGroupScales) find_scales(storage.wide.scales);
  const WidenedStream<kHeadDimQk, WideKey> k{
      storage.wide.loaded.k, &storage.loaded.k[warp],      storage.wide_rings.k,
      storage.wide.tiles.k,  box_layout<kKPanels>(params), k_scales,
      k_stage_scales};
  const WidenedStream<kHeadDimVo, WideValue> v{storage.wide.loaded.v[0],
                                               &storage.loaded.v[0][warp],
                                               storage.wide_rings.v,
                                               storage.wide.tiles.v,
                                               box_layout<kVPanels>(params),
                                               v_scales,
                                               v_stage_scales};
  const auto ask_scales = [&](const PackedTile<Loader>& tile, uint32_t n, const float* scales,
                              const ScaleStrides& strides, const auto& stream) {
    if constexpr (kGroupScales) {
      loader.load_scales(tile.rows, tile.kv_head(), n, scales, strides, stream.scales);
      loader.arrive_scales(stream.is_loaded);
    }
  };
  // Of three tiles one after another: its page ids are on their way, its K is asked for, its K is widened and
  // its V asked for. V of the one before is widened.
  PackedTile<Loader> next_tile, tile;
  int num_values = -1;  // of V of the one before, whose tile is not valid
  uint32_t n = 0;       // of the tile that is looked up
  do {
    const KvTile<Loader> later_tile = stream.next(n);
    if constexpr (kGather) ptx::cp_async_commit_group();  // page ids, and what was asked for before
    if (tile.valid()) {
      if (tile.is_first()) {
        if (n > 2) queries.advance();
        queries.load();
      }
      k.widen({n - 2}, warp, kStageKv);
    }
    if (next_tile.valid()) {
      if constexpr (kGather) ptx::cp_async_wait_group<1>();
      ask_scales(next_tile, n - 1, params.k_scale_ptr, params.k_scale_strides, k);
      load_keys(loader, next_tile, n - 1, k.loaded, k.is_loaded);
    }
    if (num_values >= 0) v.widen({n - 3}, warp, num_values);
    num_values = tile.valid() ? tile.num_keys : -1;
    if (tile.valid()) {
      ask_scales(tile, n - 2, params.v_scale_ptr, params.v_scale_strides, v);
      load_values(loader, tile, n - 2, v.loaded, v.is_loaded);
    }
    tile = next_tile;
    next_tile = PackedTile<Loader>(later_tile);
    ++n;
  } while (next_tile.valid() || tile.valid() || num_values >= 0);
}

}  // namespace onewave
