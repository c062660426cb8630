#pragma once

/// The profiler of the kernels that have one (ONEWAVE_PROFILED): where the consumers' time goes, item by item
/// (onewave/profile.h). In the others all of it is empty functions.
///
/// The first thread of each consumer warpgroup counts for all of it. When a phase begins, the clock is added
/// to one counter in shared memory, when it ends, to another, so that a loop which has no register to spare
/// need keep nothing; the differences are what the phases took. That thread's warp writes them out when an
/// item is done. All threads add, the others to words that nobody reads: a condition would be a branch each
/// time, as an atomic operation is to ptxas, and a clock that is negated is read by way of a uniform
/// register, which takes ten times as long.

#include "params.h"
#include "ptx/timer.cuh"
#include "work.cuh"

#include <cstddef>
#include <type_traits>

namespace onewave {

using EntryParams = std::conditional_t<kProfiled, ProfiledParams, KernelParams>;

/// Sums of clocks, by warpgroup: when a phase began and when it ended.
struct PhaseClocks {
  uint32_t begins[kMaxProfileTracks];
  uint32_t ends[kMaxProfileTracks];
};

/// In shared memory.
struct ProfileCounters {
  uint64_t begin_clock;
  PhaseClocks phases[kNumProfilePhases];
  uint32_t unread[sizeof(phases) / sizeof(uint32_t) + 32];  // the same from any lane's word on
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
    static_assert(offsetof(ProfileCounters, begin_clock) == 0);
    for (int i = kClockWords + threadIdx.x; i < kWords; i += kNumThreads)
      reinterpret_cast<uint32_t*>(&counters)[i] = 0;
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
    static_assert(kItemWords + 3 <= 32 && kNumProfilePhases <= 32);
    if (__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0) != 0) return;
    const int lane = threadIdx.x % 32;
    __syncwarp();  // what the first lane has counted is there
    const uint32_t begin = counters_.item_begin[track()];
    const uint32_t end = __shfl_sync(0xffffffff, now(), 0);
    const uint32_t cycles = lane < kNumProfilePhases ? take_cycles(lane) : 0;
    const int n = counters_.num_items[track()];
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
      ProfileTrack& track_profile = profile.tracks[track()];
      if (lane < kNumProfilePhases) track_profile.cycles[lane] = cycles;
      if (lane == 0) track_profile.begin = begin;
      if (lane == 1) track_profile.end = end;
    }
    __syncwarp();
    if (lane == 0) {
      counters_.item_begin[track()] = end;
      counters_.num_items[track()] = n + 1;
    }
    __syncwarp();
  }

  __device__ __forceinline__ void begin(ProfilePhase phase) const {
    add_clock(offsetof(PhaseClocks, begins), phase);
  }
  __device__ __forceinline__ void end(ProfilePhase phase) const {
    add_clock(offsetof(PhaseClocks, ends), phase);
  }

 private:
  /// By all consumer threads.
  __device__ __forceinline__ void add_clock(int offset, ProfilePhase phase) const {
    uint32_t* words = counts() ? &counters_.phases[0].begins[track()] : &counters_.unread[threadIdx.x % 32];
    const int bytes = offset + static_cast<int>(phase) * static_cast<int>(sizeof(PhaseClocks));
    ptx::red_add(words + bytes / sizeof(uint32_t), ptx::clock32());
  }
  /// Since it was called last.
  __device__ __forceinline__ uint32_t take_cycles(int phase) const {
    uint32_t& begins = counters_.phases[phase].begins[track()];
    uint32_t& ends = counters_.phases[phase].ends[track()];
    const uint32_t cycles = ends - begins;
    begins = ends = 0;
    return cycles;
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
