#pragma once

/// The queue of wide items. A CTA takes the next one when it comes to the end of its last: a warp of the
/// producer draws from a counter in global memory, and hands the item to the others in shared memory. Which
/// CTA takes an item does not change its result.
///
///   the stream of K   near an item's end   DrawRequest: wanted, or ItemQueue: draws (kStreamDraws)
///   a query warp      wait(wanted)         ItemQueue: draws, reads, items[n], which arrives on full[n]
///   every warp        wait(full[n])        WideCursor: items[n]
///
/// No warp is asked whether it is done with a slot. Slot n is written again no sooner than when the first
/// tile of keys of item m = n + kQueueSlots - 1 is looked up; by then the tile kTilesAhead before it is
/// loaded, so the one kWideStages earlier is released, and an item has a tile or more: the scores of an item
/// from n + 5 on are computed, and V of the one before it has arrived. So queries and V of item n + 4 have
/// arrived, and their warps, whose lanes meet at each stage, have read slot n before those of item n + 1.

#include "pipeline.cuh"
#include "work.cuh"

namespace onewave {

/// Whether the stream of K draws itself. Where it has the time it need not, a query warp does; but with one
/// stage of queries that warp waits for the item before, whose K the stream has not loaded yet: it is two
/// tiles ahead, which may be two items.
inline constexpr bool kStreamDraws = kLoadsTogether<Kind::kWide> || kQueryStages == 1;

/// Of the producer: the first of those that load queries (see producer.cuh), or of those that load K.
inline constexpr int kDrawingWarp = kStreamDraws ? 0 : 2;

inline constexpr int kQueueSlots = kFp8Kv && kHeadDimVo > 192 ? 11 : 16;  // there is no room for more
/// From the tile of keys that is looked up to the one that is loaded or, of a cache of e4m3, widened or
/// transposed.
inline constexpr int kTilesAhead = kFp8Kv ? 3 : 2;
static_assert(kQueueSlots - 1 - kTilesAhead - kWideStages >= 5);

struct ItemSlots {
  uint64_t full[kQueueSlots];
  uint64_t wanted;              ///< completes when the next item is to be drawn
  WorkItem items[kQueueSlots];  ///< without rows: there are no more

  __device__ void init() {
    for (uint64_t& barrier : full) ptx::mbarrier_init(&barrier, kArrivingLanes);
    ptx::mbarrier_init(&wanted, kArrivingLanes);
  }

  /// Until the n-th item of this CTA is known; false behind the last.
  __device__ __forceinline__ bool wait(int n) {
    ptx::mbarrier_wait(&full[n % kQueueSlots], n / kQueueSlots % 2);
    return item(n).num_rows > 0;
  }

  __device__ __forceinline__ const WorkItem& item(int n) const { return items[n % kQueueSlots]; }
};

/// What a stream of K does at its item's end where the queue is another warp's.
struct DrawRequest {
  const Work& work;
  ItemSlots& slots;

  __device__ __forceinline__ void begin() {
    if (work.cta.first_item < 0) near_end();
  }
  __device__ __forceinline__ void near_end() { arrive_warp(&slots.wanted); }
  __device__ __forceinline__ void end(int) {}
};

/// Where no items are drawn.
struct NoQueue {
  __device__ __forceinline__ void begin() {}
  __device__ __forceinline__ void near_end() {}
  __device__ __forceinline__ void end(int) {}
  __device__ __forceinline__ void serve_begin() {}
};

/// Draws items; all lanes of kDrawingWarp call everything, and what others call does nothing.
class ItemQueue {
 public:
  __device__ __forceinline__ ItemQueue(const KernelParams& params, const Work& work, ItemSlots& slots)
      : params_(params), work_(work), slots_(slots) {}

  /// When the narrow items come to their end.
  __device__ __forceinline__ void begin() {
    if (work_.cta.first_item >= 0) {
      hand_over(0, work_.cta.first_item);
    } else {
      near_end();
      end(-1);
    }
  }

  /// Draws; the answer takes a while to come.
  __device__ __forceinline__ void near_end() {
    if (!draws() || lane() > 0) return;
    const PlanHeader* header = work_.header;
    uint32_t* counters =
        reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(params_.plan) + header->counters_offset);
    drawn_ = atomicInc(counters + header->num_split_tiles, header->num_draws - 1);
  }

  /// Of the CTA's n-th item: what was drawn is the next.
  __device__ __forceinline__ void end(int n) {
    const uint32_t drawn = __shfl_sync(0xffffffff, drawn_, 0);
    hand_over(n + 1, work_.header->wide_begin + work_.header->num_first_items + static_cast<int>(drawn));
  }

  /// begin(), and near_end() with end(n), when the stream of K asks for it.
  __device__ __forceinline__ void serve_begin() {
    if (work_.cta.first_item < 0) wait_request();
    begin();
  }
  __device__ __forceinline__ void serve_end(int n) {
    wait_request();
    near_end();
    end(n);
  }

 private:
  /// The shuffle tells the compiler that the answer is the warp's: else all that follows may be divergent.
  __device__ __forceinline__ static bool draws() {
    return __shfl_sync(0xffffffff, threadIdx.x / 32, 0) == kDrawingWarp;
  }
  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }

  __device__ __forceinline__ void wait_request() {
    if (draws()) ptx::mbarrier_wait(&slots_.wanted, num_requests_++ % 2);
  }

  __device__ __forceinline__ void hand_over(int n, int index) {
    constexpr int kWords = sizeof(WorkItem) / sizeof(int32_t);
    static_assert(kWords <= 32);
    if (!draws()) return;
    if (lane() < kWords) {
      int32_t word = 0;
      if (index < work_.header->num_items)
        word = reinterpret_cast<const int32_t*>(work_.items + index)[lane()];
      reinterpret_cast<int32_t*>(&slots_.items[n % kQueueSlots])[lane()] = word;
    }
    arrive_warp(&slots_.full[n % kQueueSlots]);
  }

  const KernelParams& params_;
  const Work& work_;
  ItemSlots& slots_;
  uint32_t drawn_ = 0;
  int num_requests_ = 0;
};

/// Walks the CTA's wide items, kv head by kv head.
class WideCursor {
 public:
  __device__ __forceinline__ explicit WideCursor(ItemSlots& slots) : slots_(slots) { enter(); }

  __device__ __forceinline__ bool valid() const { return valid_; }
  __device__ __forceinline__ const WorkItem& item() const { return slots_.item(item_idx_); }
  __device__ __forceinline__ int item_idx() const { return item_idx_; }
  __device__ __forceinline__ int kv_head() const { return kv_head_; }
  __device__ __forceinline__ bool is_last_head() const { return kv_head_ + 1 == item().kv_head_end; }

  __device__ __forceinline__ void advance() {
    if (!is_last_head()) {
      ++kv_head_;
    } else {
      ++item_idx_;
      enter();
    }
  }

 private:
  __device__ __forceinline__ void enter() {
    valid_ = slots_.wait(item_idx_);
    kv_head_ = item().kv_head_begin;
  }

  ItemSlots& slots_;
  int item_idx_ = 0;  ///< of this CTA's items
  int kv_head_;
  bool valid_;
};

}  // namespace onewave
