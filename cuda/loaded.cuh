#pragma once

/// Tiles of e4m3 as they are loaded, where the producer makes the wide kind's operands of them.

#include "kv_tiles.cuh"

namespace onewave {

/// Asks for K of the n-th tile, the warp's rows.
template <class Loader>
__device__ __forceinline__ void load_keys(const Loader& loader, const PackedTile<Loader>& tile, uint32_t n,
                                          KvElement* stage, uint64_t* full) {
  if constexpr (kGather) {
    loader.template load_k<false>(tile.rows, tile.kv_head(), n, stage, full);
  } else {
    loader.load_k(tile.rows, tile.kv_head(), stage, full);
  }
}
/// And for V.
template <class Loader>
__device__ __forceinline__ void load_values(const Loader& loader, const PackedTile<Loader>& tile, uint32_t n,
                                            KvElement* stage, uint64_t* full) {
  if constexpr (kGather) {
    loader.template load_v<false>(tile.rows, tile.kv_head(), n, stage, full);
  } else {
    loader.load_v(tile.rows, tile.kv_head(), stage, full);
  }
}

/// Makes zeros of a warp's rows from `num_rows` of the tile on: where their page is loaded, what it has there
/// may be a NaN, and 0 * NaN is NaN.
template <int kPanels>
__device__ __forceinline__ void clear_rows(KvElement* loaded, float* scales, const BoxLayout<kPanels>& layout,
                                           int warp, int num_rows) {
  const uint32_t from = ptx::shared_address(loaded);
  for (int row = max(num_rows, warp * kWarpRows) + threadIdx.x % 32 / kPanelChunks;
       row < (warp + 1) * kWarpRows; row += 32 / kPanelChunks) {
    if (kGroupScales && scales != nullptr) scales[row] = 0.f;
    for (int panel = 0; panel < kPanels; ++panel) {
      ptx::store_shared_16(from + layout.row_offset(row) + panel * layout.panel_bytes() +
                               threadIdx.x % kPanelChunks * kChunkBytes,
                           make_uint4(0, 0, 0, 0));
    }
  }
  __syncwarp();
}

}  // namespace onewave
