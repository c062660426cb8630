#pragma once

/// Programmatic dependent launch: a kernel may begin while the one before it on the stream still runs. Both
/// do nothing in a launch without it.

namespace onewave::ptx {

/// The kernel after this one may begin as SMs come free, once every CTA has said so or is done.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;"); }

/// Until the kernels before this one are done and their stores visible.
__device__ __forceinline__ void wait_for_prerequisites() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

}  // namespace onewave::ptx
