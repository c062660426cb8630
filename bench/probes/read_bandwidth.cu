/// What a GPU reads from its memory, against the number of CTAs that read: the ceiling of the narrow kind,
/// and the bandwidth in the benchmark's floors.
///
///   nvcc -std=c++20 -O3 -arch=sm_90a -o read_bandwidth bench/probes/read_bandwidth.cu && ./read_bandwidth
///
/// One CTA an SM, 16 KiB bulk copies into a ring of 12 stages; chunk i of the buffer goes to CTA i modulo
/// their number. The L2 is overwritten before every run. Prints JSON: microseconds (median of 9, by events,
/// launch included) and GB/s for each number of CTAs and of bytes.

#include <cstdint>
#include <cstdio>

#include "read_probe.cuh"

namespace onewave {
namespace {

constexpr int kStages = 12;
constexpr int kSharedBytes = kStages * kStageBytes + 1024;
constexpr int kRuns = 9;

__device__ void issue(unsigned char* stage, const unsigned char* source, uint64_t* full) {
  ptx::mbarrier_arrive_expect_tx(full, kStageBytes);
  copy_bulk(stage, source, kStageBytes, full);
}

__global__ void __launch_bounds__(32) read_all(const unsigned char* buffer, int64_t num_chunks) {
  extern __shared__ __align__(1024) unsigned char stages[];
  __shared__ uint64_t full[kStages];
  if (threadIdx.x != 0) return;
  init_barriers(full);
  const int64_t num_own = (num_chunks - blockIdx.x + gridDim.x - 1) / gridDim.x;
  const auto source = [&](int64_t i) { return buffer + (blockIdx.x + i * gridDim.x) * kStageBytes; };
  for (int64_t i = 0; i < num_own + kStages; ++i) {
    const int stage = static_cast<int>(i % kStages);
    if (i >= kStages && i - kStages < num_own) ptx::mbarrier_wait(&full[stage], (i / kStages - 1) % 2);
    if (i < num_own) issue(stages + stage * kStageBytes, source(i), &full[stage]);
  }
}

void print_bandwidth() {
  cudaDeviceProp gpu;
  check(cudaGetDeviceProperties(&gpu, 0));
  ReadProbe probe;
  check(cudaFuncSetAttribute(read_all, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  std::printf("{\"gpu\": \"%s\", \"num_sms\": %d, \"l2_bytes\": %d, \"runs\": [", gpu.name,
              gpu.multiProcessorCount, gpu.l2CacheSize);
  const char* separator = "\n";
  for (int64_t num_bytes : {int64_t{128} << 20, int64_t{256} << 20, int64_t{1} << 30, kBufferBytes}) {
    for (int num_ctas : {8, 16, 33, 44, 66, 88, 99, 110, gpu.multiProcessorCount}) {
      if (num_ctas < gpu.multiProcessorCount && num_bytes != int64_t{1} << 30) continue;
      const auto launch = [&] {
        read_all<<<num_ctas, 32, kSharedBytes>>>(probe.buffer(), num_bytes / kStageBytes);
      };
      const float us = probe.median_us(kRuns, [] {}, launch);
      std::printf("%s  {\"num_ctas\": %d, \"bytes\": %lld, \"us\": %.1f, \"gb_per_s\": %.0f}", separator,
                  num_ctas, static_cast<long long>(num_bytes), us, num_bytes / us / 1e3);
      separator = ",\n";
    }
  }
  std::printf("\n]}\n");
}

}  // namespace
}  // namespace onewave

int main() {
  onewave::print_bandwidth();
  return 0;
}
