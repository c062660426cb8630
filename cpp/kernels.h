#pragma once

/// The cubins inside the library: which there are, and how one becomes a function that can be launched.

#include <cudaTypedefs.h>
#include <onewave/device.h>

#include <cstddef>
#include <cstdint>

namespace onewave {

/// One row of the kernel tables: a cubin, in the library's read-only data.
struct Cubin {
  const char* name;
  const unsigned char* begin;
  const unsigned char* end;
};

/// One row of the table of attention kernels.
struct EmbeddedKernel {
  DType dtype;
  DType kv_dtype;
  int32_t head_dim_qk;
  int32_t head_dim_vo;
  Loader loader;
  bool is_masked;    ///< looks at windows, soft caps, sinks, custom masks and scales of groups of tokens
  bool is_profiled;  ///< counts where its time goes (onewave/profile.h), and takes ProfiledParams
  Cubin cubin;
};

// Defined by the source that the build generates from the kernel tables.
extern const EmbeddedKernel kEmbeddedKernels[];
extern const size_t kNumEmbeddedKernels;
extern const Cubin kAppendCubin;
extern const Cubin kAppendFp8Cubin;
extern const Cubin kMergeStatesCubin;
extern const Cubin kUpdateKvLensCubin;

/// What a cubin must have inside, and how it is launched.
struct KernelInterface {
  const char* entry_name;
  size_t param_bytes;    ///< of its one parameter
  int32_t shared_bytes;  ///< dynamic shared memory of a CTA
};

const char* dtype_name(DType dtype);

/// Which of the kernels for a shape.
struct KernelVariant {
  bool is_masked;
  bool is_profiled;
};

/// The attention kernel for a shape. Throws InvalidArgument that names the nearest row.
const EmbeddedKernel& find_kernel(const AttentionShape& shape, const KernelVariant& variant);

/// The kernel's function in the primary context of `device`, which must be current, ready to be launched. The
/// cubin is loaded once per process, its attributes are set once per device. Any thread, also while streams
/// are in a capture.
CUfunction load_kernel(const Cubin& cubin, const KernelInterface& interface, CUdevice device);

/// A one-dimensional grid of CTAs of block_x * block_y threads.
struct LaunchShape {
  uint32_t num_ctas;
  uint32_t block_x;
  uint32_t block_y = 1;
  int32_t shared_bytes = 0;  ///< dynamic
  bool enable_pdl = false;   ///< programmatic dependent launch: may begin before the kernel before it is done
};

/// One launch; `params`: what the kernel's one parameter is read from.
void launch_kernel(CUfunction kernel, const LaunchShape& shape, void* params, CUstream stream);

}  // namespace onewave
