/// A kernel that the build must refuse: 64 values live at once, in the 32 registers that two CTAs of 1024
/// threads leave to each thread.

extern "C" __global__ void __launch_bounds__(1024, 2) onewave_attention(const float* in, float* out) {
  float values[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) values[i] = in[threadIdx.x + 1024 * i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[threadIdx.x + 1024 * i] = values[i] * values[63 - i];
}
