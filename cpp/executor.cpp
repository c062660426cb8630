/// Runs a plan as the kernel does: every CTA walks its list and then takes from the queue, a split item
/// leaves partials, and the last split of a tile to arrive merges it. Threads take the place of SMs. No loop
/// here knows the batch: only records of the plan.

#include <onewave/executor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <thread>
#include <vector>

#include "cpu_float.h"
#include "cpu_profile.h"
#include "cpu_tile.h"
#include "fail.h"
#include "run_checks.h"

namespace onewave {
namespace {

/// A row of q, out and lse.
struct QueryRow {
  int64_t token;
  int64_t head;
};

float scale_of(float scale, const float* pointer) { return pointer == nullptr ? scale : scale * *pointer; }

/// What all rows of K or V have in common.
float common_scale(float scale, const KvScales& scales) {
  return scale_of(scale, scales.is_one_factor() ? scales.data : nullptr);
}

/// What a row has beside it.
float row_scale(const KvScales& scales, int64_t page, int64_t token, int64_t kv_head) {
  if (scales.data == nullptr || scales.is_one_factor()) return 1.0f;
  return scales.data[page * scales.page_stride + token / scales.group_tokens * scales.group_stride +
                     kv_head * scales.head_stride];
}

float sm_scale_log2(const PlanHeader& header, const RunArgs& args) {
  return args.sm_scale > 0 ? args.sm_scale * std::numbers::log2e_v<float> : header.sm_scale_log2;
}

/// Of the scores of a kv head's queries.
float query_scale(const RunArgs& args, int32_t kv_head) {
  return args.q_scales == nullptr ? 1.0f : args.q_scales[kv_head * args.q_scale_head_stride];
}

/// What a thread works with.
struct Worker {
  TileScratch scratch;
  ThreadProfile profile;
};

/// One call: the plan, the tensors, and the partials that its threads share.
template <class QueryElement, class KvElement, class OutElement>
class Execution {
 public:
  Execution(const PlanHeader& header, const RunArgs& args)
      : header_(header),
        args_(args),
        ctas_(plan_section<CtaRecord>(&header, kCtasOffset)),
        items_(plan_section<WorkItem>(&header, header.items_offset)),
        split_tiles_(plan_section<SplitTile>(&header, header.split_tiles_offset)),
        kv_indices_(reinterpret_cast<const int32_t*>(header.kv_indices)),
        score_scale_(scale_of(sm_scale_log2(header, args), args.sm_scale_ptr) *
                     common_scale(args.k_scale, args.k_scales)),
        v_scale_(common_scale(args.v_scale, args.v_scales)),
        soft_cap_(header.logits_soft_cap * std::numbers::log2e_v<float>),
        partial_out_(static_cast<size_t>(header.num_partial_rows) * header.head_dim_vo),
        partial_lse_(header.num_partial_rows),
        arrivals_(header.num_split_tiles) {}

  /// The narrow items of one CTA.
  void run_cta(int32_t cta, Worker& worker) {
    for (int32_t i = ctas_[cta].narrow_begin; i < ctas_[cta].narrow_end; ++i) run_item(i, worker);
  }

  void run_item(int32_t index, Worker& worker) {
    const WorkItem& item = items_[index];
    // A plan from which a merge record was taken has no place for the partials of its items.
    const int32_t num_tiles = (item.kv_head_end - item.kv_head_begin) / item.heads_per_step;
    if (item.split_tile >= 0 && item.split_tile + num_tiles > header_.num_split_tiles) return;
    for (int32_t head = item.kv_head_begin; head < item.kv_head_end; ++head) run_head(item, head, worker);
    if (item.split_tile >= 0) {
      worker.profile.time(ProfilePhase::kMerge, [&] {
        for (int32_t i = 0; i < num_tiles; ++i) finish_split(item.split_tile + i, worker.scratch);
      });
    }
    worker.profile.end_item(item, index >= header_.wide_begin);
  }

 private:
  QueryRow query_row(int32_t q_token_begin, int32_t packed_row, int32_t kv_head) const {
    return {.token = q_token_begin + packed_row / header_.group_size,
            .head = static_cast<int64_t>(kv_head) * header_.group_size + packed_row % header_.group_size};
  }

  const KvElement* kv_row(const PagedTensor& tensor, int64_t page, int64_t token, int32_t kv_head) const {
    return static_cast<const KvElement*>(tensor.data) + page * tensor.page_stride +
           token * tensor.token_stride + kv_head * tensor.head_stride;
  }

  void load_queries(const WorkItem& item, int32_t kv_head, TileScratch& scratch) const {
    const float scale = query_scale(args_, kv_head);
    for (int32_t row = 0; row < item.num_rows; ++row) {
      const QueryRow source = query_row(item.q_token_begin, item.row_begin + row, kv_head);
      const QueryElement* elements = static_cast<const QueryElement*>(args_.q) +
                                     source.token * args_.q_token_stride + source.head * args_.q_head_stride;
      float* q = &scratch.q[static_cast<size_t>(row) * header_.head_dim_qk];
      for (int32_t column = 0; column < header_.head_dim_qk; ++column)
        q[column] = to_float(elements[column]) * scale;
    }
  }

  /// The request's keys [begin, end), to where they are in their step: what lies behind the item's last key
  /// is never read, it may be anything.
  void load_keys(const WorkItem& item, int32_t kv_head, int32_t begin, int32_t end,
                 TileScratch& scratch) const {
    for (int32_t key = begin; key < end; ++key) {
      const int64_t page = kv_indices_[item.page_begin + key / header_.page_size];
      const int64_t token = key % header_.page_size;
      const KvElement* k = kv_row(args_.k, page, token, kv_head);
      const KvElement* v = kv_row(args_.v, page, token, kv_head);
      const float k_scale = row_scale(args_.k_scales, page, token, kv_head);
      const float v_scale = row_scale(args_.v_scales, page, token, kv_head);
      const int32_t row = key % kTileKv;
      for (int32_t column = 0; column < header_.head_dim_qk; ++column)
        scratch.k_transposed[static_cast<size_t>(column) * kTileKv + row] = to_float(k[column]) * k_scale;
      float* v_row = &scratch.v[static_cast<size_t>(row) * header_.head_dim_vo];
      for (int32_t column = 0; column < header_.head_dim_vo; ++column)
        v_row[column] = to_float(v[column]) * v_scale;
    }
  }

  void run_head(const WorkItem& item, int32_t kv_head, Worker& worker) {
    TileScratch& scratch = worker.scratch;
    worker.profile.time(ProfilePhase::kWaitQueries, [&] { load_queries(item, kv_head, scratch); });
    scratch.reset(item.num_rows);
    const bool has_keys = item.kv_end > item.kv_begin;
    for (int32_t step_begin = (item.kv_end - 1) / kTileKv * kTileKv;
         has_keys && step_begin + kTileKv > item.kv_begin; step_begin -= kTileKv) {
      const int32_t begin = std::max(step_begin, item.kv_begin);
      const int32_t end = std::min(step_begin + kTileKv, item.kv_end);
      const MaskTile* mask_tile = find_mask_tile(item, step_begin);
      const int32_t moved = mask_tile != nullptr ? mask_tile->tile * kTileKv - step_begin : 0;
      worker.profile.time(ProfilePhase::kWaitKeys,
                          [&] { load_keys(item, kv_head, begin + moved, end + moved, scratch); });
      worker.profile.time(ProfilePhase::kProducts,
                          [&] { add_keys(item, step_begin, begin, end, mask_tile, scratch); });
    }
    worker.profile.time(ProfilePhase::kStore, [&] {
      if (item.split_tile < 0) {
        store_output(item, kv_head, scratch);
      } else {
        store_partials(item, kv_head, scratch);
      }
    });
  }

  /// All rows against the keys [begin, end) of the step that begins at `step_begin`, which are loaded.
  void add_keys(const WorkItem& item, int32_t step_begin, int32_t begin, int32_t end,
                const MaskTile* mask_tile, TileScratch& scratch) const {
    const int32_t first_token = item.row_begin / header_.group_size;
    for (int32_t row = 0; row < item.num_rows; ++row) {
      const int32_t token = (item.row_begin + row) / header_.group_size;
      const int64_t visible_end = int64_t{item.causal_shift} + token + 1;
      const int64_t visible_begin = int64_t{item.window_shift} + token;
      const auto row_begin = static_cast<int32_t>(std::max<int64_t>(begin, visible_begin) - step_begin);
      const auto row_end = static_cast<int32_t>(std::min<int64_t>(end, visible_end) - step_begin);
      if (row_end > row_begin)
        scratch.add_keys(row, row_begin, row_end, mask_row(mask_tile, token - first_token), score_scale_,
                         soft_cap_);
    }
  }

  /// Of the step that begins at `key`, as the item counts it; null where the tile has no custom mask.
  const MaskTile* find_mask_tile(const WorkItem& item, int32_t key) const {
    if (item.mask_begin == kNoMask) return nullptr;
    return plan_section<MaskTile>(&header_, header_.mask_tiles_offset) + item.mask_begin + key / kTileKv;
  }

  /// Null where all of the tile's keys are seen.
  const MaskRow* mask_row(const MaskTile* tile, int32_t token) const {
    if (tile == nullptr || tile->first_row < 0) return nullptr;
    return plan_section<MaskRow>(&header_, header_.mask_rows_offset) + tile->first_row + token;
  }

  float sink_of(const QueryRow& row) const {
    return args_.sinks == nullptr ? kMinusInfinity : args_.sinks[row.head] * std::numbers::log2e_v<float>;
  }

  void store_output(const WorkItem& item, int32_t kv_head, const TileScratch& scratch) const {
    for (int32_t row = 0; row < item.num_rows; ++row) {
      const QueryRow target = query_row(item.q_token_begin, item.row_begin + row, kv_head);
      const RowEnd end = finish_row(scratch.m[row], scratch.l[row], sink_of(target));
      store_row(target, &scratch.out[static_cast<size_t>(row) * header_.head_dim_vo],
                end.out_scale * v_scale_, end.lse);
    }
  }

  void store_row(const QueryRow& target, const float* values, float scale, float lse) const {
    OutElement* out = static_cast<OutElement*>(args_.out) + target.token * args_.out_token_stride +
                      target.head * args_.out_head_stride;
    for (int32_t column = 0; column < header_.head_dim_vo; ++column) {
      out[column] = from_float<OutElement>(values[column] * scale);
    }
    if (args_.lse == nullptr) return;
    args_.lse[target.token * header_.num_qo_heads + target.head] =
        args_.natural_lse ? lse * std::numbers::ln2_v<float> : lse;
  }

  int64_t partial_row(const SplitTile& tile, int32_t kv_head, int32_t split_idx, int32_t row) const {
    const int64_t num_heads = tile.kv_head_end - tile.kv_head_begin;
    return tile.partial_row_begin + (split_idx * num_heads + kv_head - tile.kv_head_begin) * tile.num_rows +
           row;
  }

  void store_partials(const WorkItem& item, int32_t kv_head, TileScratch& scratch) {
    const SplitTile& tile =
        split_tiles_[item.split_tile + (kv_head - item.kv_head_begin) / item.heads_per_step];
    for (int32_t row = 0; row < item.num_rows; ++row) {
      const int64_t target = partial_row(tile, kv_head, item.split_idx, row);
      const float* source = &scratch.out[static_cast<size_t>(row) * header_.head_dim_vo];
      const RowEnd end = finish_row(scratch.m[row], scratch.l[row], kMinusInfinity);
      const float scale = end.out_scale * v_scale_;
      float* out = &partial_out_[target * header_.head_dim_vo];
      for (int32_t column = 0; column < header_.head_dim_vo; ++column) out[column] = source[column] * scale;
      partial_lse_[target] = end.lse;
    }
  }

  /// Whether it is the last.
  bool count_arrival(int32_t split_tile) {
    return arrivals_[split_tile].fetch_add(1, std::memory_order_acq_rel) + 1 ==
           num_arrivals(split_tiles_[split_tile]);
  }

  /// Counts the split whose partials are stored; the last merges, or where it is a prefix counts it for its
  /// members.
  void finish_split(int32_t split_tile, TileScratch& scratch) {
    if (!count_arrival(split_tile)) return;
    const SplitTile& tile = split_tiles_[split_tile];
    if (tile.num_members == 0) return merge(tile, scratch);
    for (int32_t i = 0; i < tile.num_members; ++i) {
      const int32_t member = tile.first_member + i * header_.num_kv_heads;
      if (count_arrival(member)) merge(split_tiles_[member], scratch);
    }
  }

  /// Those of a tile's row: of its prefixes, and then its own.
  template <class Visit>
  void for_each_partial_row(const SplitTile& tile, int32_t kv_head, int32_t row, const Visit& visit) const {
    if (tile.num_prefixes == 0) {
      for (int32_t split = 0; split < tile.num_splits; ++split) visit(partial_row(tile, kv_head, split, row));
      return;
    }
    const auto* sources = plan_section<PartialRows>(&header_, header_.partial_rows_offset) + tile.list_begin;
    for (int32_t i = 0; i <= tile.num_prefixes; ++i) {
      for (int32_t split = 0; split < sources[i].num_splits; ++split)
        visit(sources[i].first + int64_t{split} * sources[i].stride + row);
    }
  }

  /// lse = log2(sum_s 2^lse_s), out = sum_s 2^(lse_s - lse) out_s, with s in the order of the plan, so that
  /// the result does not depend on which thread was last.
  void merge(const SplitTile& tile, TileScratch& scratch) const {
    for (int32_t head = tile.kv_head_begin; head < tile.kv_head_end; ++head) merge_head(tile, head, scratch);
  }

  void merge_head(const SplitTile& tile, int32_t kv_head, TileScratch& scratch) const {
    float* sum = scratch.out.data();
    for (int32_t row = 0; row < tile.num_rows; ++row) {
      float max_lse = kMinusInfinity;
      for_each_partial_row(tile, kv_head, row,
                           [&](int64_t source) { max_lse = std::max(max_lse, partial_lse_[source]); });
      const float reference = max_lse == kMinusInfinity ? 0.0f : max_lse;
      float total = 0.0f;
      std::fill_n(sum, header_.head_dim_vo, 0.0f);
      for_each_partial_row(tile, kv_head, row, [&](int64_t source) {
        const float weight = std::exp2(partial_lse_[source] - reference);
        total += weight;
        add_vector_matrix(&weight, &partial_out_[source * header_.head_dim_vo], 1, header_.head_dim_vo, sum);
      });
      const QueryRow target = query_row(tile.q_token_begin, tile.row_begin + row, kv_head);
      const RowEnd end = finish_row(reference, total, sink_of(target));
      store_row(target, sum, end.out_scale, end.lse);
    }
  }

  const PlanHeader& header_;
  const RunArgs& args_;
  const CtaRecord* ctas_;
  const WorkItem* items_;
  const SplitTile* split_tiles_;
  const int32_t* kv_indices_;
  const float score_scale_;
  const float v_scale_;
  const float soft_cap_;  ///< of scores in base 2; 0: none
  std::vector<float> partial_out_;
  std::vector<float> partial_lse_;
  std::vector<std::atomic<int32_t>> arrivals_;  ///< of each split tile
};

template <class QueryElement, class KvElement, class OutElement>
void execute(const PlanHeader& header, const RunArgs& args, int32_t num_threads) {
  Execution<QueryElement, KvElement, OutElement> execution(header, args);
  // All memory is there before the first thread starts: a thread that throws ends the process.
  std::vector<Worker> workers(num_threads, {TileScratch(header.head_dim_qk, header.head_dim_vo), {}});
  for (int32_t thread = 0; args.profile != nullptr && thread < num_threads; ++thread)
    workers[thread].profile = {args.profile, args.num_profile_bytes, num_threads, thread, args.window};
  // First the CTAs' narrow items, then the wide ones, as the kernel's queue gives them out.
  const int32_t num_jobs = header.num_ctas + header.num_items - header.wide_begin;
  std::atomic<int32_t> next_job = 0;
  const auto work = [&](int32_t thread) {
    for (int32_t job = next_job++; job < num_jobs; job = next_job++) {
      if (job < header.num_ctas) {
        execution.run_cta(job, workers[thread]);
      } else {
        execution.run_item(header.wide_begin + job - header.num_ctas, workers[thread]);
      }
    }
  };
  std::vector<std::jthread> threads;
  for (int32_t thread = 1; thread < num_threads; ++thread) threads.emplace_back(work, thread);
  work(0);
}

template <class Element>
void execute_by_cache(const PlanHeader& header, const RunArgs& args, int32_t num_threads) {
  if (args.kv_dtype == DType::kFloat8E4M3)
    return execute<Element, Float8E4M3, Element>(header, args, num_threads);
  execute<Element, Element, Element>(header, args, num_threads);
}

template <class OutElement>
void execute_fp8(const PlanHeader& header, const RunArgs& args, int32_t num_threads) {
  execute<Float8E4M3, Float8E4M3, OutElement>(header, args, num_threads);
}

}  // namespace

void update_kv_lens(PlanHeader* plan) {
  if (plan->item_bounds_offset == 0) return;
  const auto* kv_lens = reinterpret_cast<const int32_t*>(plan->actual_kv_lens);
  const auto* bounds = plan_section<ItemBounds>(plan, plan->item_bounds_offset);
  auto* items = const_cast<WorkItem*>(plan_section<WorkItem>(plan, plan->items_offset));
  for (int32_t i = 0; i < plan->num_items; ++i) set_kv_len(items[i], bounds[i], kv_lens[items[i].request]);
}

void execute_plan(const PlanHeader* plan, const RunArgs& args, int num_threads) {
  if (args.num_rows < plan->total_qo_len) {
    fail("num_rows is ", args.num_rows,
         "; it must be at least the plan's total_qo_len = ", plan->total_qo_len);
  }
  check_cpu_dtypes(args);
  const int32_t wanted =
      num_threads > 0 ? num_threads : static_cast<int32_t>(std::thread::hardware_concurrency());
  const int32_t used = std::clamp(wanted, 1, std::max(plan->num_ctas, 1));
  check_profile(args, used);
  switch (args.dtype) {
    case DType::kFloat32:
      return execute_by_cache<float>(*plan, args, used);
    case DType::kFloat16:
      return execute_by_cache<Float16>(*plan, args, used);
    case DType::kBFloat16:
      return execute_by_cache<BFloat16>(*plan, args, used);
    case DType::kFloat8E4M3:
      if (args.out_dtype == DType::kFloat32) return execute_fp8<float>(*plan, args, used);
      if (args.out_dtype == DType::kFloat16) return execute_fp8<Float16>(*plan, args, used);
      return execute_fp8<BFloat16>(*plan, args, used);
  }
}

}  // namespace onewave
