#pragma once

/// K and V of e4m3 for the wide kind, whose products want 16-bit operands in shared memory: the producer
/// warpgroup loads a tile of K and one of V as they are, and widens each into a stage of the rings.
///
///   loaded.k    | K_n lands     | K_n-1 lands     | ...
///   threads     | widen K_n     | widen V_n+1     | widen K_n-1 | ...
///   loaded.v    | V_n+1 lands   |                 | V_n lands   | ...

#include "load.cuh"

namespace onewave {

/// Which rows and chunks of a loaded tile a lane widens: of every eight rows one, and of every four chunks,
/// which are a panel's when they are widened, one. Eight lanes that read or write together have two rows,
/// whose numbers differ in bits 0 and 2: so the swizzle keeps the 16-byte chunks apart that they read, four
/// of each row side by side, and those that they write, every second one of each.
struct WidenLane {
  int row;
  int chunk;

  __device__ __forceinline__ WidenLane() {
    const int lane = threadIdx.x % 32;
    row = lane / 8 ^ (lane / 4 % 2 * 5);
    chunk = lane % 4;
  }
};

/// By all producer threads. `kHeadDim`: columns of a row. Rows from `num_rows` on become zeros: where their
/// page is loaded, what it has there may be a NaN, and 0 * NaN is NaN.
template <int kHeadDim>
__device__ __forceinline__ void widen_tile(const KvElement* loaded,
                                           const BoxLayout<num_panels(kHeadDim, 1)>& layout, int num_rows,
                                           Element* stage) {
  constexpr int kProducerWarps = kWarpgroupThreads / 32;
  constexpr int kLaneChunks = 4;  ///< of a row, from one of a lane's to its next: a panel when widened
  const WidenLane lane;
  const uint32_t from = ptx::shared_address(loaded);
  const uint32_t to = ptx::shared_address(stage);
  const int warp = threadIdx.x / 32 % kProducerWarps;
#pragma unroll 1
  for (int rows = warp * 8; rows < kStageKv; rows += kProducerWarps * 8) {
    const int row = rows + lane.row;
    const uint32_t row_from = from + layout.row_offset(row);
    const uint32_t first_to = first_chunk(to + row * kPanelRowBytes, row);
#pragma unroll
    for (int panel = 0; panel < num_panels(kHeadDim, sizeof(Element)); ++panel) {
      constexpr int kLastChunks = kHeadDim % kPanelCols / kKvChunkCols;  // of a panel that is not full
      if (panel == kHeadDim / kPanelCols && lane.chunk >= kLastChunks) break;
      const int chunk = panel * kLaneChunks + lane.chunk;
      const uint32_t chunk_from = nth_chunk(
          first_chunk(row_from + chunk / kPanelChunks * layout.panel_bytes(), row), chunk % kPanelChunks);
      const bool valid = kGather || row < num_rows;  // what is gathered has zeros there
      const uint4 bytes = valid ? ptx::load_shared_16(chunk_from) : make_uint4(0, 0, 0, 0);
      const uint2 pairs[4] = {ptx::widen<Element>(bytes.x), ptx::widen<Element>(bytes.y),
                              ptx::widen<Element>(bytes.z), ptx::widen<Element>(bytes.w)};
      const uint32_t panel_to = first_to + panel * kStageKv * kPanelRowBytes;
      ptx::store_shared_16(nth_chunk(panel_to, 2 * lane.chunk),
                           make_uint4(pairs[0].x, pairs[0].y, pairs[1].x, pairs[1].y));
      ptx::store_shared_16(nth_chunk(panel_to, 2 * lane.chunk + 1),
                           make_uint4(pairs[2].x, pairs[2].y, pairs[3].x, pairs[3].y));
    }
  }
  ptx::fence_proxy_async();
}

/// The loading and widening of one tile of K or V after another.
template <int kHeadDim>
struct WidenedStream {
  KvElement* loaded;
  uint64_t* is_loaded;
  Ring<kWideStages>& ring;
  Element (&stages)[kWideStages][kStageKv * num_panels(kHeadDim, sizeof(Element)) * kPanelCols];
  BoxLayout<num_panels(kHeadDim, 1)> layout;

  /// The tile that was asked for last, into the stage at `at`. Then its place is free for the next.
  __device__ __forceinline__ void widen(const RingPosition<kWideStages>& at, int num_rows) const {
    ptx::mbarrier_wait(is_loaded, at.count % 2);
    ring.wait_empty(at);
    widen_tile<kHeadDim>(loaded, layout, num_rows, stages[at.stage()]);
    ptx::mbarrier_arrive(&ring.full[at.stage()]);
    ptx::bar_sync(kBarrierProducer, kWarpgroupThreads);
  }
};

}  // namespace onewave
