#pragma once

/// Warpgroup-level matrix instructions: asynchronous products of 64 rows, operands in shared memory.

#include "mma.cuh"

#include <cstdint>

namespace onewave::ptx {

/// Describes a tile in shared memory whose rows of 128 bytes lie under the 128-byte swizzle. (PTX ISA,
/// "Matrix Descriptor".) In two words, so that all of it can be computed in uniform registers, where wgmma
/// takes it from: the tile's address is the same in the whole warp, but the compiler has to be told.
class WgmmaDescriptor {
 public:
  /// `group_bytes`: from the start of one group of 8 rows to that of the next. `panel_bytes`: the distance
  /// between 64-column panels, used by operands whose contiguous dimension is not the product's k (V); for
  /// the others a panel is addressed directly. By all lanes of the warp.
  __device__ __forceinline__ WgmmaDescriptor(uint32_t address, uint32_t panel_bytes, uint32_t group_bytes)
      : low_(__shfl_sync(0xffffffff, (address & 0x3FFFF) >> 4, 0) | panel_bytes >> 4 << 16),
        high_(kSwizzle128 | group_bytes >> 4) {}

  /// Of the tile `bytes` further on. Shared memory is small enough that the sum stays in the address field.
  __device__ __forceinline__ uint64_t at(uint32_t bytes) const {
    return static_cast<uint64_t>(high_) << 32 | (low_ + (bytes >> 4));
  }

 private:
  static constexpr uint32_t kSwizzle128 = 1u << 30;
  uint32_t low_;
  uint32_t high_;
};

/// Before the first product, and after registers that a product reads were written.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most kPending groups are in flight.
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps the compiler from moving uses of an accumulator across this point: it does not know that products
/// are asynchronous.
template <int kSize>
__device__ __forceinline__ void fence_registers(float (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int kRows, int kCols>
__device__ __forceinline__ void fence_registers(uint32_t (&d)[kRows][kCols]) {
#pragma unroll
  for (int i = 0; i < kRows * kCols; ++i) asm volatile("" : "+r"(d[i / kCols][i % kCols])::"memory");
}

// Operand lists of 8 and 32 accumulator registers.
#define ONEWAVE_ACC8(d, i)                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define ONEWAVE_ACC32(d, i) \
  ONEWAVE_ACC8(d, i), ONEWAVE_ACC8(d, i + 8), ONEWAVE_ACC8(d, i + 16), ONEWAVE_ACC8(d, i + 24)

/// d[64 x 128] (+)= a[64 x 16] b[128 x 16]^T, both in shared memory with k contiguous.
template <class Element>
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[64], uint64_t a_descriptor, uint64_t b_descriptor,
                                                 bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.%67.%67 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 "
      "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
      : ONEWAVE_ACC32(d, 0), ONEWAVE_ACC32(d, 32)
      : "l"(a_descriptor), "l"(b_descriptor), "r"(static_cast<int>(accumulate)),
        "C"(TypeName<Element>::kValue)
      : "memory");
}

/// d[64 x 128] (+)= a[64 x 16] b[16 x 128], a in registers, b in shared memory with its columns contiguous:
/// m64n128k16. The number of columns is that of the accumulator.
template <class Element>
__device__ __forceinline__ void wgmma_m64k16_trans(float (&d)[64], const uint32_t (&a)[4],
                                                   uint64_t b_descriptor, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.%70.%70 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 "
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
      : ONEWAVE_ACC32(d, 0), ONEWAVE_ACC32(d, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor), "r"(static_cast<int>(accumulate)),
        "C"(TypeName<Element>::kValue)
      : "memory");
}

/// The same for 64 columns: m64n64k16.
template <class Element>
__device__ __forceinline__ void wgmma_m64k16_trans(float (&d)[32], const uint32_t (&a)[4],
                                                   uint64_t b_descriptor, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.%38.%38 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31 "
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
      : ONEWAVE_ACC32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor), "r"(static_cast<int>(accumulate)),
        "C"(TypeName<Element>::kValue)
      : "memory");
}

#undef ONEWAVE_ACC32
#undef ONEWAVE_ACC8

}  // namespace onewave::ptx
