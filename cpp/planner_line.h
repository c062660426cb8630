#pragma once

/// Balance by construction: all units (tile, kv heads of a step) of one kind laid in a line (tile, kv heads,
/// keys), which is cut where each CTA's share of the time ends. A boundary between two CTAs cuts at most one
/// unit, so a CTA's share is at most the rest of one unit, ranges of whole units, and the start of another.

#include <algorithm>
#include <array>
#include <vector>

#include "planner_internal.h"

namespace onewave::planner {

/// What a unit of one kind and class costs, in microseconds.
struct UnitCosts {
  double start_us;  ///< of the unit, and again of each of its pieces
  double step_us;
  double split_us;  ///< of each piece of a cut unit, on top

  double whole_us(int32_t num_steps) const { return start_us + num_steps * step_us; }
  /// What one more cut adds: a second start, and the split's price on both sides.
  double cut_us() const { return start_us + 2 * split_us; }
  /// The shortest piece worth a cut, in steps: they cost what the cut costs.
  int32_t min_piece() const {
    return static_cast<int32_t>(std::min<double>(cut_us() / step_us, kMaxKvLen)) + 1;
  }
};

/// Of one kind, by cost class.
using KindCosts = std::array<UnitCosts, kNumCostClasses>;

/// Units that leave partials whether they are cut or not: what a split costs is the unit's own.
inline void add_merged_classes(KindCosts& costs) {
  for (int i = 0; i < kNumRowClasses; ++i) {
    costs[merged_class(i)] = {
        .start_us = costs[i].start_us + costs[i].split_us, .step_us = costs[i].step_us, .split_us = 0};
  }
}

/// When `num_ctas` CTAs stream at once.
KindCosts narrow_unit_costs(const CostModel& costs, int num_ctas);
/// When `num_narrow_ctas` of `num_ctas` CTAs begin with narrow items, and the others do such work.
KindCosts wide_unit_costs(const CostModel& costs, int num_ctas, int num_narrow_ctas);

/// All units of one kind, summed.
struct LineWork {
  std::array<double, kNumCostClasses> num_units{};
  std::array<double, kNumCostClasses> num_steps{};
  double typical_unit_steps = 0;   ///< length of the unit that the average step belongs to
  double shortest_unit_steps = 0;  ///< of those with keys
  int typical_class = 0;           ///< that has most steps

  double num_whole_units() const;
  double whole_us(const KindCosts& costs) const;
  /// Of one unit of typical length.
  double typical_us(const KindCosts& costs) const;
  double shortest_us(const KindCosts& costs) const;
  /// What a boundary between CTAs costs on average: nothing where units are too short to be cut.
  double boundary_us(const KindCosts& costs) const;
};

LineWork sum_work(const std::vector<Tile>& tiles);

/// Gives all units to the CTAs [0, num_ctas), on top of what these have, so that they end together.
void cut_line(const std::vector<Tile>& tiles, const LineWork& work, const KindCosts& costs, Kind kind,
              int num_ctas, Schedule& schedule);

}  // namespace onewave::planner
