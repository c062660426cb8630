#pragma once

/// K and V of e4m3 for the wide kind, whose products want 16-bit operands in shared memory: a producer warp
/// loads its rows of a tile of K and of V as they are, and widens each into the stages of the rings, by
/// turns:
///
///   loaded.k   | K_n lands    | K_n-1 lands     | ...
///   the warp   | widens V_n+1 | widens K_n      | widens V_n | ...
///   loaded.v   |              | V_n lands       | ...

#include "load.cuh"

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
  constexpr int kGroups = kWidenedRows / 8;
  constexpr int kChunks = kGroups * kPanels;  ///< of a lane
  constexpr int kBatch =
      kHeadDim > 128 || kMasked ? 2 : 4;  ///< that it reads before it writes: latencies overlap
  const WidenLane lane;
  const uint32_t from = ptx::shared_address(loaded) + lane.from;
  const uint32_t to = ptx::shared_address(stage) + warp * kWidenedRows * kPanelRowBytes + lane.to;
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

/// Makes zeros of a warp's rows from `num_rows` of the tile on: where their page is loaded, what it has there
/// may be a NaN, and 0 * NaN is NaN.
template <int kPanels>
__device__ __forceinline__ void clear_rows(KvElement* loaded, float* scales, const BoxLayout<kPanels>& layout,
                                           int warp, int num_rows) {
  const uint32_t from = ptx::shared_address(loaded);
  for (int row = max(num_rows, warp * kWidenedRows) + threadIdx.x % 32 / kPanelChunks;
       row < (warp + 1) * kWidenedRows; row += 32 / kPanelChunks) {
    if (kGroupScales && scales != nullptr) scales[row] = 0.f;
    for (int panel = 0; panel < kPanels; ++panel) {
      ptx::store_shared_16(from + layout.row_offset(row) + panel * layout.panel_bytes() +
                               threadIdx.x % kPanelChunks * kChunkBytes,
                           make_uint4(0, 0, 0, 0));
    }
  }
  __syncwarp();
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
      const int row = warp * kWidenedRows + threadIdx.x % 32;
      if (row < (warp + 1) * kWidenedRows)
        stage_scales[at.stage()][row] = scales != nullptr ? scales[row] : 1.f;
    }
    widen_rows<kHeadDim>(loaded, layout, warp, stages[at.stage()]);
    arrive_warp(&ring.full[at.stage()]);
  }
};

}  // namespace onewave
