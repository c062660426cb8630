#pragma once

#include <onewave/cost_model.h>
#include <onewave/plan_format.h>
#include <onewave/types.h>

#include <cstddef>
#include <cstdint>

namespace onewave {

/// Where the keys of a request may be cut.
enum class SplitPolicy : int32_t {
  kBalanced,  ///< where CTAs end together
  kFixed,     ///< where the request and the limits alone say: its results have the same bits in every batch
};

/// What every batch of one object stays within: fixes the workspace.
struct PlanLimits {
  int32_t max_batch_size;
  int32_t max_total_qo_len;  ///< tokens, over the batch
  int32_t max_kv_len;        ///< tokens, of one request
  int32_t num_ctas;          ///< 1 .. kMaxNumCtas
  SplitPolicy split_policy = SplitPolicy::kBalanced;
  int32_t num_windows = 1;     ///< plans that one object holds at a time, one for each window
  int32_t max_mask_bytes = 0;  ///< of the custom masks in a plan, as MaskTiles and MaskRows
  /// Query tokens of a plan that share prefixes, one in several groups counted in each: room for their
  /// partials. (Those of longer prompts share none, see PrefixGroup.)
  int32_t max_shared_qo_len = 0;
};

/// What a query sees, beside what BatchSpec::causal says, and what becomes of its scores. The query at
/// position p, which for token i of a request is kv_len - qo_len + i, sees its keys >= p - window_left.
struct MaskSpec {
  int32_t window_left = -1;   ///< negative: no window
  float logits_soft_cap = 0;  ///< c: a scaled score s becomes c tanh(s / c); 0: it stays
  /// [batch_size], not 0: causal, in place of BatchSpec::causal for this request. May be null.
  const uint8_t* causal_arr = nullptr;
  /// Bits, the low one of a byte first: bit i * kv_len + j, from byte mask_indptr[request] on, says whether
  /// token i sees key j. Nothing else does then, but the window. A request whose range of bytes is empty has
  /// no such mask. Both may be null.
  const uint8_t* custom_mask = nullptr;
  const int64_t* mask_indptr = nullptr;  ///< [batch_size + 1], bytes
};

/// Requests whose first tokens are the same pages: these are read once for all of them. Groups nest, as paths
/// in a tree of prefixes do: two have no request in common, or one has all of the other's; where that one's
/// prefix is longer, the part behind the outer one's is what is read for it.
///
/// It changes no result but by rounding. What is shared ends at the last multiple of kTileKv. A request of
/// more packed rows than half of a wide tile reads all its keys for itself; so do all in a plan of a window.
/// For the others they are read once for each wide tile of rows that lie side by side in q.
struct PrefixGroup {
  int32_t request_begin;
  int32_t request_end;
  int32_t num_tokens;  ///< all of which all queries of these requests see
};

/// One step. Length arrays are on the host; kv_indices is an address the planner never follows.
struct BatchSpec {
  AttentionShape shape;
  bool causal;
  float sm_scale;  ///< > 0
  int32_t batch_size;
  const int32_t* qo_indptr;   ///< [batch_size + 1], tokens
  const int32_t* kv_indptr;   ///< [batch_size + 1], pages; null: the page ids are a block table
  const int32_t* kv_len_arr;  ///< [batch_size], tokens
  const int32_t* kv_indices;  ///< page ids: [kv_indptr[batch_size]], or the block table
  /// A block table has a row of page ids for each request, of which its keys take as many as they need.
  int32_t block_table_width = 0;   ///< page ids of a row
  int64_t block_table_stride = 0;  ///< from a row to the next
  /// [batch_size] tokens that update_kv_lens() reads, an address of the side that runs; kv_len_arr are upper
  /// bounds then, which what is above them counts as. Null: kv_len_arr are the lengths.
  const int32_t* actual_kv_len_arr = nullptr;
  MaskSpec masks{};
  /// [num_prefix_groups], in any order. Page tables and lengths are those of whole requests all the same;
  /// that the pages are the same is not checked. Where lengths are upper bounds, those that turn out are such
  /// that all queries of a group still see all its tokens.
  const PrefixGroup* prefix_groups = nullptr;
  int32_t num_prefix_groups = 0;
};

/// Where things lie in the device workspace. The plans are at its start, one for each window.
struct WorkspaceLayout {
  size_t plan_bytes;  ///< capacity for the largest plan within the limits: from one plan to the next
  size_t partial_lse_offset;
  size_t partial_out_offset;
  size_t total_bytes;
  int32_t max_partial_rows;
};

/// Host only, no allocation. Throws InvalidArgument for limits or shapes that cannot be.
WorkspaceLayout workspace_layout(const PlanLimits& limits, const AttentionShape& shape);

/// Writes the plan of one step to `buffer` (16-byte aligned, at least workspace_layout().plan_bytes) and
/// returns its header there. A pure function of its arguments: host only, no CUDA, any thread, several at a
/// time. Its scratch memory is the thread's: grown by larger batches, kept until the thread ends. `costs` are
/// those of the batch's shape. Throws InvalidArgument, naming the argument, before anything is written, when
/// the batch is malformed or beyond the limits.
const PlanHeader* plan_batch(const BatchSpec& batch, const PlanLimits& limits, const CostModel& costs,
                             void* buffer);

/// What the planner took each item of the batch's plan to cost: microseconds to `us`, num_items of them. A
/// CTA's predicted_us is the sum over its narrow items and the wide ones that it takes if the predictions
/// hold, and what the launch costs. Of the batch it looks at the lengths of queries and the prefix_groups.
void predict_items(const PlanHeader* plan, const BatchSpec& batch, const CostModel& costs, double* us);

}  // namespace onewave
