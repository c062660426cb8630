#pragma once

/// What the host and the kernel of update_kv_lens.cu must agree on.

#include <cstdint>

namespace onewave {

/// Whatever the plan's number of items: a CUDA graph has the launch baked in. An item each for most batches.
inline constexpr uint32_t kKvLensCtas = 16;
inline constexpr uint32_t kKvLensThreads = 256;

}  // namespace onewave
