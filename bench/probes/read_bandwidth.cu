/// What a GPU reads from its memory, against the number of CTAs that read: the ceiling of the narrow kind,
/// and the bandwidth in the benchmark's floors.
///
///   nvcc -std=c++20 -O3 -arch=sm_90a -o read_bandwidth bench/probes/read_bandwidth.cu && ./read_bandwidth
///
/// One CTA an SM, 16 KiB bulk copies into a ring of 12 stages; chunk i of the buffer goes to CTA i modulo
/// their number. The L2 is overwritten before every run. Prints JSON: microseconds (median of 9, by events,
/// launch included) and GB/s for each number of CTAs and of bytes.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int kStageBytes = 16 * 1024;
constexpr int kStages = 12;
constexpr int kSharedBytes = kStages * kStageBytes + 1024;
constexpr int64_t kBufferBytes = int64_t{4} << 30;
constexpr int64_t kFlushBytes = int64_t{256} << 20;
constexpr int kRuns = 9;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ void issue(unsigned char* stage, const unsigned char* source, uint64_t* full) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(full)),
               "r"(kStageBytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(stage)),
      "l"(source), "r"(kStageBytes), "r"(shared_address(full))
      : "memory");
}

__device__ void wait(uint64_t* full, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nretry:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra "
      "retry;\n}\n" ::"r"(shared_address(full)),
      "r"(parity)
      : "memory");
}

__global__ void __launch_bounds__(32) read_all(const unsigned char* buffer, int64_t num_chunks) {
  extern __shared__ __align__(1024) unsigned char stages[];
  __shared__ uint64_t full[kStages];
  if (threadIdx.x != 0) return;
  for (uint64_t& barrier : full)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  const int64_t num_own = (num_chunks - blockIdx.x + gridDim.x - 1) / gridDim.x;
  const auto source = [&](int64_t i) { return buffer + (blockIdx.x + i * gridDim.x) * kStageBytes; };
  for (int64_t i = 0; i < num_own + kStages; ++i) {
    const int stage = static_cast<int>(i % kStages);
    if (i >= kStages && i - kStages < num_own) wait(&full[stage], (i / kStages - 1) % 2);
    if (i < num_own) issue(stages + stage * kStageBytes, source(i), &full[stage]);
  }
}

float median_us(const unsigned char* buffer, unsigned char* flush, int64_t num_bytes, int num_ctas) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> us;
  for (int run = 0; run < kRuns; ++run) {
    for (int i = 0; i < 2; ++i) check(cudaMemsetAsync(flush, run + i, kFlushBytes));
    check(cudaEventRecord(begin));
    read_all<<<num_ctas, 32, kSharedBytes>>>(buffer, num_bytes / kStageBytes);
    check(cudaEventRecord(end));
    check(cudaDeviceSynchronize());
    float ms;
    check(cudaEventElapsedTime(&ms, begin, end));
    us.push_back(ms * 1e3f);
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  std::nth_element(us.begin(), us.begin() + kRuns / 2, us.end());
  return us[kRuns / 2];
}

}  // namespace

int main() {
  cudaDeviceProp gpu;
  check(cudaGetDeviceProperties(&gpu, 0));
  unsigned char *buffer, *flush;
  check(cudaMalloc(&buffer, kBufferBytes));
  check(cudaMalloc(&flush, kFlushBytes));
  check(cudaMemset(buffer, 1, kBufferBytes));
  check(cudaFuncSetAttribute(read_all, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  std::printf("{\"gpu\": \"%s\", \"num_sms\": %d, \"l2_bytes\": %d, \"runs\": [", gpu.name,
              gpu.multiProcessorCount, gpu.l2CacheSize);
  const char* separator = "\n";
  for (int64_t num_bytes : {int64_t{128} << 20, int64_t{256} << 20, int64_t{1} << 30, kBufferBytes}) {
    for (int num_ctas : {8, 16, 33, 44, 66, 88, 99, 110, gpu.multiProcessorCount}) {
      if (num_ctas < gpu.multiProcessorCount && num_bytes != int64_t{1} << 30) continue;
      const float us = median_us(buffer, flush, num_bytes, num_ctas);
      std::printf("%s  {\"num_ctas\": %d, \"bytes\": %lld, \"us\": %.1f, \"gb_per_s\": %.0f}", separator,
                  num_ctas, static_cast<long long>(num_bytes), us, num_bytes / us / 1e3);
      separator = ",\n";
    }
  }
  std::printf("\n]}\n");
  return 0;
}
