#pragma once

/// The narrow kind: memory-bound items of up to 32 packed rows, with the roles of the operands swapped, so
/// that few rows cost few tensor cycles: S^T = K Q^T and O^T += V^T P^T by mma.sync m16n8k16, keys (then head
/// columns) as M, packed rows as N. A stage has 128 rows: keys of one kv head, or fewer keys of several,
/// which lie side by side in a page and are read in one piece. Each of the eight consumer warps owns 16 rows
/// of every stage, keys of one kv head, and has its own maximum, sum and O^T; there is no barrier inside an
/// item, and the warps of a kv head join once at its end. (Above 128 columns a stage has 64 rows: two warps
/// have the same 16, and each a half of the columns of O^T.)
///
/// K and V of e4m3 are widened in registers, between ldmatrix, which takes two of them for one 16-bit
/// element, and the product. So a lane gets four columns of K side by side where it had two and two, and
/// takes those of Q likewise; and of V two columns side by side, which go to the rows of O^T eight apart.
///
/// Accumulators: lane i holds of each 16 x 8 block the elements (i / 4, 2 (i % 4) + c) at c and 8 rows below
/// at 2 + c (of e4m3 head columns 2 (i / 4) and the next). So a lane's packed rows are 8 j + 2 (i % 4) + c in
/// S^T and O^T alike, and one RowState serves both.

#include "join.cuh"
#include "output.cuh"
#include "softmax.cuh"

namespace onewave {

/// Of the rings. K and V of a tile are in stages of the same number, and used one after another.
struct NarrowPositions {
  RingPosition<kQueryStages> q;
  RingPosition<kNarrowStages> kv;
};

/// `kRows`: packed rows, padded to 8, 16 or 32.
template <int kRows>
class NarrowConsumer {
  static constexpr int kBlocks = kRows / 8;  ///< of 8 packed rows, the N of one mma
  static constexpr int kStepPairs = kHeadDimQk / 32;
  /// 32 rows of 128 columns would take 64 registers beside 128 of O^T: they are read anew for every stage,
  /// which adds 8 KiB a warp to the 8 KiB of K and V.
  static constexpr bool kQueryInRegisters = kRows * kHeadDimQk <= 16 * 128;
  /// Of two steps of 16 head columns; of e4m3 not widened yet.
  using QueryFragment = uint32_t[kFp8Queries ? 2 : 4];
  using QueryFragments = QueryFragment[kStepPairs][kBlocks];

 public:
  /// `kv_head`: the first of the step.
  __device__ __forceinline__ NarrowConsumer(const KernelParams& params, const Work& work,
                                            NarrowStorage& storage, NarrowRings& rings, NarrowPositions& at,
                                            int kv_head, int step_heads_shift, const Profiler& profiler)
      : params_(params),
        work_(work),
        storage_(storage),
        rings_(rings),
        at_(at),
        scales_(params, work.header, kv_head),
        kv_head_(kv_head),
        step_heads_shift_(step_heads_shift),
        profiler_(profiler),
        lane_(threadIdx.x % 32) {
    const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32 - 4, 0);
    const int head_warps_shift = kKeyWarpsShift - step_heads_shift;
    const int key_warp = key_warp_of(warp);
    head_ = key_warp >> head_warps_shift;
    if constexpr (kFp8Kv) scales_ = Scales(params, work.header, kv_head + head_);
    warp_key_ = (key_warp & ((1 << head_warps_shift) - 1)) * 16;
    const NarrowLayout<kKPanels> k_layout(params, step_heads_shift);
    const NarrowLayout<kVPanels> v_layout(params, step_heads_shift);
    k_row_ = k_layout.row_offset(head_, warp_key_ + lane_ % 16);
    v_row_ = v_layout.row_offset(head_, warp_key_ + lane_ / 16 * 8 + lane_ % 8);
    panel_bytes_ = k_layout.panel_bytes();
    if constexpr (kColumnParts > 1) first_block_ = column_part_of(warp) * (kPartCols / 16);
  }

  __device__ __forceinline__ void attend(const WorkItem& item) {
    QueryFragments q;
    float out[kPartCols / 16][kBlocks][4] = {};
    RowState rows[2 * kBlocks];  // of packed row 8 j + 2 (lane % 4) + c at 2 j + c
    profiler_.begin(ProfilePhase::kWaitQueries);
    rings_.q.wait_full(at_.q);
    profiler_.end(ProfilePhase::kWaitQueries);
    if constexpr (kQueryInRegisters) {
#pragma unroll
      for (int step_pair = 0; step_pair < kStepPairs; ++step_pair) {
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) load_query(q[step_pair][j], step_pair, j);
      }
      rings_.q.release(at_.q);
    }
    const int all_visible = PackedRows(work_, item).visible_end(0);
    const int kv_begin = item.kv_begin;
    const int inner_begin = kMasked ? max(kv_begin, window_inner_begin(item)) : kv_begin;
    const int tile_keys = kStageKv >> step_heads_shift_;
    int tile_begin = last_tile_begin(kv_begin, item.kv_end, step_heads_shift_);
    do {
      add_tile<true>(item, tile_begin + warp_key_, q, rows, out);
      tile_begin -= tile_keys;
    } while (tile_begin >= kv_begin && tile_begin + tile_keys > all_visible);
    for (; tile_begin >= inner_begin; tile_begin -= tile_keys)
      add_tile<false>(item, tile_begin + warp_key_, q, rows, out);
    if constexpr (kMasked) {
      for (; tile_begin >= kv_begin; tile_begin -= tile_keys)
        add_tile<true>(item, tile_begin + warp_key_, q, rows, out);
    }
    if constexpr (kMasked || kFp8Queries)
      at_.q.count = ptx::opaque(at_.q.count);  // or its stage is kept, and spilled
    if constexpr (!kQueryInRegisters) rings_.q.release(at_.q);
    const PackedRows packed(work_, item);
    NarrowJoin<kRows>(storage_.join, Scales(params_, work_.header, kv_head_), step_heads_shift_)
        .run(Output(params_, item, packed, kv_head_), rows, out, profiler_);
  }

 private:
  /// From here on all rows see all keys, but for the causal mask: masked kernels.
  __device__ __forceinline__ int window_inner_begin(const WorkItem& item) const {
    return item.mask_begin >= 0 ? INT32_MAX : PackedRows(work_, item).visible_begin(item.num_rows - 1);
  }

  /// This warp's 16 keys of a tile. kAtEdge: some row may not see some key of the tile.
  template <bool kAtEdge>
  __device__ __forceinline__ void add_tile(const WorkItem& item, int first_key, const QueryFragments& q,
                                           RowState (&rows)[2 * kBlocks],
                                           float (&out)[kPartCols / 16][kBlocks][4]) {
    float scores[kBlocks][4] = {};
    profiler_.begin(ProfilePhase::kWaitKeys);
    rings_.k.wait_full(at_.kv);
    profiler_.end(ProfilePhase::kWaitKeys);
    profiler_.begin(ProfilePhase::kProducts);
    multiply_keys(scores, q);
    profiler_.end(ProfilePhase::kProducts);
    float value_scales[2] = {1.f, 1.f};  // of the lane's two keys
    if constexpr (kGroupScales)
      scale_keys(scores, value_scales, kAtEdge ? item.kv_end - first_key : kStageKv);
    rings_.k.arrive_empty(at_.kv);
    uint32_t weights[kBlocks][2];
    profiler_.begin(ProfilePhase::kSoftmax);
    if (kMasked && scales_.cap_log2 > 0) cap(scores);
    if constexpr (kAtEdge) mask(scores, PackedRows(work_, item), first_key);
    softmax(scores, rows, value_scales, out, weights);
    profiler_.end(ProfilePhase::kSoftmax);
    profiler_.begin(ProfilePhase::kWaitValues);
    rings_.v.wait_full(at_.kv);
    profiler_.end(ProfilePhase::kWaitValues);
    profiler_.begin(ProfilePhase::kProducts);
    multiply_values<kAtEdge>(out, weights, item.kv_end - first_key);
    profiler_.end(ProfilePhase::kProducts);
    rings_.v.release(at_.kv);
  }

  /// B operands of two steps of 16 head columns for packed rows 8 j .. 8 j + 7: registers 2 s, 2 s + 1 for
  /// step s, of e4m3 register s.
  __device__ __forceinline__ void load_query(QueryFragment& fragment, int step_pair, int j) const {
    const uint32_t tile = ptx::shared_address(storage_.tiles.q[at_.q.stage()]);
    const uint32_t rows = (step_pair / 2 * kNarrowStepRows + 8 * j) * kPanelRowBytes;  // of 16 bits
    if constexpr (kFp8Queries) {
      const uint32_t row =
          (step_pair / 4 * kNarrowStepRows + 8 * j + head_ * kRows + lane_ % 8) * kPanelRowBytes;
      const uint32_t first = first_chunk(tile + row, lane_) ^ lane_ / 8 % 2 * 16;
      ptx::ldmatrix(fragment, nth_chunk(first, 2 * (step_pair % 4)));
    } else if constexpr (kFp8Kv) {
      const int row = lane_ / 4;
      const uint32_t first = nth_chunk(first_chunk(tile + (head_ * kRows + row) * kPanelRowBytes,
                                                   query_swizzle<Kind::kNarrow>(row)),
                                       lane_ / 2 % 2) +
                             lane_ % 2 * 8;
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint2 columns = ptx::load_shared_8(nth_chunk(first, 4 * (step_pair % 2) + 2 * step) + rows);
        fragment[2 * step] = columns.x;
        fragment[2 * step + 1] = columns.y;
      }
    } else {
      const uint32_t first =
          first_chunk(tile + (head_ * kRows + lane_ % 8) * kPanelRowBytes, lane_) ^ lane_ / 8 * 16;
      ptx::ldmatrix(fragment, nth_chunk(first, 4 * (step_pair % 2)) + rows);
    }
  }

  __device__ __forceinline__ static uint2 query_operand(const QueryFragment& fragment, int step) {
    if constexpr (kFp8Queries) {
      return ptx::widen<Element>(fragment[step]);
    } else {
      return make_uint2(fragment[2 * step], fragment[2 * step + 1]);
    }
  }

  /// A operands of two steps of 16 head columns. `first`: of this lane's row.
  __device__ __forceinline__ void load_keys(uint32_t (&k)[2][4], uint32_t first, int step_pair) const {
    if constexpr (kFp8Kv) {
      uint32_t bytes[4];
      ptx::ldmatrix(bytes, nth_chunk(first, 2 * (step_pair % 4)) + step_pair / 4 * panel_bytes_);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint2 pairs = ptx::widen<Element>(bytes[i]);
        k[i / 2][i % 2] = pairs.x;
        k[i / 2][i % 2 + 2] = pairs.y;
      }
    } else {
      const uint32_t panel = step_pair / 2 * panel_bytes_;
      ptx::ldmatrix(k[0], nth_chunk(first, 4 * (step_pair % 2)) + panel);
      ptx::ldmatrix(k[1], nth_chunk(first, 4 * (step_pair % 2) + 2) + panel);
    }
  }

  /// A operands of two blocks of 16 head columns, the `pair`-th of them.
  __device__ __forceinline__ void load_value_pair(uint32_t (&v)[2][4], uint32_t first, int pair) const {
    uint32_t bytes[4];
    ptx::ldmatrix_x4_trans(bytes, nth_chunk(first, 2 * (pair % 4)) + pair / 4 * panel_bytes_);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint2 pairs = ptx::widen_by_turns<ValueElement>(bytes[i]);
      v[i % 2][i / 2 * 2] = pairs.x;
      v[i % 2][i / 2 * 2 + 1] = pairs.y;
    }
  }

  __device__ __forceinline__ void multiply_keys(float (&scores)[kBlocks][4], const QueryFragments& q) const {
    const uint32_t tile = ptx::shared_address(storage_.tiles.k[at_.kv.stage()]);
    const uint32_t first = first_chunk(tile + k_row_, lane_) ^ lane_ / 16 * 16;
    if constexpr (kFp8Queries && kRows * kHeadDimQk >= 32 * 192) {
#pragma unroll 4  // all at once spill
      for (int step_pair = 0; step_pair < kStepPairs; ++step_pair) add_scores(scores, q, first, step_pair);
    } else {
#pragma unroll
      for (int step_pair = 0; step_pair < kStepPairs; ++step_pair) add_scores(scores, q, first, step_pair);
    }
  }

  /// Of two steps of 16 head columns. `first`: as in load_keys().
  __device__ __forceinline__ void add_scores(float (&scores)[kBlocks][4], const QueryFragments& q,
                                             uint32_t first, int step_pair) const {
    uint32_t k[2][4];
    load_keys(k, first, step_pair);
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      QueryFragment fragment;
      if constexpr (kQueryInRegisters) {
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(fragment) / sizeof(uint32_t)); ++i)
          fragment[i] = q[step_pair][j][i];
      } else {
        load_query(fragment, step_pair, j);
      }
      const uint2 operands[2] = {query_operand(fragment, 0), query_operand(fragment, 1)};
      ptx::mma_m16n8k16<Element>(scores[j], k[0], operands[0].x, operands[0].y);
      ptx::mma_m16n8k16<Element>(scores[j], k[1], operands[1].x, operands[1].y);
    }
  }

  __device__ __forceinline__ void mask(float (&scores)[kBlocks][4], const PackedRows& packed,
                                       int first_key) const {
    const int key = first_key + lane_ / 4;
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int visible = packed.visible_end(8 * j + lane_ % 4 * 2 + c);
        if (key >= visible) scores[j][c] = -INFINITY;
        if (key + 8 >= visible) scores[j][2 + c] = -INFINITY;
        if constexpr (kMasked) {
          const int row = 8 * j + lane_ % 4 * 2 + c;
          const int begin = packed.visible_begin(row);
          if (key < begin) scores[j][c] = -INFINITY;
          if (key + 8 < begin) scores[j][2 + c] = -INFINITY;
          const uint32_t* words = packed.mask_words(params_, row, first_key);
          if (words == nullptr) continue;
          const uint32_t bits = *words >> (first_key % 32 + lane_ / 4);
          if ((bits & 1) == 0) scores[j][c] = -INFINITY;
          if ((bits & 1 << 8) == 0) scores[j][2 + c] = -INFINITY;
        }
      }
    }
  }

  /// Where groups of tokens have scales: multiplies scores by those of their keys, and returns those of their
  /// values; of no key 0, where memory may have anything.
  __device__ __forceinline__ void scale_keys(float (&scores)[kBlocks][4], float (&value_scales)[2],
                                             int valid_keys) const {
    const int row = (head_ << kStageKvShift >> step_heads_shift_) + warp_key_ + lane_ / 4;
    const auto& scales = storage_.scales;
    const uint32_t stage = at_.kv.stage();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (params_.k_scale_strides.group_inverse > 0) {
        const float scale = scales.k[stage][row + 8 * i];
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
          scores[j][2 * i] *= scale;
          scores[j][2 * i + 1] *= scale;
        }
      }
      if (params_.v_scale_strides.group_inverse > 0) value_scales[i] = scales.v[stage][row + 8 * i];
      if (lane_ / 4 + 8 * i >= valid_keys) value_scales[i] = 0.f;
    }
  }

  __device__ __forceinline__ void cap(float (&scores)[kBlocks][4]) const {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[j][i] = cap_score(scores[j][i], scales_.cap_log2);
    }
  }

  /// Weights of 16 keys, transposed in registers to the B operand of O^T += V^T P^T; O^T is rescaled.
  __device__ __forceinline__ void softmax(float (&scores)[kBlocks][4], RowState (&rows)[2 * kBlocks],
                                          const float (&value_scales)[2],
                                          float (&out)[kPartCols / 16][kBlocks][4],
                                          uint32_t (&weights)[kBlocks][2]) const {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float tile_max = fmaxf(scores[j][c], scores[j][2 + c]);
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2)
          tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffff, tile_max, lanes));
        const float factor = rows[2 * j + c].raise_max(tile_max, scales_.score_log2);
        const float scaled_max = finite_max(rows[2 * j + c].m) * scales_.score_log2;
        scores[j][c] = rows[2 * j + c].add(scores[j][c], scales_.score_log2, scaled_max);
        scores[j][2 + c] = rows[2 * j + c].add(scores[j][2 + c], scales_.score_log2, scaled_max);
#pragma unroll
        for (int m = 0; m < kPartCols / 16; ++m) {
          out[m][j][c] *= factor;
          out[m][j][2 + c] *= factor;
        }
      }
      if constexpr (kGroupScales) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[j][i] *= value_scales[i / 2];
      }
      weights[j][0] = ptx::movmatrix_trans(ptx::pack<ValueElement>(scores[j][0], scores[j][1]));
      weights[j][1] = ptx::movmatrix_trans(ptx::pack<ValueElement>(scores[j][2], scores[j][3]));
    }
  }

  /// kAtEdge: V of keys past the request's last is taken as zero, whatever the page holds there (0 * NaN is
  /// NaN).
  template <bool kAtEdge>
  __device__ __forceinline__ void multiply_values(float (&out)[kPartCols / 16][kBlocks][4],
                                                  const uint32_t (&weights)[kBlocks][2],
                                                  int valid_keys) const {
    const uint32_t row = ptx::shared_address(storage_.tiles.v[at_.kv.stage()]) + v_row_;
    const uint32_t first = first_chunk(row, lane_) ^ lane_ / 8 % 2 * 16;
    const int pair = lane_ % 4 * 2;  // of keys, in each fragment register
    const uint32_t keep_low = (pair < valid_keys ? 0xffffu : 0u) | (pair + 1 < valid_keys ? 0xffff0000u : 0u);
    const uint32_t keep_high =
        (pair + 8 < valid_keys ? 0xffffu : 0u) | (pair + 9 < valid_keys ? 0xffff0000u : 0u);
    uint32_t pair_of_blocks[2][4];
#pragma unroll
    for (int m = 0; m < kPartCols / 16; ++m) {
      const int block = kColumnParts > 1 ? first_block_ + m : m;
      uint32_t (&v)[4] = pair_of_blocks[kFp8Kv ? m % 2 : 0];
      if constexpr (!kFp8Kv) {
        ptx::ldmatrix_x4_trans(v, nth_chunk(first, 2 * (block % 4)) + block / 4 * panel_bytes_);
      } else if (m % 2 == 0) {
        load_value_pair(pair_of_blocks, first, block / 2);
      }
      if constexpr (kAtEdge) {
        v[0] &= keep_low;
        v[1] &= keep_low;
        v[2] &= keep_high;
        v[3] &= keep_high;
      }
#pragma unroll
      for (int j = 0; j < kBlocks; ++j)
        ptx::mma_m16n8k16<ValueElement>(out[m][j], v, weights[j][0], weights[j][1]);
    }
  }

  const KernelParams& params_;
  const Work& work_;
  NarrowStorage& storage_;
  NarrowRings& rings_;
  NarrowPositions& at_;
  Scales scales_;
  const int kv_head_;           ///< the first of the step
  const int step_heads_shift_;  ///< log2 of the kv heads of a step
  const Profiler& profiler_;
  const int lane_;
  int head_;        ///< of the step, that of this warp
  int warp_key_;    ///< first of the warp's 16 keys of every stage
  uint32_t k_row_;  ///< bytes from the start of a stage to the row that this lane gives ldmatrix
  uint32_t v_row_;
  uint32_t panel_bytes_;
  int first_block_;  ///< of the 16-column blocks of O^T, this warp's first; where the columns are in parts
};

__device__ __forceinline__ void consume_narrow(const KernelParams& params, const Work& work,
                                               const HeadCursor& cursor, NarrowStorage& storage,
                                               NarrowRings& rings, NarrowPositions& at, Arrivals& arrivals,
                                               const Profiler& profiler) {
  const int thread = threadIdx.x - kWarpgroupThreads;
  const WorkItem& item = cursor.item();
  const int kv_head = cursor.kv_head();
  const int rows_shift = narrow_rows_shift(item.num_rows);
  const int heads_shift = step_heads_shift<Kind::kNarrow>(item);
  if (!has_keys(item)) {
    // Some warps may still merge the tile before, whose partial rows these may be (finish_split()): an item
    // with keys has a barrier on its way.
    if (item.split_tile >= 0) ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    const PackedRows packed(work, item);
    store_empty(Output(params, item, packed, kv_head), thread);
  } else if (rows_shift == 3) {
    NarrowConsumer<8>(params, work, storage, rings, at, kv_head, heads_shift, profiler).attend(item);
  } else if (rows_shift == 4) {
    NarrowConsumer<16>(params, work, storage, rings, at, kv_head, heads_shift, profiler).attend(item);
  } else {
    NarrowConsumer<32>(params, work, storage, rings, at, kv_head, heads_shift, profiler).attend(item);
  }
  finish_split<Kind::kNarrow>(params, item, kv_head, thread, arrivals, profiler);
  profiler.end_item<Kind::kNarrow>(item, kv_head);
}

}  // namespace onewave
