#include "plan_ring.h"

#include "context.h"
#include "driver.h"

namespace onewave {

PlanRing::PlanRing(size_t buffer_bytes) {
  const Driver& cuda = driver();
  const RelaxedCaptureScope relaxed;
  try {
    for (Buffer& buffer : buffers_) {
      // Not write-combined: the planner reads what it wrote.
      cuda.mem_host_alloc(&buffer.data, buffer_bytes, unsigned{CU_MEMHOSTALLOC_PORTABLE});
      cuda.event_create(&buffer.copied, unsigned{CU_EVENT_DISABLE_TIMING});
    }
  } catch (...) {
    release();
    throw;
  }
}

PlanRing::~PlanRing() { release(); }

void* PlanRing::acquire() {
  Buffer& buffer = buffers_[next_];
  const RelaxedCaptureScope relaxed;
  // Returns at once where the event was never recorded.
  driver().event_synchronize(buffer.copied);
  return buffer.data;
}

void PlanRing::upload(CUdeviceptr destination, std::span<const size_t> sizes, size_t stride,
                      CUstream stream) {
  const Driver& cuda = driver();
  Buffer& buffer = buffers_[next_];
  for (size_t i = 0; i < sizes.size(); ++i) {
    const void* source = static_cast<const unsigned char*>(buffer.data) + i * stride;
    cuda.memcpy_host_to_device_async(destination + i * stride, source, sizes[i], stream);
    // From here on a copy may be in flight: the buffer counts as taken whatever fails after it.
    if (i == 0) next_ = (next_ + 1) % kNumBuffers;
  }
  cuda.event_record(buffer.copied, stream);
}

void PlanRing::release() {
  const Driver& cuda = driver();
  const RelaxedCaptureScope relaxed;
  // Failures are not reported: at exit the driver may be gone, and its memory with it.
  for (Buffer& buffer : buffers_) {
    if (buffer.copied != nullptr) {
      cuda.event_synchronize.result_of(buffer.copied);
      cuda.event_destroy.result_of(buffer.copied);
    }
    if (buffer.data != nullptr) cuda.mem_free_host.result_of(buffer.data);
  }
}

}  // namespace onewave
