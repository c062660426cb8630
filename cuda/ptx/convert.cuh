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

/// Two halves as bfloat16, where three bits of a fraction are all that they have: the upper halves of the
/// same floats.
__device__ __forceinline__ uint32_t short_halves_to_bf16(uint32_t halves) {
  float low, high;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
      : "=f"(low), "=f"(high)
      : "r"(halves));
  return permute_bytes(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

/// Four e4m3 as two pairs: 0 and 1, 2 and 3. To bfloat16 there is no instruction.
template <class Element>
__device__ __forceinline__ uint2 widen(uint32_t four) {
  uint2 halves;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.rn.f16x2.e4m3x2 %0, low; "
      "cvt.rn.f16x2.e4m3x2 %1, high;}"
      : "=r"(halves.x), "=r"(halves.y)
      : "r"(four));
  if constexpr (std::is_same_v<Element, __half>) return halves;
  return make_uint2(short_halves_to_bf16(halves.x), short_halves_to_bf16(halves.y));
}

/// And as the pairs 0 and 2, 1 and 3.
template <class Element>
__device__ __forceinline__ uint2 widen_by_turns(uint32_t four) {
  return widen<Element>(permute_bytes(four, 0, 0x3120));
}

/// Four floats as e4m3, rounded to the nearest; beyond 448 it is 448.
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
  uint32_t four;
  asm("{.reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, %2, %1; "
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3; mov.b32 %0, {low, high};}"
      : "=r"(four)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return four;
}

}  // namespace onewave::ptx
