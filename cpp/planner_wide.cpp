/// The wide kind: compute-bound units (tile, kv head), longest first from a min-heap of CTA loads that starts
/// with the narrow work. Splits cost partials and a merge, so they are made only where whole units cannot
/// balance.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "planner_internal.h"

namespace onewave::planner {
namespace {

/// An item takes a range of kv heads while it costs at most this part of a CTA's share of what is left: few
/// items for long work, single heads towards the end, where they even the loads out.
constexpr double kItemShare = 0.25;

/// A makespan within this of the balanced one is not worth a split.
constexpr double kTolerance = 1.05;

/// Longest unsplit unit to try, in parts of the balanced makespan, when whole units do not balance.
constexpr double kSplitCaps[] = {1.0, 0.5, 1.0 / 3};

/// Loads in whole nanoseconds above the CTA's index: one integer orders the heap, ties included.
class LoadHeap {
 public:
  LoadHeap(const std::vector<CtaLoad>& ctas, std::vector<uint64_t>& storage) : entries_(storage) {
    entries_.clear();
    for (size_t cta = 0; cta < ctas.size(); ++cta) entries_.push_back(entry(ctas[cta].us, cta));
    std::sort(entries_.begin(), entries_.end());
  }

  int32_t least_loaded() const { return static_cast<int32_t>(entries_.front() & (kMaxNumCtas - 1)); }

  /// Adds to the least loaded CTA.
  void add(double us) {
    const uint64_t value = entries_.front() + entry(us, 0);
    const size_t size = entries_.size();
    size_t hole = 0;
    for (size_t child = 1; child < size; child = 2 * hole + 1) {
      if (child + 1 < size) child += entries_[child + 1] < entries_[child];
      if (value <= entries_[child]) break;
      entries_[hole] = entries_[child];
      hole = child;
    }
    entries_[hole] = value;
  }

 private:
  static_assert((kMaxNumCtas & (kMaxNumCtas - 1)) == 0);

  static uint64_t entry(double us, uint64_t cta) {
    return static_cast<uint64_t>(std::llround(us * 1e3)) * kMaxNumCtas + cta;
  }

  std::vector<uint64_t>& entries_;
};

double unit_us(int32_t kv_tiles, const CostModel& costs) {
  return kWideUnitUs + kv_tiles * costs.wide_step_us();
}

/// Into how many pieces a unit goes so that none is longer than `cap_us`.
int32_t num_pieces(int32_t kv_tiles, double cap_us, const CostModel& costs) {
  if (unit_us(kv_tiles, costs) <= cap_us) return 1;
  const double piece_tiles = std::floor((cap_us - kWideUnitUs - kSplitUs) / costs.wide_step_us());
  return piece_tiles < 1 ? kv_tiles : static_cast<int32_t>(std::ceil(kv_tiles / piece_tiles));
}

/// One pass over all units, on top of the narrow schedule.
class Assignment {
 public:
  Assignment(const std::vector<Tile>& tiles, const CostModel& costs, double cap_us, double wide_us,
             WideScratch& scratch, Schedule& schedule)
      : costs_(costs),
        schedule_(schedule),
        heap_(schedule.ctas, scratch.heap),
        left_us_(wide_us),
        share_(kItemShare / static_cast<double>(schedule.ctas.size())) {
    const auto num_ctas = static_cast<int32_t>(schedule.ctas.size());
    partial_rows_left_ = kPartialRowsPerCta * num_ctas - schedule.num_partial_rows;
    splits_left_ = kWideSplitsPerCta * num_ctas;
    sort_by_length(tiles, cap_us, scratch.order);
    for (const uint64_t entry : scratch.order) {
      const Tile& tile = tiles[static_cast<uint32_t>(entry)];
      const int32_t pieces = num_pieces(num_kv_tiles(tile), cap_us, costs);
      pieces > 1 ? place_split(tile, pieces) : place_heads(tile, 0);
    }
  }

 private:
  /// Longest piece first; ties stay in the order of the tiles, so that CTAs that run at the same time share K
  /// and V.
  void sort_by_length(const std::vector<Tile>& tiles, double cap_us, std::vector<uint64_t>& order) const {
    order.clear();
    for (size_t i = 0; i < tiles.size(); ++i) {
      const int32_t length = num_kv_tiles(tiles[i]);
      const auto piece_length = static_cast<uint32_t>(length / num_pieces(length, cap_us, costs_));
      order.push_back(uint64_t{~piece_length} << 32 | i);
    }
    if (!std::is_sorted(order.begin(), order.end())) std::sort(order.begin(), order.end());
  }

  /// The kv heads from `kv_head` on, unsplit.
  void place_heads(const Tile& tile, int32_t kv_head) {
    const double one_us = unit_us(num_kv_tiles(tile), costs_);
    while (kv_head < tile.kv_head_end) {
      const double fitting = std::clamp<double>(left_us_ * share_ / one_us, 1, tile.kv_head_end - kv_head);
      WorkItem item = tile;
      item.kv_head_begin = kv_head;
      item.kv_head_end = kv_head += static_cast<int32_t>(fitting);
      const double item_us = (item.kv_head_end - item.kv_head_begin) * one_us;
      left_us_ -= item_us;
      place(item, item_us);
    }
  }

  /// Each kv head in `pieces` pieces of almost equal length, while the bounds allow it.
  void place_split(const Tile& tile, int32_t pieces) {
    const int32_t length = num_kv_tiles(tile);
    for (int32_t kv_head = 0; kv_head < tile.kv_head_end; ++kv_head) {
      if (pieces > splits_left_ || int64_t{pieces} * tile.num_rows > partial_rows_left_) {
        return place_heads(tile, kv_head);
      }
      splits_left_ -= pieces;
      partial_rows_left_ -= pieces * tile.num_rows;
      left_us_ -= unit_us(length, costs_);
      schedule_.open_split_tile(tile, kv_head);
      for (int32_t piece = 0; piece < pieces; ++piece) place_piece(tile, kv_head, piece, pieces);
    }
  }

  void place_piece(const Tile& tile, int32_t kv_head, int32_t piece, int32_t pieces) {
    const int64_t length = num_kv_tiles(tile);
    const auto begin = static_cast<int32_t>(length * piece / pieces);
    const auto end = static_cast<int32_t>(length * (piece + 1) / pieces);
    WorkItem item = tile;
    item.kv_head_begin = kv_head;
    item.kv_head_end = kv_head + 1;
    item.kv_begin = begin * kTileKv;
    item.kv_end = std::min(end * kTileKv, tile.kv_end);
    schedule_.add_split(item);
    place(item, unit_us(end - begin, costs_) + kSplitUs + tile.num_rows * costs_.partial_row_us());
  }

  void place(const WorkItem& item, double us) {
    const int32_t cta = heap_.least_loaded();
    heap_.add(us);
    schedule_.wide_items.push_back({item, cta});
    ++schedule_.ctas[cta].num_wide_items;
    schedule_.ctas[cta].us += us;
  }

  const CostModel& costs_;
  Schedule& schedule_;
  LoadHeap heap_;
  double left_us_;  ///< of the units not placed yet
  double share_;
  int32_t partial_rows_left_;
  int32_t splits_left_;
};

}  // namespace

double total_wide_us(const std::vector<Tile>& tiles, const CostModel& costs) {
  double total = 0;
  for (const Tile& tile : tiles) total += tile.kv_head_end * unit_us(num_kv_tiles(tile), costs);
  return total;
}

void schedule_wide(const std::vector<Tile>& tiles, double wide_us, const CostModel& costs,
                   WideScratch& scratch, Schedule& schedule) {
  if (tiles.empty()) return;
  scratch.narrow_loads = schedule.ctas;
  const size_t num_narrow_splits = schedule.split_tiles.size();
  const int32_t num_narrow_rows = schedule.num_partial_rows;
  double balanced_us = wide_us;
  for (const CtaLoad& load : schedule.ctas) balanced_us += load.us;
  balanced_us /= static_cast<double>(schedule.ctas.size());

  const auto assign = [&](double cap_us) {
    schedule.ctas = scratch.narrow_loads;
    schedule.wide_items.clear();
    schedule.split_tiles.resize(num_narrow_splits);
    schedule.num_partial_rows = num_narrow_rows;
    const Assignment assignment(tiles, costs, cap_us, wide_us, scratch, schedule);
    return std::max_element(schedule.ctas.begin(), schedule.ctas.end(),
                            [](const CtaLoad& a, const CtaLoad& b) { return a.us < b.us; })
        ->us;
  };

  double best_cap_us = INFINITY;
  double best_us = assign(best_cap_us);
  double last_cap_us = best_cap_us;
  for (const double cap : kSplitCaps) {
    if (best_us <= kTolerance * balanced_us) break;
    last_cap_us = cap * balanced_us;
    const double makespan_us = assign(last_cap_us);
    if (makespan_us >= best_us) continue;
    best_us = makespan_us;
    best_cap_us = last_cap_us;
  }
  if (last_cap_us != best_cap_us) assign(best_cap_us);
}

}  // namespace onewave::planner
