#pragma once

/// The persistent kernel: one launch, at most one CTA per SM. Each walks the list of narrow items that the
/// planner wrote for it, and then takes wide ones from a queue (onewave/plan_format.h, queue.cuh).
///
///   warpgroup 0      producer: page ids -> Q, K and V into shared memory    load.cuh, producer.cuh
///   warpgroups 1, 2  narrow items: 8 warps, 16 rows of K and V each         narrow.cuh, join.cuh
///                    wide items: 2 warpgroups, 64 packed rows each          wide.cuh
///
/// They meet only at mbarriers: rings of K and V stages, full and empty (pipeline.cuh, smem.cuh), which the
/// producer keeps filling over item boundaries. Results are stored by the consumers; where keys of a tile
/// were split, the last CTA to arrive merges (output.cuh, merge.cuh).

#include "merge.cuh"
#include "narrow.cuh"
#include "producer.cuh"
#include "ptx/launch.cuh"
#include "wide.cuh"

namespace onewave {

/// Of the kind that comes first.
__device__ __forceinline__ void prefetch_tensor_maps(const KernelParams& params, bool is_narrow) {
  ptx::prefetch_tensor_map(is_narrow || kWidens ? &params.k_map : &params.k_panel_map);
  ptx::prefetch_tensor_map(&params.v_map);
  if (is_narrow && params.group_heads_shift > 0) {
    ptx::prefetch_tensor_map(&params.k_group_map);
    ptx::prefetch_tensor_map(&params.v_group_map);
  }
}

__device__ __forceinline__ void run_producer(const KernelParams& params, SharedStorage& storage) {
  const Work work(params.plan);
  const CtaRecord& cta = work.cta;
  if (!kGather && threadIdx.x == 0 && params.num_pages > 0)
    prefetch_tensor_maps(params, cta.narrow_begin < cta.narrow_end);
  produce(params, work, NarrowItems{params, work, storage}, storage.narrow.tiles, storage.page_ids, nullptr,
          storage.narrow_rings, narrow_rows_shift);
  if (!has_wide_items(work.header)) return;
  produce(params, work, WideItems{params, work, storage}, storage.wide.tiles, storage.page_ids,
          storage.wide.items, storage.wide_rings, [](int) { return kWideRowsShift; });
}

__device__ __forceinline__ void run_consumer(const KernelParams& params, SharedStorage& storage) {
  const Work work(params.plan);
  const CtaRecord& cta = work.cta;
  const Profiler profiler(params, storage.profile);
  NarrowPositions at;
  profiler.begin_item();
  for (HeadCursor cursor(work, cta.narrow_begin, cta.narrow_end); cursor.valid(); cursor.advance())
    consume_narrow(params, work, cursor, storage.narrow, storage.narrow_rings, at, storage.arrivals,
                   profiler);
  if (has_wide_items(work.header)) {
    ptx::fence_proxy_async();  // the join buffer becomes a stage that TMA writes
    arrive_warp(&storage.narrow_done);
    WideConsumer(params, work, storage.wide, storage.wide_rings, profiler).run(storage.arrivals);
  }
  profiler.end_cta();
}

__device__ __forceinline__ void run_cta(const KernelParams& params, SharedStorage& storage) {
  ptx::launch_dependents();
  // No kernel writes what this reads of the plan.
  const bool works = has_work(params.plan);
  // A graph of fewer rows than the batch has: it would write past their end.
  if (static_cast<const PlanHeader*>(params.plan)->total_qo_len > params.num_rows) __trap();
  if (threadIdx.x == 0) {
    storage.narrow_rings.init();
    storage.wide_rings.init();
    storage.loaded.init();
    storage.wide_items.init();
    ptx::mbarrier_init(&storage.narrow_done, kConsumerWarps * kArrivingLanes);
    ptx::fence_mbarrier_init();
  }
  ptx::wait_for_prerequisites();
  Profiler::begin_cta(params, storage.profile);
  if (!works) return;
  __syncthreads();
  if (__shfl_sync(0xffffffff, threadIdx.x / kWarpgroupThreads, 0) == 0) {
    ptx::setmaxnreg_dec<kProducerRegisters>();
    run_producer(params, storage);
  } else {
    ptx::setmaxnreg_inc<kConsumerRegisters>();
    run_consumer(params, storage);
  }
}

}  // namespace onewave
