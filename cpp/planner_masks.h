#pragma once

/// Custom masks, from the caller's bits to what a tile of packed rows needs of them: the tiles of keys that
/// some of its rows see, and for those that not all rows see all of, which.

#include <onewave/plan_format.h>
#include <onewave/planner.h>

#include <cstdint>
#include <vector>

namespace onewave::planner {

/// Of all tiles of a batch.
struct PlanMasks {
  std::vector<MaskTile> tiles;
  std::vector<MaskRow> rows;
};

/// Bytes of a request's mask, as the caller gives it.
inline int64_t mask_bytes(int32_t qo_len, int32_t kv_len) { return (int64_t{qo_len} * kv_len + 7) / 8; }

bool has_custom_mask(const BatchSpec& batch, int32_t request);

/// Adds what the query tokens [token_begin, token_end) of a request with a custom mask see from `key_begin`
/// on, a multiple of kTileKv. Returns the keys of it, as WorkItem::kv_end counts them. Throws InvalidArgument
/// where a token does not see a key before, which belong to a shared prefix.
int32_t add_mask_tiles(const BatchSpec& batch, int32_t request, int32_t token_begin, int32_t token_end,
                       int32_t key_begin, PlanMasks& masks);

}  // namespace onewave::planner
