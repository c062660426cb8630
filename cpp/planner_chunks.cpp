#include "planner_chunks.h"

#include <algorithm>

namespace onewave::planner {
namespace {

/// K and V of a chunk at least: the end of an item costs some 2 us, in which a CTA reads 150 KB
/// (bench/NOTES.md).
constexpr int64_t kMinChunkBytes = 1 << 20;

/// Chunks of all requests that the limits allow, at most: 7 MB of work items.
constexpr int64_t kMostChunks = 1 << 17;

int32_t num_chunks(const Tile& tile, int32_t chunk_keys) {
  return (num_keys(tile) + chunk_keys - 1) / chunk_keys;
}

/// Of all units, chunk by chunk.
double sum_us(const std::vector<Tile>& tiles, const ChunkRule& rule, const KindCosts& costs) {
  double us = 0;
  for (const Tile& tile : tiles) {
    const UnitCosts& unit = costs[tile.cost_class];
    const int32_t chunks = num_chunks(tile, rule.chunk_keys(tile));
    const double cuts_us = chunks > 1 ? (chunks - 1) * unit.start_us + chunks * unit.split_us : 0;
    us += tile.kv_head_end * (unit.whole_us(num_steps(tile)) + cuts_us);
  }
  return us;
}

/// Lays chunks in a line; a CTA takes those whose middle lies in its share of the time.
class ChunkPlacer {
 public:
  ChunkPlacer(double all_us, int num_ctas, Schedule& schedule)
      : schedule_(schedule), share_us_(all_us / num_ctas), num_ctas_(num_ctas) {
    schedule_.num_partial_rows = num_ctas * kUnitPartialRows;
  }

  /// kv heads that one CTA gets are one item.
  void place_whole(const Tile& tile, const UnitCosts& costs) {
    const double us = costs.whole_us(num_steps(tile));
    WorkItem item = tile;
    while (item.kv_head_begin < tile.kv_head_end) {
      const int32_t cta = next_cta(us);
      double item_us = us;
      item.kv_head_end = item.kv_head_begin + 1;
      while (item.kv_head_end < tile.kv_head_end && cta_at(us) == cta) {
        next_cta(us);
        item_us += us;
        ++item.kv_head_end;
      }
      schedule_.add_item(Kind::kNarrow, cta, item, item_us);
      item.kv_head_begin = item.kv_head_end;
    }
  }

  void place_chunks(const Tile& tile, int32_t kv_head, int32_t chunk_keys, const UnitCosts& costs) {
    const int32_t num_partial_rows = schedule_.num_partial_rows;
    schedule_.open_split_tile(tile, kv_head);
    int32_t first_cta = 0;
    int32_t cta = 0;
    for (int32_t begin = tile.kv_begin; begin < tile.kv_end; begin += chunk_keys) {
      WorkItem item = tile;
      item.kv_head_begin = kv_head;
      item.kv_head_end = kv_head + 1;
      item.kv_begin = begin;
      item.kv_end = std::min(begin + chunk_keys, tile.kv_end);
      schedule_.add_split(item);
      const double us = costs.whole_us(num_steps(item)) + costs.split_us;
      cta = next_cta(us);
      if (begin == tile.kv_begin) first_cta = cta;
      schedule_.add_item(Kind::kNarrow, cta, item, us);
    }
    if (cta != first_cta) return;
    SplitTile& split_tile = schedule_.split_tiles.back();
    split_tile.partial_row_begin = cta * kUnitPartialRows;
    split_tile.is_of_one_cta = 1;
    schedule_.num_partial_rows = num_partial_rows;
  }

 private:
  /// Of a chunk that comes next.
  int32_t cta_at(double us) const {
    return std::min(static_cast<int32_t>((placed_us_ + us / 2) / share_us_), num_ctas_ - 1);
  }

  int32_t next_cta(double us) {
    const int32_t cta = cta_at(us);
    placed_us_ += us;
    return cta;
  }

  Schedule& schedule_;
  const double share_us_;
  const int32_t num_ctas_;
  double placed_us_ = 0;
};

}  // namespace

ChunkRule::ChunkRule(const PlanLimits& limits, const AttentionShape& shape)
    : min_chunk_keys_(static_cast<int32_t>(
          kMinChunkBytes / ((shape.head_dim_qk + shape.head_dim_vo) * dtype_bytes(shape.kv_dtype)))) {
  const int64_t max_units =
      int64_t{std::min(limits.max_batch_size, limits.max_total_qo_len)} * shape.num_kv_heads;
  for (int32_t i = 0; i < kNumRowClasses; ++i) {
    const int64_t most = std::min<int64_t>(kUnitPartialRows >> (narrow_rows_shift(1) + i),
                                           kMostChunks / std::max<int64_t>(max_units, 1));
    most_chunks_[i] = static_cast<int32_t>(std::max<int64_t>(most, 1));
  }
}

int32_t ChunkRule::chunk_keys(const Tile& tile) const {
  const int32_t most = most_chunks_[row_class(tile.num_rows)];
  const int32_t chunks = std::clamp((num_keys(tile) + min_chunk_keys_ - 1) / min_chunk_keys_, 1, most);
  return std::max((num_keys(tile) + chunks - 1) / chunks + kTileKv - 1, kTileKv) / kTileKv * kTileKv;
}

void place_chunks(const std::vector<Tile>& tiles, const ChunkRule& rule, const KindCosts& costs, int num_ctas,
                  Schedule& schedule) {
  ChunkPlacer placer(sum_us(tiles, rule, costs), num_ctas, schedule);
  for (const Tile& tile : tiles) {
    const UnitCosts& unit = costs[tile.cost_class];
    const int32_t chunk_keys = rule.chunk_keys(tile);
    if (num_chunks(tile, chunk_keys) <= 1) {
      placer.place_whole(tile, unit);
      continue;
    }
    for (int32_t kv_head = 0; kv_head < tile.kv_head_end; ++kv_head)
      placer.place_chunks(tile, kv_head, chunk_keys, unit);
  }
  if (schedule.split_tiles.empty()) schedule.num_partial_rows = 0;
}

}  // namespace onewave::planner
