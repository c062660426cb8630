#pragma once

/// The producer warpgroup: for every (item, kv head) the query tile, then K and V from the item's last tile
/// of keys to its first, K one tile ahead of V since the consumers take them in that order.

#include "load.cuh"

#include <type_traits>

namespace onewave {

using KvLoader = std::conditional_t<kGather, GatherLoader, TmaLoader>;

template <class KindTiles>
__device__ __forceinline__ void load_keys_values(const KvLoader& loader, const WorkItem& item, int kv_head,
                                                 KindTiles& tiles, KindRings& rings, KindPositions& at) {
  const int num_tiles = num_kv_tiles(item);
  const auto load_k = [&](const KvLoader::Rows& rows) {
    rings.k.wait_empty(at.k);
    loader.load_k(rows, kv_head, tiles.k[at.k.stage()], &rings.k.full[at.k.stage()]);
    at.k.advance();
  };
  KvLoader::Rows rows = loader.lookup(item, num_tiles - 1);
  KvLoader::Rows next_rows = loader.lookup(item, max(num_tiles - 2, 0));
  load_k(rows);
  for (int tile = num_tiles - 1; tile >= 0; --tile) {
    const KvLoader::Rows later_rows = loader.lookup(item, max(tile - 2, 0));
    if (tile > 0) load_k(next_rows);
    rings.v.wait_empty(at.v);
    loader.load_v(rows, kv_head, tiles.v[at.v.stage()], &rings.v.full[at.v.stage()]);
    at.v.advance();
    rows = next_rows;
    next_rows = later_rows;
  }
}

/// Walks the items [begin, end). `padded_rows(num_rows)`: how many rows of the query tile the consumers read.
template <class KindTiles, class PaddedRows>
__device__ __forceinline__ void produce(const KernelParams& params, const Work& work, int begin, int end,
                                        KindTiles& tiles, KindRings& rings, PaddedRows&& padded_rows) {
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const bool loads_keys_values = kGather || warp == 0;
  const bool loads_queries = kGather || warp != 0;
  const KvLoader loader(params, work.header);
  KindPositions at;
  for (HeadCursor cursor(work, begin, end); cursor.valid(); cursor.advance()) {
    const WorkItem item = cursor.item();
    const int kv_head = cursor.kv_head();
    if (!has_keys(item)) continue;
    if (loads_queries) {
      rings.q.wait_empty(at.q);
      load_queries(params, work, item, kv_head, padded_rows(item.num_rows), threadIdx.x % kQueryLoaderThreads,
                   tiles.q[at.q.stage()], &rings.q.full[at.q.stage()]);
      at.q.advance();
    }
    if (loads_keys_values) load_keys_values(loader, item, kv_head, tiles, rings, at);
  }
}

}  // namespace onewave
