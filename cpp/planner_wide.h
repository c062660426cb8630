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

/// In turns into the queue, from which the CTA that is done first takes the next; splits units where that
/// does not balance, if they may be. `work`: of the tiles.
void schedule_wide(const std::vector<Tile>& tiles, const LineWork& work, const CostModel& model,
                   bool may_split, WideScratch& scratch, Schedule& schedule);

}  // namespace onewave::planner
