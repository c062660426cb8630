#pragma once

/// How Q, K and V reach shared memory. Both K/V loaders have the same face:
///
///   rows = loader.lookup(keys, tile_begin)  starts reading the page ids of a tile; used two tiles later
///   loader.load_k(rows, kv_head, stage, full), load_v(...)    fills one stage and arrives on its full
///   barrier
///
/// Keys past the item's kv_end arrive as zeros where the page (TMA) or the row (gather) lies past it; what is
/// left of the last page is the consumers' to mask.

#include "ptx/copy.cuh"
#include "smem.cuh"
#include "work.cuh"

namespace onewave {

/// The keys of an item, as far as a loader looks at them.
struct KeyRange {
  int begin;
  int end;
  int page_begin;  ///< index in kv_indices of the request's first page
};

/// A box per page, for K one for each 64-column panel, issued by the lanes of one warp, a page each.
struct TmaLoader {
  struct Rows {
    int page;
    int token;  ///< first token of the box in its page
  };

  const KernelParams& params;
  const int32_t* kv_indices;
  int lane;
  int page_shift;  ///< log2(page_size)
  int box_tokens;
  int boxes_per_tile;

  __device__ __forceinline__ TmaLoader(const KernelParams& params, const PlanHeader* header)
      : params(params),
        kv_indices(reinterpret_cast<const int32_t*>(header->kv_indices)),
        lane(threadIdx.x % 32),
        page_shift(__ffs(header->page_size) - 1),
        box_tokens(min(header->page_size, kTileKv)),
        boxes_per_tile(kTileKv / box_tokens) {}

  __device__ __forceinline__ Rows lookup(const KeyRange& keys, int tile_begin) const {
    const int key = tile_begin + lane * box_tokens;
    Rows rows{params.num_pages, key & ((1 << page_shift) - 1)};  // no such page: a box of zeros
    if (lane < boxes_per_tile && key < keys.end)
      rows.page = kv_indices[keys.page_begin + (key >> page_shift)];
    return rows;
  }

  __device__ __forceinline__ void load_k(const Rows& rows, int kv_head, Element* stage,
                                         uint64_t* full) const {
    expect_stage(full);
    if (lane >= boxes_per_tile) return;
#pragma unroll
    for (int panel = 0; panel < kNumPanels; ++panel) {
      ptx::tma_load_5d(stage + (panel * kTileKv + lane * box_tokens) * kPanelCols, &params.k_map, full, 0,
                       rows.token, panel, kv_head, rows.page);
    }
  }

  __device__ __forceinline__ void load_v(const Rows& rows, int kv_head, Element* stage,
                                         uint64_t* full) const {
    expect_stage(full);
    if (lane >= boxes_per_tile) return;
    ptx::tma_load_5d(stage + lane * box_tokens * kHeadDim, &params.v_map, full, 0, rows.token, 0, kv_head,
                     rows.page);
  }

 private:
  __device__ __forceinline__ void expect_stage(uint64_t* full) const {
    if (lane == 0) ptx::mbarrier_arrive_expect_tx(full, kStageElements * sizeof(Element));
    __syncwarp();
  }
};

/// Row by row: a thread looks up one key, its warp copies the 32 rows together, 16 bytes a lane.
struct GatherLoader {
  struct Rows {
    int page;  ///< -1: past kv_end
    int token;
  };

  const KernelParams& params;
  const int32_t* kv_indices;
  unsigned page_size;
  int row;  ///< of the stage, one per producer thread

  __device__ __forceinline__ GatherLoader(const KernelParams& params, const PlanHeader* header)
      : params(params),
        kv_indices(reinterpret_cast<const int32_t*>(header->kv_indices)),
        page_size(header->page_size),
        row(threadIdx.x % kWarpgroupThreads) {}

  __device__ __forceinline__ Rows lookup(const KeyRange& keys, int tile_begin) const {
    const int key = tile_begin + row;
    if (key >= keys.end) return {-1, 0};
    const unsigned page_idx = page_size == 1 ? key : static_cast<unsigned>(key) / page_size;
    return {kv_indices[keys.page_begin + page_idx], static_cast<int>(key - page_idx * page_size)};
  }

  __device__ __forceinline__ void load_k(const Rows& rows, int kv_head, Element* stage,
                                         uint64_t* full) const {
    load(params.k, rows, kv_head, stage, full);
  }

  __device__ __forceinline__ void load_v(const Rows& rows, int kv_head, Element* stage,
                                         uint64_t* full) const {
    load(params.v, rows, kv_head, stage, full);
  }

 private:
  __device__ __forceinline__ void load(const PagedTensor& source, const Rows& rows, int kv_head,
                                       Element* stage, uint64_t* full) const {
    const int lane = row % 32;
    const bool valid = rows.page >= 0;
    const int64_t offset = rows.page * source.page_stride + rows.token * source.token_stride;
    const Element* head = static_cast<const Element*>(source.data) + kv_head * source.head_stride +
                          lane % kPanelChunks * kChunkCols;
    const uint32_t destination = ptx::shared_address(stage) +
                                 tile_offset(kTileKv, row - lane + lane / kPanelChunks, lane % kPanelChunks);
    if (__all_sync(0xffffffff, valid)) {
      copy_rows<true>(head, offset * sizeof(Element), destination);
    } else {
      copy_rows<false>(head, valid ? offset * sizeof(Element) : -1, destination);
    }
    ptx::cp_async_mbarrier_arrive_noinc(full);
  }

  /// Eight lanes to a row, 16 bytes of every panel each, so that an address serves all panels.
  ///
  /// `offset`: of this lane's row, in bytes from `head`; negative: none, its row becomes zeros.
  /// `destination`: of this lane's chunk in the first four rows; after eight the swizzle repeats.
  template <bool kAllValid>
  __device__ __forceinline__ static void copy_rows(const Element* head, int64_t offset,
                                                   uint32_t destination) {
    constexpr int kPassRows = 32 / kPanelChunks;
    int source_lane = threadIdx.x % 32 / kPanelChunks;
#pragma unroll 2
    for (int group = 0; group < 32 / 8; ++group) {
#pragma unroll
      for (int first_row = 0; first_row < 8; first_row += kPassRows) {
        const int64_t row_offset = __shfl_sync(0xffffffff, offset, source_lane + first_row);
        const bool valid = kAllValid || row_offset >= 0;
        const char* source = reinterpret_cast<const char*>(head) + (valid ? row_offset : 0);
        const uint32_t target = nth_chunk(destination, first_row) + first_row * kPanelRowBytes;
#pragma unroll
        for (int panel = 0; panel < kNumPanels; ++panel) {
          const uint32_t panel_target = target + panel * kTileKv * kPanelRowBytes;
          const char* panel_source = source + panel * kPanelRowBytes;
          if constexpr (kAllValid) {
            ptx::cp_async_16(panel_target, panel_source);
          } else {
            ptx::cp_async_16_or_zeros(panel_target, panel_source, valid);
          }
        }
      }
      source_lane += 8;
      destination += 8 * kPanelRowBytes;
    }
  }
};

/// Fills the first `num_rows` rows of the query tile; rows the item does not have become zeros. `thread`
/// counts the kQueryLoaderThreads threads that share the work.
template <int kTileElements>
__device__ __forceinline__ void load_queries(const KernelParams& params, const WorkItem& item,
                                             const PackedRows& rows, int kv_head, int num_rows, int thread,
                                             Element (&tile)[kTileElements], uint64_t* full) {
  const uint32_t destination = ptx::shared_address(tile);
  const int chunk = thread % kRowChunks;
  const Element* q = static_cast<const Element*>(params.q) + chunk * kChunkCols;
#pragma unroll 1  // addresses hoisted out of an unrolled loop spill the producer
  for (int row = thread / kRowChunks; row < num_rows; row += kQueryLoaderThreads / kRowChunks) {
    const bool valid = row < item.num_rows;
    const QueryRow source = rows.query_row(kv_head, valid ? row : 0);
    ptx::cp_async_16_or_zeros(destination + tile_offset(kTileElements / kHeadDim, row, chunk),
                              q + static_cast<int64_t>(source.token) * params.q_token_stride +
                                  static_cast<int64_t>(source.head) * params.q_head_stride,
                              valid);
  }
  ptx::cp_async_mbarrier_arrive_noinc(full);
}

}  // namespace onewave
