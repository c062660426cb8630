#pragma once

#include <onewave/executor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace onewave {

struct DeviceInfo {
  std::string name;
  int32_t num_sms;
  int32_t capability_major;
  int32_t capability_minor;
  int32_t driver_version;  ///< 13000 for CUDA 13.0
};

/// Throws DeviceError where there is no driver, it is too old, or `device` is not a Hopper GPU.
DeviceInfo device_info(int32_t device);

struct KernelInfo {
  DType dtype;     ///< of q, and of out where it is of 16 bits
  DType kv_dtype;  ///< of k and v
  int32_t head_dim_qk;
  int32_t head_dim_vo;
  Loader loader;
  bool is_masked;    ///< looks at windows, soft caps, sinks, custom masks and scales of groups of tokens
  bool is_profiled;  ///< counts where its time goes (onewave/profile.h)
  size_t num_bytes;  ///< of the cubin
};

/// The cubins of attention inside the library.
std::vector<KernelInfo> list_kernels();

/// Plans and launches on one device; a stream is a CUstream. One thread at a time, and not always the same
/// one; other objects are independent, those on this device too.
///
/// The constructor loads the cubins for `shape` and needs the device's primary context (it retains it). The
/// destructor waits for uploads in flight. Neither they nor plan() disturb a capture of another stream.
class DeviceAttention {
 public:
  /// `workspace`: device memory of workspace_layout(limits, shape).total_bytes, 128-byte aligned, owned by
  /// the caller. `calibration`: null for calibration_of(the device's name).
  DeviceAttention(int32_t device, const PlanLimits& limits, const AttentionShape& shape, void* workspace,
                  const Calibration* calibration = nullptr);
  ~DeviceAttention();

  /// Plans into a pinned buffer and enqueues one copy on `stream`; waits only when all of the ring's buffers
  /// are in flight. batch.kv_indices is a device address, used in place until the next plan. `batch.shape`
  /// must equal the constructor's. Where it throws InvalidArgument, the last plan stays; where the upload
  /// itself fails, what the device has is not known, and there is no plan until one succeeds.
  ///
  /// With batch.actual_kv_len_arr, a device address in use until the next plan, update_kv_lens() follows.
  ///
  /// `window_lefts`: limits.num_windows of them, in place of batch.masks.window_left; a plan is made for
  /// each, and RunArgs::window says which a run takes. Null: that of the batch, where num_windows is 1.
  /// Returns the first.
  const PlanHeader* plan(const BatchSpec& batch, void* stream, const int32_t* window_lefts = nullptr);

  /// Reads the last plan's actual_kv_len_arr, for all runs until the next call or plan: one small launch on
  /// `stream`, which does nothing where the plan has none. Safe in a stream capture; a replay reads the array
  /// of the last plan.
  void update_kv_lens(void* stream);

  /// The last plan, in the pinned buffer it was written to, with the lengths as planned: valid until the next
  /// plan. Null before the first, and after an upload that failed.
  const PlanHeader* last_plan(int32_t window = 0) const;

  /// For runs with RunArgs::profile: loads the kernels with the profiler. Host only. Throws InvalidArgument,
  /// which names the nearest, where there is none for the shape.
  void load_profiler();

  /// One launch on `stream`; neither allocates nor synchronises. Safe in a stream capture, which bakes the
  /// arguments in: they are then checked for every later plan within the limits, also where the last one
  /// reads none of them. A run without sinks by a plan without masks (PlanHeader::is_masked) takes a kernel
  /// that looks at neither, which a capture bakes in too: a replay of it must not meet a plan with masks.
  /// Addresses and strides of q, k, v and out are multiples of 16 bytes; strides of q and out are int32;
  /// those of k and v are not negative and below 2^40 bytes, and for Loader::kTma not 0; for Loader::kGather
  /// k and v each span less than 64 GiB. A stride of a dimension of size 1 is never taken and may be
  /// anything; q and out have max_total_qo_len tokens in this respect.
  ///
  /// With args.profile the run takes the kernel with the profiler, which load_profiler() must have loaded; a
  /// capture bakes in which, and the buffer.
  ///
  /// `enable_pdl`: the launch may begin while the kernel before it on the stream still runs (programmatic
  /// dependent launch), and waits for its end before it reads or writes anything but its own registers and
  /// shared memory. Whether or not, a kernel that is launched so behind this one may begin while this one
  /// runs.
  void run(const RunArgs& args, void* stream, bool enable_pdl = false);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace onewave
