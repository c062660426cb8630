#pragma once

/// The wide kind: compute-bound items of up to 128 packed rows, 64 for each consumer warpgroup, all on the
/// same K and V stages. Both products are wgmma: S = Q K^T with Q and K in shared memory, O += P V with P in
/// registers, V's columns contiguous. S of the next tile is issued before O of this one, so that the softmax
/// of one tile runs under the products of the other:
///
///   tensor cores   QK_n-1 | QK_n-2  PV_n-1 | QK_n-3  PV_n-2 | ... | PV_0  QK of the next item |
///   registers             | softmax_n-1    | softmax_n-2    | ... |       store               | softmax
///
/// Accumulators: thread t of a warpgroup holds rows 16 (t / 32) + (t % 32) / 4 and that + 8, of every 8
/// columns the two at 2 (t % 4): element 4 j + 2 r + c is row r (0, 1), column 8 j + 2 (t % 4) + c.

#include "output.cuh"
#include "ptx/wgmma.cuh"
#include "softmax.cuh"

namespace onewave {

inline constexpr int kWideScores = kTileKv / 2;
inline constexpr int kWideOut = kHeadDim / 2;

class WideConsumer {
 public:
  __device__ __forceinline__ WideConsumer(const KernelParams& params, const Work& work, WideTiles& tiles,
                                          KindRings& rings)
      : params_(params),
        work_(work),
        tiles_(tiles),
        rings_(rings),
        scales_(params, work.header),
        v_layout_(value_layout(params)),
        thread_(threadIdx.x % kWarpgroupThreads),
        warpgroup_(__shfl_sync(0xffffffff, threadIdx.x / kWarpgroupThreads - 1, 0)) {
    first_row_ = warpgroup_ * 64 + thread_ / 32 * 16 + thread_ % 32 / 4;
  }

  __device__ __forceinline__ void run(int begin, int end, int32_t& is_last_arrival) {
    const int thread = threadIdx.x - kWarpgroupThreads;
    HeadCursor cursor(work_, begin, end);
    while (cursor.valid()) {
      if (!has_keys(cursor.item())) {
        store_empty(Output(params_, work_, cursor.item(), cursor.kv_head()), thread);
        finish_split(params_, work_, cursor.item(), cursor.kv_head(), thread, is_last_arrival);
        cursor.advance();
        continue;
      }
      float scores[kWideScores];
      wait_first_scores();
      issue_scores(scores);
      bool next_has_keys;
      do {
        const WorkItem& item = cursor.item();
        const int kv_head = cursor.kv_head();
        cursor.advance();
        next_has_keys = cursor.valid() && has_keys(cursor.item());
        attend(item, kv_head, scores, next_has_keys);
        finish_split(params_, work_, item, kv_head, thread, is_last_arrival);
      } while (next_has_keys);
      ptx::wgmma_wait_group<0>();
      ptx::fence_registers(scores);
    }
  }

 private:
  /// Until Q and the last tile of K of the next item are there.
  __device__ __forceinline__ void wait_first_scores() {
    rings_.q.wait_full(at_.q);
    ptx::fence_proxy_async();
    rings_.k.wait_full(at_.k);
  }

  /// `scores`: in flight, of the item's last tile of keys, and at the end of the next item's. Where there is
  /// none, they are issued all the same, on whatever lies in the stages, and never looked at: a branch around
  /// them would make the compiler serialise all products.
  __device__ __forceinline__ void attend(const WorkItem& item, int kv_head, float (&scores)[kWideScores],
                                         bool next_has_keys) {
    float out[kWideOut];
    uint32_t weights[kTileKv / 16][4];
    RowState rows[2];
    const int visible[2] = {visible_end(item, first_row_, work_.group_size),
                            visible_end(item, first_row_ + 8, work_.group_size)};
    const int all_visible = visible_end(item, warpgroup_ * 64, work_.group_size);
    const int kv_begin = item.kv_begin;
    int tile_begin = last_tile_begin(item);

    if (!kGather && item.kv_end < tile_begin + kTileKv) clear_tail(item.kv_end - tile_begin);
    ptx::wgmma_wait_group<0>();
    ptx::fence_registers(scores);
    rings_.k.release(at_.k);
    float factors[2];
    mask(scores, visible, all_visible, tile_begin);
    softmax(scores, rows, factors);
    pack_weights(scores, weights);

    bool accumulate = false;
    if (tile_begin > kv_begin) rings_.k.wait_full(at_.k);
    while (tile_begin > kv_begin) {
      tile_begin -= kTileKv;
      issue_scores(scores);
      rings_.v.wait_full(at_.v);
      issue_out(out, weights, accumulate);
      accumulate = true;
      ptx::wgmma_wait_group<1>();
      ptx::fence_registers(scores);
      rings_.k.release(at_.k);
      mask(scores, visible, all_visible, tile_begin);
      softmax(scores, rows, factors);
      // The softmax is to run under the products, but ptxas schedules a wait for O as early in its block as
      // it can. So O is waited for in another block: after the next K.
      ptx::fence_registers(scores);
      if (tile_begin > kv_begin) rings_.k.wait_full(at_.k);
      ptx::wgmma_wait_group<0>();
      ptx::fence_registers(out);
      rings_.v.release(at_.v);
      rescale(out, factors);
      pack_weights(scores, weights);
    }
    rings_.q.release(at_.q);
    rings_.v.wait_full(at_.v);
    issue_out(out, weights, accumulate);
    if (next_has_keys) wait_first_scores();
    issue_scores(scores);
    ptx::wgmma_wait_group<1>();
    ptx::fence_registers(out);
    rings_.v.release(at_.v);
    store(Output(params_, work_, item, kv_head), out, rows);
  }

  /// Zeroes V past the request's last key, where a page's unused rows may hold NaN (0 * NaN is NaN). Each
  /// warpgroup does all of it for itself: the other's stores are the same.
  __device__ __forceinline__ void clear_tail(int valid_keys) {
    rings_.v.wait_full(at_.v);
    unsigned char* stage = reinterpret_cast<unsigned char*>(tiles_.v[at_.v.stage()]);
    for (int i = valid_keys * kPanelChunks + thread_; i < kTileKv * kPanelChunks; i += kWarpgroupThreads) {
      unsigned char* chunk = stage + v_layout_.row_offset(i / kPanelChunks) + i % kPanelChunks * 16;
#pragma unroll
      for (int panel = 0; panel < kNumPanels; ++panel)
        *reinterpret_cast<uint4*>(chunk + panel * v_layout_.panel_bytes()) = make_uint4(0, 0, 0, 0);
    }
    ptx::fence_proxy_async();
    ptx::bar_sync(kBarrierWarpgroup + warpgroup_, kWarpgroupThreads);
  }

  __device__ __forceinline__ void issue_scores(float (&scores)[kWideScores]) {
    constexpr int kStepsPerPanel = kPanelCols / 16;
    constexpr int kGroupBytes = 8 * kPanelRowBytes;
    const uint32_t q_rows = ptx::shared_address(tiles_.q[at_.q.stage()]) + warpgroup_ * 64 * kPanelRowBytes;
    const ptx::WgmmaDescriptor q(q_rows, 16, kGroupBytes);
    const ptx::WgmmaDescriptor k(ptx::shared_address(tiles_.k[at_.k.stage()]), 16, kGroupBytes);
    if (kGather) ptx::fence_proxy_async();
    ptx::fence_registers(scores);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const int panel = step / kStepsPerPanel;
      const int bytes = step % kStepsPerPanel * 32;
      ptx::wgmma_m64n128k16<Element>(scores, q.at(panel * kWideTileQ * kPanelRowBytes + bytes),
                                     k.at(panel * kTileKv * kPanelRowBytes + bytes), step > 0);
    }
    ptx::wgmma_commit_group();
  }

  __device__ __forceinline__ void issue_out(float (&out)[kWideOut],
                                            const uint32_t (&weights)[kTileKv / 16][4], bool accumulate) {
    const ptx::WgmmaDescriptor v(ptx::shared_address(tiles_.v[at_.v.stage()]), v_layout_.panel_bytes(),
                                 v_layout_.group_bytes());
    if (kGather) ptx::fence_proxy_async();
    ptx::fence_registers(out);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTileKv / 16; ++step) {
      ptx::wgmma_m64k16_trans<Element>(out, weights[step], v.at(v_layout_.row_offset(16 * step)),
                                       accumulate || step > 0);
    }
    ptx::wgmma_commit_group();
  }

  /// Only tiles that touch an edge: the first row of the warpgroup sees the fewest keys.
  __device__ __forceinline__ void mask(float (&scores)[kWideScores], const int (&visible)[2], int all_visible,
                                       int tile_begin) const {
    if (tile_begin + kTileKv <= all_visible) return;
    const int first_key = tile_begin + thread_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < kWideScores; ++i) {
      const int key = first_key + i / 4 * 8 + i % 2;
      if (key >= visible[i / 2 % 2]) scores[i] = -INFINITY;
    }
  }

  /// Scores become weights; the rows' states and the factors for what was accumulated before follow.
  __device__ __forceinline__ void softmax(float (&scores)[kWideScores], RowState (&rows)[2],
                                          float (&factors)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float tile_max = -INFINITY;
#pragma unroll
      for (int i = 2 * r; i < kWideScores; i += 4)
        tile_max = fmaxf(tile_max, fmaxf(scores[i], scores[i + 1]));
      tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffff, tile_max, 1));
      tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffff, tile_max, 2));
      factors[r] = rows[r].raise_max(tile_max, scales_.score_log2);
      const float scaled_max = finite_max(rows[r].m) * scales_.score_log2;
#pragma unroll
      for (int i = 2 * r; i < kWideScores; i += 4) {
        scores[i] = rows[r].add(scores[i], scales_.score_log2, scaled_max);
        scores[i + 1] = rows[r].add(scores[i + 1], scales_.score_log2, scaled_max);
      }
    }
  }

  /// Most tiles raise no maximum: then there is nothing to multiply.
  __device__ __forceinline__ static void rescale(float (&out)[kWideOut], const float (&factors)[2]) {
    if (!__any_sync(0xffffffff, factors[0] != 1.f || factors[1] != 1.f)) return;
#pragma unroll
    for (int i = 0; i < kWideOut; ++i) out[i] *= factors[i / 2 % 2];
  }

  /// The accumulator layout of 16 columns is wgmma's layout of a left operand of 16 columns.
  __device__ __forceinline__ static void pack_weights(const float (&scores)[kWideScores],
                                                      uint32_t (&weights)[kTileKv / 16][4]) {
#pragma unroll
    for (int i = 0; i < kWideScores / 2; ++i)
      weights[i / 4][i % 4] = ptx::pack<Element>(scores[2 * i], scores[2 * i + 1]);
  }

  __device__ __forceinline__ void store(const Output& output, float (&out)[kWideOut],
                                        RowState (&rows)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float l = rows[r].l;
      l += __shfl_xor_sync(0xffffffff, l, 1);
      l += __shfl_xor_sync(0xffffffff, l, 2);
      const int row = first_row_ + 8 * r;
      const bool valid = row < output.item.num_rows;
      const float scale = row_out_scale(l, scales_.v);
      if (valid && thread_ % 4 == 0) output.store_lse(row, row_lse(rows[r].m, l, scales_.score_log2));
      if (output.split == nullptr) {
        store_final(output, out, r, scale);
      } else if (valid) {
        store_partial(output.partial_out_row(row) + thread_ % 4 * 2, out, r, scale);
      }
    }
  }

  __device__ __forceinline__ static void store_partial(float* target, const float (&out)[kWideOut], int r,
                                                       float scale) {
#pragma unroll
    for (int i = 2 * r; i < kWideOut; i += 4)
      *reinterpret_cast<float2*>(target + 2 * (i - 2 * r)) = make_float2(out[i] * scale, out[i + 1] * scale);
  }

  /// Of 32 columns a lane holds two in each block of 8; after the transpose one whole block, which is one
  /// store of 16 bytes instead of four of 4.
  __device__ __forceinline__ void store_final(const Output& output, const float (&out)[kWideOut], int r,
                                              float scale) const {
    const int row = first_row_ + 8 * r;
    const bool valid = row < output.item.num_rows;
    Element* target = output.out_row(valid ? row : 0) + thread_ % 4 * 8;
#pragma unroll
    for (int i = 2 * r; i < kWideOut; i += 16) {
      uint32_t block[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        block[j] = ptx::pack<Element>(out[i + 4 * j] * scale, out[i + 4 * j + 1] * scale);
      transpose_quad(block);
      if (valid)
        *reinterpret_cast<uint4*>(target + 2 * (i - 2 * r)) =
            make_uint4(block[0], block[1], block[2], block[3]);
    }
  }

  const KernelParams& params_;
  const Work& work_;
  WideTiles& tiles_;
  KindRings& rings_;
  const Scales scales_;
  const ValueLayout v_layout_;
  const int thread_;     ///< in the warpgroup
  const int warpgroup_;  ///< 0 or 1: rows 0-63 or 64-127
  int first_row_;        ///< of this thread, in the tile
  KindPositions at_;
};

}  // namespace onewave
