#include <onewave/planner.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numbers>
#include <numeric>
#include <utility>
#include <vector>

#include "planner_chunks.h"
#include "planner_internal.h"
#include "planner_line.h"
#include "planner_masks.h"
#include "planner_prefixes.h"
#include "planner_wide.h"

namespace onewave {
namespace planner {
namespace {

constexpr int64_t align_up(int64_t value, int64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

struct Scratch {
  std::vector<Tile> narrow_tiles;
  std::vector<Tile> wide_tiles;
  std::vector<const WorkItem*> narrow_begins;  ///< of each load
  WideScratch wide;
  Schedule schedule;
  Schedule unscheduled;     ///< what it was before its tiles, where two shares of narrow CTAs are tried
  Schedule other_schedule;  ///< by the first of them
  PlanMasks masks;
  Prefixes prefixes;
};

/// Where the sections of a plan lie.
struct PlanSections {
  int64_t ctas_offset;
  int64_t items_offset;
  int64_t split_tiles_offset;
  int64_t partial_rows_offset;
  int64_t row_members_offset;
  int64_t item_bounds_offset;
  int64_t mask_tiles_offset;
  int64_t mask_rows_offset;
  int64_t counters_offset;
  int64_t end;
};

PlanSections plan_sections(int64_t num_ctas, int64_t num_items, int64_t num_split_tiles,
                           int64_t num_row_lists, int64_t num_row_members, bool has_bounds,
                           int64_t mask_tile_bytes, int64_t mask_row_bytes) {
  PlanSections sections{};
  static_assert(kCtasOffset == align_up(sizeof(PlanHeader), kPlanAlignment));
  sections.ctas_offset = kCtasOffset;
  sections.items_offset = sections.ctas_offset + align_up(num_ctas * sizeof(CtaRecord), kPlanAlignment);
  sections.split_tiles_offset =
      sections.items_offset + align_up(num_items * sizeof(WorkItem), kPlanAlignment);
  sections.partial_rows_offset =
      sections.split_tiles_offset + align_up(num_split_tiles * sizeof(SplitTile), kPlanAlignment);
  sections.row_members_offset =
      sections.partial_rows_offset + align_up(num_row_lists * sizeof(PartialRows), kPlanAlignment);
  sections.item_bounds_offset =
      sections.row_members_offset + align_up(num_row_members * sizeof(int32_t), kPlanAlignment);
  sections.mask_tiles_offset = sections.item_bounds_offset +
                               (has_bounds ? align_up(num_items * sizeof(ItemBounds), kPlanAlignment) : 0);
  sections.mask_rows_offset = sections.mask_tiles_offset + align_up(mask_tile_bytes, kPlanAlignment);
  sections.counters_offset = sections.mask_rows_offset + align_up(mask_row_bytes, kPlanAlignment);
  sections.end = sections.counters_offset + (num_split_tiles + 1) * static_cast<int64_t>(sizeof(uint32_t));
  return sections;
}

/// Sections of the largest plan within the limits.
///
/// Items. Whole heads first: a narrow request is one item, and so is a wide one's tile that sees no keys; any
/// other wide tile is at most one per kv head. A boundary between two CTAs in the line of either kind adds at
/// most three: the cut unit leaves the range of heads it lay in, as two pieces, and the heads after it are
/// another range. (A unit over several boundaries adds one for each further one.) A wide request has more
/// than kNarrowTileQ rows, and at most one tile that is not full.
///
/// Split tiles. Each has a boundary of its kind to itself.
///
/// With fixed splits a narrow request's kv heads are an item for each chunk, and a split tile for all of
/// them.
///
/// Shared prefixes. A member has a query token or more, and a prefix's tile a member or more: each is at most
/// an item and a split tile for each kv head. A member has PartialRows for each kv head, of its own and of
/// each of its prefixes; a prefix has a number for each row.
PlanSections largest_plan(const PlanLimits& limits, const AttentionShape& shape) {
  const int64_t group_size = shape.num_qo_heads / shape.num_kv_heads;
  const int64_t max_rows = limits.max_total_qo_len * group_size;
  const int64_t max_narrow = std::min(limits.max_batch_size, limits.max_total_qo_len);
  const int64_t max_wide = std::min<int64_t>(limits.max_batch_size, max_rows / (kNarrowTileQ + 1));
  const int64_t max_wide_tiles = max_wide == 0 ? 0 : max_rows / kWideTileQ + max_wide;
  const int64_t max_wide_items = max_wide_tiles * shape.num_kv_heads;
  const int64_t max_boundaries = 2 * (int64_t{limits.num_ctas} - 1);
  if (limits.split_policy == SplitPolicy::kFixed) {
    const int64_t max_units = max_narrow * shape.num_kv_heads;
    const int64_t max_chunks = max_units * ChunkRule(limits, shape).most_chunks();
    return plan_sections(limits.num_ctas, max_chunks + max_wide_items, max_units, 0, 0, true, 0,
                         limits.max_mask_bytes);
  }
  const int64_t max_shared = limits.max_shared_qo_len;
  const int64_t max_prefix_units = max_shared * shape.num_kv_heads;
  const int64_t max_items = max_narrow + max_wide_items + max_prefix_units + 3 * max_boundaries;
  return plan_sections(limits.num_ctas, max_items, max_boundaries + 2 * max_prefix_units,
                       2 * max_prefix_units, max_shared * group_size, true, 0, limits.max_mask_bytes);
}

/// Which keys the rows of a tile see, and it is to read. `token_end`: behind the tile's last query token,
/// counted from the request's first. `num_shared_keys`: that are read for it, which it sees.
void set_keys(const BatchSpec& batch, int32_t group_size, int32_t token_end, int32_t num_shared_keys,
              PlanMasks& masks, WorkItem& tile) {
  const int32_t request = tile.request;
  const int32_t qo_len = batch.qo_indptr[request + 1] - batch.qo_indptr[request];
  const int32_t kv_len = batch.kv_len_arr[request];
  if (has_custom_mask(batch, request)) {
    tile.mask_begin = static_cast<int32_t>(masks.tiles.size());
    tile.kv_end =
        add_mask_tiles(batch, request, tile.row_begin / group_size, token_end, num_shared_keys, masks);
    tile.causal_shift = tile.kv_end;
    return;
  }
  // A shift by kv_len puts the mask behind the last key for every row.
  tile.causal_shift = is_causal(batch, request) ? kv_len - qo_len : kv_len;
  tile.kv_end = static_cast<int32_t>(std::clamp<int64_t>(int64_t{tile.causal_shift} + token_end, 0, kv_len));
  tile.kv_begin = num_shared_keys;
  if (batch.masks.window_left < 0) return;
  const int64_t window_shift = int64_t{kv_len} - qo_len - batch.masks.window_left;
  tile.window_shift = static_cast<int32_t>(std::max<int64_t>(window_shift, kNoWindow + 1));
  // One tile more where the range may move (set_kv_len()).
  const int64_t spare = batch.actual_kv_len_arr != nullptr ? kTileKv : 0;
  const auto first = std::clamp<int64_t>(window_shift + tile.row_begin / group_size - spare, 0, tile.kv_end);
  tile.kv_begin = static_cast<int32_t>(first / kTileKv * kTileKv);
}

/// The tiles of one request, those that see most keys first. One that sees none has nothing to multiply and
/// is narrow, however many rows it has.
void add_tiles(const BatchSpec& batch, int32_t group_size, int32_t request, Scratch& scratch) {
  const int32_t q_token_begin = batch.qo_indptr[request];
  const int32_t qo_len = batch.qo_indptr[request + 1] - q_token_begin;
  const int32_t num_rows = qo_len * group_size;
  const bool is_narrow = num_rows <= kNarrowTileQ;
  const int32_t tile_q = is_narrow ? kNarrowTileQ : kWideTileQ;
  const int32_t num_shared_keys = scratch.prefixes.num_shared_keys(request);
  std::vector<Tile>& tiles = is_narrow ? scratch.narrow_tiles : scratch.wide_tiles;
  for (int32_t tile = (num_rows + tile_q - 1) / tile_q - 1; tile >= 0; --tile) {
    const int32_t row_begin = tile * tile_q;
    const int32_t row_end = static_cast<int32_t>(std::min<int64_t>(num_rows, int64_t{row_begin} + tile_q));
    // Where it stays: a copy of what was just written field by field takes as long as all else here.
    Tile& whole = tiles.emplace_back();
    whole.request = request;
    whole.q_token_begin = q_token_begin;
    whole.row_begin = row_begin;
    whole.num_rows = row_end - row_begin;
    whole.window_shift = kNoWindow;
    whole.mask_begin = kNoMask;
    whole.page_begin = first_page(batch, request);
    whole.kv_head_end = batch.shape.num_kv_heads;
    whole.heads_per_step = 1;
    whole.split_tile = -1;
    whole.cost_class = is_narrow ? row_class(whole.num_rows) : wide_class(num_rows);
    set_keys(batch, group_size, (row_end - 1) / group_size + 1, num_shared_keys, scratch.masks, whole);
    Tile* placed = &whole;
    if (!is_narrow && num_keys(whole) == 0) {
      scratch.narrow_tiles.push_back(whole);
      tiles.pop_back();
      placed = &scratch.narrow_tiles.back();
    }
    if (num_shared_keys > 0) scratch.prefixes.add_member(*placed, scratch.schedule);
  }
}

/// Where the makespan is above its prediction by more than this part, the share was not chosen well.
constexpr double kPredictedWell = 1.02;

/// All tiles. `wide_work`: of the wide ones. `rule`: by fixed splits.
void schedule_tiles(const LineWork& wide_work, const CostModel& costs, const ChunkRule* rule,
                    Scratch& scratch) {
  const std::vector<Tile>& narrow_tiles = scratch.narrow_tiles;
  const LineWork work = sum_work(narrow_tiles);
  Schedule& schedule = scratch.schedule;
  const auto schedule_with = [&](int num_narrow_ctas) {
    if (!narrow_tiles.empty()) schedule_narrow(narrow_tiles, work, costs, rule, num_narrow_ctas, schedule);
    schedule_wide(scratch.wide_tiles, wide_work, costs, rule == nullptr, scratch.wide, schedule);
  };
  NarrowShare share;
  if (!narrow_tiles.empty())
    share = choose_narrow_share(work, wide_work, costs, static_cast<int>(schedule.ctas.size()));
  const bool has_another = share.balanced_num_ctas != share.num_ctas;
  if (has_another) scratch.unscheduled = schedule;
  schedule_with(share.num_ctas);
  if (!has_another || makespan_us(schedule.ctas) <= kPredictedWell * share.makespan_us) return;
  std::swap(schedule, scratch.other_schedule);
  schedule = scratch.unscheduled;
  schedule_with(share.balanced_num_ctas);
  if (makespan_us(scratch.other_schedule.ctas) <= makespan_us(schedule.ctas))
    std::swap(schedule, scratch.other_schedule);
}

void make_schedule(const BatchSpec& batch, const PlanLimits& limits, const CostModel& costs,
                   Scratch& scratch) {
  scratch.narrow_tiles.clear();
  scratch.wide_tiles.clear();
  scratch.masks.tiles.clear();
  scratch.masks.rows.clear();
  scratch.schedule.reset(limits.num_ctas);
  scratch.prefixes.start(batch);
  check_shared_qo_len(scratch.prefixes.shared_qo_len(), limits);
  const int32_t group_size = batch.shape.num_qo_heads / batch.shape.num_kv_heads;
  for (int32_t request = 0; request < batch.batch_size; ++request)
    add_tiles(batch, group_size, request, scratch);
  scratch.prefixes.add_tiles(batch, scratch.narrow_tiles, scratch.wide_tiles, scratch.schedule);
  const LineWork wide_work = sum_work(scratch.wide_tiles);
  if (limits.split_policy == SplitPolicy::kFixed) {
    const ChunkRule rule(limits, batch.shape);
    schedule_tiles(wide_work, costs, &rule, scratch);
  } else {
    choose_heads_per_step(batch.shape, wide_work, costs, limits.num_ctas, scratch.narrow_tiles);
    schedule_tiles(wide_work, costs, nullptr, scratch);
    scratch.prefixes.place_partials(scratch.schedule);
  }
}

/// The load that each CTA gets. CTAs 2 i and 2 i + 1 run on two SMs that share a port to the memory: the
/// first loads, which stream, go to the even ones, so that each has a port with a CTA that multiplies, or
/// none. Of the even ones, and then of the odd ones, neighbours run in one cluster of SMs, which share
/// another: loads that follow each other go to places a golden section apart, so that any number of the first
/// lie evenly.
class LoadPlaces {
 public:
  explicit LoadPlaces(int32_t num_ctas)
      : num_even_((num_ctas + 1) / 2),
        num_odd_(num_ctas / 2),
        even_stride_(stride(num_even_)),
        odd_stride_(stride(num_odd_)) {}

  int32_t load_of(int32_t cta) const {
    const int64_t place = cta / 2;
    return static_cast<int32_t>(cta % 2 == 0 ? place * even_stride_ % num_even_
                                             : num_even_ + place * odd_stride_ % num_odd_);
  }

 private:
  /// Prime to `count`, so that multiples of it are all places.
  static int32_t stride(int32_t count) {
    auto stride = static_cast<int32_t>(count / std::numbers::phi);
    while (std::gcd(stride, count) > 1) ++stride;
    return stride;
  }

  int32_t num_even_, num_odd_;
  int32_t even_stride_, odd_stride_;
};

/// The CTA records and all items. Idle CTAs begin with the first wide items; returns how many do, and how
/// many CTAs have work.
std::pair<int32_t, int32_t> write_items(const Schedule& schedule, double launch_us,
                                        std::vector<const WorkItem*>& narrow_begins, CtaRecord* ctas,
                                        WorkItem* items) {
  narrow_begins.clear();
  const WorkItem* narrow = schedule.narrow_items.data();
  for (const CtaLoad& load : schedule.ctas) {
    narrow_begins.push_back(narrow);
    narrow += load.num_narrow_items;
  }
  const auto wide_begin = static_cast<int32_t>(schedule.narrow_items.size());
  const auto num_wide_items = static_cast<int32_t>(schedule.wide_items.size());
  int32_t position = 0;
  int32_t num_first_items = 0;
  int32_t num_working = 0;
  const auto num_ctas = static_cast<int32_t>(schedule.ctas.size());
  const LoadPlaces places(num_ctas);
  for (int32_t cta = 0; cta < num_ctas; ++cta) {
    const int32_t index = places.load_of(cta);
    const CtaLoad& load = schedule.ctas[index];
    const int32_t narrow_end = position + load.num_narrow_items;
    std::copy_n(narrow_begins[index], load.num_narrow_items, items + position);
    const bool has_first = load.num_narrow_items == 0 && num_first_items < num_wide_items;
    *ctas++ = {.narrow_begin = position,
               .narrow_end = narrow_end,
               .first_item = has_first ? wide_begin + num_first_items++ : -1,
               .predicted_us = static_cast<float>(launch_us + load.us)};
    position = narrow_end;
    if (has_first || load.num_narrow_items > 0) ++num_working;
  }
  items += wide_begin;
  for (const WideItem& wide : schedule.wide_items) *items++ = wide.item;
  return {num_first_items, num_working};
}

const SplitTile* split_tile_of(const PlanHeader& header, const WorkItem& item) {
  if (item.split_tile < 0) return nullptr;
  return plan_section<SplitTile>(&header, header.split_tiles_offset) + item.split_tile;
}

bool is_of_prefix(const PlanHeader& header, const WorkItem& item) {
  const SplitTile* tile = split_tile_of(header, item);
  return tile != nullptr && tile->num_members > 0;
}

/// A prefix or a member of one.
bool is_merged(const PlanHeader& header, const WorkItem& item) {
  const SplitTile* tile = split_tile_of(header, item);
  return tile != nullptr && (tile->num_members > 0 || tile->num_prefixes > 0);
}

void write_bounds(const BatchSpec& batch, const PlanHeader& header, ItemBounds* bounds) {
  const auto* items = plan_section<WorkItem>(&header, header.items_offset);
  for (int32_t i = 0; i < header.num_items; ++i) {
    const WorkItem& item = items[i];
    bounds[i] = {.causal_shift = item.causal_shift,
                 .window_shift = item.window_shift,
                 .kv_begin = item.kv_begin,
                 .kv_end = item.kv_end,
                 .kv_len = is_of_prefix(header, item) ? item.causal_shift : batch.kv_len_arr[item.request]};
  }
}

const PlanHeader* write_plan(const BatchSpec& batch, double launch_us, Scratch& scratch, void* buffer) {
  const Schedule& schedule = scratch.schedule;
  const auto num_ctas = static_cast<int32_t>(schedule.ctas.size());
  const auto num_items = static_cast<int32_t>(schedule.narrow_items.size() + schedule.wide_items.size());
  const auto num_split_tiles = static_cast<int32_t>(schedule.split_tiles.size());
  const bool has_bounds = batch.actual_kv_len_arr != nullptr;
  const PlanMasks& masks = scratch.masks;
  const std::vector<PartialRows>& partial_rows = scratch.prefixes.partial_rows();
  const std::vector<int32_t>& row_members = scratch.prefixes.row_members();
  const PlanSections sections =
      plan_sections(num_ctas, num_items, num_split_tiles, static_cast<int64_t>(partial_rows.size()),
                    static_cast<int64_t>(row_members.size()), has_bounds,
                    static_cast<int64_t>(masks.tiles.size() * sizeof(MaskTile)),
                    static_cast<int64_t>(masks.rows.size() * sizeof(MaskRow)));
  auto* bytes = static_cast<unsigned char*>(buffer);
  std::memset(bytes, 0, sections.ctas_offset);
  // What lies between sections: equal batches have equal plans, to the byte.
  for (const int64_t end : {sections.split_tiles_offset, sections.partial_rows_offset,
                            sections.row_members_offset, sections.item_bounds_offset,
                            sections.mask_tiles_offset, sections.mask_rows_offset, sections.counters_offset})
    std::memset(bytes + end - kPlanAlignment, 0, kPlanAlignment);
  const auto [num_first_items, num_working] = write_items(
      schedule, launch_us, scratch.narrow_begins, reinterpret_cast<CtaRecord*>(bytes + sections.ctas_offset),
      reinterpret_cast<WorkItem*>(bytes + sections.items_offset));
  const auto num_wide_items = static_cast<uint32_t>(schedule.wide_items.size());
  auto* header = reinterpret_cast<PlanHeader*>(bytes);
  *header = {
      .magic = kPlanMagic,
      .version = kPlanVersion,
      .num_bytes = static_cast<uint32_t>(sections.end),
      .num_ctas = num_ctas,
      .num_items = num_items,
      .wide_begin = static_cast<int32_t>(schedule.narrow_items.size()),
      .num_split_tiles = num_split_tiles,
      .num_partial_rows = schedule.num_partial_rows,
      .ctas_offset = static_cast<uint32_t>(sections.ctas_offset),
      .items_offset = static_cast<uint32_t>(sections.items_offset),
      .split_tiles_offset = static_cast<uint32_t>(sections.split_tiles_offset),
      .counters_offset = static_cast<uint32_t>(sections.counters_offset),
      .num_narrow_ctas = schedule.num_narrow_ctas,
      .num_first_items = num_first_items,
      .num_draws = num_wide_items > 0 ? num_wide_items - num_first_items + num_working : 0,
      .item_bounds_offset = has_bounds ? static_cast<uint32_t>(sections.item_bounds_offset) : 0,
      .actual_kv_lens = reinterpret_cast<uintptr_t>(batch.actual_kv_len_arr),
      .kv_indices = reinterpret_cast<uintptr_t>(batch.kv_indices),
      .batch_size = batch.batch_size,
      .total_qo_len = batch.qo_indptr[batch.batch_size],
      .num_qo_heads = batch.shape.num_qo_heads,
      .num_kv_heads = batch.shape.num_kv_heads,
      .group_size = batch.shape.num_qo_heads / batch.shape.num_kv_heads,
      .head_dim_qk = static_cast<uint16_t>(batch.shape.head_dim_qk),
      .head_dim_vo = static_cast<uint16_t>(batch.shape.head_dim_vo),
      .page_size = batch.shape.page_size,
      .sm_scale_log2 = batch.sm_scale * std::numbers::log2e_v<float>,
      .logits_soft_cap = batch.masks.logits_soft_cap,
      .mask_tiles_offset = static_cast<uint32_t>(sections.mask_tiles_offset),
      .mask_rows_offset = static_cast<uint32_t>(sections.mask_rows_offset),
      .partial_rows_offset = static_cast<uint32_t>(sections.partial_rows_offset),
      .row_members_offset = static_cast<uint32_t>(sections.row_members_offset),
      .is_masked = batch.masks.window_left >= 0 || batch.masks.logits_soft_cap > 0 ||
                   batch.masks.custom_mask != nullptr,
  };
  std::copy(schedule.split_tiles.begin(), schedule.split_tiles.end(),
            reinterpret_cast<SplitTile*>(bytes + sections.split_tiles_offset));
  std::copy(partial_rows.begin(), partial_rows.end(),
            reinterpret_cast<PartialRows*>(bytes + sections.partial_rows_offset));
  std::copy(row_members.begin(), row_members.end(),
            reinterpret_cast<int32_t*>(bytes + sections.row_members_offset));
  if (has_bounds)
    write_bounds(batch, *header, reinterpret_cast<ItemBounds*>(bytes + sections.item_bounds_offset));
  std::copy(masks.tiles.begin(), masks.tiles.end(),
            reinterpret_cast<MaskTile*>(bytes + sections.mask_tiles_offset));
  std::copy(masks.rows.begin(), masks.rows.end(),
            reinterpret_cast<MaskRow*>(bytes + sections.mask_rows_offset));
  std::memset(bytes + sections.counters_offset, 0, sections.end - sections.counters_offset);
  return header;
}

}  // namespace

void Schedule::reset(int32_t num_ctas) {
  ctas.assign(num_ctas, {});
  narrow_items.clear();
  wide_items.clear();
  split_tiles.clear();
  num_partial_rows = 0;
  num_narrow_ctas = 0;
}

double makespan_us(const std::vector<CtaLoad>& ctas) {
  double most_us = 0;
  for (const CtaLoad& load : ctas) most_us = std::max(most_us, load.us);
  return most_us;
}

SplitTile new_split_tile(const Tile& tile, int32_t kv_head) {
  return {
      .q_token_begin = tile.q_token_begin,
      .row_begin = tile.row_begin,
      .num_rows = tile.num_rows,
      .kv_head_begin = kv_head,
      .kv_head_end = kv_head + tile.heads_per_step,
      .num_splits = 0,
      .partial_row_begin = 0,
      .is_of_one_cta = 0,
      .list_begin = 0,
      .num_prefixes = 0,
      .first_member = 0,
      .num_members = 0,
  };
}

void Schedule::open_split_tile(const Tile& tile, int32_t kv_head) {
  num_pieces_ = 0;
  if (tile.split_tile >= 0) return;  // Prefixes::place_partials() counts its pieces
  split_tiles.push_back(new_split_tile(tile, kv_head));
  split_tiles.back().partial_row_begin = num_partial_rows;
}

void Schedule::add_split(WorkItem& item) {
  item.split_idx = num_pieces_++;
  if (item.split_tile >= 0) return;
  item.split_tile = static_cast<int32_t>(split_tiles.size()) - 1;
  ++split_tiles.back().num_splits;
  num_partial_rows += item.num_rows * item.heads_per_step;
}

}  // namespace planner

WorkspaceLayout workspace_layout(const PlanLimits& limits, const AttentionShape& shape) {
  constexpr int64_t kRegionAlignment = 256;
  planner::check_limits(limits, shape);
  // Where the next plan starts.
  const int64_t plan_bytes = planner::align_up(planner::largest_plan(limits, shape).end, kRegionAlignment);
  planner::check_plan_bytes(plan_bytes);
  const bool is_fixed = limits.split_policy == SplitPolicy::kFixed;
  const int64_t rows_per_cta = is_fixed ? planner::kFixedPartialRowsPerCta : planner::kPartialRowsPerCta;
  // A member's rows of its own, and those of each of its prefixes.
  const int64_t max_shared = is_fixed ? 0 : limits.max_shared_qo_len;
  const int64_t shared_rows = 2 * max_shared * shape.num_qo_heads;
  const int64_t max_partial_rows = rows_per_cta * limits.num_ctas + shared_rows;
  planner::check_partial_rows(max_partial_rows);
  const int64_t lse_offset = planner::align_up(plan_bytes * limits.num_windows, kRegionAlignment);
  const int64_t lse_bytes = max_partial_rows * static_cast<int64_t>(sizeof(float));
  const int64_t out_offset = planner::align_up(lse_offset + lse_bytes, kRegionAlignment);
  return {
      .plan_bytes = static_cast<size_t>(plan_bytes),
      .partial_lse_offset = static_cast<size_t>(lse_offset),
      .partial_out_offset = static_cast<size_t>(out_offset),
      .total_bytes = static_cast<size_t>(out_offset + lse_bytes * shape.head_dim_vo),
      .max_partial_rows = static_cast<int32_t>(max_partial_rows),
  };
}

const PlanHeader* plan_batch(const BatchSpec& batch, const PlanLimits& limits, const CostModel& costs,
                             void* buffer) {
  planner::check_limits(limits, batch.shape);
  planner::check_batch(batch, limits);
  thread_local planner::Scratch scratch;
  planner::make_schedule(batch, limits, costs, scratch);
  planner::check_mask_bytes(scratch.masks, limits);
  return planner::write_plan(batch, costs.launch_us(), scratch, buffer);
}

void predict_items(const PlanHeader* plan, const BatchSpec& batch, const CostModel& costs, double* us) {
  using namespace planner;
  const auto* items = plan_section<WorkItem>(plan, plan->items_offset);
  const KindCosts narrow = narrow_unit_costs(costs, std::max(plan->num_narrow_ctas, 1));
  const KindCosts wide = wide_unit_costs(costs, plan->num_ctas, plan->num_narrow_ctas);
  check_prefix_requests(batch);
  Prefixes prefixes;
  prefixes.start(batch);
  const auto class_of = [&](const WorkItem& item, bool is_narrow) -> int32_t {
    if (is_narrow) return row_class(item.num_rows);
    if (is_of_prefix(*plan, item)) return prefixes.class_of_wide_tile(item.request, item.kv_begin);
    const int32_t qo_len = batch.qo_indptr[item.request + 1] - batch.qo_indptr[item.request];
    return wide_class(int64_t{qo_len} * plan->group_size);
  };
  for (int32_t i = 0; i < plan->num_items; ++i) {
    const WorkItem& item = items[i];
    const bool is_narrow = i < plan->wide_begin;
    const int32_t own_class = class_of(item, is_narrow);
    const int32_t cost_class = is_merged(*plan, item) ? merged_class(own_class) : own_class;
    const UnitCosts& unit = (is_narrow ? narrow : wide)[cost_class];
    us[i] = num_units(item) * unit.whole_us(num_steps(item)) + (item.split_tile >= 0 ? unit.split_us : 0);
  }
}

}  // namespace onewave
