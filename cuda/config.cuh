#pragma once

/// What one cubin is compiled for, and all tuning numbers of the kernel.

#include "params.h"
#include "ptx/convert.cuh"

#include <onewave/plan_format.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace onewave {

// From a row of the kernel table in cmake/Kernels.cmake.
using QueryElement = ONEWAVE_DTYPE;
using KvElement = ONEWAVE_KV_DTYPE;
/// Columns of a row of Q and K, and of one of V and the output.
inline constexpr int kHeadDimQk = ONEWAVE_HEAD_DIM_QK;
inline constexpr int kHeadDimVo = ONEWAVE_HEAD_DIM_VO;
/// Whether K and V are e4m3 bytes, and whether Q is too.
///
/// The narrow consumers widen e4m3 to 16 bits in registers. The wide ones want operands in shared memory,
/// which the producer makes: widened to 16 bits (widen.cuh); or, where Q is e4m3 too, K as it is, and V
/// transposed (transpose.cuh).
inline constexpr bool kFp8Kv = std::is_same_v<KvElement, ptx::E4M3>;
inline constexpr bool kFp8Queries = std::is_same_v<QueryElement, ptx::E4M3>;
inline constexpr bool kWidens = kFp8Kv && !kFp8Queries;
static_assert(kFp8Kv || std::is_same_v<KvElement, QueryElement>);

/// Of 16 bits: what the narrow kind multiplies Q and K as, and weights and V. An e4m3 is as exact in fp16, to
/// which there is an instruction; beside queries of 16 bits K has their type, whose range is its own.
using Element = std::conditional_t<kFp8Queries, __half, QueryElement>;
using ValueElement = std::conditional_t<kFp8Kv, __half, Element>;
/// And of the wide kind.
using WideKey = QueryElement;
using WideValue = std::conditional_t<kFp8Queries, ptx::E4M3, ValueElement>;
/// K and V row by row with cp.async; otherwise a TMA box per page and panel.
inline constexpr bool kGather = ONEWAVE_LOADER == 1;
static_assert(kHeadDimQk % 32 == 0 && kHeadDimVo % 32 == 0);

/// Whether the kernel looks at windows and custom masks (WorkItem::window_shift, mask_begin), the plan's soft
/// cap and the run's sinks. They would cost the others a few per cent.
inline constexpr bool kMasked = ONEWAVE_MASKED == 1;

/// Whether the kernel counts where its time goes (profile.cuh).
inline constexpr bool kProfiled = ONEWAVE_PROFILED == 1;

/// And at the run's scales of groups of tokens. (The producer has no registers for them beside longer rows;
/// and weights of e4m3 no range.)
inline constexpr bool kGroupScales = kWidens && kMasked && kHeadDimVo <= kMaxScaledHeadDim;

/// Compute-bound items (wide.cuh) and memory-bound ones (narrow.cuh).
enum class Kind { kWide, kNarrow };

/// Keys of a stage of K or V.
inline constexpr int kStageKv = stage_kv(kHeadDimVo);
inline constexpr int kStageKvShift = kStageKv == 128 ? 7 : 6;
inline constexpr int kWideRowsShift = 7;
static_assert(kStageKv == 1 << kStageKvShift && kWideTileQ == 1 << kWideRowsShift);

/// Tiles lie in shared memory as panels of 64 columns: rows of 128 bytes under the 128-byte swizzle. The last
/// panel of 96 columns is half empty: what lies there is never multiplied.
/// Of e4m3 a panel has 128 columns.
inline constexpr int kPanelCols = panel_cols(sizeof(QueryElement));
inline constexpr int kQkPanels = num_panels(kHeadDimQk, sizeof(QueryElement));
inline constexpr int kVoPanels = num_panels(kHeadDimVo, sizeof(Element));
/// The same of K and V as they come.
inline constexpr int kKvPanelCols = panel_cols(sizeof(KvElement));
inline constexpr int kKPanels = num_panels(kHeadDimQk, sizeof(KvElement));
inline constexpr int kVPanels = num_panels(kHeadDimVo, sizeof(KvElement));
/// A 16-byte chunk, the unit of the swizzle, of cp.async and of an ldmatrix row.
inline constexpr int kChunkBytes = 16;
inline constexpr int kChunkCols = kChunkBytes / sizeof(QueryElement);
inline constexpr int kKvChunkCols = kChunkBytes / sizeof(KvElement);
inline constexpr int kPanelChunks = kPanelRowBytes / kChunkBytes;

ONEWAVE_HOST_DEVICE constexpr int round_up_to_power_of_two(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kConsumerThreads = kNumThreads - kWarpgroupThreads;
inline constexpr int kConsumerWarps = kConsumerThreads / 32;
inline constexpr int kConsumerWarpsShift = 3;
static_assert(kConsumerWarps == 1 << kConsumerWarpsShift);

/// Narrow items: 16 keys of every stage are a warp's. Where a stage has fewer keys than there are warps for,
/// several share the same 16, and each accumulates a part of the columns of O^T.
inline constexpr int kKeyWarpsShift = kStageKvShift - 4;
inline constexpr int kColumnParts = kConsumerWarps >> kKeyWarpsShift;
inline constexpr int kPartCols = kHeadDimVo / kColumnParts;
static_assert(kPartCols % 16 == 0 && (1 << kKeyWarpsShift) == max_heads_per_step(kHeadDimVo));

/// Of the consumer warps of a narrow item.
__device__ __forceinline__ int column_part_of(int warp) {
  return kColumnParts > 1 ? warp >> kKeyWarpsShift : 0;
}
__device__ __forceinline__ int key_warp_of(int warp) {
  return kColumnParts > 1 ? warp & ((1 << kKeyWarpsShift) - 1) : warp;
}

/// Arrivals of a warp on a barrier: one lane's, where a consumer's is after __syncwarp. compute-sanitizer's
/// racecheck does not carry one lane's arrival over to what the others of its warp have read, so the cubins
/// it checks (CMake option ONEWAVE_SANITIZER) have all lanes arrive.
#ifdef ONEWAVE_SANITIZER
inline constexpr int kArrivingLanes = 32;
#else
inline constexpr int kArrivingLanes = 1;
#endif

/// Beside the boxes of TMA the lanes of a warp copy scales of groups of tokens, and arrive when they are
/// there.
inline constexpr int kScaleArrivals = kGroupScales ? 32 : 0;

/// Registers by role. A CTA starts with 384 * 168, and what the roles ask for must not exceed that, or
/// setmaxnreg waits for ever.
///
/// Within what does not spill they are chosen by time: ptxas orders the same instructions otherwise for each,
/// which moves a gathering stream by 5 % and the wide loop of head_dim 64 by 8 % (bench/NOTES.md). A busy
/// producer spills with fewer.
inline constexpr bool kBusyProducer =
    (kGather && kMasked && kHeadDimVo > 192 && !kFp8Queries) || (kGroupScales && kHeadDimVo < 128);
inline constexpr int kProducerRegisters = kBusyProducer                                    ? 72
                                          : kGather || kWidens || (kFp8Queries && kMasked) ? 56
                                                                                           : 40;
inline constexpr int kConsumerRegisters = kProducerRegisters == 40                         ? 232
                                          : kBusyProducer || (kHeadDimVo == 64 && !kFp8Kv) ? 216
                                                                                           : 224;
static_assert(kWarpgroupThreads * kProducerRegisters + kConsumerThreads * kConsumerRegisters <=
              kNumThreads * 168);

/// A stage of V as the wide kind multiplies it. Transposed a row is a column of V, and has its keys: 128, or
/// 64 in the first half; and behind them are eight rows of ones, whose products are sums of the weights.
inline constexpr int kOnesRows = 8;
inline constexpr int kWideValueBytes =
    kFp8Queries ? (kHeadDimVo + kOnesRows) * kPanelRowBytes : kStageKv * kVoPanels * kPanelRowBytes;

/// A stage of K and one of V: of the wide kind's operands, and of the narrow kind's.
inline constexpr int kStageBytes = kStageKv * kQkPanels * kPanelRowBytes + kWideValueBytes;
inline constexpr int kNarrowStageBytes = kStageKv * (kKPanels + kVPanels) * kPanelRowBytes;
/// What the wide kind's operands are made from: a stage of K and one of V, or V's alone.
inline constexpr int kLoadedValueStages = kFp8Queries ? 2 : 1;
inline constexpr int kLoadedBytes =
    kStageKv * ((kWidens ? kKPanels : 0) + kLoadedValueStages * kVPanels) * kPanelRowBytes;

/// Stages of the K ring and of the V ring: 96 to 160 KiB together. 64 KiB already draw the whole bandwidth;
/// the wide kind needs two of each to overlap.
constexpr int num_stages(int stage_bytes) { return stage_bytes <= 32 << 10 ? 4 : 2; }
inline constexpr int kWideStages = num_stages(kStageBytes);
inline constexpr int kNarrowStages = num_stages(kNarrowStageBytes);

/// Query tiles: where there is room for two, that of the next item is loaded while this one is in use. (The
/// masked kernels that widen have no registers for the second.)
inline constexpr int kWideBytes = kWideStages * kStageBytes + (kFp8Kv ? kLoadedBytes : 0);
inline constexpr int kRecordBytes = kGather ? 4096 : 2560;  ///< of all that is no tile, rounded up
inline constexpr int kQueryStages =
    kWideBytes + 2 * kWideTileQ * kQkPanels * kPanelRowBytes <= kSharedBytes - kRecordBytes &&
            !(kWidens && kMasked)
        ? 2
        : 1;

/// Records of wide items beside the query tiles. An item's is read until its output is stored, when the query
/// tile after the next may be on its way.
inline constexpr int kHeadItems = 2 * kQueryStages;

/// Whether all producer warps load K, V and Q of a kind, one tile after another; otherwise warp 0 issues K's
/// boxes, warp 1 V's, and the others load Q.
template <Kind kKind>
inline constexpr bool kLoadsTogether = kGather || (kFp8Kv && kKind == Kind::kWide);
static_assert(kProducerWarps == kWarpgroupThreads / 32);
/// Of a stage, those that a warp loads, and afterwards widens or transposes: each warp has its own rows, and
/// they never meet.
inline constexpr int kWarpRows = kStageKv / kProducerWarps;
template <Kind kKind>
inline constexpr int kLoadedRows = kFp8Kv && kKind == Kind::kWide ? kWarpRows : kStageKv;
template <Kind kKind>
inline constexpr int kQueryLoaderThreads = kLoadsTogether<kKind> ? 128 : 64;

/// A wide row's weights are relative to a reference, which is raised to the row's maximum only where a score
/// exceeds it by more than this, as an exponent of two: most tiles raise nothing. A reference's own weight is
/// exactly 1 (or kUnitWeight), so with a small rise a row that few keys dominate stays nearly as exact as
/// with the maximum; at 8 the error of random batches grows by 4 %, and the largest errors by up to half
/// (bench/NOTES.md).
inline constexpr float kMaxRiseLog2 = 2.f;

/// Whether the exponentials of the two wide consumer warpgroups take turns. At head_dim 64 they cost as much
/// as the products, and left alone the warpgroups fall into step and wait for each other at both (1386 us of
/// prefill_1x8k_d64 become 1187; 719 of head_dim 96 697); at 128 the products rule, and a turn costs 1 %.
/// Those of e4m3 take half the time, and a turn saves 6 % there.
inline constexpr bool kTakeTurns = kHeadDimVo < 128 || kFp8Queries;

/// A reference's weight. Of e4m3 as large as can be: a weight is at most 2^kMaxRiseLog2 of it, and an e4m3 at
/// most 448, so those down to 2^-12.8 of a reference's have all their bits, and those below 2^-16.8 are 0.
inline constexpr float kUnitWeight = kFp8Queries ? 112.f : 1.f;
inline constexpr float kUnitWeightLog2 = kFp8Queries ? 6.80735492f : 0.f;

/// Tensor cores keep some 12 bits of a sum of products of e4m3, and what they add to it is cut off there:
/// with all of 4096 keys in one sum outputs come out 5 % too small (bench/NOTES.md). So P V of a tile is a
/// sum of its own, of so many columns at a time as there are registers for, and added to the others' in
/// float32.
inline constexpr int kSumCols = kHeadDimVo == 192 ? 96
                                : kHeadDimVo > 128 || (kHeadDimVo == 128 && (kGather || kMasked))
                                    ? 64
                                    : kHeadDimVo;

/// Named barriers (0 is __syncthreads).
enum NamedBarrier : int {
  kBarrierConsumers = 1,  // all consumer threads
  kBarrierWarpgroup = 2,  // one consumer warpgroup: 2 and 3
  kBarrierTurn = 4,       // the wide consumer warpgroup whose turn it is: 4 and 5
};

}  // namespace onewave
