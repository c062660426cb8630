#pragma once

/// Pinned buffers that plans are written to and copied to the device from, so that the host can plan a step
/// while the copies of earlier ones wait on their stream.

#include <cudaTypedefs.h>

#include <array>
#include <cstddef>
#include <span>

namespace onewave {

/// The context it was made in must be current in every call, the destructor included. One thread at a time;
/// no call disturbs a capture of another stream.
///
/// A buffer is taken in two steps, acquire() and upload(); without the second nothing has changed, so a plan
/// that fails half-way leaves both the ring and the buffer of the plan before it as they were.
class PlanRing {
 public:
  static constexpr int kNumBuffers = 4;

  explicit PlanRing(size_t buffer_bytes);
  ~PlanRing();
  PlanRing(const PlanRing&) = delete;
  PlanRing& operator=(const PlanRing&) = delete;

  /// The next buffer, of buffer_bytes, page aligned; the same one until upload(). Waits for the copy that
  /// last read it, kNumBuffers uploads ago.
  void* acquire();

  /// Enqueues copies of the acquired buffer on `stream`: of its first sizes[0] bytes, and of sizes[i] from
  /// i * stride on, to where they are behind `destination`. The contents stay as they are for kNumBuffers - 1
  /// more uploads. Where it throws, copies may have been enqueued all the same.
  void upload(CUdeviceptr destination, std::span<const size_t> sizes, size_t stride, CUstream stream);

 private:
  struct Buffer {
    void* data = nullptr;
    CUevent copied = nullptr;
  };

  void release();

  std::array<Buffer, kNumBuffers> buffers_;
  size_t next_ = 0;
};

}  // namespace onewave
