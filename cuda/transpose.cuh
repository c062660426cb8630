#pragma once

/// V for the wide kind where all is e4m3: wgmma takes 8-bit operands with k, the keys, contiguous alone. A
/// producer warp loads its rows of a tile of K straight into the ring, and those of V into a stage from which
/// it transposes the ones before:
///
///   ring of K      | K_n lands      | K_n-1 lands      | ...
///   loaded.v       | V_n lands      | V_n-1 lands      | ...
///   the warp       | transposes V_n+1                  | transposes V_n | ...

#include "loaded.cuh"

namespace onewave {

/// Where a lane reads and writes. ldmatrix transposes pairs of bytes, two columns of a key: of 8 keys and 16
/// columns a lane gets the columns 2 (l / 4) and the next, of the keys 2 (l % 4) and the next. Bytes of two
/// registers, 8 keys apart, make four keys of one column and four of the other:
///
///   keys       2 t, 2 t + 1, 8 + 2 t, 8 + 2 t + 1 at 4 t .. 4 t + 3 of 16, for t of 0 .. 3: as weights lie
///              in the left operand (wide.cuh)
///   columns    of 16 first the even ones, then the odd ones: so eight rows that stmatrix writes follow one
///              another, and a lane gets four columns of the output side by side
struct TransposeLane {
  /// Of the 8 x 8 blocks of an ldmatrix, or of an stmatrix, how many have the same columns.
  static constexpr int kKeyBlocks = kWarpRows / 8;
  static constexpr int kChunks = 4 / kKeyBlocks;  ///< of 16 columns, at a time
  static_assert(kKeyBlocks == 2 || kKeyBlocks == 4);

  uint32_t from;  ///< bytes from the start of the loaded tile to the row of the first chunk
  uint32_t to;    ///< from the start of the stage to the row of the first chunk's column

  __device__ __forceinline__ TransposeLane(const BoxLayout<kVPanels>& layout, int warp) {
    const int lane = ptx::opaque(threadIdx.x) % 32;
    const int row = lane % 8;
    const int block = lane / 8;
    from =
        first_chunk(layout.group_offset(warp * kKeyBlocks + block % kKeyBlocks) + row * kPanelRowBytes, row) ^
        block / kKeyBlocks * kChunkBytes;
    const int key_chunk = warp * (kKeyBlocks / 2) + (kChunks == 1 ? block / 2 : 0);
    const int col = block % 2 * 8 + row + (kChunks == 1 ? 0 : block / 2 * 16);
    to = nth_chunk(first_chunk(col * kPanelRowBytes, row), key_chunk);
  }
};

/// A warp's rows of a tile.
__device__ __forceinline__ void transpose_rows(const KvElement* loaded, const BoxLayout<kVPanels>& layout,
                                               int warp, WideValue* stage) {
  constexpr int kSteps = kHeadDimVo / 16 / TransposeLane::kChunks;
  constexpr int kBatch = 2;  ///< that are read before they are written: latencies overlap
  static_assert(kSteps % kBatch == 0);
  const TransposeLane lane(layout, warp);
  const uint32_t from = ptx::shared_address(loaded) + lane.from;
  const uint32_t to = ptx::shared_address(stage) + lane.to;
#pragma unroll
  for (int first = 0; first < kSteps; first += kBatch) {
    uint32_t pairs[kBatch][4];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int chunk = (first + i) * TransposeLane::kChunks;
      ptx::ldmatrix_x4_trans(
          pairs[i], nth_chunk(from, chunk % kPanelChunks) + chunk / kPanelChunks * layout.panel_bytes());
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      uint32_t columns[4];
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        columns[j] = ptx::permute_bytes(pairs[i][j], pairs[i][j + 1], 0x6420);
        columns[j + 1] = ptx::permute_bytes(pairs[i][j], pairs[i][j + 1], 0x7531);
      }
      ptx::stmatrix_x4(to + (first + i) * TransposeLane::kChunks * 16 * kPanelRowBytes, columns);
    }
  }
}

/// All tiles of the wide items: every producer warp its rows.
template <class Items, class Loader, class Queue, class Queries>
__device__ __forceinline__ void load_and_transpose(const KernelParams& params, const Loader& loader,
                                                   const typename Items::Cursor& cursor, Queue& queue,
                                                   SharedStorage& storage, Queries& queries) {
  const int warp = threadIdx.x / 32;
  auto& tiles = storage.wide.tiles;
  auto& rings = storage.wide_rings;
  using Position = RingPosition<kWideStages>;
  using LoadedPosition = RingPosition<kLoadedValueStages>;
  KvTileStream<Items, Loader, Queue> stream(loader, cursor, queue);
  const auto load = [&](const PackedTile<Loader>& tile, uint32_t n) {
    const Position at{n};
    KvElement* v = storage.wide.loaded.v[LoadedPosition{n}.stage()];
    uint64_t* v_full = &storage.loaded.v[LoadedPosition{n}.stage()][warp];
    rings.k.wait_empty(at);
    if constexpr (kGather) ptx::cp_async_wait_group<1>();
    load_keys(loader, tile, n, tiles.k[at.stage()], &rings.k.full[at.stage()]);
    load_values(loader, tile, n, v, v_full);
  };
  const auto transpose = [&](int num_keys, uint32_t n) {
    const Position at{n};
    const LoadedPosition loaded_at{n};
    KvElement* v = storage.wide.loaded.v[loaded_at.stage()];
    // Or the compiler keeps in registers what is made of it and of the lane.
    const BoxLayout<kVPanels> layout{ptx::opaque(box_layout<kVPanels>(params).box_shift)};
    ptx::mbarrier_wait(&storage.loaded.v[loaded_at.stage()][warp], loaded_at.parity());
    // What is gathered has zeros there.
    if (!kGather && num_keys < kStageKv) clear_rows(v, nullptr, layout, warp, num_keys);
    rings.v.wait_empty(at);
    transpose_rows(v, layout, warp, tiles.v[at.stage()]);
    arrive_warp(&rings.v.full[at.stage()]);
  };
  // Nobody writes over them: as wide items begin, and not before.
  for (auto& stage : tiles.v) {
    constexpr uint32_t kOnes = 0x38383838;
    if (threadIdx.x < kOnesRows * kPanelChunks)
      ptx::store_shared_16(
          ptx::shared_address(stage) + kHeadDimVo * kPanelRowBytes + threadIdx.x * kChunkBytes,
          make_uint4(kOnes, kOnes, kOnes, kOnes));
  }
  // Of three tiles one after another: its page ids are on their way, its K and V are asked for, its V is
  // transposed.
  PackedTile<Loader> tile;
  int num_values = -1;  // of V of the one before, where there is one
  uint32_t n = 0;       // of the tile that is looked up
  do {
    const KvTile<Loader> later_tile = stream.next(n);
    if constexpr (kGather) ptx::cp_async_commit_group();  // page ids, and what was asked for before
    if (tile.valid()) {
      if (tile.is_first()) {
        if (n > 1) queries.advance();
        queries.load();
      }
      load(tile, n - 1);
    }
    if (num_values >= 0) transpose(num_values, n - 2);
    num_values = tile.valid() ? tile.num_keys : -1;
    tile = PackedTile<Loader>(later_tile);
    ++n;
  } while (tile.valid() || num_values >= 0);
}

}  // namespace onewave
