#pragma once

/// The producer warpgroup walks the same list as the consumers, in streams that run on over item boundaries,
/// so that the rings stay full:
///
///   queries   the query tile of every (item, kv heads of a step)
///   keys      K, and V, from each item's last tile of keys to its first, the page ids a tile or two ahead
///
/// In the TMA cubins each stream has warps of its own (K: 0, V: 1, queries: 2 and 3); in the gathering ones
/// all four warps do everything.

#include "load.cuh"

#include <type_traits>

namespace onewave {

template <Kind kKind>
using KvLoader = std::conditional_t<kGather, GatherLoader<kKind>, TmaLoader<kKind>>;

/// One tile of keys, of the kv heads that the item takes together.
template <class Loader>
struct KvTile {
  bool valid;
  bool is_first;  ///< of its (item, kv head)
  int kv_head;
  typename Loader::Rows rows;
};

/// All tiles of keys of a list, one after another.
template <Kind kKind, class Loader>
class KvTileStream {
 public:
  __device__ __forceinline__ KvTileStream(const Loader& loader, const HeadCursor& cursor)
      : loader_(loader), cursor_(cursor) {
    enter();
  }

  /// Begins to read the tile's page ids.
  __device__ __forceinline__ KvTile<Loader> next() {
    if (!cursor_.valid()) return {};
    const KvTile<Loader> tile{true, is_first_, cursor_.kv_head(), loader_.lookup(keys_, tile_begin_)};
    tile_begin_ -= kTileKv >> keys_.step_heads_shift;
    is_first_ = false;
    if (tile_begin_ < keys_.begin) {
      cursor_.advance();
      enter();
    }
    return tile;
  }

 private:
  __device__ __forceinline__ void enter() {
    cursor_.skip_keyless();
    if (!cursor_.valid()) return;
    const WorkItem& item = cursor_.item();
    keys_ = {item.kv_begin, item.kv_end, item.page_begin, step_heads_shift<kKind>(item)};
    tile_begin_ = last_tile_begin(item, keys_.step_heads_shift);
    is_first_ = true;
  }

  const Loader& loader_;
  HeadCursor cursor_;
  KeyRange keys_;
  int tile_begin_;
  bool is_first_;
};

/// Loads the query tile of one (item, kv head) after another, and writes its record to `items`, where there
/// are any. `rows_shift(num_rows)`: log2 of the rows of it that the consumers read, for each kv head.
template <Kind kKind, class KindTiles, class RowsShift>
class QueryStream {
 public:
  __device__ __forceinline__ QueryStream(const KernelParams& params, const Work& work,
                                         const HeadCursor& cursor, KindTiles& tiles, HeadItem* items,
                                         KindRings& rings, const RowsShift& rows_shift)
      : params_(params),
        work_(work),
        cursor_(cursor),
        tiles_(tiles),
        items_(items),
        rings_(rings),
        rows_shift_(rows_shift) {
    cursor_.skip_keyless();
  }

  __device__ __forceinline__ bool valid() const { return cursor_.valid(); }

  __device__ __forceinline__ void load_next() {
    const WorkItem& item = cursor_.item();
    const int kv_head = cursor_.kv_head();
    const int thread = threadIdx.x % kQueryLoaderThreads;
    const PackedRows rows(work_, item);
    rings_.q.wait_empty(at_);
    load_queries<kKind>(params_, item, rows, kv_head, rows_shift_(item.num_rows), thread,
                        tiles_.q[at_.stage()], &rings_.q.full[at_.stage()]);
    cursor_.advance();
    cursor_.skip_keyless();
    if (thread == 0) {
      if (items_ != nullptr) items_[at_.count % kHeadItems] = {item, rows, kv_head, cursor_.valid()};
      ptx::mbarrier_arrive(&rings_.q.full[at_.stage()]);
    }
    at_.advance();
  }

 private:
  const KernelParams& params_;
  const Work& work_;
  HeadCursor cursor_;
  KindTiles& tiles_;
  HeadItem* items_;
  KindRings& rings_;
  const RowsShift& rows_shift_;
  RingPosition<kQueryStages> at_;
};

/// The gathering cubins: all producer threads load Q, K and V, K one tile ahead of V.
template <Kind kKind, class Loader, class KindTiles, class Queries>
__device__ __forceinline__ void load_together(const Loader& loader, const HeadCursor& cursor,
                                              KindTiles& tiles, KindRings& rings, Queries& queries) {
  RingPosition<kNumStages> at_k, at_v;
  const auto load_k = [&](const KvTile<Loader>& tile) {
    if (tile.is_first) queries.load_next();
    rings.k.wait_empty(at_k);
    loader.load_k(tile.rows, tile.kv_head, tiles.k[at_k.stage()], &rings.k.full[at_k.stage()]);
    at_k.advance();
  };
  KvTileStream<kKind, Loader> stream(loader, cursor);
  KvTile<Loader> tile = stream.next();
  KvTile<Loader> next_tile = stream.next();
  if (tile.valid) load_k(tile);
  while (tile.valid) {
    const KvTile<Loader> later_tile = stream.next();
    if (next_tile.valid) load_k(next_tile);
    rings.v.wait_empty(at_v);
    loader.load_v(tile.rows, tile.kv_head, tiles.v[at_v.stage()], &rings.v.full[at_v.stage()]);
    at_v.advance();
    tile = next_tile;
    next_tile = later_tile;
  }
}

/// The TMA cubins: one warp for K, one for V. `load(tile, stage)` issues the boxes of a tile.
template <Kind kKind, class Loader, class Load>
__device__ __forceinline__ void load_tiles(const Loader& loader, const HeadCursor& cursor,
                                           Ring<kNumStages>& ring, Load&& load) {
  RingPosition<kNumStages> at;
  KvTileStream<kKind, Loader> stream(loader, cursor);
  KvTile<Loader> tile = stream.next();
  while (tile.valid) {
    const KvTile<Loader> next_tile = stream.next();
    ring.wait_empty(at);
    load(tile, at.stage());
    at.advance();
    tile = next_tile;
  }
}

/// The items [begin, end).
template <Kind kKind, class KindTiles, class RowsShift>
__device__ __forceinline__ void produce(const KernelParams& params, const Work& work, int begin, int end,
                                        KindTiles& tiles, HeadItem* items, KindRings& rings,
                                        const RowsShift& rows_shift) {
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const HeadCursor cursor(work, begin, end);
  using Loader = KvLoader<kKind>;
  const Loader loader(params, work.header);
  QueryStream<kKind, KindTiles, RowsShift> queries(params, work, cursor, tiles, items, rings, rows_shift);
  if constexpr (kGather) {
    load_together<kKind>(loader, cursor, tiles, rings, queries);
  } else if (warp == 0) {
    load_tiles<kKind>(loader, cursor, rings.k, [&](const KvTile<Loader>& tile, int stage) {
      loader.load_k(tile.rows, tile.kv_head, tiles.k[stage], &rings.k.full[stage]);
    });
  } else if (warp == 1) {
    load_tiles<kKind>(loader, cursor, rings.v, [&](const KvTile<Loader>& tile, int stage) {
      loader.load_v(tile.rows, tile.kv_head, tiles.v[stage], &rings.v.full[stage]);
    });
  } else {
    while (queries.valid()) queries.load_next();
  }
}

}  // namespace onewave
