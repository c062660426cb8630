#include "planner_line.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

namespace onewave::planner {
namespace {

class LineCutter {
 public:
  LineCutter(const LineWork& work, const KindCosts& costs, Kind kind, int num_ctas, Schedule& schedule)
      : schedule_(schedule),
        costs_(costs),
        kind_(kind),
        num_ctas_(num_ctas),
        boundary_us_(work.boundary_us(costs)),
        left_us_(work.whole_us(costs)) {
    for (int cta = 0; cta < num_ctas; ++cta) loads_us_ += schedule.ctas[cta].us;
    start_cta();
  }

  void place(const Tile& tile) {
    unit_costs_ = costs_[tile.cost_class];
    const int32_t length = num_steps(tile);
    for (int32_t unit = 0; unit < num_units(tile);) {
      const int32_t fitting = whole_units(num_units(tile) - unit, unit_costs_.whole_us(length));
      if (fitting > 0) {
        place_units(tile, unit, fitting);
        unit += fitting;
      } else if (first_piece(length) > 0) {
        place_pieces(tile, unit);
        ++unit;
      } else {
        next_cta();
      }
    }
  }

 private:
  bool is_last_cta() const { return cta_ == num_ctas_ - 1; }

  /// A CTA may run to the level at which all that follow could end, cuts to come included: what rounding gave
  /// too much or too little is spread over them.
  void start_cta() {
    const int num_ctas_left = num_ctas_ - cta_;
    const double level_us = (left_us_ + loads_us_ + boundary_us_ * (num_ctas_left - 1)) / num_ctas_left;
    room_us_ = level_us - schedule_.ctas[cta_].us;
    loads_us_ -= schedule_.ctas[cta_].us;
  }

  void next_cta() {
    ++cta_;
    start_cta();
  }

  /// How many of the next units go to this CTA whole. The last may overrun by half of itself, or by what a
  /// cut would cost.
  int32_t whole_units(int32_t num_units_left, double unit_us) const {
    if (is_last_cta()) return num_units_left;
    const double overrun_us = std::min(unit_us / 2, unit_costs_.cut_us());
    const double fitting = std::floor((room_us_ + overrun_us) / unit_us);
    return static_cast<int32_t>(std::clamp<double>(fitting, 0, num_units_left));
  }

  /// Steps that fill this CTA's room, the price of a piece counted.
  int32_t fitting_piece() const {
    const double steps =
        std::round((room_us_ - unit_costs_.start_us - unit_costs_.split_us) / unit_costs_.step_us);
    return static_cast<int32_t>(std::clamp<double>(steps, 0, kMaxKvLen));
  }

  /// Length of the piece that begins a cut unit, 0 where one of its sides would be a crumb.
  int32_t first_piece(int32_t length) const {
    const int32_t min_piece = unit_costs_.min_piece();
    const int32_t piece = std::min(fitting_piece(), length - min_piece);
    return piece >= min_piece ? piece : 0;
  }

  /// Where the piece ends that starts a later CTA: at the unit's end rather than just before it.
  int32_t next_piece_end(int32_t begin, int32_t length) const {
    const int32_t min_piece = unit_costs_.min_piece();
    const int32_t piece = std::max(fitting_piece(), min_piece);
    return is_last_cta() || length - begin - min_piece < piece ? length : begin + piece;
  }

  /// Units [unit, unit + count) of a tile.
  static WorkItem units_of(const Tile& tile, int32_t unit, int32_t count) {
    return heads_of(tile, unit * tile.heads_per_step, (unit + count) * tile.heads_per_step);
  }

  void place_units(const Tile& tile, int32_t unit, int32_t count) {
    place_item(units_of(tile, unit, count), count * unit_costs_.whole_us(num_steps(tile)));
  }

  /// One unit over this CTA and as many of the following as it takes; the last of them may have room left.
  void place_pieces(const Tile& tile, int32_t unit) {
    const int32_t length = num_steps(tile);
    schedule_.open_split_tile(tile, unit * tile.heads_per_step);
    left_us_ += unit_costs_.split_us;
    int32_t begin = 0;
    int32_t end = first_piece(length);
    place_piece(tile, unit, begin, end);
    while (end < length) {
      left_us_ += unit_costs_.start_us + unit_costs_.split_us;  // the rest starts again
      next_cta();
      begin = end;
      end = next_piece_end(begin, length);
      place_piece(tile, unit, begin, end);
    }
  }

  void place_piece(const Tile& tile, int32_t unit, int32_t begin, int32_t end) {
    WorkItem item = units_of(tile, unit, 1);
    item.kv_begin = tile.kv_begin + begin * step_keys(tile);
    item.kv_end = std::min(tile.kv_begin + end * step_keys(tile), tile.kv_end);
    schedule_.add_split(item);
    place_item(item, unit_costs_.whole_us(end - begin) + unit_costs_.split_us);
  }

  void place_item(const WorkItem& item, double us) {
    schedule_.add_item(kind_, cta_, item, us);
    room_us_ -= us;
    left_us_ -= us;
  }

  Schedule& schedule_;
  const KindCosts& costs_;
  UnitCosts unit_costs_{};  ///< of the tile that is being placed
  Kind kind_;
  int num_ctas_;
  double boundary_us_;
  double left_us_;       ///< of everything not placed yet, cuts to come not counted
  double loads_us_ = 0;  ///< that the CTAs after this one had before
  double room_us_ = 0;
  int cta_ = 0;
};

}  // namespace

double LineWork::whole_us(const KindCosts& costs) const {
  double us = 0;
  for (size_t i = 0; i < costs.size(); ++i)
    us += num_units[i] * costs[i].start_us + num_steps[i] * costs[i].step_us;
  return us;
}

double LineWork::typical_us(const KindCosts& costs) const {
  if (typical_unit_steps == 0) return 0;
  return costs[typical_class].start_us + typical_unit_steps * costs[typical_class].step_us;
}

double LineWork::num_whole_units() const { return std::accumulate(num_units.begin(), num_units.end(), 0.0); }

double LineWork::shortest_us(const KindCosts& costs) const {
  return costs[typical_class].start_us + shortest_unit_steps * costs[typical_class].step_us;
}

double LineWork::boundary_us(const KindCosts& costs) const {
  const UnitCosts& typical = costs[typical_class];
  return typical_unit_steps >= 2 * typical.min_piece() ? typical.cut_us() : 0;
}

LineWork sum_work(const std::vector<Tile>& tiles) {
  LineWork work;
  double sum_of_squares = 0;
  double shortest = INFINITY;
  for (const Tile& tile : tiles) {
    const double length = num_steps(tile);
    work.num_units[tile.cost_class] += num_units(tile);
    work.num_steps[tile.cost_class] += length * num_units(tile);
    sum_of_squares += length * length * num_units(tile);
    if (length > 0) shortest = std::min(shortest, length);
  }
  const double all_steps = std::accumulate(work.num_steps.begin(), work.num_steps.end(), 0.0);
  if (all_steps > 0) {
    work.typical_unit_steps = sum_of_squares / all_steps;
    work.shortest_unit_steps = shortest;
  }
  work.typical_class = static_cast<int>(std::max_element(work.num_steps.begin(), work.num_steps.end()) -
                                        work.num_steps.begin());
  return work;
}

void cut_line(const std::vector<Tile>& tiles, const LineWork& work, const KindCosts& costs, Kind kind,
              int num_ctas, Schedule& schedule) {
  LineCutter cutter(work, costs, kind, num_ctas, schedule);
  for (const Tile& tile : tiles) cutter.place(tile);
}

}  // namespace onewave::planner
