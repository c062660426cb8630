/// The kernels of rows in onewave._core (bindings.cpp).

#include <onewave/row_kernels.h>

#include <cstdint>
#include <new>

#include "bindings.h"

namespace onewave {
namespace {

void bind_tensors(nb::module_& m) {
  nb::class_<RowTensor>(m, "RowTensor")
      .def(
          "__init__",
          [](RowTensor* self, uintptr_t data, int64_t token_stride, int64_t head_stride) {
            new (self) RowTensor{
                .data = pointer<void>(data), .token_stride = token_stride, .head_stride = head_stride};
          },
          "data"_a, "token_stride"_a, "head_stride"_a);
  nb::class_<PagedTensor>(m, "PagedTensor")
      .def(
          "__init__",
          [](PagedTensor* self, uintptr_t data, int64_t page_stride, int64_t token_stride,
             int64_t head_stride) {
            new (self) PagedTensor{.data = pointer<const void>(data),
                                   .page_stride = page_stride,
                                   .token_stride = token_stride,
                                   .head_stride = head_stride};
          },
          "data"_a, "page_stride"_a, "token_stride"_a, "head_stride"_a);
  nb::class_<HeadScales>(m, "HeadScales")
      .def(
          "__init__",
          [](HeadScales* self, uintptr_t data, int64_t head_stride, float scale) {
            new (self)
                HeadScales{.data = pointer<const float>(data), .head_stride = head_stride, .scale = scale};
          },
          "data"_a = 0, "head_stride"_a = 0, "scale"_a = 1.0f);
  nb::class_<StateSet>(m, "StateSet")
      .def(
          "__init__",
          [](StateSet* self, uintptr_t v, int64_t v_token_stride, int64_t v_state_stride,
             int64_t v_head_stride, uintptr_t s, int64_t s_token_stride, int64_t s_state_stride,
             int64_t s_head_stride, int32_t num_states) {
            new (self) StateSet{.v = pointer<const void>(v),
                                .v_token_stride = v_token_stride,
                                .v_state_stride = v_state_stride,
                                .v_head_stride = v_head_stride,
                                .s = pointer<const float>(s),
                                .s_token_stride = s_token_stride,
                                .s_state_stride = s_state_stride,
                                .s_head_stride = s_head_stride,
                                .num_states = num_states};
          },
          "v"_a, "v_token_stride"_a, "v_state_stride"_a, "v_head_stride"_a, "s"_a, "s_token_stride"_a,
          "s_state_stride"_a, "s_head_stride"_a, "num_states"_a);
}

}  // namespace

void bind_row_kernels(nb::module_& m) {
  bind_tensors(m);
  m.def(
      "append_paged_kv_cache",
      [](int32_t device, DType dtype, DType kv_dtype, int32_t num_kv_heads, int32_t head_dim_qk,
         int32_t head_dim_vo, int32_t page_size, const RowTensor& append_key, const RowTensor& append_value,
         uintptr_t batch_indices, uintptr_t positions, int32_t num_rows, int32_t batch_size,
         const PagedTensor& k, const PagedTensor& v, int32_t num_pages, int32_t num_kv_indices,
         uintptr_t kv_indices, uintptr_t kv_indptr, const HeadScales& k_scale, const HeadScales& v_scale,
         uintptr_t stream) {
        append_paged_kv_cache(device,
                              {.dtype = dtype,
                               .kv_dtype = kv_dtype,
                               .num_kv_heads = num_kv_heads,
                               .head_dim_qk = head_dim_qk,
                               .head_dim_vo = head_dim_vo,
                               .page_size = page_size,
                               .append_key = append_key,
                               .append_value = append_value,
                               .batch_indices = pointer<const int32_t>(batch_indices),
                               .positions = pointer<const int32_t>(positions),
                               .num_rows = num_rows,
                               .batch_size = batch_size,
                               .k = k,
                               .v = v,
                               .num_pages = num_pages,
                               .num_kv_indices = num_kv_indices,
                               .kv_indices = pointer<const int32_t>(kv_indices),
                               .kv_indptr = pointer<const int32_t>(kv_indptr),
                               .k_scale = k_scale,
                               .v_scale = v_scale},
                              pointer<void>(stream));
      },
      nb::call_guard<nb::gil_scoped_release>(), "device"_a, "dtype"_a, "kv_dtype"_a, "num_kv_heads"_a,
      "head_dim_qk"_a, "head_dim_vo"_a, "page_size"_a, "append_key"_a, "append_value"_a, "batch_indices"_a,
      "positions"_a, "num_rows"_a, "batch_size"_a, "k"_a, "v"_a, "num_pages"_a, "num_kv_indices"_a,
      "kv_indices"_a, "kv_indptr"_a, "k_scale"_a, "v_scale"_a, "stream"_a);
  m.def(
      "merge_states",
      [](int32_t device, DType dtype, int32_t num_tokens, int32_t num_heads, int32_t head_dim,
         const StateSet& first, const StateSet& second, const RowTensor& out, uintptr_t lse,
         int64_t lse_token_stride, int64_t lse_head_stride, uintptr_t mask, uintptr_t stream) {
        merge_states(device,
                     {.dtype = dtype,
                      .num_tokens = num_tokens,
                      .num_heads = num_heads,
                      .head_dim = head_dim,
                      .first = first,
                      .second = second,
                      .out = out,
                      .lse = pointer<float>(lse),
                      .lse_token_stride = lse_token_stride,
                      .lse_head_stride = lse_head_stride,
                      .mask = pointer<const bool>(mask)},
                     pointer<void>(stream));
      },
      nb::call_guard<nb::gil_scoped_release>(), "device"_a, "dtype"_a, "num_tokens"_a, "num_heads"_a,
      "head_dim"_a, "first"_a, "second"_a, "out"_a, "lse"_a, "lse_token_stride"_a, "lse_head_stride"_a,
      "mask"_a, "stream"_a);
}

}  // namespace onewave
