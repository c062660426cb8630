#pragma once

/// What tells the time, and counts of it in shared memory.

#include "barrier.cuh"

#include <cstdint>

namespace onewave::ptx {

/// Nanoseconds, the same on all SMs; advances in steps of its own (32 ns to 1 us).
__device__ __forceinline__ uint64_t globaltimer() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns)::"memory");
  return ns;
}

/// Of the SM.
__device__ __forceinline__ uint64_t clock64() {
  uint64_t clock;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(clock)::"memory");
  return clock;
}

__device__ __forceinline__ int smid() {
  uint32_t sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  return static_cast<int>(sm);
}

/// Where `counts`: subtracts the SM's clock from a counter in shared memory, or adds it. Neither waits, and
/// between the two no register holds anything.
__device__ __forceinline__ void subtract_clock(uint32_t* counter, bool counts) {
  asm volatile(
      "{\n"
      ".reg .pred counts;\n"
      ".reg .u32 now;\n"
      "setp.ne.u32 counts, %1, 0;\n"
      "mov.u32 now, %%clock;\n"
      "neg.s32 now, now;\n"
      "@counts red.shared::cta.add.u32 [%0], now;\n"
      "}\n" ::"r"(shared_address(counter)),
      "r"(static_cast<uint32_t>(counts))
      : "memory");
}
__device__ __forceinline__ void add_clock(uint32_t* counter, bool counts) {
  asm volatile(
      "{\n"
      ".reg .pred counts;\n"
      ".reg .u32 now;\n"
      "setp.ne.u32 counts, %1, 0;\n"
      "mov.u32 now, %%clock;\n"
      "@counts red.shared::cta.add.u32 [%0], now;\n"
      "}\n" ::"r"(shared_address(counter)),
      "r"(static_cast<uint32_t>(counts))
      : "memory");
}

}  // namespace onewave::ptx
