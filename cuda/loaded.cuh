#pragma once

/// Tiles of e4m3 as they are loaded, where the producer makes the wide kind's operands of them.

#include "kv_tiles.cuh"

namespace onewave {

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
