/// One cubin per row of the kernel table (cmake/Kernels.cmake), which gives the dtype, head_dim and loader by
/// -D.

#include "attention.cuh"

#if ONEWAVE_PROFILED
#define ONEWAVE_ENTRY onewave_attention_profiled
#else
#define ONEWAVE_ENTRY onewave_attention
#endif

extern "C" __global__ void __launch_bounds__(onewave::kNumThreads, 1)
    ONEWAVE_ENTRY(const __grid_constant__ onewave::EntryParams params) {
  extern __shared__ __align__(1024) unsigned char shared[];
  onewave::run_cta(params, *reinterpret_cast<onewave::SharedStorage*>(shared));
}
