/// Quantises new rows of K and V of 16 or 32 bits into the pages of a cache of fp8 e4m3. A kernel beside
/// append.cu, whose copies need fewer registers: more of its threads fit an SM.

#include "append.cuh"
#include "unpack.cuh"

#include <cuda_fp8.h>

namespace onewave {
namespace {

/// Beyond 448 it is 448 with its sign; a NaN that was multiplied has none, and is 0x7f.
__device__ __forceinline__ uint32_t pack_fp8(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}
__device__ __forceinline__ uint32_t pack_fp8(const float* columns) {
  return pack_fp8(columns[0], columns[1]) | pack_fp8(columns[2], columns[3]) << 16;
}

/// 16 elements: as many chunks of a new row as each has bytes.
template <class Element>
struct Quantised {
  static constexpr int kChunks = sizeof(Element);
  uint4 chunks[kChunks];
  float scale;

  __device__ __forceinline__ void load(const char* row, uint32_t chunk_idx, const HeadScales& scales,
                                       uint32_t head) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) chunks[i] = ptx::load_16(row + (chunk_idx * kChunks + i) * kChunkBytes);
    scale = scales.data == nullptr ? scales.scale : scales.data[head * scales.head_stride];
  }

  __device__ __forceinline__ uint4 to_cache() const {
    constexpr int kWordCols = 4 / sizeof(Element);
    float columns[kChunkBytes];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const uint32_t words[4] = {chunks[i].x, chunks[i].y, chunks[i].z, chunks[i].w};
#pragma unroll
      for (int w = 0; w < 4; ++w) unpack(words[w], Element(), columns + (i * 4 + w) * kWordCols);
    }
    // One division, not 16. The CPU multiplies too, for the same bits.
    const float factor = 1.f / scale;
#pragma unroll
    for (float& column : columns) column *= factor;
    return make_uint4(pack_fp8(columns), pack_fp8(columns + 4), pack_fp8(columns + 8),
                      pack_fp8(columns + 12));
  }
};

template <class Element>
__device__ __forceinline__ void append_quantised(const AppendArgs& args) {
  append_chunk<Quantised<Element>>(args, sizeof(Element), 1);
}

}  // namespace
}  // namespace onewave

extern "C" __global__ void __launch_bounds__(onewave::kRowThreads)
    onewave_append_fp8(const __grid_constant__ onewave::AppendArgs args) {
  using namespace onewave;
  switch (args.dtype) {
    case DType::kFloat32:
      return append_quantised<float>(args);
    case DType::kFloat16:
      return append_quantised<__half>(args);
    case DType::kBFloat16:
      return append_quantised<__nv_bfloat16>(args);
    case DType::kFloat8E4M3:  // append.cu copies it
      return;
  }
}
