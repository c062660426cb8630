#pragma once

/// The profiler of the kernels that have one (ONEWAVE_PROFILED): where the consumers' time goes, item by item
/// (onewave/profile.h). In the others all of it is nothing, and they are the same instruction for instruction
/// as without the calls (tests/test_sass.py).
///
/// The first thread of each consumer warpgroup counts for all of it. A phase takes its clock from a counter
/// in shared memory when it begins and gives it back when it ends, so that a loop which has no register to
/// spare need keep nothing; an item's counters are written out and cleared when it is done.

#include "params.h"
#include "ptx/timer.cuh"
#include "work.cuh"

#include <type_traits>

namespace onewave {

using EntryParams = std::conditional_t<kProfiled, ProfiledParams, KernelParams>;

/// In shared memory, by warpgroup.
struct ProfileCounters {
  uint32_t cycles[kMaxProfileTracks][kNumProfilePhases];
  uint32_t item_begin[kMaxProfileTracks];
  int32_t num_items[kMaxProfileTracks];
  uint64_t begin_clock;
};
struct NoCounters {};
using ProfileStorage = std::conditional_t<kProfiled, ProfileCounters, NoCounters>;

class NoProfiler {
 public:
  __device__ __forceinline__ NoProfiler(const KernelParams&, NoCounters&) {}
  __device__ __forceinline__ static void begin_cta(const KernelParams&, NoCounters&, bool) {}
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

  /// By all threads, before the barrier that all roles begin with; the only call of a CTA without work.
  __device__ __forceinline__ static void begin_cta(const KernelParams& kernel_params,
                                                   ProfileCounters& counters, bool works) {
    const auto& params = static_cast<const ProfiledParams&>(kernel_params);
    constexpr int kWords = sizeof(ProfileCounters) / sizeof(uint32_t);
    static_assert(kWords <= kNumThreads);
    if (threadIdx.x < kWords) reinterpret_cast<uint32_t*>(&counters)[threadIdx.x] = 0;
    __syncthreads();
    if (threadIdx.x > 0) return;
    if (blockIdx.x == 0) {
      *static_cast<ProfileHeader*>(params.profile) = {kProfileMagic,
                                                      kProfileVersion,
                                                      static_cast<int32_t>(gridDim.x),
                                                      params.max_profile_items,
                                                      kMaxProfileTracks,
                                                      {}};
    }
    CtaProfile& cta = *cta_profile(params.profile, blockIdx.x);
    const uint64_t clock = ptx::clock64();
    const uint64_t ns = ptx::globaltimer();
    counters.begin_clock = clock;
    const auto* record = plan_section<CtaRecord>(params.plan, kCtasOffset) + blockIdx.x;
    cta = {ns, ns, clock, clock, ptx::smid(), 0, works ? record->predicted_us : 0.f, 0};
  }

  /// When a consumer has no more items.
  __device__ __forceinline__ void end_cta() const {
    if (!counts() || track() > 0) return;
    CtaProfile& cta = *cta_profile(params_.profile, blockIdx.x);
    cta.end_clock = ptx::clock64();
    cta.end_ns = ptx::globaltimer();
    cta.num_items = counters_.num_items[0];
  }

  __device__ __forceinline__ void begin_item() const {
    if (counts()) counters_.item_begin[track()] = now();
  }

  /// `kv_head`: the first of the step.
  template <Kind kKind>
  __device__ __forceinline__ void end_item(const WorkItem& item, int kv_head) const {
    if (!counts()) return;
    const int n = counters_.num_items[track()]++;
    const bool has_room = n < params_.max_profile_items;
    ItemProfile& profile =
        *item_profile(params_.profile, gridDim.x, params_.max_profile_items, blockIdx.x, has_room ? n : 0);
    if (has_room && track() == 0) {
      profile.request = item.request;
      profile.q_token_begin = item.q_token_begin;
      profile.row_begin = item.row_begin;
      profile.num_rows = item.num_rows;
      profile.kv_begin = item.kv_begin;
      profile.kv_end = item.kv_end;
      profile.kv_head = kv_head;
      profile.num_heads = item.heads_per_step;
      profile.split_tile = item.split_tile;
      profile.split_idx = item.split_idx;
      profile.is_wide = kKind == Kind::kWide;
    }
    ProfileTrack& target = profile.tracks[track()];
    if (has_room) {
      target.begin = counters_.item_begin[track()];
      target.end = now();
    }
#pragma unroll 1
    for (int phase = 0; phase < kNumProfilePhases; ++phase) {
      uint32_t& cycles = counters_.cycles[track()][phase];
      if (has_room) target.cycles[phase] = cycles;
      cycles = 0;
    }
  }

  __device__ __forceinline__ void begin(ProfilePhase phase) const {
    ptx::subtract_clock(counter(phase), counts());
  }
  __device__ __forceinline__ void end(ProfilePhase phase) const { ptx::add_clock(counter(phase), counts()); }

 private:
  __device__ __forceinline__ uint32_t counter(ProfilePhase phase) const {
    return ptx::shared_address(&counters_.cycles[track()][static_cast<int>(phase)]);
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
