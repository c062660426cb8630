#pragma once

/// The tiles of K and V that a CTA loads, one after another.

#include "load.cuh"
#include "queue.cuh"

namespace onewave {

/// One tile of keys, of the kv heads that the item takes together.
template <class Loader>
struct KvTile {
  static constexpr bool kIsInner = false;  ///< not known

  bool valid;
  bool is_first;  ///< of its (item, kv head)
  int kv_head;
  int num_keys;  ///< of the item, from the tile's first on: a whole tile of them, or what is left
  typename Loader::Rows rows;
};

/// One that is not the first: it has all its keys.
template <class Loader>
struct InnerTile {
  static constexpr bool kIsInner = true;
  static constexpr bool valid = true;
  static constexpr bool is_first = false;

  int kv_head;
  typename Loader::Rows rows;
};

/// A KvTile in fewer registers.
template <class Loader>
struct PackedTile {
  int packed = -1;  ///< not valid
  int num_keys;
  typename Loader::Rows rows;

  PackedTile() = default;
  __device__ __forceinline__ explicit PackedTile(const KvTile<Loader>& tile)
      : packed(tile.valid ? 2 * tile.kv_head + tile.is_first : -1),
        num_keys(tile.num_keys),
        rows(tile.rows) {}

  __device__ __forceinline__ bool valid() const { return packed >= 0; }
  __device__ __forceinline__ bool is_first() const { return packed % 2; }
  __device__ __forceinline__ int kv_head() const { return packed / 2; }
};

/// All tiles of keys, one after another. `queue` is told when an item comes to its end.
template <class Items, class Loader, class Queue>
class KvTileStream {
 public:
  __device__ __forceinline__ KvTileStream(const Loader& loader, const typename Items::Cursor& cursor,
                                          Queue& queue)
      : loader_(loader), cursor_(cursor), queue_(queue) {
    enter();
  }

  /// Begins to read the page ids of the n-th.
  __device__ __forceinline__ KvTile<Loader> next(uint32_t n) {
    if (!cursor_.valid()) return {};
    const KvTile<Loader> tile{true, is_first_, cursor_.kv_head(), keys_.end - tile_begin_,
                              loader_.template lookup<false>(keys_, cursor_.item(), tile_begin_, n)};
    if constexpr (Items::kKind == Kind::kWide) {
      if (is_near_end()) queue_.near_end();
    }
    tile_begin_ -= kStageKv >> keys_.step_heads_shift;
    is_first_ = false;
    if (tile_begin_ < keys_.begin) {
      if constexpr (Items::kKind == Kind::kWide) {
        if (cursor_.is_last_head()) queue_.end(cursor_.item_idx());
      }
      cursor_.advance();
      enter();
    }
    return tile;
  }

  /// Whether the next tile is neither the first nor the last of its (item, kv head), and the queue is not to
  /// be told of it.
  __device__ __forceinline__ bool is_inside() const {
    return !is_first_ && tile_begin_ - keys_.begin > (Items::kKind == Kind::kWide ? kKeysAhead : 0);
  }

  /// next(), where it is inside.
  __device__ __forceinline__ typename Loader::Rows next_inside(uint32_t n) {
    const typename Loader::Rows rows = loader_.template lookup<true>(keys_, cursor_.item(), tile_begin_, n);
    tile_begin_ -= kStageKv >> keys_.step_heads_shift;
    return rows;
  }

 private:
  static constexpr int kKeysAhead = 2 * kStageKv;

  /// Once for each item: early enough that the next is there in time, no sooner, since another CTA may be the
  /// one to have time for it.
  __device__ __forceinline__ bool is_near_end() const {
    const int keys_left = tile_begin_ - keys_.begin;
    return (keys_left == kKeysAhead || (is_first_ && keys_left < kKeysAhead)) && cursor_.is_last_head();
  }

  __device__ __forceinline__ void enter() {
    if constexpr (Items::kKind == Kind::kNarrow) cursor_.skip_keyless();
    if (!cursor_.valid()) return;
    const WorkItem& item = cursor_.item();
    keys_ = {item.kv_begin, item.kv_end, item.page_begin, step_heads_shift<Items::kKind>(item)};
    tile_begin_ = last_tile_begin(keys_.begin, keys_.end, keys_.step_heads_shift);
    is_first_ = true;
  }

  const Loader& loader_;
  typename Items::Cursor cursor_;
  Queue& queue_;
  KeyRange keys_;
  int tile_begin_;
  bool is_first_;
};

}  // namespace onewave
