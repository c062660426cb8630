#pragma once

/// The end of a narrow item: each of the eight consumer warps has seen its own keys of one kv head, with a
/// maximum, a sum and O^T of its own (narrow.cuh). They are weighed by the joint maximum and sum of every row
/// and added up through shared memory, a slice of columns at a time, in the order of the warps; where the
/// columns are in parts, a slice of each.
///
/// This code runs once an item, and what runs once waits for its instructions: about five cycles for each, so
/// its loops are not unrolled where that does not wait for memory (bench/NOTES.md).

#include "output.cuh"

namespace onewave {

/// `kRows`: packed rows, padded. Registers are laid out as narrow.cuh's accumulators.
template <int kRows>
class NarrowJoin {
  static constexpr int kBlocks = kRows / 8;

 public:
  /// `step_heads_shift`: log2 of the kv heads that share the warps.
  __device__ __forceinline__ NarrowJoin(JoinBuffer& buffer, const Scales& scales, int step_heads_shift)
      : buffer_(buffer),
        scales_(scales),
        head_warps_shift_(kKeyWarpsShift - step_heads_shift),
        // Or what is made of it would be in registers all through the item.
        thread_(ptx::opaque(threadIdx.x) - kWarpgroupThreads),
        lane_(thread_ % 32),
        warp_(thread_ / 32) {}

  __device__ __forceinline__ void run(const Output& output, const RowState (&rows)[2 * kBlocks],
                                      const float (&out)[kPartCols / 16][kBlocks][4],
                                      const Profiler& profiler) {
    constexpr int kSliceCols = join_slice_cols(kRows);
    constexpr int kPitch = join_pitch(kRows);
    profiler.begin(ProfilePhase::kJoin);
    publish_states(rows);
    ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    weigh_warps(output);
    profiler.end(ProfilePhase::kJoin);
#pragma unroll
    for (int slice = 0; slice < kPartCols / kSliceCols; ++slice) {
      constexpr int kSliceBlocks = kSliceCols / 16;
      profiler.begin(ProfilePhase::kJoin);
#pragma unroll
      for (int m = 0; m < kSliceBlocks; ++m) {
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
          float* target = buffer_.out + (warp_ * kRows + 8 * j + lane_ % 4 * 2) * kPitch + 16 * m;
          store_block<kPitch>(target, out[slice * kSliceBlocks + m][j]);
        }
      }
      ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
      profiler.end(ProfilePhase::kJoin);
      profiler.begin(ProfilePhase::kStore);
      store_slice<kSliceCols, kPitch>(output, slice * kSliceCols);
      ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
      profiler.end(ProfilePhase::kStore);
    }
  }

 private:
  /// `rows`: the first column of the block in the first of the lane's two packed rows.
  template <int kPitch>
  __device__ __forceinline__ void store_block(float* rows, const float (&block)[4]) const {
    if constexpr (kFp8Kv) {
      float* target = rows + lane_ / 4 * 2;
      *reinterpret_cast<float2*>(target) = make_float2(block[0], block[2]);
      *reinterpret_cast<float2*>(target + kPitch) = make_float2(block[1], block[3]);
    } else {
      float* target = rows + lane_ / 4;
      target[0] = block[0];
      target[kPitch] = block[1];
      target[8] = block[2];
      target[kPitch + 8] = block[3];
    }
  }

  __device__ __forceinline__ void publish_states(const RowState (&rows)[2 * kBlocks]) const {
#pragma unroll
    for (int i = 0; i < 2 * kBlocks; ++i) {
      float l = rows[i].l;
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) l += __shfl_xor_sync(0xffffffff, l, lanes);
      if (lane_ < 4) buffer_.states[i / 2 * 8 + 2 * lane_ + i % 2][warp_] = make_float2(rows[i].m, l);
    }
  }

  /// Of the step, that of a warp.
  __device__ __forceinline__ int head_of(int warp) const { return key_warp_of(warp) >> head_warps_shift_; }

  __device__ __forceinline__ Scales scales_of(const Output& output, int warp) const {
    if constexpr (!kFp8Kv) return scales_;
    return Scales(output.params, static_cast<const PlanHeader*>(output.params.plan),
                  output.kv_head + head_of(warp));
  }

  /// A thread for each row and warp, the warps of a row side by side: the weight of the warp's O^T, and the
  /// row's lse. The barrier that follows the first slice publishes the weights.
  __device__ __forceinline__ void weigh_warps(const Output& output) const {
    if (thread_ >= kRows * kConsumerWarps) return;
    const int row = thread_ / kConsumerWarps;
    const int warp = thread_ % kConsumerWarps;
    const int num_head_warps = 1 << head_warps_shift_;
    const float2 state = buffer_.states[row][warp];
    float m = state.x;
    for (int lanes = 1; lanes < num_head_warps; lanes *= 2)
      m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, lanes));
    const Scales scales = scales_of(output, warp);
    const float factor = ptx::ex2((state.x - finite_max(m)) * scales.score_log2);
    float l = state.y * factor;
    for (int lanes = 1; lanes < num_head_warps; lanes *= 2) l += __shfl_xor_sync(0xffffffff, l, lanes);
    const RowEnd end(m, l, output.item_sink(head_of(warp), row), scales.score_log2, scales.v);
    buffer_.weights[warp][row] = factor * end.out_scale;
    if ((warp & (num_head_warps - 1)) == 0 && column_part_of(warp) == 0 && row < output.item.num_rows)
      output.store_lse(warp >> head_warps_shift_, row, end.lse);
  }

  template <int kSliceCols, int kPitch>
  __device__ __forceinline__ void store_slice(const Output& output, int first_col) const {
    constexpr int kRowQuads = kSliceCols / 4;
    static_assert(kRows * kRowQuads <= kConsumerThreads);
    const int row = thread_ / kRowQuads;
    const int col = thread_ % kRowQuads * 4;
    if (row >= output.item.num_rows) return;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    const auto add = [&](int warp) {
      const float4 part = *reinterpret_cast<const float4*>(buffer_.out + (warp * kRows + row) * kPitch + col);
      const float weight = buffer_.weights[warp][row];
      sum.x = fmaf(weight, part.x, sum.x);
      sum.y = fmaf(weight, part.y, sum.y);
      sum.z = fmaf(weight, part.z, sum.z);
      sum.w = fmaf(weight, part.w, sum.w);
    };
    // One kv head: the reads of all warps together, 0.7 us less of an item that is alone. At head_dim 64 the
    // additional code slowed the wide loop by 1 %, wherever ptxas then put it.
    if (kHeadDimVo > 64 && kColumnParts == 1 && head_warps_shift_ == kConsumerWarpsShift) {
#pragma unroll
      for (int warp = 0; warp < kConsumerWarps; ++warp) add(warp);
      output.store_4(0, row, first_col + col, sum);
      return;
    }
#pragma unroll 1
    for (int warp = 0; warp < kConsumerWarps; ++warp) {
      add(warp);
      if ((warp + 1) & ((1 << head_warps_shift_) - 1)) continue;
      output.store_4(head_of(warp), row, column_part_of(warp) * kPartCols + first_col + col, sum);
      sum = make_float4(0.f, 0.f, 0.f, 0.f);
    }
  }

  JoinBuffer& buffer_;
  const Scales scales_;
  const int head_warps_shift_;  ///< log2 of the warps of a kv head
  const int thread_;            ///< of the consumers
  const int lane_;
  const int warp_;
};

}  // namespace onewave
