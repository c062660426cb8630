/// Copies new rows of K and V into the pages of a cache of their own type, whatever it is. Many rows keep two
/// loads of each of an SM's 2048 threads in flight.

#include "append.cuh"

namespace onewave {
namespace {

/// The same bytes of a new row.
struct Copy {
  uint4 chunk;

  __device__ __forceinline__ void load(const char* row, uint32_t chunk_idx, const HeadScales&, uint32_t) {
    chunk = ptx::load_16(row + chunk_idx * kChunkBytes);
  }
  __device__ __forceinline__ uint4 to_cache() const { return chunk; }
};

}  // namespace
}  // namespace onewave

extern "C" __global__ void __launch_bounds__(onewave::kRowThreads)
    onewave_append(const __grid_constant__ onewave::AppendArgs args) {
  using onewave::DType;
  const int element_bytes = args.dtype == DType::kFloat32 ? 4 : args.dtype == DType::kFloat8E4M3 ? 1 : 2;
  onewave::append_chunk<onewave::Copy>(args, element_bytes, element_bytes);
}
