/// The narrow kind: memory-bound units. Their line goes to as many CTAs as make the whole step end first: a
/// few CTAs draw most of the memory's bandwidth, and the others multiply meanwhile.

#include <algorithm>
#include <cmath>
#include <vector>

#include "planner_internal.h"
#include "planner_line.h"

namespace onewave::planner {
namespace {

UnitCosts unit_costs(const CostModel& costs, int num_ctas) {
  return {.start_us = kNarrowUnitUs, .step_us = costs.narrow_step_us(num_ctas), .split_us = kSplitUs};
}

/// When `num_ctas` CTAs have done the narrow work.
double predict_us(const LineWork& work, const UnitCosts& costs, int num_ctas) {
  const double shared_us = (work.whole_us(costs) + work.boundary_us(costs) * (num_ctas - 1)) / num_ctas;
  const double shortest = std::min<double>(work.typical_unit_steps, costs.min_piece());
  return std::max(shared_us, costs.start_us + shortest * costs.step_us);
}

/// The number of CTAs for which the whole step, narrow and then wide, is predicted to end first.
int choose_num_ctas(const LineWork& work, double wide_us, const CostModel& costs, int max_num_ctas) {
  const double useful = std::clamp<double>(std::max(work.num_steps, work.num_units), 1, max_num_ctas);
  int best = 1;
  double best_us = INFINITY;
  for (int num_ctas = 1; num_ctas <= useful; ++num_ctas) {
    const double narrow_us = predict_us(work, unit_costs(costs, num_ctas), num_ctas);
    const double makespan_us = std::max(narrow_us, (num_ctas * narrow_us + wide_us) / max_num_ctas);
    if (makespan_us < best_us) {
      best = num_ctas;
      best_us = makespan_us;
    }
  }
  return best;
}

}  // namespace

void schedule_narrow(const std::vector<Tile>& tiles, double wide_us, const CostModel& costs,
                     Schedule& schedule) {
  if (tiles.empty()) return;
  const LineWork work = sum_work(tiles);
  const int num_ctas = choose_num_ctas(work, wide_us, costs, static_cast<int>(schedule.ctas.size()));
  cut_line(tiles, work, unit_costs(costs, num_ctas), Kind::kNarrow, num_ctas, schedule);
}

}  // namespace onewave::planner
