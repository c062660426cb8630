#pragma once

/// How Q, K and V reach shared memory. Both K/V loaders have the same face:
///
///   rows = loader.lookup<kIsInner>(keys, item, tile_begin, n)  starts reading the page ids of the n-th tile;
///                                                              used one or two tiles later. kIsInner: it
///                                                              has all its keys
///   loader.load_k(rows, kv_head, stage, full), load_v(...)    fills one stage and arrives on its full
///   barrier
///
///   loader.load_scales(rows, kv_head, n, scales, strides, stage)   those of groups of tokens, if there are
///   loader.arrive_scales(full)                                any: both before load_k() or load_v()
///
/// The gathering one wants to be told kIsInner and n again, and has load_kv(), which does both.
///
/// Keys past the item's kv_end arrive as zeros where the page (TMA) or the row (gather) lies past it; what is
/// left of the last page is the consumers' to mask. So do those before the window of the tile's first row,
/// whose pages may be another request's by now.

#include "ptx/copy.cuh"
#include "scales.cuh"
#include "smem.cuh"
#include "work.cuh"

namespace onewave {

/// Keys of decodes are read once, those of a prompt by many tiles: where a batch has both, the stream of the
/// former would push the latter out of the L2.
template <Kind kKind>
__device__ __forceinline__ uint64_t kv_cache_policy(const PlanHeader* header) {
  if constexpr (kKind == Kind::kNarrow) return has_wide_items(header) ? ptx::kEvictFirst : ptx::kEvictNormal;
  return header->num_narrow_ctas > 0 ? ptx::kEvictLast : ptx::kEvictNormal;
}

/// The page ids of all requests. Masked kernels of a cache of e4m3 read the address each time: their
/// producers have no registers to keep it in.
__device__ __forceinline__ const int32_t* page_table(const KernelParams& params, const int32_t* kept) {
  return kMasked && kFp8Kv ? reinterpret_cast<const int32_t*>(plan_header(params)->kv_indices) : kept;
}

/// The keys of an item, as far as a loader looks at them.
struct KeyRange {
  int begin;
  int end;
  int page_begin;        ///< index in kv_indices of the request's first page
  int step_heads_shift;  ///< log2 of the kv heads of a tile
};

/// A box per page, issued by the lanes of one warp, a page each: of the whole stage, or of the warp's rows
/// where it widens or transposes them. A wide stage of K has one for each panel, whose 8-row groups must be
/// 1024 bytes apart for wgmma. So has everything where the last panel is not full: a box of all panels cannot
/// end inside one.
template <Kind kKind>
struct TmaLoader {
  static constexpr int kRows = kLoadedRows<kKind>;

  struct Rows {
    int page;
    int token;             ///< first token of the box in its page
    int step_heads_shift;  ///< narrow: as in KeyRange
  };

  const KernelParams& params;
  const int32_t* kv_indices;
  int lane;
  int first_row;   ///< of the stage, that this warp loads
  int page_shift;  ///< log2(page_size)
  uint64_t policy;

  __device__ __forceinline__ TmaLoader(const KernelParams& params, const PlanHeader* header, PageIds&)
      : params(params),
        kv_indices(reinterpret_cast<const int32_t*>(header->kv_indices)),
        lane(threadIdx.x % 32),
        first_row(kRows < kStageKv ? threadIdx.x / 32 * kRows : 0),
        page_shift(__ffs(header->page_size) - 1),
        policy(kv_cache_policy<kKind>(header)) {}

  template <bool kIsInner>
  __device__ __forceinline__ Rows lookup(const KeyRange& keys, const WorkItem& item, int tile_begin,
                                         uint32_t) const {
    const TmaBox box(params, keys.step_heads_shift);
    const int token_box = lane >> (keys.step_heads_shift - box.heads_shift);
    const int key_in_tile = first_row + (token_box << box.tokens_shift);
    const int key = key_of_request(params, item, tile_begin) + key_in_tile;
    // No such page: a box of zeros.
    Rows rows{params.num_pages, key & ((1 << page_shift) - 1), keys.step_heads_shift};
    const int counted = tile_begin + key_in_tile;
    const bool is_seen = kIsInner || (counted < keys.end && (!kMasked || counted + (1 << box.tokens_shift) >
                                                                             first_in_window(params, item)));
    if (lane < kRows >> box.rows_shift() && is_seen)
      rows.page = page_table(params, kv_indices)[keys.page_begin + (key >> page_shift)];
    return rows;
  }

  __device__ __forceinline__ void load_k(const Rows& rows, int kv_head, KvElement* stage,
                                         uint64_t* full) const {
    if constexpr (kKind == Kind::kNarrow || kWidens) {
      const bool grouped = kKind == Kind::kNarrow && rows.step_heads_shift > 0;
      load_boxes<kHeadDimQk>(grouped ? params.k_group_map : params.k_map, rows, kv_head, stage, full);
    } else {
      expect_stage<kKPanels>(full);
      if (lane >= kRows >> params.box_shift) return;
#pragma unroll
      for (int panel = 0; panel < kKPanels; ++panel) {
        load_panel<kHeadDimQk>(
            stage + (panel * kStageKv + first_row + (lane << params.box_shift)) * kKvPanelCols,
            params.k_panel_map, rows, kv_head, panel, full);
      }
    }
  }

  __device__ __forceinline__ void load_v(const Rows& rows, int kv_head, KvElement* stage,
                                         uint64_t* full) const {
    const bool grouped = kKind == Kind::kNarrow && rows.step_heads_shift > 0;
    load_boxes<kHeadDimVo>(grouped ? params.v_group_map : params.v_map, rows, kv_head, stage, full);
  }

  __device__ __forceinline__ void load_scales(const Rows& rows, int kv_head, uint32_t, const float* scales,
                                              const ScaleStrides& strides, float* stage) const {
    if (strides.group_inverse == 0) return;
    const int heads_shift = kKind == Kind::kNarrow ? rows.step_heads_shift : 0;
    const TmaBox box(params, heads_shift);
    const int box_heads_shift = heads_shift - box.heads_shift;  // log2 of a page's boxes
    const int head_keys_shift = kStageKvShift - heads_shift;
#pragma unroll 1
    for (int begin = 0; begin < kRows; begin += 32) {
      const int row = begin + lane;
      const int key = row & ((1 << head_keys_shift) - 1);
      const int source = key >> box.tokens_shift << box_heads_shift;
      const int page = __shfl_sync(0xffffffff, rows.page, source);
      const int token = __shfl_sync(0xffffffff, rows.token, source) + (key & ((1 << box.tokens_shift) - 1));
      if (row >= kRows) break;
      const bool valid = page < params.num_pages;
      ptx::cp_async_4_or_zeros(
          ptx::shared_address(stage + first_row + row),
          group_scale(scales, strides, valid ? page : 0, token, kv_head + (row >> head_keys_shift)), valid);
    }
  }
  /// All lanes, whether there are scales or not: their arrivals are counted.
  __device__ __forceinline__ void arrive_scales(uint64_t* full) const {
    ptx::cp_async_mbarrier_arrive_noinc(ptx::shared_address(full));
  }

 private:
  template <int kHeadDim>
  __device__ __forceinline__ void load_panel(KvElement* target, const TensorMap& map, const Rows& rows,
                                             int head, int panel, uint64_t* full) const {
    // Where the last is not full, columns are one dimension, which a box may reach out of.
    constexpr bool kAreFull = kHeadDim % kKvPanelCols == 0;
    ptx::tma_load_5d(target, &map, full, kAreFull ? 0 : panel * kKvPanelCols, rows.token,
                     kAreFull ? panel : 0, head, rows.page, policy);
  }

  template <int kHeadDim>
  __device__ __forceinline__ void load_boxes(const TensorMap& map, const Rows& rows, int kv_head,
                                             KvElement* stage, uint64_t* full) const {
    constexpr int kNumPanels = num_panels(kHeadDim, sizeof(KvElement));
    const int heads_shift = kKind == Kind::kNarrow ? rows.step_heads_shift : 0;
    const TmaBox box(params, heads_shift);
    const int head_box = lane & ((1 << (heads_shift - box.heads_shift)) - 1);
    expect_stage<kNumPanels>(full);
    if (lane >= kRows >> box.rows_shift()) return;
    KvElement* target = stage + (first_row + (lane << box.rows_shift())) * (kNumPanels * kKvPanelCols);
    const int head = kv_head + (head_box << box.heads_shift);
    constexpr int kBoxes = kHeadDim % kKvPanelCols == 0 ? 1 : kNumPanels;
    if constexpr (kBoxes == 1) {
      ptx::tma_load_5d(target, &map, full, 0, rows.token, 0, head, rows.page, policy);
    } else {
#pragma unroll
      for (int panel = 0; panel < kBoxes; ++panel)
        load_panel<kHeadDim>(target + (panel * kKvPanelCols << box.tokens_shift), map, rows, head, panel,
                             full);
    }
  }

  /// Also says that the warp has read what it needed of items up to the stage before (queue.cuh).
  template <int kNumPanels>
  __device__ __forceinline__ void expect_stage(uint64_t* full) const {
    if (lane == 0) {
      ptx::mbarrier_arrive_expect_tx(full, kRows * kNumPanels * kPanelRowBytes);
    } else if (lane < kArrivingLanes) {
      ptx::mbarrier_arrive(full);
    }
    __syncwarp();
  }
};

/// Row by row: a thread looks up one key of one kv head, and eight lanes copy the rows that they looked up
/// together, 16 bytes a lane. Where a stage has 64 rows, two lanes look up the same.
template <Kind kKind>
struct GatherLoader {
  struct Rows {
    int token;  ///< in its page; -1: past kv_end
    int head;   ///< of the step

    /// To a tile of the same item, whose heads are the same.
    __device__ __forceinline__ void advance(const Rows& next) { token = next.token; }
  };

  const KernelParams& params;
  const int32_t* kv_indices;
  PageIds& page_ids;
  unsigned page_size;
  int thread;           ///< of the producer
  int row;              ///< of the stage, that it looks up
  const char* k_first;  ///< this lane's chunk of the first row
  const char* v_first;

  __device__ __forceinline__ GatherLoader(const KernelParams& params, const PlanHeader* header,
                                          PageIds& page_ids)
      : params(params),
        kv_indices(reinterpret_cast<const int32_t*>(header->kv_indices)),
        page_ids(page_ids),
        page_size(header->page_size),
        thread(threadIdx.x % kWarpgroupThreads),
        row(kLanesRows == kPanelChunks ? thread : thread / kPanelChunks * kLanesRows + thread % kLanesRows),
        k_first(first_chunk(params.k)),
        v_first(first_chunk(params.v)) {}

  template <bool kIsInner>
  __device__ __forceinline__ Rows lookup(const KeyRange& keys, const WorkItem& item, int tile_begin,
                                         uint32_t n) const {
    if constexpr (kSharePageIds) __syncwarp();  // other lanes have read what is written over
    const int tile_keys = kStageKv >> keys.step_heads_shift;
    const int key_in_tile = row & (tile_keys - 1);
    const int counted = tile_begin + key_in_tile;
    if (!kIsInner && (counted >= keys.end || (kMasked && counted < first_in_window(params, item))))
      return {-1, 0};
    const int key = key_of_request(params, item, tile_begin) + key_in_tile;
    const unsigned page_idx = page_size == 1 ? key : static_cast<unsigned>(key) / page_size;
    if (!kSharePageIds || thread % kPanelChunks < kLanesRows)
      ptx::cp_async_4(ptx::shared_address(&page_ids.of_thread[n % kPageIdSlots][slot()]),
                      page_table(params, kv_indices) + keys.page_begin + page_idx);
    return {static_cast<int>(key - page_idx * page_size), row << keys.step_heads_shift >> kStageKvShift};
  }

  template <bool kIsInner>
  __device__ __forceinline__ void load_k(const Rows& rows, int kv_head, uint32_t n, KvElement* stage,
                                         uint64_t* full) const {
    load<kIsInner>(rows, kv_head, n, Destination<kHeadDimQk>{params.k, k_first, stage, full});
  }

  template <bool kIsInner>
  __device__ __forceinline__ void load_v(const Rows& rows, int kv_head, uint32_t n, KvElement* stage,
                                         uint64_t* full) const {
    load<kIsInner>(rows, kv_head, n, Destination<kHeadDimVo>{params.v, v_first, stage, full});
  }

  template <bool kIsInner>
  __device__ __forceinline__ void load_kv(const Rows& rows, int kv_head, uint32_t n, KvElement* k_stage,
                                          uint64_t* k_full, KvElement* v_stage, uint64_t* v_full) const {
    load<kIsInner>(rows, kv_head, n, Destination<kHeadDimQk>{params.k, k_first, k_stage, k_full},
                   Destination<kHeadDimVo>{params.v, v_first, v_stage, v_full});
  }

  __device__ __forceinline__ void load_scales(const Rows& rows, int kv_head, uint32_t n, const float* scales,
                                              const ScaleStrides& strides, float* stage) const {
    if (strides.group_inverse == 0 || thread % kPanelChunks >= kLanesRows) return;
    const bool valid = rows.token >= 0;
    const int page = valid ? page_ids.of_thread[n % kPageIdSlots][slot()] : 0;
    ptx::cp_async_4_or_zeros(ptx::shared_address(stage + row),
                             group_scale(scales, strides, page, valid ? rows.token : 0, kv_head + rows.head),
                             valid);
  }
  /// What fills the stage does.
  __device__ __forceinline__ void arrive_scales(uint64_t*) const {}

 private:
  static constexpr int kLanesRows = kStageKv * kPanelChunks / kWarpgroupThreads;  ///< of eight lanes
  static constexpr uint32_t kNoRow = UINT32_MAX;

  /// Of the page ids.
  __device__ __forceinline__ int slot() const { return kSharePageIds ? row : thread; }

  /// What a stage is filled from.
  template <int kHeadDim>
  struct Destination {
    static constexpr int kCols = kHeadDim;

    const GatheredTensor& source;
    const char* first;
    KvElement* stage;
    uint64_t* full;
  };

  /// In registers: the compiler would add the cache's address anew for every row.
  __device__ __forceinline__ static const char* first_chunk(const GatheredTensor& source) {
    return ptx::opaque(static_cast<const char*>(source.data) + threadIdx.x % kPanelChunks * kChunkBytes);
  }

  /// The same rows into each of the stages.
  template <bool kIsInner, class... Destinations>
  __device__ __forceinline__ void load(const Rows& rows, int kv_head, uint32_t n,
                                       const Destinations&... to) const {
    const bool valid = kIsInner || rows.token >= 0;
    if constexpr (kSharePageIds) __syncwarp();  // another lane's may be this one's
    const uint32_t page = valid ? page_ids.of_thread[n % kPageIdSlots][slot()] : 0;
    const auto offset = [&](const GatheredTensor& source) {
      return page * source.page_chunks + rows.token * source.token_chunks +
             (kv_head + rows.head) * source.head_chunks;
    };
    if (kIsInner || __all_sync(0xffffffff, valid)) {
      (copy_rows<true, to.kCols>(to.first, offset(to.source), first_target(to.stage)), ...);
    } else {
      (copy_rows<false, to.kCols>(to.first, valid ? offset(to.source) : kNoRow, first_target(to.stage)), ...);
    }
    // The shuffle tells the compiler that the address is the warp's.
    (ptx::cp_async_mbarrier_arrive_noinc(__shfl_sync(0xffffffff, ptx::shared_address(to.full), 0)), ...);
  }

  /// This lane's chunk in the first of its rows.
  __device__ __forceinline__ uint32_t first_target(KvElement* stage) const {
    return ptx::shared_address(stage) +
           tile_offset(kStageKv, row / kLanesRows * kLanesRows, thread % 32 % kPanelChunks);
  }

  /// Eight lanes copy their rows one after another, 16 bytes of every panel each, so that an address serves
  /// all panels.
  ///
  /// `offset`: of this lane's row, in chunks from `first`; kNoRow: none, its row becomes zeros.
  /// `first_target`: of this lane's chunk in the first of the rows.
  template <bool kAllValid, int kCols>
  __device__ __forceinline__ static void copy_rows(const char* first, uint32_t offset,
                                                   uint32_t first_target) {
#pragma unroll(kFp8Kv ? 4 : kLanesRows)  // all at once spill a producer that makes operands too
    for (int i = 0; i < kLanesRows; ++i) {
      const uint32_t row_offset = __shfl_sync(0xffffffff, offset, i, kPanelChunks);
      const bool valid = kAllValid || row_offset != kNoRow;
      const char* source = first + (valid ? static_cast<uint64_t>(row_offset) * kChunkBytes : 0);
      const uint32_t target = nth_chunk(first_target, i) + i * kPanelRowBytes;
#pragma unroll
      for (int panel = 0; panel < num_panels(kCols, sizeof(KvElement)); ++panel) {
        constexpr int kLastChunks = kCols % kKvPanelCols / kKvChunkCols;  // of a panel that is not full
        if (panel == kCols / kKvPanelCols && static_cast<int>(threadIdx.x % kPanelChunks) >= kLastChunks)
          break;
        const uint32_t panel_target = target + panel * kStageKv * kPanelRowBytes;
        const char* panel_source = source + panel * kPanelRowBytes;
        if constexpr (kAllValid) {
          ptx::cp_async_16(panel_target, panel_source);
        } else {
          ptx::cp_async_16_or_zeros(panel_target, panel_source, valid);
        }
      }
    }
  }
};

/// Fills the query tile of the kv heads from `kv_head` on that an item takes together, each padded to
/// 1 << rows_shift rows: those that the item does not have become zeros. `thread` counts the
/// kQueryLoaderThreads<kKind> threads that share the work.
template <Kind kKind, int kTileElements>
__device__ __forceinline__ void load_queries(const KernelParams& params, const WorkItem& item,
                                             const PackedRows& rows, int kv_head, int rows_shift, int thread,
                                             QueryElement (&tile)[kTileElements], uint64_t* full) {
  const uint32_t destination = ptx::shared_address(tile);
  const int num_tile_rows = 1 << (rows_shift + step_heads_shift<kKind>(item));
  // Of a row's threads those beyond its chunks have none.
  constexpr int kRowChunks = kHeadDimQk / kChunkCols;
  constexpr int kRowThreads = round_up_to_power_of_two(kRowChunks);
  const int chunk = thread % kRowThreads;
  const QueryElement* q = static_cast<const QueryElement*>(params.q) + chunk * kChunkCols;
  const int end = kRowThreads == kRowChunks || chunk < kRowChunks ? num_tile_rows : 0;
#pragma unroll 1  // addresses hoisted out of an unrolled loop spill the producer
  for (int i = thread / kRowThreads; i < end; i += kQueryLoaderThreads<kKind> / kRowThreads) {
    const int row = i & ((1 << rows_shift) - 1);
    const bool valid = row < item.num_rows;
    const QueryRow source = rows.query_row(kv_head + (i >> rows_shift), valid ? row : 0);
    constexpr int kTileRows = kTileElements / (kQkPanels * kPanelCols);
    ptx::cp_async_16_or_zeros(destination + tile_offset(kTileRows, i, chunk, query_swizzle<kKind>(i)),
                              q + static_cast<int64_t>(source.token) * params.q_token_stride +
                                  static_cast<int64_t>(source.head) * params.q_head_stride,
                              valid);
  }
  ptx::cp_async_mbarrier_arrive_noinc(ptx::shared_address(full));
}

}  // namespace onewave
