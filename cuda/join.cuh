#pragma once

/// The end of a narrow item: each of the eight consumer warps has seen its own keys, with a maximum, a sum
/// and O^T of its own (narrow.cuh). They agree on the joint maximum of every row, add up O^T in shared
/// memory, a slice of columns at a time, in the order of the warps, and store it.

#include "output.cuh"
#include "softmax.cuh"

namespace onewave {

/// `kRows`: packed rows, padded. Registers are laid out as narrow.cuh's accumulators.
template <int kRows>
class NarrowJoin {
  static constexpr int kBlocks = kRows / 8;

 public:
  __device__ __forceinline__ NarrowJoin(JoinBuffer& buffer, const Scales& scales)
      : buffer_(buffer), scales_(scales), lane_(threadIdx.x % 32), warp_(threadIdx.x / 32 - 4) {}

  /// Adds up the warps' results, a slice of columns at a time, and stores them.
  __device__ __forceinline__ void run(const Output& output, RowState (&rows)[2 * kBlocks],
                                      float (&out)[kHeadDim / 16][kBlocks][4]) {
    constexpr int kSliceCols = join_slice_cols(kRows);
    constexpr int kPitch = join_pitch(kRows);
    publish_states(rows);
    ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    rescale_to_joint_max(rows, out);
    store_states(output);
#pragma unroll
    for (int slice = 0; slice < kHeadDim / kSliceCols; ++slice) {
      constexpr int kSliceBlocks = kSliceCols / 16;
#pragma unroll
      for (int m = 0; m < kSliceBlocks; ++m) {
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
          float* target = buffer_.out + (warp_ * kRows + 8 * j + lane_ % 4 * 2) * kPitch + 16 * m + lane_ / 4;
          const float (&block)[4] = out[slice * kSliceBlocks + m][j];
          target[0] = block[0];
          target[kPitch] = block[1];
          target[8] = block[2];
          target[kPitch + 8] = block[3];
        }
      }
      ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
      store_slice<kSliceCols, kPitch>(output, slice * kSliceCols);
      ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    }
  }

 private:
  __device__ __forceinline__ void publish_states(RowState (&rows)[2 * kBlocks]) const {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float l = rows[2 * j + c].l;
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) l += __shfl_xor_sync(0xffffffff, l, lanes);
        if (lane_ < 4) {
          buffer_.m[warp_][8 * j + 2 * lane_ + c] = rows[2 * j + c].m;
          buffer_.l[warp_][8 * j + 2 * lane_ + c] = l;
        }
      }
    }
  }

  __device__ __forceinline__ float joint_max(int row) const {
    float m = -INFINITY;
#pragma unroll
    for (int w = 0; w < kConsumerWarps; ++w) m = fmaxf(m, buffer_.m[w][row]);
    return m;
  }

  __device__ __forceinline__ void rescale_to_joint_max(const RowState (&rows)[2 * kBlocks],
                                                       float (&out)[kHeadDim / 16][kBlocks][4]) const {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float m = joint_max(8 * j + lane_ % 4 * 2 + c);
        const float factor = ptx::ex2((rows[2 * j + c].m - finite_max(m)) * scales_.score_log2);
#pragma unroll
        for (int i = 0; i < kHeadDim / 16; ++i) {
          out[i][j][c] *= factor;
          out[i][j][2 + c] *= factor;
        }
      }
    }
  }

  /// One thread per row: the sum over the warps, the lse, and the factor of the output. The barrier that
  /// follows the first slice publishes it.
  __device__ __forceinline__ void store_states(const Output& output) const {
    const int row = warp_ * 32 + lane_;
    if (row >= output.item.num_rows) return;
    const float m = joint_max(row);
    float l = 0.f;
#pragma unroll
    for (int w = 0; w < kConsumerWarps; ++w)
      l += buffer_.l[w][row] * ptx::ex2((buffer_.m[w][row] - finite_max(m)) * scales_.score_log2);
    buffer_.out_scale[row] = row_out_scale(l, scales_.v);
    output.store_lse(row, row_lse(m, l, scales_.score_log2));
  }

  template <int kSliceCols, int kPitch>
  __device__ __forceinline__ void store_slice(const Output& output, int first_col) const {
    constexpr int kRowQuads = kSliceCols / 4;
    const int i = warp_ * 32 + lane_;
    static_assert(kRows * kRowQuads <= kConsumerThreads);
    const int row = i / kRowQuads;
    const int col = i % kRowQuads * 4;
    if (row >= output.item.num_rows) return;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int w = 0; w < kConsumerWarps; ++w) {
      const float4 part = *reinterpret_cast<const float4*>(buffer_.out + (w * kRows + row) * kPitch + col);
      sum.x += part.x;
      sum.y += part.y;
      sum.z += part.z;
      sum.w += part.w;
    }
    const float scale = buffer_.out_scale[row];
    output.store_4(row, first_col + col,
                   make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale));
  }

  JoinBuffer& buffer_;
  const Scales scales_;
  const int lane_;
  const int warp_;  ///< of the consumers, 0..7
};

}  // namespace onewave
