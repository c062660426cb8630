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

/// Of the SM, its low 32 bits.
__device__ __forceinline__ uint32_t clock32() {
  uint32_t clock;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(clock)::"memory");
  return clock;
}

/// Adds to a word in shared memory, and does not wait for it.
__device__ __forceinline__ void red_add(uint32_t* word, uint32_t value) {
  asm volatile("red.shared::cta.add.u32 [%0], %1;" ::"r"(shared_address(word)), "r"(value) : "memory");
}

}  // namespace onewave::ptx
