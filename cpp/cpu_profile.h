#pragma once

/// The executor's part of onewave/profile.h: a thread takes the place of a CTA, and one item, all its kv
/// heads, that of a step. Loading of keys counts as waiting for them, and all arithmetic as products.

#include <onewave/plan_format.h>
#include <onewave/profile.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>

namespace onewave {

/// Of one thread; without a buffer it does nothing.
class ThreadProfile {
 public:
  ThreadProfile() = default;

  /// `num_bytes`: of the buffer, room for an item of each thread or more.
  ThreadProfile(void* buffer, int64_t num_bytes, int32_t num_threads, int32_t thread)
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
                                              .reserved = {}};
    }
    const uint64_t now = now_ns();
    *thread_ = {.begin_ns = now,
                .end_ns = now,
                .begin_clock = now,
                .end_clock = now,
                .sm = thread,
                .num_items = 0,
                .predicted_us = 0,
                .reserved = 0};
  }

  void begin_item() {
    if (thread_ != nullptr) track_ = {.begin = since_begin(), .end = 0, .cycles = {}};
  }

  void end_item(const WorkItem& item, bool is_wide) {
    if (thread_ == nullptr) return;
    track_.end = since_begin();
    thread_->end_ns = thread_->end_clock = now_ns();
    const int32_t n = thread_->num_items++;
    if (n >= max_items_) return;
    items_[n] = {.request = item.request,
                 .q_token_begin = item.q_token_begin,
                 .row_begin = item.row_begin,
                 .num_rows = item.num_rows,
                 .kv_begin = item.kv_begin,
                 .kv_end = item.kv_end,
                 .kv_head = item.kv_head_begin,
                 .num_heads = item.kv_head_end - item.kv_head_begin,
                 .split_tile = item.split_tile,
                 .split_idx = item.split_idx,
                 .is_wide = is_wide ? 1 : 0,
                 .reserved = 0,
                 .tracks = {track_, {}}};
  }

  /// Does `work`, which is the phase.
  template <class Work>
  void time(ProfilePhase phase, const Work& work) {
    if (thread_ == nullptr) return work();
    const uint64_t begin = now_ns();
    work();
    track_.cycles[static_cast<int32_t>(phase)] += static_cast<uint32_t>(now_ns() - begin);
  }

 private:
  static uint64_t now_ns() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
  }
  uint32_t since_begin() const { return static_cast<uint32_t>(now_ns() - thread_->begin_clock); }

  int32_t max_items_ = 0;
  CtaProfile* thread_ = nullptr;
  ItemProfile* items_ = nullptr;
  ProfileTrack track_{};
};

}  // namespace onewave
