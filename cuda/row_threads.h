#pragma once

/// What the host and the kernels of rows (append.cuh, merge_states.cu) must agree on.

#include <cstdint>

namespace onewave {

/// Of a CTA. The kernels count threads in 32 bits.
inline constexpr uint32_t kRowThreads = 256;
/// A thread reads and writes chunks of so many bytes.
inline constexpr uint32_t kChunkBytes = 16;

}  // namespace onewave
