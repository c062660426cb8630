#pragma once

/// Rings of shared-memory stages between the producer and the consumers.
///
///   producer   wait(empty) -> copy, which arrives on full
///   consumer   wait(full) -> read -> arrive on empty
///
/// Both sides walk the ring with a RingPosition of their own, over item boundaries and without a restart.

#include "config.cuh"
#include "ptx/barrier.cuh"

namespace onewave {

template <int kStages>
struct RingPosition {
  static_assert((kStages & (kStages - 1)) == 0);
  uint32_t count = 0;  ///< stages passed

  __device__ __forceinline__ uint32_t stage() const { return count % kStages; }
  /// Of the current lap; a consumer waits for it, a producer for the lap before.
  __device__ __forceinline__ uint32_t parity() const { return count / kStages % 2; }
  __device__ __forceinline__ void advance() { ++count; }
  __device__ __forceinline__ RingPosition previous() const { return {count - 1}; }
  __device__ __forceinline__ RingPosition next() const { return {count + 1}; }
};

/// By every lane of a consumer warp, when all it did before may be taken as done.
__device__ __forceinline__ void arrive_warp(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 < kArrivingLanes) ptx::mbarrier_arrive(barrier);
}

template <int kStages>
struct Ring {
  uint64_t full[kStages];
  uint64_t empty[kStages];

  __device__ void init(uint32_t num_producer_arrivals) {
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(&full[i], num_producer_arrivals);
      ptx::mbarrier_init(&empty[i], kConsumerWarps * kArrivingLanes);
    }
  }

  /// The first lap passes at once: the phase before the first counts as complete.
  __device__ __forceinline__ void wait_empty(const RingPosition<kStages>& position) {
    ptx::mbarrier_wait(&empty[position.stage()], position.parity() ^ 1);
  }

  __device__ __forceinline__ void wait_full(const RingPosition<kStages>& position) {
    ptx::mbarrier_wait(&full[position.stage()], position.parity());
  }

  /// The answer takes a while to come: asked ahead of other work, and handed to wait_full_unless after it.
  __device__ __forceinline__ bool is_full(const RingPosition<kStages>& position) {
    return ptx::mbarrier_test(&full[position.stage()], position.parity());
  }

  __device__ __forceinline__ void wait_full_unless(bool was_full, const RingPosition<kStages>& position) {
    if (!was_full) wait_full(position);
  }

  /// By every consumer warp, once all its lanes have read the stage.
  __device__ __forceinline__ void arrive_empty(const RingPosition<kStages>& position) {
    arrive_warp(&empty[position.stage()]);
  }

  /// And goes on to the next.
  __device__ __forceinline__ void release(RingPosition<kStages>& position) {
    arrive_empty(position);
    position.advance();
  }
};

/// The rings of one kind of item: a query tile per (item, kv head), K and V stages of kStageKv keys.
template <Kind kKind>
struct KindRings {
  static constexpr int kStages = kKind == Kind::kWide ? kWideStages : kNarrowStages;

  Ring<kQueryStages> q;
  Ring<kStages> k;
  Ring<kStages> v;

  __device__ void init() {
    constexpr bool kMakesOperands = kFp8Kv && kKind == Kind::kWide;  // the producer, of what it loads
    constexpr uint32_t kLoadedArrivals = kGather ? kWarpgroupThreads : kArrivingLanes;
    constexpr uint32_t kMadeArrivals = kProducerWarps * kArrivingLanes;
    q.init(kQueryLoaderThreads<kKind> + 1);  // the last is of the thread that writes the item's record
    if constexpr (!kMakesOperands) {
      k.init(kLoadedArrivals + (kGather ? 0 : kScaleArrivals));
      v.init(kLoadedArrivals);
    } else {
      k.init(kWidens || !kGather ? kMadeArrivals : kLoadedArrivals);  // or each warp loads its rows
      v.init(kMadeArrivals);
    }
  }
};
using WideRings = KindRings<Kind::kWide>;
using NarrowRings = KindRings<Kind::kNarrow>;

}  // namespace onewave
