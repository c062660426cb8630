#pragma once

/// The shared-memory plan of a CTA.
///
///   | rings of both kinds, flag |  wide:   Q 128 rows | K stages | V stages |
///   |                           |  narrow: Q  32 rows | K stages | V stages | join |      (the same bytes)
///
/// The kinds overlay each other; the producer begins to fill the wide one when every consumer warp has
/// arrived on narrow_done.

#include "config.cuh"
#include "pipeline.cuh"

namespace onewave {

inline constexpr int kStageElements = kTileKv * kHeadDim;

template <int kQueryRows>
struct Tiles {
  static constexpr int kMaxQueryRows = kQueryRows;
  alignas(1024) Element q[kQueryRows * kHeadDim];
  alignas(1024) Element k[kNumStages][kStageElements];
  alignas(1024) Element v[kNumStages][kStageElements];
};

using WideTiles = Tiles<kWideTileQ>;
using NarrowTiles = Tiles<kNarrowTileQ>;

/// Columns of O^T that the join of a narrow item of `num_rows` padded rows adds up at a time: fewer as rows
/// grow.
__host__ __device__ constexpr int join_slice_cols(int num_rows) { return kHeadDim * 8 / num_rows; }
/// Floats between rows of a slice: 4 of padding keep the transposed stores free of bank conflicts.
__host__ __device__ constexpr int join_pitch(int num_rows) { return join_slice_cols(num_rows) + 4; }

/// Where the eight consumer warps of a narrow item meet.
struct JoinBuffer {
  float m[kConsumerWarps][kNarrowTileQ];
  float l[kConsumerWarps][kNarrowTileQ];
  float out_scale[kNarrowTileQ];
  alignas(16) float out[kConsumerWarps * kNarrowTileQ *
                        join_pitch(kNarrowTileQ)];  ///< [warp, row, column of the slice]
};
static_assert(8 * join_pitch(8) <= kNarrowTileQ * join_pitch(kNarrowTileQ));

struct NarrowStorage {
  NarrowTiles tiles;
  JoinBuffer join;
};

struct SharedStorage {
  union {
    WideTiles wide;
    NarrowStorage narrow;
  };
  KindRings wide_rings;
  KindRings narrow_rings;
  uint64_t narrow_done;
  int32_t is_last_arrival;
};
static_assert(sizeof(SharedStorage) <= kSharedBytes);

/// Bytes from the start of a tile of `num_rows` rows to the 16-byte chunk `chunk` of row `row`.
__device__ __forceinline__ uint32_t tile_offset(int num_rows, int row, int chunk) {
  constexpr int kPanelChunks = kPanelCols / kChunkCols;
  const int panel = chunk / kPanelChunks;
  return (panel * num_rows + row) * kPanelRowBytes + (((chunk % kPanelChunks) ^ (row % 8)) * 16);
}

}  // namespace onewave
