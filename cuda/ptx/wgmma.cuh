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

// Sixteen registers of an accumulator: in the text of an instruction, and as operands.
#define ONEWAVE_TEXT16_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define ONEWAVE_TEXT16_1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ONEWAVE_TEXT16_2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define ONEWAVE_TEXT16_3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ONEWAVE_TEXT16_4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define ONEWAVE_TEXT16_5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define ONEWAVE_TEXT16_6 \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define ONEWAVE_TEXT16_7 \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define ONEWAVE_TEXT4 "%0, %1, %2, %3"
#define ONEWAVE_TEXT32 ONEWAVE_TEXT16_0 ", " ONEWAVE_TEXT16_1
#define ONEWAVE_TEXT48 ONEWAVE_TEXT32 ", " ONEWAVE_TEXT16_2
#define ONEWAVE_TEXT64 ONEWAVE_TEXT48 ", " ONEWAVE_TEXT16_3
#define ONEWAVE_TEXT96 ONEWAVE_TEXT64 ", " ONEWAVE_TEXT16_4 ", " ONEWAVE_TEXT16_5
#define ONEWAVE_TEXT128 ONEWAVE_TEXT96 ", " ONEWAVE_TEXT16_6 ", " ONEWAVE_TEXT16_7
#define ONEWAVE_ACC4(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define ONEWAVE_ACC16(d, i)                                                                             \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),           \
      "+f"(d[i + 6]), "+f"(d[i + 7]), "+f"(d[i + 8]), "+f"(d[i + 9]), "+f"(d[i + 10]), "+f"(d[i + 11]), \
      "+f"(d[i + 12]), "+f"(d[i + 13]), "+f"(d[i + 14]), "+f"(d[i + 15])
#define ONEWAVE_ACC32(d) ONEWAVE_ACC16(d, 0), ONEWAVE_ACC16(d, 16)
#define ONEWAVE_ACC48(d) ONEWAVE_ACC32(d), ONEWAVE_ACC16(d, 32)
#define ONEWAVE_ACC64(d) ONEWAVE_ACC48(d), ONEWAVE_ACC16(d, 48)
#define ONEWAVE_ACC96(d) ONEWAVE_ACC64(d), ONEWAVE_ACC16(d, 64), ONEWAVE_ACC16(d, 80)
#define ONEWAVE_ACC128(d) ONEWAVE_ACC96(d), ONEWAVE_ACC16(d, 96), ONEWAVE_ACC16(d, 112)

/// d[64 x N] (+)= a[64 x 16] b[N x 16]^T, both in shared memory with k contiguous: N is twice the registers
/// of the accumulator. The last arguments are the numbers of the operands that follow these.
#define ONEWAVE_WGMMA(N, REGISTERS, A, B, ACCUMULATE, TYPE)                                  \
  template <class Element>                                                                   \
  __device__ __forceinline__ void wgmma_m64k16(float (&d)[REGISTERS], uint64_t a_descriptor, \
                                               uint64_t b_descriptor, bool accumulate) {     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE                              \
                 ", 0;\n"                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE             \
                 " {" ONEWAVE_TEXT##REGISTERS " }, " A ", " B ", p, 1, 1, 0, 0;\n}\n"        \
                 : ONEWAVE_ACC##REGISTERS(d)                                                 \
                 : "l"(a_descriptor), "l"(b_descriptor), "r"(static_cast<int>(accumulate)),  \
                   "C"(TypeName<Element>::kValue)                                            \
                 : "memory");                                                                \
  }

/// d[64 x N] (+)= a[64 x 16] b[16 x N], a in registers, b in shared memory with its columns contiguous.
#define ONEWAVE_WGMMA_TRANS(N, REGISTERS, A, B, ACCUMULATE, TYPE)                                   \
  template <class Element>                                                                          \
  __device__ __forceinline__ void wgmma_m64k16_trans(float (&d)[REGISTERS], const uint32_t (&a)[4], \
                                                     uint64_t b_descriptor, bool accumulate) {      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE                                     \
                 ", 0;\n"                                                                           \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                    \
                 " {" ONEWAVE_TEXT##REGISTERS " }, {" A "}, " B ", p, 1, 1, 1;\n}\n"                \
                 : ONEWAVE_ACC##REGISTERS(d)                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor),                   \
                   "r"(static_cast<int>(accumulate)), "C"(TypeName<Element>::kValue)                \
                 : "memory");                                                                       \
  }

/// The same products of 32 e4m3: d[64 x N] (+)= a[64 x 32] b[N x 32]^T, k contiguous.
#define ONEWAVE_WGMMA_E4M3(N, REGISTERS, A, B, ACCUMULATE)                                   \
  __device__ __forceinline__ void wgmma_m64k32(float (&d)[REGISTERS], uint64_t a_descriptor, \
                                               uint64_t b_descriptor, bool accumulate) {     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE                              \
                 ", 0;\n"                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #N                                      \
                 "k32.f32.e4m3.e4m3"                                                         \
                 " {" ONEWAVE_TEXT##REGISTERS " }, " A ", " B ", p, 1, 1;\n}\n"              \
                 : ONEWAVE_ACC##REGISTERS(d)                                                 \
                 : "l"(a_descriptor), "l"(b_descriptor), "r"(static_cast<int>(accumulate))   \
                 : "memory");                                                                \
  }

/// And a in registers.
#define ONEWAVE_WGMMA_E4M3_A(N, REGISTERS, A, B, ACCUMULATE)                                  \
  __device__ __forceinline__ void wgmma_m64k32(float (&d)[REGISTERS], const uint32_t (&a)[4], \
                                               uint64_t b_descriptor, bool accumulate) {      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE                               \
                 ", 0;\n"                                                                     \
                 "wgmma.mma_async.sync.aligned.m64n" #N                                       \
                 "k32.f32.e4m3.e4m3"                                                          \
                 " {" ONEWAVE_TEXT##REGISTERS " }, {" A "}, " B ", p, 1, 1;\n}\n"             \
                 : ONEWAVE_ACC##REGISTERS(d)                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor),             \
                   "r"(static_cast<int>(accumulate))                                          \
                 : "memory");                                                                 \
  }

ONEWAVE_WGMMA(64, 32, "%32", "%33", "%34", "%35")
ONEWAVE_WGMMA(128, 64, "%64", "%65", "%66", "%67")

ONEWAVE_WGMMA_TRANS(64, 32, "%32, %33, %34, %35", "%36", "%37", "%38")
ONEWAVE_WGMMA_TRANS(96, 48, "%48, %49, %50, %51", "%52", "%53", "%54")
ONEWAVE_WGMMA_TRANS(128, 64, "%64, %65, %66, %67", "%68", "%69", "%70")
ONEWAVE_WGMMA_TRANS(192, 96, "%96, %97, %98, %99", "%100", "%101", "%102")
ONEWAVE_WGMMA_TRANS(256, 128, "%128, %129, %130, %131", "%132", "%133", "%134")

ONEWAVE_WGMMA_E4M3(64, 32, "%32", "%33", "%34")
ONEWAVE_WGMMA_E4M3(128, 64, "%64", "%65", "%66")

ONEWAVE_WGMMA_E4M3_A(8, 4, "%4, %5, %6, %7", "%8", "%9")
ONEWAVE_WGMMA_E4M3_A(64, 32, "%32, %33, %34, %35", "%36", "%37")
ONEWAVE_WGMMA_E4M3_A(96, 48, "%48, %49, %50, %51", "%52", "%53")
ONEWAVE_WGMMA_E4M3_A(128, 64, "%64, %65, %66, %67", "%68", "%69")

#undef ONEWAVE_WGMMA_E4M3_A
#undef ONEWAVE_WGMMA_E4M3
#undef ONEWAVE_WGMMA_TRANS
#undef ONEWAVE_WGMMA
#undef ONEWAVE_ACC128
#undef ONEWAVE_ACC96
#undef ONEWAVE_ACC4
#undef ONEWAVE_ACC64
#undef ONEWAVE_ACC48
#undef ONEWAVE_ACC32
#undef ONEWAVE_ACC16
#undef ONEWAVE_TEXT128
#undef ONEWAVE_TEXT96
#undef ONEWAVE_TEXT64
#undef ONEWAVE_TEXT48
#undef ONEWAVE_TEXT32
#undef ONEWAVE_TEXT4
#undef ONEWAVE_TEXT16_7
#undef ONEWAVE_TEXT16_6
#undef ONEWAVE_TEXT16_5
#undef ONEWAVE_TEXT16_4
#undef ONEWAVE_TEXT16_3
#undef ONEWAVE_TEXT16_2
#undef ONEWAVE_TEXT16_1
#undef ONEWAVE_TEXT16_0

}  // namespace onewave::ptx
