#pragma once

/// What the probes of memory share: a large buffer read with an overwritten L2, in stages of 16 KiB by bulk
/// copies, and the median of runs by events.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../cuda/ptx/barrier.cuh"

namespace onewave {

constexpr int kStageBytes = 16 * 1024;
constexpr int64_t kBufferBytes = int64_t{4} << 30;
constexpr int64_t kFlushBytes = int64_t{256} << 20;

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

/// By one thread.
template <int kStages>
__device__ void init_barriers(uint64_t (&full)[kStages]) {
  for (uint64_t& barrier : full) ptx::mbarrier_init(&barrier, 1);
  ptx::fence_mbarrier_init();
}

/// Multiples of 16 bytes from global to shared memory; the barrier counts them.
__device__ inline void copy_bulk(unsigned char* destination, const unsigned char* source, int num_bytes,
                                 uint64_t* full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          ptx::shared_address(destination)),
      "l"(source), "r"(num_bytes), "r"(ptx::shared_address(full))
      : "memory");
}

/// The memory that is read, and the runs that are timed; kept until the process ends.
class ReadProbe {
 public:
  ReadProbe() {
    check(cudaMalloc(&buffer_, kBufferBytes));
    check(cudaMalloc(&flush_, kFlushBytes));
    check(cudaMemset(buffer_, 1, kBufferBytes));
    check(cudaEventCreate(&begin_));
    check(cudaEventCreate(&end_));
  }

  /// kBufferBytes of device memory.
  const unsigned char* buffer() const { return buffer_; }

  /// Microseconds of `launch()`, median of `num_runs`; `prepare()` comes before each, untimed.
  template <class Prepare, class Launch>
  float median_us(int num_runs, Prepare prepare, Launch launch) {
    std::vector<float> us;
    for (int run = 0; run < num_runs; ++run) {
      for (int i = 0; i < 2; ++i) check(cudaMemsetAsync(flush_, run + i, kFlushBytes));
      prepare();
      check(cudaEventRecord(begin_));
      launch();
      check(cudaEventRecord(end_));
      check(cudaDeviceSynchronize());
      float ms;
      check(cudaEventElapsedTime(&ms, begin_, end_));
      us.push_back(ms * 1e3f);
    }
    std::nth_element(us.begin(), us.begin() + num_runs / 2, us.end());
    return us[num_runs / 2];
  }

 private:
  unsigned char* buffer_;
  unsigned char* flush_;
  cudaEvent_t begin_;
  cudaEvent_t end_;
};

}  // namespace onewave
