/// Merges partial results of attention (MergeArgs) as the softmax goes over tiles: a state is a tile whose
/// scores are one, its lse. A row's chunks of 16 bytes are spread over the lanes of one warp, or of a
/// power-of-two part of it: threadIdx.x is the lane, threadIdx.y the row of the CTA. Loads of several states
/// are in flight together. Every lane reads all it needs before lane 0 stores the row's lse, and stores only
/// the columns it has read, so that a row may be merged in place.

#include <onewave/row_kernels.h>

#include "row_threads.h"
#include "softmax.cuh"
#include "unpack.cuh"

namespace onewave {
namespace {

/// States that are on their way together: of two, as where a prefix is shared, neither waits for the other.
constexpr int kBatch = 4;

template <class Element>
constexpr int kChunkCols = kChunkBytes / sizeof(Element);

template <class Element>
using Columns = float[kChunkCols<Element>];

template <class Element>
__device__ __forceinline__ uint32_t pack(const float* columns) {
  if constexpr (sizeof(Element) == 4) {
    return __float_as_uint(columns[0]);
  } else {
    return ptx::pack<Element>(columns[0], columns[1]);
  }
}

/// One state of a row.
struct State {
  float s = -INFINITY;
  uint4 chunk = make_uint4(0, 0, 0, 0);
};

template <class Element>
__device__ __forceinline__ State load_state(const StateSet& set, int state, int64_t token, int64_t head,
                                            int chunk) {
  const auto* v = static_cast<const Element*>(set.v) + token * set.v_token_stride +
                  state * set.v_state_stride + head * set.v_head_stride;
  State loaded;
  loaded.s = set.s[token * set.s_token_stride + state * set.s_state_stride + head * set.s_head_stride];
  loaded.chunk = reinterpret_cast<const uint4*>(v)[chunk];
  return loaded;
}

template <class Element>
__device__ __forceinline__ void unpack_chunk(const State& state, Columns<Element>& columns) {
  constexpr int kWordCols = 4 / sizeof(Element);
  const bool counts = state.s != -INFINITY;  // or its v may be anything
  const uint32_t words[4] = {state.chunk.x, state.chunk.y, state.chunk.z, state.chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) unpack(counts ? words[i] : 0, Element(), columns + i * kWordCols);
}

/// A chunk of a row: the sums over all states, and of their weights.
template <class Element>
struct MergedChunk {
  RowState weights;
  Columns<Element> sums = {};

  __device__ __forceinline__ void add(const State (&states)[kBatch]) {
    float batch_max = -INFINITY;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) batch_max = fmaxf(batch_max, states[b].s);
    const float factor = weights.raise_max(batch_max, 1.f);
#pragma unroll
    for (float& sum : sums) sum *= factor;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const float weight = weights.add(states[b].s, 1.f, finite_max(weights.m));
      Columns<Element> columns;
      unpack_chunk<Element>(states[b], columns);
#pragma unroll
      for (int col = 0; col < kChunkCols<Element>; ++col) sums[col] = fmaf(weight, columns[col], sums[col]);
    }
  }

  __device__ __forceinline__ void store(Element* row, int chunk) {
    constexpr int kWordCols = 4 / sizeof(Element);
    const float scale = row_out_scale(weights.l, 1.f);
#pragma unroll
    for (float& sum : sums) sum *= scale;
    reinterpret_cast<uint4*>(row)[chunk] =
        make_uint4(pack<Element>(sums), pack<Element>(sums + kWordCols), pack<Element>(sums + 2 * kWordCols),
                   pack<Element>(sums + 3 * kWordCols));
  }
};

template <class Element>
__device__ __forceinline__ MergedChunk<Element> merge_chunk(const MergeArgs& args, int64_t token,
                                                            int64_t head, int chunk) {
  const int num_states = args.first.num_states + args.second.num_states;
  MergedChunk<Element> merged;
#pragma unroll 1
  for (int begin = 0; begin < num_states; begin += kBatch) {
    State states[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int state = begin + b;
      const bool is_first = state < args.first.num_states;
      if (state < num_states)
        states[b] = load_state<Element>(is_first ? args.first : args.second,
                                        is_first ? state : state - args.first.num_states, token, head, chunk);
    }
    merged.add(states);
  }
  return merged;
}

template <class Element>
__device__ __forceinline__ void merge_row(const MergeArgs& args, int64_t token, int64_t head) {
  auto* out =
      static_cast<Element*>(args.out.data) + token * args.out.token_stride + head * args.out.head_stride;
  float lse = -INFINITY;
  const int num_chunks = args.head_dim / kChunkCols<Element>;
#pragma unroll 1
  for (int chunk = threadIdx.x; chunk < num_chunks; chunk += blockDim.x) {
    MergedChunk<Element> merged = merge_chunk<Element>(args, token, head, chunk);
    merged.store(out, chunk);
    lse = row_lse(merged.weights.m, merged.weights.l, 1.f);
  }
  __syncwarp();
  if (threadIdx.x == 0) args.lse[token * args.lse_token_stride + head * args.lse_head_stride] = lse;
}

}  // namespace
}  // namespace onewave

extern "C" __global__ void __launch_bounds__(onewave::kRowThreads)
    onewave_merge_states(const __grid_constant__ onewave::MergeArgs args) {
  using namespace onewave;
  const uint32_t row = blockIdx.x * blockDim.y + threadIdx.y;
  const uint32_t token = row / args.num_heads;
  const uint32_t head = row - token * args.num_heads;
  if (token >= static_cast<uint32_t>(args.num_tokens)) return;
  if (args.mask != nullptr && !args.mask[token]) return;
  switch (args.dtype) {
    case DType::kFloat32:
      return merge_row<float>(args, token, head);
    case DType::kFloat16:
      return merge_row<__half>(args, token, head);
    case DType::kBFloat16:
      return merge_row<__nv_bfloat16>(args, token, head);
  }
}
