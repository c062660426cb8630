/// Everything that can be wrong with limits, a shape or a batch, said before anything is written.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "fail.h"
#include "planner_internal.h"
#include "planner_masks.h"
#include "planner_prefixes.h"

namespace onewave::planner {
namespace {

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) fail(name, " is ", value, ", it must be in ", least, "..", most);
}

void check_request(const BatchSpec& batch, const PlanLimits& limits, int32_t i) {
  const int32_t page_size = batch.shape.page_size;
  const int32_t kv_len = batch.kv_len_arr[i];
  if (batch.qo_indptr[i + 1] < batch.qo_indptr[i]) {
    fail("qo_indptr[", i + 1, "] is ", batch.qo_indptr[i + 1], ", it must be at least qo_indptr[", i,
         "] = ", batch.qo_indptr[i]);
  }
  if (kv_len < 0 || kv_len > limits.max_kv_len) {
    fail("kv_len_arr[", i, "] is ", kv_len, ", it must be in 0..", limits.max_kv_len, " (max_kv_len)");
  }
  const bool is_csr = batch.kv_indptr != nullptr;
  if (is_csr && batch.kv_indptr[i + 1] < batch.kv_indptr[i]) {
    fail("kv_indptr[", i + 1, "] is ", batch.kv_indptr[i + 1], ", it must be at least kv_indptr[", i,
         "] = ", batch.kv_indptr[i]);
  }
  const int64_t num_pages =
      is_csr ? int64_t{batch.kv_indptr[i + 1]} - batch.kv_indptr[i] : batch.block_table_width;
  if (num_pages * page_size < kv_len) {
    fail(is_csr ? "kv_indptr" : "block_table", " gives request ", i, " ", num_pages, " pages of ", page_size,
         " tokens, kv_len_arr[", i, "] = ", kv_len, " needs at least ",
         (int64_t{kv_len} + page_size - 1) / page_size);
  }
}

void check_mask(const BatchSpec& batch, int32_t i) {
  const int64_t* indptr = batch.masks.mask_indptr;
  const int64_t wanted = mask_bytes(batch.qo_indptr[i + 1] - batch.qo_indptr[i], batch.kv_len_arr[i]);
  const int64_t num_bytes = indptr[i + 1] - indptr[i];
  if (indptr[i] < 0 || (num_bytes != 0 && num_bytes != wanted)) {
    fail("mask_indptr gives request ", i, " ", num_bytes, " bytes from ", indptr[i],
         ", it must be 0, for no mask, or ", wanted, ", a bit for each of its queries and keys");
  }
}

void check_masks(const BatchSpec& batch, const PlanLimits& limits) {
  const MaskSpec& masks = batch.masks;
  if (!(masks.logits_soft_cap >= 0) || !std::isfinite(masks.logits_soft_cap)) {
    fail("logits_soft_cap is ", masks.logits_soft_cap, ", it must be positive and finite, or 0 for none");
  }
  if (masks.custom_mask == nullptr) return;
  if (masks.mask_indptr == nullptr)
    fail("mask_indptr is null, it must be an array of ", batch.batch_size + 1);
  if (batch.actual_kv_len_arr != nullptr) {
    fail("custom_mask is given with actual_kv_len_arr; lengths must be exact with it");
  }
  if (limits.max_mask_bytes == 0) fail("max_mask_bytes is 0, it must be more for a custom_mask");
  for (int32_t i = 0; i < batch.batch_size; ++i) check_mask(batch, i);
}

/// The kernel counts page ids from the first in 32 bits.
void check_page_table(const BatchSpec& batch) {
  if (batch.kv_indptr != nullptr) {
    if (batch.kv_indptr[0] < 0) fail("kv_indptr[0] is ", batch.kv_indptr[0], ", it must be at least 0");
    return;
  }
  if (batch.block_table_width == 0) fail("kv_indptr is null, it must be an array of ", batch.batch_size + 1);
  check_range("block_table_width", batch.block_table_width, 1, INT32_MAX);
  const int64_t num_ids = int64_t{INT32_MAX} - batch.block_table_width;
  check_range("block_table_stride", batch.block_table_stride, 0, num_ids / std::max(batch.batch_size - 1, 1));
}

/// What the executor takes; a kernel is for one of each.
void check_head_dim(const char* name, int32_t head_dim) {
  check_range(name, head_dim, kHeadDimStep, kMaxHeadDim);
  if (head_dim % kHeadDimStep != 0) fail(name, " is ", head_dim, ", it must be a multiple of ", kHeadDimStep);
}

}  // namespace

void check_limits(const PlanLimits& limits, const AttentionShape& shape) {
  check_range("max_batch_size", limits.max_batch_size, 1, INT32_MAX - 1);
  check_range("max_total_qo_len", limits.max_total_qo_len, 1, kMaxTotalQoLen);
  check_range("max_kv_len", limits.max_kv_len, 1, kMaxKvLen);
  check_range("num_ctas", limits.num_ctas, 1, kMaxNumCtas);
  check_range("num_windows", limits.num_windows, 1, kMaxNumWindows);
  check_range("max_mask_bytes", limits.max_mask_bytes, 0, kMaxMaskBytes);
  check_range("max_shared_qo_len", limits.max_shared_qo_len, 0, kMaxSharedQoLen);
  check_range("num_kv_heads", shape.num_kv_heads, 1, kMaxNumHeads);
  check_range("num_qo_heads", shape.num_qo_heads, 1, kMaxNumHeads);
  if (shape.num_qo_heads % shape.num_kv_heads != 0) {
    fail("num_qo_heads is ", shape.num_qo_heads,
         ", it must be a multiple of num_kv_heads = ", shape.num_kv_heads);
  }
  const int32_t group_size = shape.num_qo_heads / shape.num_kv_heads;
  if (group_size > kMaxGroupSize) {
    fail("num_qo_heads / num_kv_heads is ", group_size, ", it must be at most ", kMaxGroupSize);
  }
  check_head_dim("head_dim_qk", shape.head_dim_qk);
  check_head_dim("head_dim_vo", shape.head_dim_vo);
  check_range("page_size", shape.page_size, 1, kMaxKvLen);
  const int32_t most_tokens = (INT32_MAX - kWideTileQ) / group_size;
  if (limits.max_total_qo_len > most_tokens) {
    fail("max_total_qo_len is ", limits.max_total_qo_len, ", it must be at most ", most_tokens,
         " with num_qo_heads / num_kv_heads = ", group_size);
  }
}

void check_batch(const BatchSpec& batch, const PlanLimits& limits) {
  check_range("batch_size", batch.batch_size, 0, limits.max_batch_size);
  if (batch.qo_indptr == nullptr) fail("qo_indptr is null, it must be an array of ", batch.batch_size + 1);
  if (batch.kv_len_arr == nullptr && batch.batch_size > 0) {
    fail("kv_len_arr is null, it must be an array of ", batch.batch_size);
  }
  if (!(batch.sm_scale > 0) || !std::isfinite(batch.sm_scale * std::numbers::log2e_v<float>)) {
    fail("sm_scale is ", batch.sm_scale, ", it must be positive and finite, in base 2 too");
  }
  if (batch.qo_indptr[0] != 0) fail("qo_indptr[0] is ", batch.qo_indptr[0], ", it must be 0");
  check_page_table(batch);
  for (int32_t i = 0; i < batch.batch_size; ++i) check_request(batch, limits, i);
  check_masks(batch, limits);
  check_prefix_groups(batch, limits);
  const int32_t total_qo_len = batch.qo_indptr[batch.batch_size];
  if (total_qo_len > limits.max_total_qo_len) {
    fail("qo_indptr[", batch.batch_size, "] is ", total_qo_len,
         ", it must be at most max_total_qo_len = ", limits.max_total_qo_len);
  }
}

void check_mask_bytes(const PlanMasks& masks, const PlanLimits& limits) {
  const size_t num_bytes = masks.tiles.size() * sizeof(MaskTile) + masks.rows.size() * sizeof(MaskRow);
  // What their alignment may add counts as theirs.
  const size_t wanted = masks.tiles.empty() ? 0 : num_bytes + kPlanAlignment;
  if (wanted > static_cast<size_t>(limits.max_mask_bytes)) {
    fail("custom_mask takes ", wanted,
         " bytes of the plan, it must be at most max_mask_bytes = ", limits.max_mask_bytes);
  }
}

void check_shared_qo_len(int64_t shared_qo_len, const PlanLimits& limits) {
  if (shared_qo_len > limits.max_shared_qo_len) {
    fail("prefix_groups has ", shared_qo_len,
         " query tokens, it must have at most max_shared_qo_len = ", limits.max_shared_qo_len);
  }
}

void check_partial_rows(int64_t max_partial_rows) {
  if (max_partial_rows > INT32_MAX) {
    fail("max_shared_qo_len makes partial results of up to ", max_partial_rows,
         " rows, they must be at most ", INT32_MAX);
  }
}

void check_plan_bytes(int64_t plan_bytes) {
  if (plan_bytes > kMaxPlanBytes) {
    fail("max_batch_size, max_total_qo_len and max_shared_qo_len make a plan of up to ", plan_bytes,
         " bytes, it must be at most ", kMaxPlanBytes);
  }
}

}  // namespace onewave::planner
