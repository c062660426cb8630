#pragma once

/// The producer warpgroup walks the same items as the consumers, in streams that run on over item boundaries,
/// so that the rings stay full:
///
///   queries   the query tile of every (item, kv heads of a step)
///   keys      K, and V, from each item's last tile of keys to its first, the page ids a tile or two ahead
///
/// In the TMA cubins each stream has warps of its own (K: 0, V: 1, queries: 2 and 3); in the gathering ones
/// all four warps do everything, and so they do where they make the wide kind's operands of what they load
/// (widen.cuh, transpose.cuh).

#include "transpose.cuh"
#include "widen.cuh"

#include <type_traits>

namespace onewave {

template <Kind kKind>
using KvLoader = std::conditional_t<kGather, GatherLoader<kKind>, TmaLoader<kKind>>;

/// Where the narrow items come from: the CTA's list.
struct NarrowItems {
  static constexpr Kind kKind = Kind::kNarrow;
  using Cursor = HeadCursor;

  const KernelParams& params;
  const Work& work;
  SharedStorage& storage;

  /// Of K and V of a tile, to where K's stage `n` is.
  template <class Loader, class Tile>
  __device__ __forceinline__ void load_scales(const Loader& loader, const Tile& tile, uint32_t n) const {
    const auto load = [&](auto& scales) {
      const uint32_t stage = n % kNarrowStages;
      loader.load_scales(tile.rows, tile.kv_head, n, params.k_scale_ptr, params.k_scale_strides,
                         scales.k[stage]);
      loader.load_scales(tile.rows, tile.kv_head, n, params.v_scale_ptr, params.v_scale_strides,
                         scales.v[stage]);
      loader.arrive_scales(&storage.narrow_rings.k.full[stage]);
    };
    if constexpr (kGroupScales) load(storage.narrow.scales);
  }

  __device__ __forceinline__ NoQueue queue() const { return {}; }
  __device__ __forceinline__ NoQueue stream_queue() const { return {}; }
  __device__ __forceinline__ HeadCursor cursor() const {
    return {work, work.cta.narrow_begin, work.cta.narrow_end};
  }
};

/// Where the wide items come from.
struct WideItems {
  static constexpr Kind kKind = Kind::kWide;
  using Cursor = WideCursor;

  const KernelParams& params;
  const Work& work;
  SharedStorage& storage;

  /// They come with the tiles that are widened.
  template <class Loader, class Tile>
  __device__ __forceinline__ void load_scales(const Loader&, const Tile&, uint32_t) const {}

  __device__ __forceinline__ ItemQueue queue() const { return {params, work, storage.wide_items}; }
  /// As the stream of K sees it.
  __device__ __forceinline__ auto stream_queue() const {
    if constexpr (kStreamDraws) {
      return queue();
    } else {
      return DrawRequest{work, storage.wide_items};
    }
  }
  /// When the first item is there and the stages are free.
  __device__ __forceinline__ WideCursor cursor() const {
    ptx::mbarrier_wait(&storage.narrow_done, 0);
    return WideCursor(storage.wide_items);
  }
};

/// Loads the query tile of one (item, kv heads of a step) after another, and writes its record to `items`,
/// where there are any. `rows_shift(num_rows)`: log2 of the rows of it that the consumers read, for each kv
/// head.
template <class Items, class KindTiles, class RowsShift>
class QueryStream {
  static constexpr Kind kKind = Items::kKind;
  static constexpr int kThreads = kQueryLoaderThreads<kKind>;
  using Rings = KindRings<kKind>;

 public:
  __device__ __forceinline__ QueryStream(const KernelParams& params, const Work& work,
                                         const typename Items::Cursor& cursor, KindTiles& tiles,
                                         HeadItem* items, Rings& rings, const RowsShift& rows_shift)
      : params_(params),
        work_(work),
        cursor_(cursor),
        tiles_(tiles),
        items_(items),
        rings_(rings),
        rows_shift_(rows_shift) {
    skip_keyless();
  }

  __device__ __forceinline__ bool valid() const { return cursor_.valid(); }
  __device__ __forceinline__ const typename Items::Cursor& cursor() const { return cursor_; }

  /// For consumers who read records of items: there are no more.
  __device__ __forceinline__ void end() {
    if constexpr (kKind == Kind::kWide) {
      rings_.q.wait_empty(at_);
      if (threadIdx.x % kThreads == 0) {
        items_[at_.count % kHeadItems].valid = false;
        ptx::mbarrier_arrive(&rings_.q.full[at_.stage()]);
      }
      ptx::mbarrier_arrive(&rings_.q.full[at_.stage()]);
    }
  }

  /// Not before the next tile is wanted: which one it is may not be known yet.
  __device__ __forceinline__ void advance() {
    cursor_.advance();
    skip_keyless();
  }

  __device__ __forceinline__ void load() {
    const WorkItem& item = cursor_.item();
    const int kv_head = cursor_.kv_head();
    const int thread = threadIdx.x % kThreads;
    const PackedRows rows(work_, item);
    rings_.q.wait_empty(at_);
    load_queries<kKind>(params_, item, rows, kv_head, rows_shift_(item.num_rows), thread,
                        tiles_.q[at_.stage()], &rings_.q.full[at_.stage()]);
    if (thread == 0) {
      if constexpr (kKind == Kind::kWide) items_[at_.count % kHeadItems] = {true, item, rows, kv_head};
      ptx::mbarrier_arrive(&rings_.q.full[at_.stage()]);
    }
    at_.advance();
  }

 private:
  __device__ __forceinline__ void skip_keyless() {
    if constexpr (kKind == Kind::kNarrow) cursor_.skip_keyless();
  }

  const KernelParams& params_;
  const Work& work_;
  typename Items::Cursor cursor_;
  KindTiles& tiles_;
  HeadItem* items_;
  Rings& rings_;
  const RowsShift& rows_shift_;
  RingPosition<kQueryStages> at_;
};

/// Whether all producer threads load K and V of a tile at once. Items that stream past keep more of the ring
/// on its way so; those that multiply are slower, and two stages are too few.
template <Kind kKind>
inline constexpr bool kLoadsKvAtOnce = kKind == Kind::kNarrow && kNarrowStages > 2;

/// The gathering cubins: all producer threads load Q, K and V, and look page ids up two tiles ahead.
template <class Items, class Loader, class Queue, class KindTiles, class Queries>
__device__ __forceinline__ void load_together(const Items& source, const Loader& loader,
                                              const typename Items::Cursor& cursor, Queue& queue,
                                              KindTiles& tiles, KindRings<Items::kKind>& rings,
                                              Queries& queries) {
  KvTileStream<Items, Loader, Queue> stream(loader, cursor, queue);
  // A cp.async group: the page ids of a tile, and what was asked for since the group before.
  const auto next = [&](uint32_t n) {
    const KvTile<Loader> tile = stream.next(n);
    ptx::cp_async_commit_group();
    return tile;
  };
  using Position = RingPosition<KindRings<Items::kKind>::kStages>;
  const auto wait_for_k_stage = [&](const auto& tile, Position at) {
    if (tile.is_first) {
      if (at.count > 0) queries.advance();
      queries.load();
    }
    rings.k.wait_empty(at);
  };
  const auto load_k = [&](const auto& tile, Position at) {
    wait_for_k_stage(tile, at);
    ptx::cp_async_wait_group<1>();
    source.load_scales(loader, tile, at.count);
    loader.load_k<tile.kIsInner>(tile.rows, tile.kv_head, at.count, tiles.k[at.stage()],
                                 &rings.k.full[at.stage()]);
  };
  const auto load_v = [&](const auto& tile, Position at) {
    rings.v.wait_empty(at);
    loader.load_v<tile.kIsInner>(tile.rows, tile.kv_head, at.count, tiles.v[at.stage()],
                                 &rings.v.full[at.stage()]);
  };
  const auto load_kv = [&](const auto& tile, Position at) {
    wait_for_k_stage(tile, at);
    rings.v.wait_empty(at);
    ptx::cp_async_wait_group<2>();
    source.load_scales(loader, tile, at.count);
    const int stage = at.stage();
    loader.load_kv<tile.kIsInner>(tile.rows, tile.kv_head, at.count, tiles.k[stage], &rings.k.full[stage],
                                  tiles.v[stage], &rings.v.full[stage]);
  };
  const auto load = [&](const auto& tile, const auto& next_tile, Position at) {
    if constexpr (kLoadsKvAtOnce<Items::kKind>) {
      load_kv(tile, at);
    } else {
      // In the order in which the consumers use them, and so release them.
      if constexpr (Items::kKind == Kind::kNarrow) load_v(tile, at);
      if (next_tile.valid) load_k(next_tile, at.next());
      if constexpr (Items::kKind == Kind::kWide) load_v(tile, at);
    }
  };
  Position at;
  KvTile<Loader> tile = next(0);
  KvTile<Loader> next_tile = next(1);
  if (!kLoadsKvAtOnce<Items::kKind> && tile.valid) load_k(tile, at);
  while (tile.valid) {
    const KvTile<Loader> later_tile = next(at.count + 2);
    load(tile, next_tile, at);
    tile = next_tile;
    next_tile = later_tile;
    at.advance();
    if (tile.is_first || next_tile.is_first) continue;
    // Where a stream spends its time: no code of what is done once an item. (In the masked kernels it
    // spills.)
    while (!kMasked && stream.is_inside()) {
      const typename Loader::Rows later_rows = stream.next_inside(at.count + 2);
      ptx::cp_async_commit_group();
      load(InnerTile<Loader>{tile.kv_head, tile.rows}, InnerTile<Loader>{tile.kv_head, next_tile.rows}, at);
      tile.rows.advance(next_tile.rows);
      next_tile.rows.advance(later_rows);
      at.advance();
    }
  }
}

/// Whether a stage of narrow items is asked for only when the one before has landed, so that half of a ring
/// is on its way, at head_dim 64 a quarter. Where most CTAs stream, that draws the memory's whole bandwidth,
/// and every load of the few that multiply waits behind what is on its way.
__device__ __forceinline__ bool streams_gently(const PlanHeader* header) {
  return has_wide_items(header) && 2 * header->num_narrow_ctas > header->num_ctas;
}

/// The TMA cubins: one warp for K, one for V. `load(tile, stage)` issues the boxes of a tile.
template <class Items, class Loader, class Queue, int kStages, class Load>
__device__ __forceinline__ void load_tiles(const Loader& loader, const typename Items::Cursor& cursor,
                                           Queue& queue, Ring<kStages>& ring, bool gently, Load&& load) {
  RingPosition<kStages> at;
  KvTileStream<Items, Loader, Queue> stream(loader, cursor, queue);
  KvTile<Loader> tile = stream.next(0);
  while (tile.valid) {
    const KvTile<Loader> next_tile = stream.next(at.count + 1);
    ring.wait_empty(at);
    if (Items::kKind == Kind::kNarrow && gently && at.count > 0) ring.wait_full(at.previous());
    load(tile, at.stage());
    at.advance();
    tile = next_tile;
  }
}

/// All items of one kind.
template <class Items, class KindTiles, class RowsShift>
__device__ __forceinline__ void produce(const KernelParams& params, const Work& work, const Items& source,
                                        KindTiles& tiles, PageIds& page_ids, HeadItem* items,
                                        KindRings<Items::kKind>& rings, const RowsShift& rows_shift) {
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  using Loader = KvLoader<Items::kKind>;
  using Queries = QueryStream<Items, KindTiles, RowsShift>;
  const Loader loader(params, work.header, page_ids);
  const bool gently = streams_gently(work.header);
  if constexpr (kLoadsTogether<Items::kKind>) {
    auto queue = source.queue();
    queue.begin();
    const auto cursor = source.cursor();
    Queries queries(params, work, cursor, tiles, items, rings, rows_shift);
    if constexpr (kWidens && Items::kKind == Kind::kWide) {
      load_and_widen<Items>(params, loader, cursor, queue, source.storage, queries);
    } else if constexpr (kFp8Queries && Items::kKind == Kind::kWide) {
      load_and_transpose<Items>(params, loader, cursor, queue, source.storage, queries);
    } else {
      load_together<Items>(source, loader, cursor, queue, tiles, rings, queries);
    }
    queries.end();
  } else if (warp == 0) {
    auto queue = source.stream_queue();
    queue.begin();
    load_tiles<Items>(loader, source.cursor(), queue, rings.k, gently,
                      [&](const KvTile<Loader>& tile, int stage) {
                        source.load_scales(loader, tile, stage);
                        loader.load_k(tile.rows, tile.kv_head, tiles.k[stage], &rings.k.full[stage]);
                      });
  } else if (warp == 1) {
    NoQueue queue;
    load_tiles<Items>(loader, source.cursor(), queue, rings.v, gently,
                      [&](const KvTile<Loader>& tile, int stage) {
                        loader.load_v(tile.rows, tile.kv_head, tiles.v[stage], &rings.v.full[stage]);
                      });
  } else {
    auto queue = source.queue();
    if constexpr (!kStreamDraws) queue.serve_begin();
    Queries queries(params, work, source.cursor(), tiles, items, rings, rows_shift);
    for (; queries.valid(); queries.advance()) {
      queries.load();
      if constexpr (Items::kKind == Kind::kWide && !kStreamDraws) {
        if (queries.cursor().is_last_head()) queue.serve_end(queries.cursor().item_idx());
      }
    }
    queries.end();
  }
}

}  // namespace onewave
