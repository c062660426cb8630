#pragma once

/// Work on rows that needs no plan: new K and V into pages, and partial results of attention into one. Each
/// struct is also its kernel's parameter (cuda/append.cu, append_fp8.cu, merge_states.cu), so a CUDA graph
/// bakes in all that stands in it: addresses, strides and sizes. What the addresses point to is read by the
/// launch.

#include <onewave/types.h>

#include <cstdint>

namespace onewave {

/// Element (token, head, column) is at data + token * token_stride + head * head_stride + column. Strides are
/// in elements.
struct RowTensor {
  void* data;
  int64_t token_stride;
  int64_t head_stride;
};

/// Factors that the rows of a cache of fp8 are to be multiplied with, as KvScales of a run: one for each
/// head, or one for all.
struct HeadScales {
  const float* data = nullptr;  ///< the factor of head h is at data + h * head_stride; null: `scale` is all
  int64_t head_stride = 0;      ///< in elements; 0: all heads have the first
  float scale = 1;
};

/// Row i becomes the keys and values of request batch_indices[i] at token positions[i]: of its page
/// kv_indices[kv_indptr[request] + position / page_size], token position % page_size.
///
/// Where kv_dtype is another than dtype an element x is stored as x * (1 / scale), both rounded to float32,
/// then rounded to the nearest of fp8, ties to even. Beyond 448 it is 448 with x's sign; NaN is 0x7f.
struct AppendArgs {
  DType dtype;     ///< of append_key and append_value
  DType kv_dtype;  ///< of k and v: the same, or kFloat8E4M3
  int32_t num_kv_heads;
  int32_t head_dim_qk;  ///< columns of a row of keys
  int32_t head_dim_vo;  ///< of values
  int32_t page_size;
  RowTensor append_key;  ///< [num_rows, num_kv_heads, head_dim_qk]
  RowTensor append_value;
  const int32_t* batch_indices;  ///< [num_rows]
  const int32_t* positions;      ///< [num_rows]
  int32_t num_rows;
  int32_t batch_size;
  PagedTensor k;  ///< num_pages pages of page_size tokens of num_kv_heads rows; written
  PagedTensor v;
  int32_t num_pages;
  int32_t num_kv_indices;
  const int32_t* kv_indices;  ///< [num_kv_indices]
  const int32_t* kv_indptr;   ///< [batch_size + 1]
  HeadScales k_scale;         ///< the default where kv_dtype is dtype
  HeadScales v_scale;
};

/// Results of attention over parts of the keys: of state i of row (token, head) v[token, i, head] is the
/// output and s[token, i, head] the log-sum-exp of the scores in base 2.
struct StateSet {
  const void* v;
  int64_t v_token_stride;
  int64_t v_state_stride;
  int64_t v_head_stride;
  const float* s;
  int64_t s_token_stride;
  int64_t s_state_stride;
  int64_t s_head_stride;
  int32_t num_states;
};

/// The states of both sets become one:
///
///   lse = log2(sum_i 2^s_i)        out = sum_i 2^(s_i - lse) v_i
///
/// A state whose s is -inf counts for nothing, whatever its v; a row of no other is 0, with an lse of -inf.
struct MergeArgs {
  DType dtype;  ///< of v and out
  int32_t num_tokens;
  int32_t num_heads;
  int32_t head_dim;
  StateSet first;
  StateSet second;
  RowTensor out;  ///< [num_tokens, num_heads, head_dim]; may be a state of either set, at the same strides
  float* lse;     ///< [num_tokens, num_heads]; likewise
  int64_t lse_token_stride;
  int64_t lse_head_stride;
  const bool* mask;  ///< [num_tokens]: the rows of a token of false are left as they are; may be null
};

static_assert(sizeof(AppendArgs) == 232 && sizeof(StateSet) == 72 && sizeof(MergeArgs) == 216 &&
                  sizeof(bool) == 1,
              "host and device must agree");

/// Each is one launch on `stream`, a CUstream of `device`; it neither allocates nor synchronises, and is safe
/// in a stream capture. Addresses are the device's. The first call on a device loads the kernel, which
/// allocates; that disturbs no capture, and is no part of one. Any thread.
///
/// Throws InvalidArgument: rows (of head_dim elements; of an append those of the cache too) are whole
/// multiples of 16 bytes, and so are the addresses and strides of all tensors of rows; a stride of a
/// dimension of size 1 is never taken and may be anything. DeviceError where the device cannot be used.

/// A row whose batch index, position or page is not within batch_size, the request's pages, kv_indices and
/// num_pages is skipped: a graph's padding is marked by a batch index of -1. Of two rows for one place any
/// mix stays.
void append_paged_kv_cache(int32_t device, const AppendArgs& args, void* stream);

void merge_states(int32_t device, const MergeArgs& args, void* stream);

}  // namespace onewave
