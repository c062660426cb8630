/// The wide kind: compute-bound units in one queue, turn by turn (planner_sections.h), longest first in each.
/// A min-heap of CTA loads, which starts with the narrow work, predicts who takes what. Splits cost partials
/// and a merge, so they are made only where whole units do not balance; then the line is cut, and no turns
/// are taken.

#include "planner_wide.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace onewave::planner {
namespace {

/// An item takes a range of kv heads while it costs at most this part of a CTA's share of what is left: few
/// items for long work, single heads towards the end, where they even the loads out.
constexpr double kItemShare = 0.5;

/// K and V of a turn (planner_sections.h). 2 and 4 MiB measure alike, 8 MiB is slower (bench/NOTES.md).
constexpr double kTurnBytes = 4 << 20;
/// What items that take turns save beside those that do not, which the model does not know: pieces of units
/// run longest first, whatever the L2 keeps.
constexpr double kTurnGain = 1.04;

/// A makespan within this of the balanced one is not worth a split, nor one within what a cut costs, nor that
/// of a CTA without wide items.
constexpr double kTolerance = 1.05;

/// Loads in whole nanoseconds above the CTA's index: one integer orders the heap, ties included. Four
/// children to a node, of which the last are padded: half as many levels, and no branch but the last for
/// each.
class LoadHeap {
 public:
  LoadHeap(const std::vector<CtaLoad>& ctas, std::vector<uint64_t>& storage) : entries_(storage) {
    entries_.clear();
    for (size_t cta = 0; cta < ctas.size(); ++cta) entries_.push_back(entry(ctas[cta].us, cta));
    std::sort(entries_.begin(), entries_.end());
    entries_.resize(4 * entries_.size() + 1, UINT64_MAX);
  }

  int32_t least_loaded() const { return static_cast<int32_t>(entries_.front() % kMaxNumCtas); }

  /// Adds to the least loaded CTA.
  void add(double us) {
    const uint64_t value = entries_.front() + entry(us, 0);
    uint64_t* entries = entries_.data();
    size_t hole = 0;
    while (true) {
      const size_t first = 4 * hole + 1;
      const size_t low = first + (entries[first + 1] < entries[first]);
      const size_t high = first + 2 + (entries[first + 3] < entries[first + 2]);
      const size_t child = entries[high] < entries[low] ? high : low;
      if (value <= entries[child]) break;
      entries[hole] = entries[child];
      hole = child;
    }
    entries[hole] = value;
  }

 private:
  static uint64_t entry(double us, uint64_t cta) {
    return static_cast<uint64_t>(std::min(us, kMostUs) * 1e3 + 0.5) * kMaxNumCtas + cta;
  }

  /// Eleven days, in 64 bits with the index. Sums may wrap: they order the heap badly, and leave the index.
  static constexpr double kMostUs = 1e12;

  std::vector<uint64_t>& entries_;
};

/// Longest first; ties stay in the order of the tiles, so that CTAs that run at the same time share K and V.
void sort_by_time(const std::vector<Tile>& tiles, const KindCosts& costs, std::vector<uint64_t>& order) {
  order.clear();
  for (size_t i = 0; i < tiles.size(); ++i) {
    const double us = costs[tiles[i].cost_class].whole_us(num_steps(tiles[i]));
    const auto ns = static_cast<uint32_t>(std::min(us * 1e3, 4e9));
    order.push_back(uint64_t{~ns} << 32 | i);
  }
  if (!std::is_sorted(order.begin(), order.end())) std::sort(order.begin(), order.end());
}

/// Whole units to the least loaded CTA, section by section.
void assign_in_order(const std::vector<Tile>& tiles, const KindCosts& costs, double wide_us,
                     WideScratch& scratch, Schedule& schedule) {
  LoadHeap heap(schedule.ctas, scratch.heap);
  const double share = kItemShare / static_cast<double>(schedule.ctas.size());
  double left_us = wide_us;
  const auto assign = [&](const Tile& tile, int32_t head_begin, int32_t head_end) {
    const double one_us = costs[tile.cost_class].whole_us(num_steps(tile));
    const double heads_of_left = share / one_us;
    while (head_begin < head_end) {
      const double fitting = std::clamp<double>(left_us * heads_of_left, 1, head_end - head_begin);
      const auto num_heads = static_cast<int32_t>(fitting);
      const WorkItem item = heads_of(tile, head_begin, head_begin + num_heads);
      head_begin += num_heads;
      schedule.add_item(Kind::kWide, heap.least_loaded(), item, num_heads * one_us);
      heap.add(num_heads * one_us);
      left_us -= num_heads * one_us;
    }
  };
  const int32_t num_kv_heads = tiles.front().kv_head_end;
  for (const WideSection& section : scratch.sections) {
    for (int32_t head = 0; head < num_kv_heads; head += section.num_heads) {
      const int32_t head_end = std::min(head + section.num_heads, num_kv_heads);
      for (size_t i = section.begin; i < section.end; ++i)
        assign(tiles[static_cast<uint32_t>(scratch.order[i])], head, head_end);
    }
  }
}

/// Longest first, nearly: by 512 classes of time, in the order in which they are within each.
void sort_by_time(std::vector<WideItem>& items, WideScratch& scratch) {
  constexpr int kNumBuckets = 512;
  double longest_us = 0;
  for (const WideItem& item : items) longest_us = std::max(longest_us, item.us);
  const double scale = (kNumBuckets - 1) / longest_us;
  const auto bucket = [&](const WideItem& item) {
    return kNumBuckets - 1 - static_cast<int>(item.us * scale);
  };
  scratch.bucket_ends.assign(kNumBuckets + 1, 0);
  for (const WideItem& item : items) ++scratch.bucket_ends[bucket(item) + 1];
  std::partial_sum(scratch.bucket_ends.begin(), scratch.bucket_ends.end(), scratch.bucket_ends.begin());
  scratch.sorted_items.resize(items.size());
  for (const WideItem& item : items) scratch.sorted_items[scratch.bucket_ends[bucket(item)]++] = item;
  items.swap(scratch.sorted_items);
}

/// What was cut for certain CTAs, into the queue: unit by unit, longest first, and the loads that come of it.
void queue_longest_first(WideScratch& scratch, Schedule& schedule) {
  scratch.sorted_items.clear();
  for (const WideItem& range : schedule.wide_items) {
    WideItem unit = range;
    unit.us /= range.item.kv_head_end - range.item.kv_head_begin;
    for (int32_t head = range.item.kv_head_begin; head < range.item.kv_head_end; ++head) {
      unit.item = heads_of(range.item, head, head + 1);
      scratch.sorted_items.push_back(unit);
    }
  }
  schedule.wide_items.swap(scratch.sorted_items);
  sort_by_time(schedule.wide_items, scratch);
  schedule.ctas = scratch.narrow_loads;
  LoadHeap heap(schedule.ctas, scratch.heap);
  for (const WideItem& item : schedule.wide_items) {
    schedule.ctas[heap.least_loaded()].us += item.us;
    heap.add(item.us);
  }
}

/// The longest makespan of whole units that is not worth a cut.
double worth_a_cut_us(double balanced_us, double cut_us, double turn_gain) {
  return turn_gain * std::max(kTolerance * balanced_us, balanced_us + cut_us);
}

double mean_us(const std::vector<CtaLoad>& ctas) {
  double sum_us = 0;
  for (const CtaLoad& load : ctas) sum_us += load.us;
  return sum_us / static_cast<double>(ctas.size());
}

}  // namespace

KindCosts wide_unit_costs(const CostModel& costs, int num_ctas, int num_narrow_ctas) {
  const UnitCosts shared{.start_us = costs.wide_unit_us(num_ctas, num_narrow_ctas),
                         .step_us = costs.wide_step_us(num_ctas, num_narrow_ctas),
                         .split_us = costs.split_us() + kWideTileQ * costs.partial_row_us()};
  KindCosts by_class;
  by_class.fill(shared);
  by_class[kWideAlone].step_us = costs.wide_alone_step_us(num_ctas);
  add_merged_classes(by_class);
  return by_class;
}

double predict_wide_us(const LineWork& work, const KindCosts& costs, int num_ctas, int num_late_ctas,
                       double late_us) {
  const double all_us = work.whole_us(costs);
  const double num_units = work.num_whole_units();
  const double unit_us = all_us / num_units;
  const double mean_load_us = (all_us + num_late_ctas * late_us) / (num_ctas + num_late_ctas);
  const double balanced_us = all_us <= num_ctas * late_us ? all_us / num_ctas : mean_load_us;
  double rounds = std::floor(balanced_us / unit_us);
  double late_rounds = std::max(std::floor((balanced_us - late_us) / unit_us), 0.0);
  double missing = num_units - num_ctas * rounds - num_late_ctas * late_rounds;
  double whole_us = balanced_us;
  while (missing > 1e-6 * num_units) {
    const double next_us = num_ctas > 0 ? (rounds + 1) * unit_us : INFINITY;
    const double next_late_us = late_us + (late_rounds + 1) * unit_us;
    const bool is_late = next_late_us < next_us;
    const int num_next = is_late ? num_late_ctas : num_ctas;
    const double part = std::min(missing / num_next, 1.0);
    whole_us = std::min(next_us, next_late_us) - (1 - part) * (unit_us - work.shortest_us(costs));
    ++(is_late ? late_rounds : rounds);
    missing -= num_next;
  }
  const double cut_us = costs[work.typical_class].cut_us();
  if (whole_us > worth_a_cut_us(mean_load_us, cut_us, kTurnGain))
    whole_us = std::min(whole_us, balanced_us + cut_us);
  return std::max(whole_us, balanced_us);
}

void schedule_wide(const std::vector<Tile>& tiles, const LineWork& work, const CostModel& model,
                   bool may_split, WideScratch& scratch, Schedule& schedule) {
  if (tiles.empty()) return;
  const KindCosts costs =
      wide_unit_costs(model, static_cast<int>(schedule.ctas.size()), schedule.num_narrow_ctas);
  const double wide_us = work.whole_us(costs);
  scratch.narrow_loads = schedule.ctas;
  sort_by_time(tiles, costs, scratch.order);
  const bool has_streams = schedule.num_narrow_ctas > 0;
  scratch.sections.divide(tiles, has_streams ? kTurnBytes : INFINITY, model.key_bytes(), scratch.order);
  assign_in_order(tiles, costs, wide_us, scratch, schedule);
  if (!may_split) return;
  const double whole_us = makespan_us(schedule.ctas);
  const double balanced_us = mean_us(schedule.ctas);
  const double gain = has_streams ? kTurnGain : 1;
  const double tolerated_us = worth_a_cut_us(balanced_us, costs[work.typical_class].cut_us(), gain);
  if (whole_us <= std::max(tolerated_us, makespan_us(scratch.narrow_loads))) return;

  scratch.whole_items.swap(schedule.wide_items);
  scratch.whole_loads.swap(schedule.ctas);
  const size_t num_narrow_splits = schedule.split_tiles.size();
  const int32_t num_narrow_rows = schedule.num_partial_rows;
  schedule.wide_items.clear();
  schedule.ctas = scratch.narrow_loads;
  cut_line(tiles, work, costs, Kind::kWide, static_cast<int>(schedule.ctas.size()), schedule);
  queue_longest_first(scratch, schedule);
  if (gain * makespan_us(schedule.ctas) < whole_us) return;
  scratch.whole_items.swap(schedule.wide_items);
  scratch.whole_loads.swap(schedule.ctas);
  schedule.split_tiles.resize(num_narrow_splits);
  schedule.num_partial_rows = num_narrow_rows;
}

}  // namespace onewave::planner
