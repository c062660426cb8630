#pragma once

/// What a profiled run leaves in its buffer: where the time of every CTA went, item by item. The only
/// definition; the kernel and the CPU executor write it, and Python reads the offsets from it
/// (onewave.trace).
///
///   ProfileHeader | CtaProfile[num_ctas] | ItemProfile[num_ctas][max_items]
///
/// A CTA's items come in the order in which it took them, an item once for each step of its kv heads, and one
/// begins when the one before ends. Times are counts of the SM's clock since the CTA's begin_clock, modulo
/// 2^32; begin and end of a CTA are also known in nanoseconds of the GPU's timer, which all SMs share.
///
/// On a GPU the two consumer warpgroups of a CTA have a track each, as the first thread of each sees it; what
/// an item waits for includes the first operands of the next one, which are asked for under its last
/// exponentials. On a CPU a thread takes the place of a CTA and has one track, a step is all kv heads of an
/// item, and the clock is one of 256 ns.

#include <cstdint>

#include <onewave/plan_format.h>

namespace onewave {

inline constexpr uint32_t kProfileMagic = 0x46505057;  // "WPPF"
inline constexpr uint32_t kProfileVersion = 1;
inline constexpr int32_t kMaxProfileTracks = 2;

/// What the time of a track is spent on, between an item's begin and end; the rest of it is none of these.
enum class ProfilePhase : int32_t {
  kWaitQueries,  ///< until Q and the item's record are in shared memory
  kWaitKeys,
  kWaitValues,
  kSoftmax,   ///< masks, maxima and exponentials
  kProducts,  ///< both; of a wide item until they are done, as far as nothing else is done meanwhile
  kWaitTurn,  ///< wide: for the exponentials of the other warpgroup
  kJoin,      ///< narrow: of the eight warps
  kStore,     ///< of the output, or of partials
  kArrive,    ///< of a split: until all threads have stored, and the arrival is counted
  kMerge,
};
inline constexpr int32_t kNumProfilePhases = 10;

struct ProfileHeader {
  uint32_t magic;
  uint32_t version;
  int32_t num_ctas;   ///< of the launch; on a CPU threads
  int32_t max_items;  ///< of a CTA that there is room for
  int32_t num_tracks;
  int32_t window;  ///< RunArgs::window
  int32_t reserved[2];
};

struct CtaProfile {
  uint64_t begin_ns;
  uint64_t end_ns;
  uint64_t begin_clock;
  uint64_t end_clock;
  int32_t sm;
  int32_t num_items;  ///< may be more than there was room for
  int32_t reserved[2];
};

struct ProfileTrack {
  uint32_t begin;
  uint32_t end;
  uint32_t cycles[kNumProfilePhases];
};

struct ItemProfile {
  WorkItem item;    ///< as it was run: with the lengths of then
  int32_t kv_head;  ///< the first of the step
  int32_t num_heads;
  int32_t is_wide;
  int32_t reserved[2];
  ProfileTrack tracks[kMaxProfileTracks];
};

static_assert(sizeof(ProfileHeader) == 32 && sizeof(CtaProfile) == 48);
static_assert(sizeof(ProfileTrack) == 48 && sizeof(ItemProfile) == 176);

/// Bytes of the buffer of one run.
ONEWAVE_HOST_DEVICE constexpr int64_t profile_bytes(int32_t num_ctas, int32_t max_items) {
  return static_cast<int64_t>(sizeof(ProfileHeader)) +
         num_ctas * (static_cast<int64_t>(sizeof(CtaProfile)) + max_items * int64_t{sizeof(ItemProfile)});
}

/// Items of each CTA that a buffer has room for; below 1: it is too small.
ONEWAVE_HOST_DEVICE constexpr int64_t max_profile_items(int64_t num_bytes, int32_t num_ctas) {
  return (num_bytes - profile_bytes(num_ctas, 0)) / (num_ctas * int64_t{sizeof(ItemProfile)});
}

ONEWAVE_HOST_DEVICE inline CtaProfile* cta_profile(void* buffer, int32_t cta) {
  return reinterpret_cast<CtaProfile*>(static_cast<unsigned char*>(buffer) + sizeof(ProfileHeader)) + cta;
}

ONEWAVE_HOST_DEVICE inline ItemProfile* item_profile(void* buffer, int32_t num_ctas, int32_t max_items,
                                                     int32_t cta, int32_t item) {
  return reinterpret_cast<ItemProfile*>(cta_profile(buffer, num_ctas)) +
         static_cast<int64_t>(cta) * max_items + item;
}

}  // namespace onewave
