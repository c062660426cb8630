/// Gives the items of the plan in a workspace the keys that their requests have by now: one thread an item.
/// Attention then reads the items as if they had been planned so, and knows nothing of bounds.

#include "kv_lens.h"

#include <onewave/plan_format.h>

namespace onewave {
namespace {

/// Where a CTA of attention is launched before its prerequisites are done it reads its record, and with it
/// the rest of those 32 bytes into the L1 (attention.cuh): at most the first 16 bytes of the first item.
static_assert(offsetof(WorkItem, causal_shift) >= 16 && offsetof(WorkItem, kv_end) >= 16);

__device__ void update_items(void* plan, uint32_t first, uint32_t stride) {
  const auto* header = static_cast<const PlanHeader*>(plan);
  if (header->item_bounds_offset == 0) return;
  const auto* kv_lens = reinterpret_cast<const int32_t*>(header->actual_kv_lens);
  const auto* bounds = plan_section<ItemBounds>(plan, header->item_bounds_offset);
  auto* items = reinterpret_cast<WorkItem*>(static_cast<unsigned char*>(plan) + header->items_offset);
  for (uint32_t i = first; i < static_cast<uint32_t>(header->num_items); i += stride)
    set_kv_len(items[i], bounds[i], kv_lens[items[i].request]);
}

}  // namespace
}  // namespace onewave

extern "C" __global__ void __launch_bounds__(onewave::kKvLensThreads) onewave_update_kv_lens(void* plan) {
  onewave::update_items(plan, blockIdx.x * onewave::kKvLensThreads + threadIdx.x,
                        gridDim.x * onewave::kKvLensThreads);
}
