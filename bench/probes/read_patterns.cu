/// What a GPU reads from its memory, or from its L2, by the pattern of the reads: how long the runs of bytes
/// are that lie side by side, in which order they come, how many CTAs read, and whether they take their work
/// by a counter.
///
///   nvcc -std=c++20 -O3 -arch=sm_90a -o read_patterns bench/probes/read_patterns.cu && ./read_patterns
///
/// 4 GiB, bulk copies of `piece` bytes into 8 stages of 16 KiB, the L2 overwritten before. A unit of work is
/// 64 stages. Random: runs of `run` bytes in an order that looks random. Dynamic: CTAs take the next unit
/// from a counter, asked for one unit ahead; else unit i goes to CTA i modulo their number. Footprint: the
/// bytes that are read, over and over where there are fewer than 4 GiB.

#include <cstdint>
#include <cstdio>

#include "read_probe.cuh"

namespace onewave {
namespace {

constexpr int kStages = 8;
constexpr int kUnitStages = 64;
constexpr int kSharedBytes = kStages * kStageBytes + 1024;
constexpr int kAllCtas = 132;
constexpr int kRuns = 7;

struct Pattern {
  int piece;
  int run;
  bool random;
  bool dynamic;
  int num_ctas = kAllCtas;
  int64_t footprint = kBufferBytes;
};

constexpr int64_t kInL2 = int64_t{16} << 20;

constexpr Pattern kPatterns[] = {
    {16384, 16384, false, false},
    {16384, 16384, false, true},
    {16384, 16384, true, false},
    {16384, 16384, true, true},
    {16384, 32768, true, true},
    {16384, 65536, true, true},
    {16384, 262144, true, true},
    {4096, 4096, false, true},
    {4096, 4096, true, false},
    {4096, 4096, true, true},
    {2048, 2048, true, true},
    {1024, 1024, true, true},
    // What one SM draws, by the size of its copies.
    {16384, 16384, true, true, 16},
    {4096, 4096, true, true, 16},
    {2048, 2048, true, true, 16},
    {1024, 1024, true, true, 16},
    {512, 512, true, true, 16},
    {2048, 2048, true, true, 33},
    {2048, 2048, true, true, 44},
    {2048, 2048, true, true, 66},
    // From the L2.
    {16384, 16384, true, true, 16, kInL2},
    {2048, 2048, true, true, 16, kInL2},
    {16384, 16384, true, true, 66, kInL2},
    {16384, 16384, true, true, 88, kInL2},
    {16384, 16384, true, true, 110, kInL2},
    {16384, 16384, true, true, kAllCtas, kInL2},
    {4096, 4096, true, true, kAllCtas, kInL2},
    {2048, 2048, true, true, kAllCtas, kInL2},
};

__device__ unsigned next_unit;

/// A permutation of 0 .. mask, one less than a power of two.
__device__ uint64_t permute(uint64_t i, uint64_t mask) {
  i = (i * 0x9E3779B97F4A7C15ull + 12345) & mask;
  i ^= i >> 7;
  i = (i * 0xD1B54A32D192ED03ull) & mask;
  i ^= i >> 9;
  return (i * 5) & mask;
}

__global__ void __launch_bounds__(32) read_all(const unsigned char* buffer, Pattern pattern) {
  extern __shared__ __align__(1024) unsigned char stages[];
  __shared__ uint64_t full[kStages];
  const int lane = threadIdx.x;
  if (lane == 0) init_barriers(full);
  __syncwarp();
  constexpr int64_t kNumUnits = kBufferBytes / kStageBytes / kUnitStages;
  const uint64_t run_mask = pattern.footprint / pattern.run - 1;
  const auto ask = [&] {
    unsigned unit = 0;
    if (lane == 0) unit = atomicAdd(&next_unit, 1);
    return unit;
  };
  int64_t unit = blockIdx.x;
  if (pattern.dynamic) unit = __shfl_sync(0xffffffff, ask(), 0);
  int64_t issued = 0;
  while (unit < kNumUnits) {
    unsigned answer = 0;
    if (pattern.dynamic) answer = ask();
    for (int i = 0; i < kUnitStages; ++i, ++issued) {
      const int stage = issued % kStages;
      if (issued >= kStages) ptx::mbarrier_wait(&full[stage], (issued / kStages - 1) % 2);
      if (lane == 0) ptx::mbarrier_arrive_expect_tx(&full[stage], kStageBytes);
      __syncwarp();
      for (int begin = lane * pattern.piece; begin < kStageBytes; begin += 32 * pattern.piece) {
        uint64_t offset = (unit * kUnitStages + i) * kStageBytes + begin;
        offset &= pattern.footprint - 1;
        if (pattern.random)
          offset = permute(offset / pattern.run, run_mask) * pattern.run + offset % pattern.run;
        copy_bulk(stages + stage * kStageBytes + begin, buffer + offset, pattern.piece, &full[stage]);
      }
    }
    unit = pattern.dynamic ? __shfl_sync(0xffffffff, answer, 0) : unit + gridDim.x;
  }
  for (int64_t i = issued > kStages ? issued - kStages : 0; i < issued; ++i)
    ptx::mbarrier_wait(&full[i % kStages], (i / kStages) % 2);
}

void print_patterns() {
  ReadProbe probe;
  check(cudaFuncSetAttribute(read_all, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  for (const Pattern& pattern : kPatterns) {
    const auto prepare = [] {
      const unsigned zero = 0;
      check(cudaMemcpyToSymbolAsync(next_unit, &zero, sizeof(zero)));
    };
    const auto launch = [&] { read_all<<<pattern.num_ctas, 32, kSharedBytes>>>(probe.buffer(), pattern); };
    const float us = probe.median_us(kRuns, prepare, launch);
    std::printf("piece %6d run %6d random %d dynamic %d CTAs %3d footprint %4lld MiB: %.1f us %.0f GB/s\n",
                pattern.piece, pattern.run, pattern.random, pattern.dynamic, pattern.num_ctas,
                static_cast<long long>(pattern.footprint >> 20), us, kBufferBytes / us / 1e3);
  }
}

}  // namespace
}  // namespace onewave

int main() {
  onewave::print_patterns();
  return 0;
}
