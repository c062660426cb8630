#pragma once

/// How wide items are scheduled, and what that keeps from plan to plan, so that nothing is allocated anew.

#include <cstdint>
#include <vector>

#include "planner_internal.h"
#include "planner_line.h"
#include "planner_sections.h"

namespace onewave::planner {

struct WideScratch {
  std::vector<uint64_t> order;
  WideSections sections;
  std::vector<WideItem> sorted_items;
  std::vector<int32_t> bucket_ends;
  std::vector<uint64_t> heap;
  std::vector<CtaLoad> narrow_loads;
  std::vector<WideItem> whole_items;  ///< of the schedule without splits, while one with is tried
  std::vector<CtaLoad> whole_loads;
};

/// When `num_ctas` CTAs that begin at once and `num_late_ctas` that stream until `late_us` have done the wide
/// work as schedule_wide() would give it to them: in rounds of whole units of average length, longest first,
/// so that the last round, if it is not full, has the shortest; or cut.
double predict_wide_us(const LineWork& work, const KindCosts& costs, int num_ctas, int num_late_ctas,
                       double late_us);

/// In turns into the queue, from which the CTA that is done first takes the next; splits units where that
/// does not balance, if they may be. `work`: of the tiles.
void schedule_wide(const std::vector<Tile>& tiles, const LineWork& work, const CostModel& model,
                   bool may_split, WideScratch& scratch, Schedule& schedule);

}  // namespace onewave::planner
