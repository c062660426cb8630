#pragma once

/// Copies from global memory: to shared memory, where they complete on an mbarrier, and to registers. And
/// between shared memory and registers, by 32-bit addresses.

#include "barrier.cuh"

#include <cstdint>

namespace onewave::ptx {

/// What the L2 does with the lines of a TMA copy: keeps them as any other, gives them up first, or last. The
/// values of createpolicy, and CUTLASS's for no policy in particular.
inline constexpr uint64_t kEvictNormal = 0x1000000000000000;
inline constexpr uint64_t kEvictFirst = 0x12f0000000000000;
inline constexpr uint64_t kEvictLast = 0x14f0000000000000;

/// One box of a rank-5 tensor map; coordinates innermost first. Elements outside the tensor arrive as zeros
/// and count.
__device__ __forceinline__ void tma_load_5d(void* destination, const void* tensor_map, uint64_t* barrier,
                                            int c0, int c1, int c2, int c3, int c4, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(shared_address(destination)),
      "l"(tensor_map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(policy)
      : "memory");
}

/// The same value, whose origin the compiler does not see.
__device__ __forceinline__ const char* opaque(const char* address) {
  asm("" : "+l"(address));
  return address;
}
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

__device__ __forceinline__ void prefetch_tensor_map(const void* tensor_map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(tensor_map) : "memory");
}

__device__ __forceinline__ void prefetch_global_l1(const void* address) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(address) : "memory");
}

/// 16 bytes to registers, here: an ordinary load is moved down to the branch that needs it.
__device__ __forceinline__ uint4 load_16(const void* address) {
  uint4 loaded;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(loaded.x), "=r"(loaded.y), "=r"(loaded.z), "=r"(loaded.w)
               : "l"(address)
               : "memory");
  return loaded;
}

__device__ __forceinline__ uint4 load_shared_16(uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ uint2 load_shared_8(uint32_t address) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(address) : "memory");
  return x;
}
__device__ __forceinline__ void store_shared_16(uint32_t address, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}

/// 4 bytes.
__device__ __forceinline__ void cp_async_4(uint32_t destination, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(destination), "l"(source) : "memory");
}
/// 4 bytes; zeros where `valid` is false, and then nothing is read.
__device__ __forceinline__ void cp_async_4_or_zeros(uint32_t destination, const void* source, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(destination), "l"(source),
               "r"(valid ? 4 : 0)
               : "memory");
}
/// This thread's copies since the last call become a group.
__device__ __forceinline__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Until all but the last `kGroups` groups of this thread have landed.
template <int kGroups>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

/// 16 bytes. (With an L2 policy ptxas 13.0 makes an illegal instruction of it where the address has a uniform
/// part.)
__device__ __forceinline__ void cp_async_16(uint32_t destination, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(destination), "l"(source) : "memory");
}

/// 16 bytes; zeros where `valid` is false, and then nothing is read.
__device__ __forceinline__ void cp_async_16_or_zeros(uint32_t destination, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
}

/// Arrives on the barrier once all earlier cp.async of this thread are complete; counts as one of its
/// arrivals.
__device__ __forceinline__ void cp_async_mbarrier_arrive_noinc(uint32_t barrier_address) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier_address) : "memory");
}

}  // namespace onewave::ptx
