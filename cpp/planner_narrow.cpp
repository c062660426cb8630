/// The narrow kind: memory-bound units. Their line goes to as many CTAs as make the whole step end first: a
/// few CTAs draw most of the memory's bandwidth, and the others multiply meanwhile, in rounds of whole units.

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <vector>

#include "head_groups.h"
#include "planner_chunks.h"
#include "planner_internal.h"
#include "planner_line.h"
#include "planner_wide.h"

namespace onewave::planner {
namespace {

/// When `num_ctas` CTAs have done the narrow work.
double predict_us(const LineWork& work, const KindCosts& costs, int num_ctas) {
  const double shared_us = (work.whole_us(costs) + work.boundary_us(costs) * (num_ctas - 1)) / num_ctas;
  const UnitCosts& typical = costs[work.typical_class];
  const double shortest = std::min<double>(work.typical_unit_steps, typical.min_piece());
  return std::max(shared_us, typical.start_us + shortest * typical.step_us);
}

/// About as many, before it is known how the work will be cut: the narrow part of all work.
int estimate_num_ctas(const LineWork& work, const LineWork& wide_work, const CostModel& costs,
                      int max_num_ctas) {
  const double narrow_us = work.whole_us(narrow_unit_costs(costs, 1));
  const double wide_us = wide_work.whole_us(wide_unit_costs(costs, max_num_ctas, 0));
  if (wide_us == 0) return max_num_ctas;
  return std::max(static_cast<int>(max_num_ctas * narrow_us / (narrow_us + wide_us)), 1);
}

/// What taking several kv heads together saves: longer runs of memory, a part of the time of each step.
constexpr double kHeadsTogetherGain = 0.01;

/// What it costs: each split has more partials, and the last CTA to arrive merges all of them, kMergeSplits
/// splits of a row in about this time.
constexpr double kMergeRowUs = 0.1;
constexpr double kMergeSplits = 4;

/// What a unit of a request that shares prefixes takes beside its start and its split: its own keys are few,
/// so nothing hides its stores and its arrival. Profiles of an H100 have 3 to 4; half of it gave the better
/// times (bench/NOTES.md).
constexpr double kMergedUnitUs = 1.75;

/// A CTA's share begins with the rest of a cut unit and ends with the start of another. Both first: their
/// merges then fall into the time of the others. (Whole units that are merged with shared prefixes may move
/// too, which does no harm.)
void move_pieces_first(Schedule& schedule) {
  auto begin = schedule.narrow_items.begin();
  for (const CtaLoad& load : schedule.ctas) {
    const auto end = begin + load.num_narrow_items;
    const auto second = begin < end && begin->split_tile >= 0 ? std::next(begin) : begin;
    if (second < end && std::prev(end)->split_tile >= 0) std::rotate(second, std::prev(end), end);
    begin = end;
  }
}

}  // namespace

KindCosts narrow_unit_costs(const CostModel& costs, int num_ctas) {
  KindCosts by_class;
  for (int i = 0; i < kNumRowClasses; ++i) {
    by_class[i] = {.start_us = costs.narrow_unit_us(),
                   .step_us = costs.narrow_step_us(i, num_ctas),
                   .split_us = costs.split_us()};
  }
  add_merged_classes(by_class);
  for (int i = 0; i < kNumRowClasses; ++i) by_class[merged_class(i)].start_us += kMergedUnitUs;
  return by_class;
}

void choose_heads_per_step(const AttentionShape& shape, const LineWork& wide_work, const CostModel& costs,
                           int num_ctas, std::vector<Tile>& tiles) {
  const HeadGroups groups = head_groups(shape);
  const LineWork work = sum_work(tiles);
  const int num_streaming = estimate_num_ctas(work, wide_work, costs, num_ctas);
  const double num_all_steps = std::accumulate(work.num_steps.begin(), work.num_steps.end(), 0.0);
  const double cta_steps = std::max(num_all_steps / num_streaming, 1.0);
  const double gain_us = kHeadsTogetherGain * cta_steps * costs.narrow_step_us(0, num_streaming);
  const auto merge_us = [&](const Tile& tile, int32_t heads) {
    const double num_pieces = static_cast<double>(num_keys(tile)) * heads / kTileKv / cta_steps + 1;
    return std::ceil(num_pieces / kMergeSplits) * heads * tile.num_rows * kMergeRowUs;
  };
  for (Tile& tile : tiles) {
    if (num_keys(tile) == 0 || tile.split_tile >= 0) continue;
    for (const int32_t heads : {groups.most, groups.box}) {
      if ((heads << narrow_rows_shift(tile.num_rows)) > kNarrowStepRows || merge_us(tile, heads) > gain_us)
        continue;
      tile.heads_per_step = heads;
      break;
    }
  }
}

NarrowShare choose_narrow_share(const LineWork& work, const LineWork& wide_work, const CostModel& costs,
                                int max_num_ctas) {
  const double num_steps = std::accumulate(work.num_steps.begin(), work.num_steps.end(), 0.0);
  const double useful = std::clamp(std::max(num_steps, work.num_whole_units()), 1.0, 1.0 * max_num_ctas);
  const bool has_wide_work = wide_work.num_whole_units() > 0;
  NarrowShare share;
  double balanced_us = INFINITY;
  for (int num_ctas = 1; num_ctas <= useful; ++num_ctas) {
    const double narrow_us = predict_us(work, narrow_unit_costs(costs, num_ctas), num_ctas);
    const KindCosts wide_costs = wide_unit_costs(costs, max_num_ctas, num_ctas);
    const double all_us = num_ctas * narrow_us + wide_work.whole_us(wide_costs);
    const double last_us = narrow_us + (num_ctas == max_num_ctas ? wide_work.typical_us(wide_costs) : 0);
    double makespan_us = std::max(last_us, all_us / max_num_ctas);
    if (makespan_us < balanced_us) {
      share.balanced_num_ctas = num_ctas;
      balanced_us = makespan_us;
    }
    if (makespan_us >= share.makespan_us) continue;
    if (has_wide_work) {
      const double wide_us =
          predict_wide_us(wide_work, wide_costs, max_num_ctas - num_ctas, num_ctas, narrow_us);
      makespan_us = std::max(makespan_us, wide_us);
    }
    if (makespan_us < share.makespan_us) {
      share.num_ctas = num_ctas;
      share.makespan_us = makespan_us;
    }
  }
  return share;
}

void schedule_narrow(const std::vector<Tile>& tiles, const LineWork& work, const CostModel& costs,
                     const ChunkRule* rule, int num_ctas, Schedule& schedule) {
  schedule.num_narrow_ctas = num_ctas;
  const KindCosts unit_costs = narrow_unit_costs(costs, num_ctas);
  if (rule != nullptr) {
    place_chunks(tiles, *rule, unit_costs, num_ctas, schedule);
  } else {
    cut_line(tiles, work, unit_costs, Kind::kNarrow, num_ctas, schedule);
    move_pieces_first(schedule);
  }
}

}  // namespace onewave::planner
