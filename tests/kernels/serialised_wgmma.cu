/// A kernel that the build must refuse: it touches an accumulator between two wgmma, so the compiler makes
/// each of them wait for the one before.

#include <cstdint>

__device__ void multiply_add(float (&accumulator)[4], uint64_t a_descriptor, uint64_t b_descriptor) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
               : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
               : "l"(a_descriptor), "l"(b_descriptor)
               : "memory");
}

extern "C" __global__ void onewave_attention(float* out, uint64_t a_descriptor, uint64_t b_descriptor) {
  float accumulator[4] = {};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  multiply_add(accumulator, a_descriptor, b_descriptor);
  accumulator[0] += 1.0f;
  multiply_add(accumulator, a_descriptor, b_descriptor);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = accumulator[i];
}
