#pragma once

/// From e4m3 to 16-bit floats, exactly.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace onewave::ptx {

/// fp8 e4m3 as OCP has it: the sign, four bits of exponent with a bias of 7, three of the fraction.
struct E4M3 {
  uint8_t bits;
};

__device__ __forceinline__ uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t permuted;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(permuted) : "r"(low), "r"(high), "r"(selector));
  return permuted;
}

/// The two e4m3 in bytes 1 and 3; the others may be anything. There is no instruction to bfloat16: the
/// exponent and fraction move to where they are there, and a product rebiases them by 2^120, subnormal
/// numbers too. (NaN becomes 480.)
__device__ __forceinline__ uint32_t widen_to_bf16(uint32_t bytes) {
  const uint32_t moved = (bytes >> 4 & 0x07f007f0) | (bytes & 0x80008000);
  uint32_t widened;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(widened) : "r"(moved), "r"(0x7b807b80));
  return widened;
}

/// The two e4m3 in bytes 0 and 1.
__device__ __forceinline__ uint32_t widen_to_fp16(uint32_t bytes) {
  uint32_t widened;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, low;}"
      : "=r"(widened)
      : "r"(bytes));
  return widened;
}

/// Four e4m3 as two pairs: 0 and 1, 2 and 3.
template <class Element>
__device__ __forceinline__ uint2 widen(uint32_t four) {
  if constexpr (std::is_same_v<Element, __half>) {
    return make_uint2(widen_to_fp16(four), widen_to_fp16(four >> 16));
  } else {
    return make_uint2(widen_to_bf16(permute_bytes(four, 0, 0x1100)),
                      widen_to_bf16(permute_bytes(four, 0, 0x3322)));
  }
}

/// And as the pairs 0 and 2, 1 and 3.
template <class Element>
__device__ __forceinline__ uint2 widen_by_turns(uint32_t four) {
  if constexpr (std::is_same_v<Element, __half>) {
    return widen<Element>(permute_bytes(four, 0, 0x3120));
  } else {
    return make_uint2(widen_to_bf16(four << 8), widen_to_bf16(four));
  }
}

}  // namespace onewave::ptx
