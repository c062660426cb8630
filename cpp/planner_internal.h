#pragma once

/// What the parts of the planner hand to each other. Three steps, each a function of the one before:
///
///   tiles      planner.cpp cuts each request into tiles of packed rows, narrow or wide;
///              planner_prefixes.h adds those of shared prefixes
///   schedule   planner_narrow.cpp gives (tile, kv heads, keys) to CTAs, with the line of planner_line.h or
///              the chunks of planner_chunks.h; planner_wide.cpp puts them into the queue, in the turns of
///              planner_sections.h or with the line
///   plan       planner.cpp writes the schedule down in the layout of plan_format.h
///
/// All vectors live in one scratch object per thread and keep their capacity: no allocation after the first
/// steps.

#include <onewave/cost_model.h>
#include <onewave/plan_format.h>
#include <onewave/planner.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace onewave::planner {

struct PlanMasks;  // planner_masks.h

/// Below half of int32 by two tiles of keys, so that the end of what a query sees (causal_shift + token + 1,
/// at most kv_len + qo_len) is an int32, and so is that plus a tile.
inline constexpr int32_t kMaxKvLen = (1 << 30) - 2 * kTileKv;
inline constexpr int32_t kMaxTotalQoLen = kMaxKvLen;
inline constexpr int32_t kMaxNumHeads = 1 << 16;
inline constexpr int32_t kMaxGroupSize = 64;
/// Of head_dim_qk and head_dim_vo: multiples of the step.
inline constexpr int32_t kHeadDimStep = 32;
inline constexpr int32_t kMaxHeadDim = 256;
inline constexpr int32_t kMaxNumWindows = 16;
inline constexpr int32_t kMaxMaskBytes = 1 << 26;
inline constexpr int32_t kMaxSharedQoLen = 1 << 16;
/// Of the largest plan within the limits: while it is made, the planner holds a few times as much.
inline constexpr int64_t kMaxPlanBytes = 1 << 27;

/// Each throws InvalidArgument.
void check_limits(const PlanLimits& limits, const AttentionShape& shape);
void check_batch(const BatchSpec& batch, const PlanLimits& limits);
void check_plan_bytes(int64_t plan_bytes);
void check_mask_bytes(const PlanMasks& masks, const PlanLimits& limits);
void check_shared_qo_len(int64_t shared_qo_len, const PlanLimits& limits);
void check_partial_rows(int64_t max_partial_rows);

/// Index in kv_indices of a request's first page.
inline int32_t first_page(const BatchSpec& batch, int32_t request) {
  return batch.kv_indptr != nullptr ? batch.kv_indptr[request]
                                    : static_cast<int32_t>(request * batch.block_table_stride);
}

inline bool is_causal(const BatchSpec& batch, int32_t request) {
  return batch.masks.causal_arr != nullptr ? batch.masks.causal_arr[request] != 0 : batch.causal;
}

/// The item that would do all of a tile's keys and kv heads at once: kv_head_begin is 0. Only where it has to
/// do with shared prefixes there is a SplitTile before it is cut.
struct Tile : WorkItem {
  int32_t cost_class;
};

/// Items of one kind differ in what a step of theirs costs: narrow ones by row_class(num_rows), wide ones by
/// whether other tiles read the same keys. Of each class there is a second for tiles that have to do with
/// shared prefixes, all of whose units leave partials.
inline constexpr int kNumCostClasses = 2 * kNumRowClasses;
enum WideClass : int32_t { kWideShared, kWideAlone };
/// Of the tiles of so many packed rows against the same keys.
inline WideClass wide_class(int64_t num_rows) { return num_rows <= kWideTileQ ? kWideAlone : kWideShared; }
inline constexpr int32_t merged_class(int32_t cost_class) { return cost_class + kNumRowClasses; }

inline int32_t num_keys(const WorkItem& item) { return item.kv_end - item.kv_begin; }

/// heads_per_step is a power of two: no divisions, which cost more than all else here.
inline int32_t step_keys(const WorkItem& item) {
  return kTileKv >> std::countr_zero(static_cast<uint32_t>(item.heads_per_step));
}
/// Of a unit: an item's rows against all its keys, for the kv heads of one step.
inline int32_t num_steps(const WorkItem& item) {
  const int32_t keys = step_keys(item);
  return (num_keys(item) + keys - 1) >> std::countr_zero(static_cast<uint32_t>(keys));
}
inline int32_t num_units(const WorkItem& item) {
  return (item.kv_head_end - item.kv_head_begin) >>
         std::countr_zero(static_cast<uint32_t>(item.heads_per_step));
}

/// Some of the kv heads of an item that has all of them.
inline WorkItem heads_of(const WorkItem& all, int32_t kv_head_begin, int32_t kv_head_end) {
  WorkItem item = all;
  item.kv_head_begin = kv_head_begin;
  item.kv_head_end = kv_head_end;
  if (all.split_tile >= 0) item.split_tile += kv_head_begin - all.kv_head_begin;
  return item;
}

enum class Kind { kNarrow, kWide };

/// A wide item and what it costs.
struct WideItem {
  WorkItem item;
  double us;
};

/// What one CTA has been given so far, the wide items as it is predicted to take them.
struct CtaLoad {
  int32_t num_narrow_items = 0;
  double us = 0;
};

/// The merge record of the unit of a tile that begins at a kv head, without splits.
SplitTile new_split_tile(const Tile& tile, int32_t kv_head);

struct Schedule {
  std::vector<CtaLoad> ctas;
  std::vector<WorkItem> narrow_items;  ///< of CTA 0, then of CTA 1, ...
  std::vector<WideItem> wide_items;    ///< in the order in which CTAs take them
  std::vector<SplitTile> split_tiles;
  int32_t num_partial_rows = 0;
  int32_t num_narrow_ctas = 0;

  void reset(int32_t num_ctas);
  /// Narrow items come in the order of their CTAs.
  void add_item(Kind kind, int32_t cta, const WorkItem& item, double us) {
    ctas[cta].us += us;
    if (kind == Kind::kNarrow) {
      narrow_items.push_back(item);
      ++ctas[cta].num_narrow_items;
    } else {
      wide_items.push_back({item, us});
    }
  }
  /// Opens the merge record of the unit of a tile that begins at a kv head, a new one if it has none; its
  /// pieces follow at once, in key order, through add_split.
  void open_split_tile(const Tile& tile, int32_t kv_head);
  /// Makes `item` the next piece of the split tile opened last.
  void add_split(WorkItem& item);

 private:
  int32_t num_pieces_ = 0;  ///< of the split tile opened last
};

/// Most partial rows of a schedule, per CTA. In the line of either kind a CTA's share has at most two pieces
/// of cut units: one at its start and one at its end.
inline constexpr int32_t kPartialRowsPerCta = 2 * (kWideTileQ + kNarrowStepRows);

struct LineWork;  // planner_line.h
class ChunkRule;  // planner_chunks.h

/// Sets heads_per_step of narrow tiles. `wide_work`: what the CTAs that do not stream do meanwhile.
void choose_heads_per_step(const AttentionShape& shape, const LineWork& wide_work, const CostModel& costs,
                           int num_ctas, std::vector<Tile>& tiles);

/// How many CTAs begin with narrow work.
struct NarrowShare {
  int num_ctas = 1;  ///< for which the whole step is predicted to end first, and when
  double makespan_us = INFINITY;
  int balanced_num_ctas = 1;  ///< the same if wide units could be cut for nothing
};

/// `wide_work`: what all CTAs share afterwards.
NarrowShare choose_narrow_share(const LineWork& work, const LineWork& wide_work, const CostModel& costs,
                                int max_num_ctas);

/// Lays the line of narrow units over so many CTAs and cuts it where their shares end, or where the rule
/// says, if there is one. `work`: of the tiles.
void schedule_narrow(const std::vector<Tile>& tiles, const LineWork& work, const CostModel& costs,
                     const ChunkRule* rule, int num_ctas, Schedule& schedule);

double makespan_us(const std::vector<CtaLoad>& ctas);

}  // namespace onewave::planner
