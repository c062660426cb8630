#pragma once

/// SplitPolicy::kFixed: the keys of a narrow request are cut where that request and the limits alone say, so
/// that its results have the same bits whatever else is in the batch. A chunk is a piece of a split tile even
/// where one CTA has all of them: they are merged by the same code in the same order.
///
/// Two kinds of room for partials. A unit (tile, kv head) whose chunks all lie on one CTA uses that CTA's
/// own, again and again: it is merged before the next begins. One that lies on several has its own; a
/// boundary between two CTAs lies in one unit at most, so there are fewer than CTAs.

#include <array>
#include <cstdint>
#include <vector>

#include "planner_internal.h"
#include "planner_line.h"

namespace onewave::planner {

/// Partial rows of one unit at most: more rows take fewer chunks.
inline constexpr int32_t kUnitPartialRows = 256;
/// Per CTA: its own, and those of the unit at the boundary to the next.
inline constexpr int32_t kFixedPartialRowsPerCta = 2 * kUnitPartialRows;

/// How many chunks a request's keys are cut into.
class ChunkRule {
 public:
  ChunkRule(const PlanLimits& limits, const AttentionShape& shape);

  /// Chunks of a unit of any request at most.
  int32_t most_chunks() const { return most_chunks_.front(); }
  /// Keys of a chunk of this tile: a multiple of kTileKv.
  int32_t chunk_keys(const Tile& tile) const;

 private:
  int32_t min_chunk_keys_;
  std::array<int32_t, kNumRowClasses> most_chunks_;
};

/// Gives all units of narrow tiles to the CTAs [0, num_ctas), chunk by chunk, so that they end together as
/// nearly as chunks allow.
void place_chunks(const std::vector<Tile>& tiles, const ChunkRule& rule, const KindCosts& costs, int num_ctas,
                  Schedule& schedule);

}  // namespace onewave::planner
