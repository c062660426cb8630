#pragma once

/// A word of a row's elements as floats, exactly: one of 32 bits or two of 16.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace onewave {

__device__ __forceinline__ void unpack(uint32_t word, __nv_bfloat16, float* columns) {
  columns[0] = __uint_as_float(word << 16);
  columns[1] = __uint_as_float(word & 0xffff0000);
}
__device__ __forceinline__ void unpack(uint32_t word, __half, float* columns) {
  const float2 both = __half22float2(reinterpret_cast<const __half2&>(word));
  columns[0] = both.x;
  columns[1] = both.y;
}
__device__ __forceinline__ void unpack(uint32_t word, float, float* columns) {
  columns[0] = __uint_as_float(word);
}

}  // namespace onewave
