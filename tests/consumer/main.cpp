/// Plans and runs a step by onewave on the CPU, and where there is a Hopper GPU on that too, and compares
/// with a naive computation. The exit status is 1 for a wrong result.

#include <onewave/onewave.h>

#include <cstddef>
#include <cstdint>
#include <iostream>
#include <vector>

#include "device_memory.h"
#include "reference.h"
#include "step.h"

namespace {

/// The tensors of a step and its result: addresses of one side.
onewave::RunArgs run_args(const Step& step, const void* q, const uint16_t* kv_cache, void* out, float* lse) {
  const auto pages = [](const uint16_t* data) {
    return onewave::PagedTensor{.data = data,
                                .page_stride = kPageStride,
                                .token_stride = kKeyStride,
                                .head_stride = kShape.head_dim_qk};
  };
  return {.dtype = kShape.dtype,
          .q = q,
          .q_token_stride = kQueryStride,
          .q_head_stride = kShape.head_dim_qk,
          .k = pages(kv_cache),
          .v = pages(kv_cache + kValueOffset),
          .num_pages = static_cast<int64_t>(step.kv_indices.size()),
          .out = out,
          .out_token_stride = kQueryStride,
          .out_head_stride = kShape.head_dim_qk,
          .num_rows = step.qo_indptr.back(),
          .lse = lse};
}

Result run_on_cpu(const Step& step) {
  const onewave::PlanLimits limits = step.limits(132);
  const onewave::CostModel costs(kShape, onewave::calibration_of("NVIDIA H200"));
  // operator new aligns to 16 bytes, as a plan needs it.
  std::vector<std::byte> buffer(onewave::workspace_layout(limits, kShape).plan_bytes);
  const onewave::PlanHeader* plan =
      onewave::plan_batch(step.batch(step.kv_indices.data()), limits, costs, buffer.data());
  std::cout << "plan: " << plan->wide_begin << " narrow items, " << plan->num_items - plan->wide_begin
            << " wide, " << plan->num_split_tiles << " tiles split\n";

  Result result(step);
  const onewave::RunArgs args =
      run_args(step, step.q.data(), step.kv_cache.data(), result.out.data(), result.lse.data());
  onewave::execute_plan(plan, args, 0);
  return result;
}

Result run_on_gpu(const Step& step, int32_t device) {
  const ContextScope context(device);
  const onewave::PlanLimits limits = step.limits(onewave::device_info(device).num_sms);
  const DeviceMemory workspace(onewave::workspace_layout(limits, kShape).total_bytes);
  const DeviceMemory kv_indices(step.kv_indices), q(step.q), kv_cache(step.kv_cache);
  Result result(step);
  const DeviceMemory out(result.out), lse(result.lse);

  void* const stream = nullptr;  // the default one, for which the copies wait
  onewave::DeviceAttention attention(device, limits, kShape, workspace.get());
  attention.plan(step.batch(kv_indices.get<int32_t>()), stream);
  attention.run(run_args(step, q.get(), kv_cache.get<uint16_t>(), out.get(), lse.get<float>()), stream);
  out.copy_to(result.out);
  lse.copy_to(result.lse);
  return result;
}

}  // namespace

int main() {
  std::cout << "onewave " << onewave::library_version() << "\n";
  const Step step;
  const Reference reference(step);
  if (!reference.agrees("cpu", run_on_cpu(step))) return 1;
  try {
    onewave::device_info(0);
  } catch (const onewave::DeviceError& error) {
    std::cout << "no GPU: " << error.what() << "\n";
    return 0;
  }
  return reference.agrees("gpu", run_on_gpu(step, 0)) ? 0 : 1;
}
