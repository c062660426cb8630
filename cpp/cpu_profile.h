#pragma once

/// The executor's part of onewave/profile.h: a thread takes the place of a CTA, and one item, all its kv
/// heads, that of a step. Loading of keys counts as waiting for them, and all arithmetic as products.

#include <onewave/plan_format.h>
#include <onewave/profile.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace onewave {

/// Of one thread; without a buffer it does nothing.
class ThreadProfile {
 public:
  ThreadProfile() = default;

  /// `num_bytes`: of the buffer, room for an item of each thread or more.
  ThreadProfile(void* buffer, int64_t num_bytes, int32_t num_threads, int32_t thread, int32_t window)
      : max_items_(static_cast<int32_t>(std::min<int64_t>(max_profile_items(num_bytes, num_threads),
                                                          std::numeric_limits<int32_t>::max()))),
        thread_(cta_profile(buffer, thread)),
        items_(item_profile(buffer, num_threads, max_items_, thread, 0)) {
    if (thread == 0) {
      *static_cast<ProfileHeader*>(buffer) = {.magic = kProfileMagic,
                                              .version = kProfileVersion,
                                              .num_ctas = num_threads,
                                              .max_items = max_items_,
                                              .num_tracks = 1,
                                              .window = window,
                                              .reserved = {}};
    }
    const uint64_t now = now_ns();
    *thread_ = {.begin_ns = now,
                .end_ns = now,
                .begin_clock = 0,
                .end_clock = 0,
                .sm = thread,
                .num_items = 0,
                .reserved = {}};
    track_.begin = 0;
  }

  void end_item(const WorkItem& item, bool is_wide) {
    if (thread_ == nullptr) return;
    const uint64_t now = now_ns();
    track_.end = ticks(now - thread_->begin_ns);
    thread_->end_ns = now;
    thread_->end_clock = ticks(now - thread_->begin_ns);
    for (int32_t phase = 0; phase < kNumProfilePhases; ++phase)
      track_.cycles[phase] = ticks(phases_ns_[phase]);
    const int32_t n = thread_->num_items++;
    if (n < max_items_) {
      items_[n] = {.item = item,
                   .kv_head = item.kv_head_begin,
                   .num_heads = item.kv_head_end - item.kv_head_begin,
                   .is_wide = is_wide ? 1 : 0,
                   .reserved = {},
                   .tracks = {track_, {}}};
    }
    track_.begin = track_.end;
    phases_ns_ = {};
  }

  /// Does `work`, which is the phase.
  template <class Work>
  void time(ProfilePhase phase, const Work& work) {
    if (thread_ == nullptr) return work();
    const uint64_t begin = now_ns();
    work();
    phases_ns_[static_cast<size_t>(phase)] += now_ns() - begin;
  }

 private:
  /// 2^32 of them are 18 minutes.
  static constexpr uint64_t kTickNs = 256;

  static uint64_t now_ns() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
  }
  static uint32_t ticks(uint64_t ns) { return static_cast<uint32_t>(ns / kTickNs); }

  int32_t max_items_ = 0;
  CtaProfile* thread_ = nullptr;
  ItemProfile* items_ = nullptr;
  ProfileTrack track_{};
  std::array<uint64_t, kNumProfilePhases> phases_ns_{};
};

}  // namespace onewave
