#pragma once

/// The cubins inside the library: which there are, and how one becomes a function that can be launched.

#include <cudaTypedefs.h>
#include <onewave/device.h>

#include <cstddef>
#include <cstdint>

namespace onewave {

/// One row of the kernel table: a cubin, in the library's read-only data.
struct EmbeddedKernel {
  DType dtype;
  int32_t head_dim;
  Loader loader;
  const unsigned char* begin;
  const unsigned char* end;
};

// Defined by the source that the build generates from the kernel table.
extern const EmbeddedKernel kEmbeddedKernels[];
extern const size_t kNumEmbeddedKernels;

const char* dtype_name(DType dtype);

/// The row for these three. Throws InvalidArgument that lists the rows there are.
const EmbeddedKernel& find_kernel(DType dtype, int32_t head_dim, Loader loader);

/// The kernel's function in the primary context of `device`, which must be current, ready to be launched with
/// kSharedBytes. The cubin is loaded once per process, its attributes are set once per device. Any thread,
/// also while streams of others are in a capture.
CUfunction load_kernel(const EmbeddedKernel& embedded, CUdevice device);

}  // namespace onewave
