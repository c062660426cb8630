#pragma once

/// The profiler of the kernels that have one (ONEWAVE_PROFILED): where the consumers' time goes, item by item
/// (onewave/profile.h). In the others all of it is empty functions.
///
/// The first thread of each consumer warpgroup counts for all of it. A phase takes its clock from a counter
/// in shared memory when it begins and gives it back when it ends, so that a loop which has no register to
/// spare need keep nothing; that thread's warp writes an item's counters out when it is done.

#include "params.h"
#include "ptx/timer.cuh"
#include "work.cuh"

#include <cstddef>
#include <type_traits>

namespace onewave {

using EntryParams = std::conditional_t<kProfiled, ProfiledParams, KernelParams>;

/// In shared memory, by warpgroup.
struct ProfileCounters {
  uint64_t begin_clock;
  uint32_t cycles[kMaxProfileTracks][kNumProfilePhases];
  uint32_t item_begin[kMaxProfileTracks];
  int32_t num_items[kMaxProfileTracks];
};
struct NoCounters {};
using ProfileStorage = std::conditional_t<kProfiled, ProfileCounters, NoCounters>;

class NoProfiler {
 public:
  __device__ __forceinline__ NoProfiler(const KernelParams&, NoCounters&) {}
  __device__ __forceinline__ static void begin_cta(const KernelParams&, NoCounters&) {}
  __device__ __forceinline__ void end_cta() const {}
  __device__ __forceinline__ void begin_item() const {}
  template <Kind kKind>
  __device__ __forceinline__ void end_item(const WorkItem&, int) const {}
  __device__ __forceinline__ void begin(ProfilePhase) const {}
  __device__ __forceinline__ void end(ProfilePhase) const {}
};

/// Of a consumer thread.
class CountingProfiler {
 public:
  __device__ __forceinline__ CountingProfiler(const KernelParams& params, ProfileCounters& counters)
      : params_(static_cast<const ProfiledParams&>(params)), counters_(counters) {}

  /// By all threads, before the barrier that all roles begin with: also of a CTA that has no work.
  __device__ __forceinline__ static void begin_cta(const KernelParams& kernel_params,
                                                   ProfileCounters& counters) {
    const auto& params = static_cast<const ProfiledParams&>(kernel_params);
    constexpr int kWords = sizeof(ProfileCounters) / sizeof(uint32_t);
    constexpr int kClockWords = sizeof(ProfileCounters::begin_clock) / sizeof(uint32_t);
    static_assert(kWords <= kNumThreads && offsetof(ProfileCounters, begin_clock) == 0);
    if (threadIdx.x >= kClockWords && threadIdx.x < kWords)
      reinterpret_cast<uint32_t*>(&counters)[threadIdx.x] = 0;
    if (threadIdx.x > 0) return;
    if (blockIdx.x == 0) {
      *static_cast<ProfileHeader*>(params.profile) = {.magic = kProfileMagic,
                                                      .version = kProfileVersion,
                                                      .num_ctas = static_cast<int32_t>(gridDim.x),
                                                      .max_items = params.max_profile_items,
                                                      .num_tracks = kMaxProfileTracks,
                                                      .window = params.window,
                                                      .reserved = {}};
    }
    const uint64_t clock = ptx::clock64();
    const uint64_t ns = ptx::globaltimer();
    counters.begin_clock = clock;
    *cta_profile(params.profile, blockIdx.x) = {.begin_ns = ns,
                                                .end_ns = ns,
                                                .begin_clock = clock,
                                                .end_clock = clock,
                                                .sm = ptx::smid(),
                                                .num_items = 0,
                                                .reserved = {}};
  }

  /// When the consumers have no more items.
  __device__ __forceinline__ void end_cta() const {
    ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
    if (!counts() || track() > 0) return;
    CtaProfile& cta = *cta_profile(params_.profile, blockIdx.x);
    cta.end_clock = ptx::clock64();
    cta.end_ns = ptx::globaltimer();
    cta.num_items = counters_.num_items[0];
  }

  /// The first of a kind; another begins where the one before it ends.
  __device__ __forceinline__ void begin_item() const {
    if (counts()) counters_.item_begin[track()] = now();
  }

  /// `kv_head`: the first of the step. By the lanes of the counting warp, a word each: this is in the way of
  /// the next item.
  template <Kind kKind>
  __device__ __forceinline__ void end_item(const WorkItem& item, int kv_head) const {
    constexpr int kItemWords = sizeof(WorkItem) / sizeof(int32_t);
    constexpr int kTrackWords = sizeof(ProfileTrack) / sizeof(uint32_t);
    static_assert(kItemWords + 3 <= 32 && kTrackWords == kNumProfilePhases + 2);
    if (__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0) != 0) return;
    const int lane = threadIdx.x % 32;
    __syncwarp();  // what the first lane has counted is there
    const int n = counters_.num_items[track()];
    const uint32_t end = __shfl_sync(0xffffffff, now(), 0);
    if (n < params_.max_profile_items) {
      ItemProfile& profile =
          *item_profile(params_.profile, gridDim.x, params_.max_profile_items, blockIdx.x, n);
      if (track() == 0 && lane < kItemWords + 3) {
        const int32_t word = lane < kItemWords        ? reinterpret_cast<const int32_t*>(&item)[lane]
                             : lane == kItemWords     ? kv_head
                             : lane == kItemWords + 1 ? item.heads_per_step
                                                      : kKind == Kind::kWide;
        reinterpret_cast<int32_t*>(&profile)[lane] = word;
      }
      if (lane < kTrackWords) {
        const uint32_t word = lane == 0   ? counters_.item_begin[track()]
                              : lane == 1 ? end
                                          : counters_.cycles[track()][lane - 2];
        reinterpret_cast<uint32_t*>(&profile.tracks[track()])[lane] = word;
      }
    }
    __syncwarp();
    if (lane < kNumProfilePhases) counters_.cycles[track()][lane] = 0;
    if (lane == 0) {
      counters_.item_begin[track()] = end;
      counters_.num_items[track()] = n + 1;
    }
    __syncwarp();
  }

  __device__ __forceinline__ void begin(ProfilePhase phase) const {
    ptx::red_add(counter(phase), -ptx::clock32(), counts());
  }
  __device__ __forceinline__ void end(ProfilePhase phase) const {
    ptx::red_add(counter(phase), ptx::clock32(), counts());
  }

 private:
  __device__ __forceinline__ uint32_t* counter(ProfilePhase phase) const {
    return &counters_.cycles[track()][static_cast<int>(phase)];
  }
  __device__ __forceinline__ static bool counts() { return threadIdx.x % kWarpgroupThreads == 0; }
  __device__ __forceinline__ static int track() { return threadIdx.x / kWarpgroupThreads - 1; }
  __device__ __forceinline__ uint32_t now() const {
    return static_cast<uint32_t>(ptx::clock64() - counters_.begin_clock);
  }

  const ProfiledParams& params_;
  ProfileCounters& counters_;
};

using Profiler = std::conditional_t<kProfiled, CountingProfiler, NoProfiler>;

}  // namespace onewave
