/// The narrow kind: memory-bound units, laid in a line (request, kv head, keys) that is cut where each CTA's
/// share of the time ends. Balance is by construction, for any number of requests; a CTA boundary cuts at
/// most one unit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "planner_internal.h"

namespace onewave::planner {
namespace {

/// What one more cut adds: a second start of the unit, and the split's price on both sides.
constexpr double kCutUs = kNarrowUnitUs + 2 * kSplitUs;

/// The whole narrow work of a batch, in units (tile, kv head).
struct NarrowWork {
  double num_units = 0;
  double num_kv_tiles = 0;        ///< over all units
  double typical_unit_tiles = 0;  ///< length of the unit that the average key tile belongs to
};

NarrowWork sum_work(const std::vector<Tile>& tiles) {
  NarrowWork work;
  double sum_of_squares = 0;
  for (const Tile& tile : tiles) {
    const double length = num_kv_tiles(tile);
    work.num_units += tile.kv_head_end;
    work.num_kv_tiles += length * tile.kv_head_end;
    sum_of_squares += length * length * tile.kv_head_end;
  }
  if (work.num_kv_tiles > 0) work.typical_unit_tiles = sum_of_squares / work.num_kv_tiles;
  return work;
}

/// The shortest piece worth a cut, in key tiles: its keys cost what the cut costs.
int32_t min_piece_tiles(double step_us) { return static_cast<int32_t>(std::ceil(kCutUs / step_us)); }

/// Cuts that a boundary between two CTAs makes on average: none where units are too short to be cut.
double cut_us_per_boundary(const NarrowWork& work, double step_us) {
  return work.typical_unit_tiles >= 2 * min_piece_tiles(step_us) ? kCutUs : 0;
}

/// When all of `num_ctas` CTAs end.
double predict_us(const NarrowWork& work, const CostModel& costs, int num_ctas) {
  const double step_us = costs.narrow_step_us(num_ctas);
  const double cut_us = cut_us_per_boundary(work, step_us) * (num_ctas - 1);
  const double shared_us = (work.num_units * kNarrowUnitUs + work.num_kv_tiles * step_us + cut_us) / num_ctas;
  const double shortest = std::min<double>(work.typical_unit_tiles, min_piece_tiles(step_us));
  return std::max(shared_us, kNarrowUnitUs + shortest * step_us);
}

/// The number of CTAs for which the whole step, narrow and then wide, is predicted to end first.
int choose_num_ctas(const NarrowWork& work, double wide_us, const CostModel& costs, int num_ctas) {
  const double useful = std::clamp<double>(std::max(work.num_kv_tiles, work.num_units), 1, num_ctas);
  int best = 1;
  double best_us = INFINITY;
  for (int candidate = 1; candidate <= useful; ++candidate) {
    const double narrow_us = predict_us(work, costs, candidate);
    const double makespan_us = std::max(narrow_us, (candidate * narrow_us + wide_us) / num_ctas);
    if (makespan_us < best_us) {
      best = candidate;
      best_us = makespan_us;
    }
  }
  return best;
}

class LineCutter {
 public:
  LineCutter(const NarrowWork& work, const CostModel& costs, int num_ctas, Schedule& schedule)
      : schedule_(schedule),
        num_ctas_(num_ctas),
        step_us_(costs.narrow_step_us(num_ctas)),
        cut_us_(cut_us_per_boundary(work, step_us_)),
        min_piece_(min_piece_tiles(step_us_)),
        left_us_(work.num_units * kNarrowUnitUs + work.num_kv_tiles * step_us_) {
    start_cta();
  }

  void place(const Tile& tile) {
    const int32_t length = num_kv_tiles(tile);
    const double unit_us = kNarrowUnitUs + length * step_us_;
    for (int32_t kv_head = 0; kv_head < tile.kv_head_end;) {
      const int32_t num_heads = whole_heads(tile.kv_head_end - kv_head, unit_us);
      if (num_heads > 0) {
        place_heads(tile, kv_head, num_heads, num_heads * unit_us);
        kv_head += num_heads;
      } else if (first_piece(length) > 0) {
        place_pieces(tile, kv_head, length);
        ++kv_head;
      } else {
        next_cta();
      }
    }
  }

 private:
  bool is_last_cta() const { return cta_ == num_ctas_ - 1; }

  /// The room of a CTA is its share of what is left, cuts to come included: what rounding gave too much or
  /// too little is spread over the CTAs that follow.
  void start_cta() {
    const int num_ctas_left = num_ctas_ - cta_;
    room_us_ = (left_us_ + cut_us_ * (num_ctas_left - 1)) / num_ctas_left;
  }

  void next_cta() {
    ++cta_;
    start_cta();
  }

  void spend(double us) {
    schedule_.ctas[cta_].us += us;
    room_us_ -= us;
    left_us_ -= us;
  }

  /// How many of the next heads go to this CTA whole. The last may overrun by half of itself, or by what a
  /// cut would cost.
  int32_t whole_heads(int32_t num_heads_left, double unit_us) const {
    if (is_last_cta()) return num_heads_left;
    const double overrun_us = std::min(unit_us / 2, kCutUs);
    const double fitting = std::floor((room_us_ + overrun_us) / unit_us);
    return static_cast<int32_t>(std::clamp<double>(fitting, 0, num_heads_left));
  }

  void place_heads(const Tile& tile, int32_t kv_head, int32_t num_heads, double us) {
    WorkItem item = tile;
    item.kv_head_begin = kv_head;
    item.kv_head_end = kv_head + num_heads;
    emit(item);
    spend(us);
  }

  void emit(const WorkItem& item) {
    schedule_.narrow_items.push_back(item);
    ++schedule_.ctas[cta_].num_narrow_items;
  }

  /// Key tiles that fill this CTA's room, the price of a piece counted.
  int32_t fitting_piece() const {
    const double tiles = std::floor((room_us_ - kNarrowUnitUs - kSplitUs) / step_us_ + 0.5);
    return static_cast<int32_t>(std::clamp<double>(tiles, 0, INT32_MAX));
  }

  /// Length of the piece that begins a cut unit, 0 where one of its sides would be a crumb.
  int32_t first_piece(int32_t length) const {
    const int32_t piece = std::min(fitting_piece(), length - min_piece_);
    return piece >= min_piece_ ? piece : 0;
  }

  /// Where the piece ends that starts a later CTA: at the unit's end rather than just before it.
  int32_t next_piece_end(int32_t begin, int32_t length) const {
    const int32_t piece = std::max(fitting_piece(), min_piece_);
    return is_last_cta() || length - begin - min_piece_ < piece ? length : begin + piece;
  }

  /// One unit over this CTA and as many of the following as it takes; the last of them may have room left.
  void place_pieces(const Tile& tile, int32_t kv_head, int32_t length) {
    schedule_.open_split_tile(tile, kv_head);
    left_us_ += kSplitUs;
    int32_t begin = 0;
    int32_t end = first_piece(length);
    place_piece(tile, kv_head, begin, end);
    while (end < length) {
      left_us_ += kNarrowUnitUs + kSplitUs;  // the rest starts again
      next_cta();
      begin = end;
      end = next_piece_end(begin, length);
      place_piece(tile, kv_head, begin, end);
    }
  }

  void place_piece(const Tile& tile, int32_t kv_head, int32_t begin, int32_t end) {
    WorkItem item = tile;
    item.kv_head_begin = kv_head;
    item.kv_head_end = kv_head + 1;
    item.kv_begin = begin * kTileKv;
    item.kv_end = std::min(end * kTileKv, tile.kv_end);
    schedule_.add_split(item);
    emit(item);
    spend(kNarrowUnitUs + kSplitUs + (end - begin) * step_us_);
  }

  Schedule& schedule_;
  int num_ctas_;
  double step_us_;
  double cut_us_;
  int32_t min_piece_;
  double left_us_;  ///< of everything not placed yet, cuts to come not counted
  double room_us_ = 0;
  int cta_ = 0;
};

}  // namespace

void schedule_narrow(const std::vector<Tile>& tiles, double wide_us, const CostModel& costs,
                     Schedule& schedule) {
  if (tiles.empty()) return;
  const NarrowWork work = sum_work(tiles);
  const int num_ctas = choose_num_ctas(work, wide_us, costs, static_cast<int>(schedule.ctas.size()));
  LineCutter cutter(work, costs, num_ctas, schedule);
  for (const Tile& tile : tiles) cutter.place(tile);
}

}  // namespace onewave::planner
