#pragma once

/// The wide kind: compute-bound items of up to 128 packed rows, 64 for each consumer warpgroup, all on the
/// same K and V stages. Both products are wgmma: S = Q K^T with Q and K in shared memory, O += P V with P in
/// registers, V's columns contiguous.
///
/// A product whose left operand lies in registers holds its warps at the issue until it is nearly done; one
/// with both operands in shared memory does not. So under a tile's exponentials runs Q K^T of the next tile,
/// whose scores go where this tile's were: those have become exponents, in registers of their own. P V of a
/// warpgroup runs under its next maxima, and under the exponentials of the other.
///
///   tensor cores           | QK_n-2            | PV_n-1  | QK_n-3            | ... | PV_0 |
///   registers      max_n-1 | exp2_n-1 -> P_n-1 | max_n-2 | exp2_n-2 -> P_n-2 | ... |      | store
///
/// (n counts down to 0; under the last exponentials runs QK of the next item.)
///
/// Where all is e4m3 the weights are too, V comes transposed (transpose.cuh), and a tile's P V is waited for
/// and added at once (add_values()).
///
/// Accumulators: thread t of a warpgroup holds rows 16 (t / 32) + (t % 32) / 4 and that + 8, of every 8
/// columns the two at 2 (t % 4): element 4 j + 2 r + c is row r (0, 1), column 8 j + 2 (t % 4) + c.

#include "output.cuh"
#include "ptx/wgmma.cuh"

#include <cfloat>

namespace onewave {

inline constexpr int kWideScores = kStageKv / 2;
inline constexpr int kWideOut = kHeadDimVo / 2;

/// 32 bytes of k are a product's: columns of Q K^T, and keys of P V.
inline constexpr int kScoreStepCols = 32 / sizeof(WideKey);
inline constexpr int kOutStepKeys = 32 / sizeof(WideValue);
/// Left operands.
using WideWeights = uint32_t[kStageKv / kOutStepKeys][4];

/// Of the rings: K is a tile ahead of V.
struct WidePositions {
  RingPosition<kQueryStages> q;
  RingPosition<kWideStages> k;
  RingPosition<kWideStages> v;
};

class WideConsumer {
 public:
  __device__ __forceinline__ WideConsumer(const KernelParams& params, const Work& work, WideStorage& storage,
                                          WideRings& rings, const Profiler& profiler)
      : params_(params),
        work_(work),
        storage_(storage),
        rings_(rings),
        profiler_(profiler),
        scales_(params, work.header, 0),
        max_rise_(max_rise_of(scales_)),
        v_layout_(operand_layout(params)),
        thread_(threadIdx.x % kWarpgroupThreads),
        warpgroup_(__shfl_sync(0xffffffff, threadIdx.x / kWarpgroupThreads - 1, 0)) {
    first_row_ = warpgroup_ * 64 + thread_ / 32 * 16 + thread_ % 32 / 4;
  }

  /// All items that the queue gives this CTA; all have keys.
  __device__ __forceinline__ void run(Arrivals& arrivals) {
    profiler_.begin_item();
    if (!wait_item()) return;
    if (warpgroup_ == 1) pass_turn();
    float scores[kWideScores];
    wait_first_scores();
    profiler_.begin(ProfilePhase::kProducts);
    issue_scores(scores);
    ptx::wgmma_wait_group<0>();
    profiler_.end(ProfilePhase::kProducts);
    ptx::fence_registers(scores);
    if constexpr (kGroupScales) scale_keys(scores, storage_.scales);
    rings_.k.release(at_.k);
    do {
      const HeadItem& tile = item();
      if constexpr (kFp8Kv) take_scales(tile.kv_head);
      attend(tile, scores);
      finish_split<Kind::kWide>(params_, tile.item, tile.kv_head, threadIdx.x - kWarpgroupThreads, arrivals,
                                profiler_);
      profiler_.end_item<Kind::kWide>(tile.item, tile.kv_head);
    } while (has_next_);
    if (warpgroup_ == 0) take_turn();
  }

 private:
  static constexpr int kGroupBytes = 8 * kPanelRowBytes;

  __device__ __forceinline__ static float max_rise_of(const Scales& scales) {
    return fminf(kMaxRiseLog2 / scales.score_log2, FLT_MAX);
  }

  /// Of V; what was widened is one box, and what was transposed has no use for it.
  __device__ __forceinline__ static BoxLayout<kVoPanels> operand_layout(const KernelParams& params) {
    if constexpr (kFp8Kv) return {kStageKvShift};
    return box_layout<kVoPanels>(params);
  }

  __device__ __forceinline__ const HeadItem& item() const { return storage_.items[at_.q.count % kHeadItems]; }

  /// Where kv heads have scales of their own.
  __device__ __forceinline__ void take_scales(int kv_head) {
    if (params_.k_scale_strides.head == 0 && params_.v_scale_strides.head == 0 &&
        (!kFp8Queries || params_.q_scale_head_stride == 0))
      return;
    scales_ = Scales(params_, work_.header, kv_head);
    max_rise_ = max_rise_of(scales_);
  }

  /// Until an item and its Q are there; false behind the last.
  __device__ __forceinline__ bool wait_item() {
    profiler_.begin(ProfilePhase::kWaitQueries);
    rings_.q.wait_full(at_.q);
    profiler_.end(ProfilePhase::kWaitQueries);
    return item().valid;
  }

  /// Until also its last tile of K is there.
  __device__ __forceinline__ void wait_first_scores() {
    ptx::fence_proxy_async();
    profiler_.begin(ProfilePhase::kWaitKeys);
    rings_.k.wait_full(at_.k);
    profiler_.end(ProfilePhase::kWaitKeys);
  }

  /// `scores`: of the item's last tile of keys, and at the end of the next item's. Where there is none, they
  /// are computed all the same, of whatever lies in the stages, and never looked at: a branch around them
  /// would make the compiler serialise all products.
  __device__ __forceinline__ void attend(const HeadItem& tile, float (&scores)[kWideScores]) {
    float out[kWideOut];
    float weight_sums[2] = {};  // of the rows, as they are multiplied: where they are of e4m3
    if constexpr (kFp8Queries) clear(out);
    RowState rows[2];
    float factors[2], out_scales[2];
    // The first row of the warpgroup sees the fewest keys. (Where it would be spilled it is made anew.)
    const auto find_all_visible = [&] { return tile.rows.visible_end(remade(warpgroup_) * 64); };
    const int kept_visible = find_all_visible();
    const auto mask_edges = [&](int tile_begin) {
      if (kMasked && scales_.cap_log2 > 0) cap(scores);
      const int all_visible = kMasked && kFp8Queries ? find_all_visible() : kept_visible;
      if (tile_begin + kStageKv > all_visible || (kMasked && touches_mask(tile.rows, tile_begin)))
        mask(scores, tile.rows, tile_begin);
    };
    const int kv_begin = tile.item.kv_begin;
    int tile_begin = last_tile_begin(kv_begin, tile.item.kv_end, 0);
    const int last_tile_keys = tile.item.kv_end - tile_begin;

    float maxima[2];
    profiler_.begin(ProfilePhase::kSoftmax);
    mask_edges(tile_begin);
    take_maxima(scores, maxima);
    raise_references(maxima, rows, factors);
    profiler_.end(ProfilePhase::kSoftmax);
    wait_next_scores(false, tile_begin <= kv_begin);
    multiply(scores, rows, out, weight_sums, false, last_tile_keys);
    while (tile_begin > kv_begin) {
      tile_begin -= kStageKv;
      const bool has_next_keys = rings_.k.is_full(at_.k);
      profiler_.begin(ProfilePhase::kSoftmax);
      mask_edges(tile_begin);
      take_maxima(scores, maxima);
      const bool rise = exceed_references(maxima, rows);
      if (rise) raise_references(maxima, rows, factors);
      profiler_.end(ProfilePhase::kSoftmax);
      wait_next_scores(has_next_keys, tile_begin <= kv_begin);
      if constexpr (!kFp8Queries) wait_out(out);
      if (rise) {
        rescale(out, factors);
        weight_sums[0] *= factors[0];
        weight_sums[1] *= factors[1];
      }
      multiply(scores, rows, out, weight_sums, true, kStageKv);
    }
    finish_rows(tile, weight_sums, rows, out_scales);
    if constexpr (!kFp8Queries) wait_out(out);
    profiler_.begin(ProfilePhase::kStore);
    store(tile, out, out_scales);
    profiler_.end(ProfilePhase::kStore);
  }

  /// Until the operands of the scores after these are there. After the last there are none, and their stage
  /// is released all the same: not before its last use, for which no producer waits any more.
  __device__ __forceinline__ void wait_next_scores(bool has_keys, bool is_last_tile) {
    if (!is_last_tile) {
      profiler_.begin(ProfilePhase::kWaitKeys);
      rings_.k.wait_full_unless(has_keys, at_.k);
      profiler_.end(ProfilePhase::kWaitKeys);
      return;
    }
    rings_.q.release(at_.q);
    has_next_ = wait_item();
    if (has_next_) {
      wait_first_scores();
    } else {
      rings_.k.wait_empty(at_.k);
    }
  }

  __device__ __forceinline__ static void clear(float (&out)[kWideOut]) {
#pragma unroll
    for (int i = 0; i < kWideOut; ++i) out[i] = 0.f;
  }

  __device__ __forceinline__ void wait_out(float (&out)[kWideOut]) {
    profiler_.begin(ProfilePhase::kProducts);
    ptx::wgmma_wait_group<0>();
    profiler_.end(ProfilePhase::kProducts);
    ptx::fence_registers(out);
    rings_.v.release(at_.v);
  }

  /// O += weights V, some columns after the others, and the products of the tile first by themselves
  /// (kSumCols); and likewise the sums of the weights.
  template <int kParts = kHeadDimVo / kSumCols>
  __device__ __forceinline__ void add_values(float (&out)[kWideOut], float (&weight_sums)[2],
                                             const WideWeights& weights) {
    constexpr int kSums = kSumCols / 2;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const bool is_last = part == kParts - 1;
      float sums[kSums];
      float ones[4];  // two of each row, which are equal
      issue_out(sums, weights, part * kSumCols, false);
      if (is_last) issue_out(ones, weights, kHeadDimVo, false);
      ptx::wgmma_wait_group<0>();
      ptx::fence_registers(sums);
      if (is_last) {
        ptx::fence_registers(ones);
        rings_.v.release(at_.v);
        weight_sums[0] += ones[0];
        weight_sums[1] += ones[2];
      }
#pragma unroll
      for (int i = 0; i < kSums; ++i) out[part * kSums + i] += sums[i];
    }
  }

  /// Issues the next scores, makes weights of these meanwhile, issues O += weights V, and waits for the next
  /// scores: O stays in flight, where its sums are not apart.
  __device__ __forceinline__ void multiply(float (&scores)[kWideScores], RowState (&rows)[2],
                                           float (&out)[kWideOut], float (&weight_sums)[2], bool accumulate,
                                           int valid_keys) {
    float exponents[kWideScores];
    WideWeights weights;
    profiler_.begin(ProfilePhase::kSoftmax);
    scale(scores, rows, exponents);
    profiler_.end(ProfilePhase::kSoftmax);
    take_turn();
    profiler_.begin(ProfilePhase::kProducts);  // issued when those before let them
    issue_scores(scores);
    profiler_.end(ProfilePhase::kProducts);
    ptx::fence_registers(exponents);
    if (kGroupScales) wait_values();
    profiler_.begin(ProfilePhase::kSoftmax);
    make_weights(exponents, rows, weights);
    profiler_.end(ProfilePhase::kSoftmax);
    ptx::fence_registers(weights);
    pass_turn();
    if (!kGroupScales) wait_values();
    if (!kGather && !kFp8Kv && valid_keys < kStageKv) clear_tail(valid_keys);
    profiler_.begin(ProfilePhase::kProducts);
    multiply_values(out, weight_sums, weights, accumulate);
    profiler_.end(ProfilePhase::kProducts);
    ptx::fence_registers(scores);
    if constexpr (kGroupScales) scale_keys(scores, storage_.scales);
    rings_.k.release(at_.k);
  }

  /// O += weights V, and waits for the scores that were issued before.
  __device__ __forceinline__ void multiply_values(float (&out)[kWideOut], float (&weight_sums)[2],
                                                  const WideWeights& weights, bool accumulate) {
    if constexpr (kFp8Queries) {
      add_values(out, weight_sums, weights);
    } else {
      issue_out(out, weights, 0, accumulate);
      ptx::wgmma_wait_group<1>();
    }
  }

  __device__ __forceinline__ void make_weights(const float (&exponents)[kWideScores], RowState (&rows)[2],
                                               WideWeights& weights) const {
    if constexpr (kGroupScales) {
      weigh_scaled(exponents, rows, storage_.scales, weights);
    } else {
      weigh(exponents, rows, weights);
    }
  }

  __device__ __forceinline__ void wait_values() {
    profiler_.begin(ProfilePhase::kWaitValues);
    rings_.v.wait_full(at_.v);
    profiler_.end(ProfilePhase::kWaitValues);
  }

  /// The turn of the exponentials, and of the scores issued before them.
  __device__ __forceinline__ void take_turn() const {
    if (!kTakeTurns) return;
    profiler_.begin(ProfilePhase::kWaitTurn);
    ptx::bar_sync(kBarrierTurn + warpgroup_, kConsumerThreads);
    profiler_.end(ProfilePhase::kWaitTurn);
  }
  __device__ __forceinline__ void pass_turn() const {
    if (kTakeTurns) ptx::bar_arrive(kBarrierTurn + 1 - warpgroup_, kConsumerThreads);
  }

  /// Zeroes V past the request's last key, where a page's unused rows may hold NaN (0 * NaN is NaN). Each
  /// warpgroup does all of it for itself: the other's stores are the same.
  __device__ __forceinline__ void clear_tail(int valid_keys) {
    unsigned char* stage = reinterpret_cast<unsigned char*>(storage_.tiles.v[at_.v.stage()]);
    for (int i = valid_keys * kPanelChunks + thread_; i < kStageKv * kPanelChunks; i += kWarpgroupThreads) {
      unsigned char* chunk = stage + v_layout_.row_offset(i / kPanelChunks) + i % kPanelChunks * 16;
#pragma unroll
      for (int panel = 0; panel < kVoPanels; ++panel)
        *reinterpret_cast<uint4*>(chunk + panel * v_layout_.panel_bytes()) = make_uint4(0, 0, 0, 0);
    }
    ptx::fence_proxy_async();
    ptx::bar_sync(kBarrierWarpgroup + warpgroup_, kWarpgroupThreads);
  }

  __device__ __forceinline__ void issue_scores(float (&scores)[kWideScores]) {
    constexpr int kStepsPerPanel = kPanelCols / kScoreStepCols;
    const uint32_t q_rows =
        ptx::shared_address(storage_.tiles.q[at_.q.stage()]) + warpgroup_ * 64 * kPanelRowBytes;
    const ptx::WgmmaDescriptor q(q_rows, 16, kGroupBytes);
    const ptx::WgmmaDescriptor k(ptx::shared_address(storage_.tiles.k[at_.k.stage()]), 16, kGroupBytes);
    if (kGather || kWidens) ptx::fence_proxy_async();  // or TMA wrote it
    ptx::fence_registers(scores);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kHeadDimQk / kScoreStepCols; ++step) {
      const int panel = step / kStepsPerPanel;
      const int bytes = step % kStepsPerPanel * 32;
      const uint64_t q_step = q.at(panel * kWideTileQ * kPanelRowBytes + bytes);
      const uint64_t k_step = k.at(panel * kStageKv * kPanelRowBytes + bytes);
      if constexpr (kFp8Queries) {
        ptx::wgmma_m64k32(scores, q_step, k_step, step > 0);
      } else {
        ptx::wgmma_m64k16<Element>(scores, q_step, k_step, step > 0);
      }
    }
    ptx::wgmma_commit_group();
  }

  /// `first_col`: of V, where it is transposed.
  template <int kSums>
  __device__ __forceinline__ void issue_out(float (&out)[kSums], const WideWeights& weights, int first_col,
                                            bool accumulate) {
    const ptx::WgmmaDescriptor v = values();
    if ((kGather || kFp8Kv) && first_col == 0) ptx::fence_proxy_async();
    ptx::fence_registers(out);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kStageKv / kOutStepKeys; ++step) {
      if constexpr (kFp8Queries) {
        ptx::wgmma_m64k32(out, weights[step], v.at(first_col * kPanelRowBytes + step * 32),
                          accumulate || step > 0);
      } else {
        ptx::wgmma_m64k16_trans<WideValue>(out, weights[step], v.at(v_layout_.step_offset(step)),
                                           accumulate || step > 0);
      }
    }
    ptx::wgmma_commit_group();
  }

  __device__ __forceinline__ ptx::WgmmaDescriptor values() const {
    const uint32_t stage = ptx::shared_address(storage_.tiles.v[at_.v.stage()]);
    if constexpr (kFp8Queries) return {stage, 16, kGroupBytes};  // transposed
    return {stage, v_layout_.panel_bytes(), v_layout_.group_bytes()};
  }

  /// Where groups of tokens have scales: multiplies scores by those of their keys.
  template <class Scales>
  __device__ __forceinline__ void scale_keys(float (&scores)[kWideScores], const Scales& scales) const {
    if (params_.k_scale_strides.group_inverse == 0) return;
    const float* keys = scales.k[at_.k.stage()] + thread_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < kWideScores; i += 4) {
      const float2 pair = *reinterpret_cast<const float2*>(keys + 2 * i);
      scores[i] *= pair.x;
      scores[i + 1] *= pair.y;
      scores[i + 2] *= pair.x;
      scores[i + 3] *= pair.y;
    }
  }

  /// Whether a row of the warpgroup may not see some key of a tile, for another reason than the causal mask.
  __device__ __forceinline__ bool touches_mask(const PackedRows& packed, int tile_begin) const {
    return tile_begin < packed.visible_begin(warpgroup_ * 64 + 63) || packed.has_custom_mask();
  }

  /// Only for tiles that touch an edge.
  __device__ __forceinline__ void mask(float (&scores)[kWideScores], const PackedRows& packed,
                                       int tile_begin) const {
    const int first_key = tile_begin + thread_ % 4 * 2;
    const int visible[2] = {packed.visible_end(first_row_) - first_key,
                            packed.visible_end(first_row_ + 8) - first_key};
#pragma unroll
    for (int i = 0; i < kWideScores; ++i) {
      if (i / 4 * 8 + i % 2 >= visible[i / 2 % 2]) scores[i] = -INFINITY;
    }
    if constexpr (kMasked) {
      mask_windows(scores, packed, first_key);
      if (packed.has_custom_mask()) mask_by_words(scores, packed, tile_begin);
    }
  }

  /// Where P V has registers of its own the compiler is not to keep what comes of it.
  __device__ __forceinline__ static int remade(int x) { return kFp8Queries ? ptx::opaque(x) : x; }

  __device__ __forceinline__ void mask_windows(float (&scores)[kWideScores], const PackedRows& packed,
                                               int first_key) const {
    const int begin[2] = {packed.visible_begin(remade(first_row_)) - first_key,
                          packed.visible_begin(remade(first_row_) + 8) - first_key};
#pragma unroll
    for (int i = 0; i < kWideScores; ++i) {
      if (i / 4 * 8 + i % 2 < begin[i / 2 % 2]) scores[i] = -INFINITY;
    }
  }

  __device__ __forceinline__ void mask_by_words(float (&scores)[kWideScores], const PackedRows& packed,
                                                int tile_begin) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t* words = packed.mask_words(params_, remade(first_row_) + 8 * r, tile_begin);
      if (words == nullptr) continue;
#pragma unroll
      for (int i = 2 * r; i < kWideScores; i += 4) {
        const uint32_t bits = words[i / 4 * 8 / 32] >> (i / 4 * 8 % 32 + remade(thread_) % 4 * 2);
        if ((bits & 1) == 0) scores[i] = -INFINITY;
        if ((bits & 2) == 0) scores[i + 1] = -INFINITY;
      }
    }
  }

  __device__ __forceinline__ void cap(float (&scores)[kWideScores]) const {
#pragma unroll
    for (int i = 0; i < kWideScores; ++i) scores[i] = cap_score(scores[i], scales_.cap_log2);
  }

  /// Of the scores that this thread holds.
  __device__ __forceinline__ static void take_maxima(const float (&scores)[kWideScores], float (&maxima)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float chain[2] = {-INFINITY, -INFINITY};  // two, since each maximum waits for the one before
#pragma unroll
      for (int i = 2 * r; i < kWideScores; i += 4)
        chain[i / 4 % 2] = fmaxf(chain[i / 4 % 2], fmaxf(scores[i], scores[i + 1]));
      maxima[r] = fmaxf(chain[0], chain[1]);
    }
  }

  /// Whether some row of the warp has a score too far above its reference. Most tiles have none, and then the
  /// lanes of a row need not agree on its maximum, nor is there anything to rescale.
  __device__ __forceinline__ bool exceed_references(const float (&maxima)[2],
                                                    const RowState (&rows)[2]) const {
    return __any_sync(0xffffffff, maxima[0] > rows[0].m + max_rise_ || maxima[1] > rows[1].m + max_rise_);
  }

  /// The references become the rows' maxima; the factors are for what was accumulated before.
  __device__ __forceinline__ void raise_references(float (&maxima)[2], RowState (&rows)[2],
                                                   float (&factors)[2]) const {
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) maxima[r] = fmaxf(maxima[r], __shfl_xor_sync(0xffffffff, maxima[r], lanes));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) factors[r] = rows[r].raise_max(maxima[r], scales_.score_log2);
  }

  /// Frees the scores for the products to come.
  __device__ __forceinline__ void scale(float (&scores)[kWideScores], const RowState (&rows)[2],
                                        float (&exponents)[kWideScores]) const {
#pragma unroll
    for (int i = 0; i < kWideScores; ++i) {
      const float scaled_max = finite_max(rows[i / 2 % 2].m) * scales_.score_log2 - kUnitWeightLog2;
      exponents[i] = fmaf(scores[i], scales_.score_log2, -scaled_max);
    }
    ptx::fence_registers(exponents);
  }

  /// The accumulator layout of 16 columns is wgmma's layout of a left operand of 16 columns of 16 bits.
  __device__ __forceinline__ static void weigh(const float (&exponents)[kWideScores], RowState (&rows)[2],
                                               WideWeights& weights) {
    float sums[4] = {};  // of row 0, row 1, row 0, row 1
    if constexpr (kFp8Queries) {
      // The keys of a word as transpose.cuh has them.
#pragma unroll
      for (int i = 0; i < kWideScores / 4; ++i) {
        const int first = i / 2 * 8 + i % 2 * 2;
        const float a = ptx::ex2(exponents[first]);
        const float b = ptx::ex2(exponents[first + 1]);
        const float c = ptx::ex2(exponents[first + 4]);
        const float d = ptx::ex2(exponents[first + 5]);
        sums[i % 4] += (a + b) + (c + d);
        weights[i / 4][i % 4] = ptx::pack_e4m3(a, b, c, d);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kWideScores / 2; ++i) {
        const float low = ptx::ex2(exponents[2 * i]);
        const float high = ptx::ex2(exponents[2 * i + 1]);
        sums[i % 4] += low + high;
        weights[i / 4][i % 4] = ptx::pack<WideValue>(low, high);
      }
    }
    rows[0].l += sums[0] + sums[2];
    rows[1].l += sums[1] + sums[3];
  }

  /// And where groups of tokens may have scales: a weight times that of its value.
  template <class Scales>
  __device__ __forceinline__ void weigh_scaled(const float (&exponents)[kWideScores], RowState (&rows)[2],
                                               const Scales& scales, WideWeights& weights) const {
    const float* values = scales.v[at_.v.stage()] + thread_ % 4 * 2;
    float sums[2] = {};
#pragma unroll
    for (int i = 0; i < kWideScores / 2; ++i) {
      const float2 scale = *reinterpret_cast<const float2*>(values + i / 2 * 8);
      const float low = ptx::ex2(exponents[2 * i]);
      const float high = ptx::ex2(exponents[2 * i + 1]);
      sums[i % 2] += low + high;
      weights[i / 4][i % 4] = ptx::pack<WideValue>(low * scale.x, high * scale.y);
    }
    rows[0].l += sums[0];
    rows[1].l += sums[1];
  }

  __device__ __forceinline__ static void rescale(float (&out)[kWideOut], const float (&factors)[2]) {
#pragma unroll
    for (int i = 0; i < kWideOut; ++i) out[i] *= factors[i / 2 % 2];
  }

  /// Where an item's last weights are made: stores the rows' lse. `out_scales`: what the output is to be
  /// multiplied with.
  __device__ __forceinline__ void finish_rows(const HeadItem& tile, const float (&weight_sums)[2],
                                              RowState (&rows)[2], float (&out_scales)[2]) const {
    const Output output(params_, tile.item, tile.rows, tile.kv_head);
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) rows[r].l += __shfl_xor_sync(0xffffffff, rows[r].l, lanes);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row_ + 8 * r;
      const float l = rows[r].l / kUnitWeight;
      const RowEnd end(rows[r].m, l, output.item_sink(0, row), scales_.score_log2, scales_.v);
      if (thread_ % 4 == 0 && row < tile.item.num_rows) output.store_lse(0, row, end.lse);
      out_scales[r] = end.out_scale;
      // By the sum of the weights as they were multiplied: rounding may move those of a row all alike.
      if (kFp8Queries && l > 0.f) out_scales[r] *= l * ptx::rcp(weight_sums[r]);
    }
  }

  __device__ __forceinline__ void store(const HeadItem& tile, float (&out)[kWideOut],
                                        const float (&out_scales)[2]) const {
    const Output output(params_, tile.item, tile.rows, tile.kv_head);
    if constexpr (kFp8Queries) {
      store_transposed(output, out, out_scales);
      return;
    }
    rescale(out, out_scales);
    if (!output.is_split) {
      store_final(output, out);
    } else {
      store_partial(output, out);
    }
  }

  /// Where V was transposed a lane has four columns of each block of 16 side by side (transpose.cuh).
  __device__ __forceinline__ void store_transposed(const Output& output, const float (&out)[kWideOut],
                                                   const float (&out_scales)[2]) const {
    if (output.is_split) {
      store_rows(output, out, out_scales, [&](int row) { return output.partial_out_row(0, row); });
    } else if (params_.out_is_bf16) {
      store_rows(output, out, out_scales, [&](int row) { return output.out_row<__nv_bfloat16>(0, row); });
    } else {
      store_rows(output, out, out_scales, [&](int row) { return output.out_row<__half>(0, row); });
    }
  }

  /// Scaled as they are stored: they are moved for it anyway.
  template <class FindRow>
  __device__ __forceinline__ void store_rows(const Output& output, const float (&out)[kWideOut],
                                             const float (&out_scales)[2], const FindRow& find_row) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row_ + 8 * r;
      if (row >= output.item.num_rows) return;
      auto* const target = find_row(row) + thread_ % 4 * 4;
#pragma unroll
      for (int i = 2 * r; i < kWideOut; i += 8) {
        const float4 columns = make_float4(out[i], out[i + 4], out[i + 1], out[i + 5]);
        store_4(target + 2 * (i - 2 * r), times(columns, out_scales[r]));
      }
    }
  }

  __device__ __forceinline__ void store_partial(const Output& output, const float (&out)[kWideOut]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row_ + 8 * r;
      if (row >= output.item.num_rows) return;
      float* target = output.partial_out_row(0, row) + thread_ % 4 * 2;
#pragma unroll
      for (int i = 2 * r; i < kWideOut; i += 4)
        *reinterpret_cast<float2*>(target + 2 * (i - 2 * r)) = make_float2(out[i], out[i + 1]);
    }
  }

  /// A lane holds two columns of each block of 8. Neighbours exchange, so that one has four columns of a
  /// block and the other four of the next: eight bytes a lane, and whole sectors a row.
  __device__ __forceinline__ void store_final(const Output& output, const float (&out)[kWideOut]) const {
    const bool is_odd = thread_ % 2;
    const int first_col = thread_ % 4 / 2 * 4 + is_odd * 8;
    Element* const targets[2] = {output.out_row(0, first_row_) + first_col,
                                 output.out_row(0, first_row_ + 8) + first_col};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool valid = first_row_ + 8 * r < output.item.num_rows;
#pragma unroll
      for (int i = 2 * r; i < kWideOut; i += 8) {
        const uint32_t block = ptx::pack<Element>(out[i], out[i + 1]);
        const uint32_t next_block = ptx::pack<Element>(out[i + 4], out[i + 5]);
        const uint32_t received = __shfl_xor_sync(0xffffffff, is_odd ? block : next_block, 1);
        const uint2 columns = is_odd ? make_uint2(received, next_block) : make_uint2(block, received);
        if (valid) *reinterpret_cast<uint2*>(targets[r] + 2 * (i - 2 * r)) = columns;
      }
    }
  }

  const KernelParams& params_;
  const Work& work_;
  WideStorage& storage_;
  WideRings& rings_;
  const Profiler& profiler_;
  Scales scales_;
  float max_rise_;  ///< of a score above its row's reference
  const BoxLayout<kVoPanels> v_layout_;
  const int thread_;     ///< in the warpgroup
  const int warpgroup_;  ///< 0 or 1: rows 0-63 or 64-127
  int first_row_;        ///< of this thread, in the tile
  bool has_next_;        ///< another kv head or item after this; known from an item's last tile on
  WidePositions at_;
};

}  // namespace onewave
