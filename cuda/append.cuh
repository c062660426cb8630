#pragma once

/// What the kernels that write new rows of K and V into the pages of a cache have in common. A thread makes
/// 16 bytes of a row of the cache's K and the same 16 of its V: few rows are spread over many CTAs, and each
/// thread keeps several loads in flight.

#include <onewave/row_kernels.h>

#include "ptx/copy.cuh"
#include "row_threads.h"

namespace onewave {

/// Where a row goes.
struct CacheSlot {
  int32_t page;  ///< -1: nowhere
  int32_t token;
};

/// Follows batch index -> kv_indptr -> kv_indices. As unsigned numbers, negative ones are too large.
__device__ __forceinline__ CacheSlot find_slot(const AppendArgs& args, uint32_t row) {
  const CacheSlot nowhere = {.page = -1, .token = 0};
  const auto request = static_cast<uint32_t>(args.batch_indices[row]);
  const int32_t position = args.positions[row];
  if (request >= static_cast<uint32_t>(args.batch_size) || position < 0) return nowhere;
  const int32_t request_page = position / args.page_size;
  const int32_t begin = args.kv_indptr[request];
  if (request_page >= args.kv_indptr[request + 1] - begin) return nowhere;
  const uint32_t index = static_cast<uint32_t>(begin) + static_cast<uint32_t>(request_page);
  if (index >= static_cast<uint32_t>(args.num_kv_indices)) return nowhere;
  const int32_t page = args.kv_indices[index];
  if (static_cast<uint32_t>(page) >= static_cast<uint32_t>(args.num_pages)) return nowhere;
  return {.page = page, .token = position - request_page * args.page_size};
}

__device__ __forceinline__ const char* find_row(const RowTensor& rows, uint32_t row, uint32_t head,
                                                int element_bytes) {
  const int64_t elements = row * rows.token_stride + head * rows.head_stride;
  return static_cast<const char*>(rows.data) + elements * element_bytes;
}

__device__ __forceinline__ void store_chunk(const PagedTensor& cache, const CacheSlot& slot, uint32_t head,
                                            uint32_t chunk, int element_bytes, uint4 x) {
  const int64_t elements =
      slot.page * cache.page_stride + slot.token * cache.token_stride + head * cache.head_stride;
  auto* row = static_cast<char*>(const_cast<void*>(cache.data)) + elements * element_bytes;
  reinterpret_cast<uint4*>(row)[chunk] = x;
}

/// `Chunk`: what becomes 16 bytes of the cache. Its load() issues loads, its to_cache() waits for them.
template <class Chunk>
__device__ __forceinline__ void append_chunk(const AppendArgs& args, int row_element_bytes,
                                             int cache_element_bytes) {
  const uint32_t thread = blockIdx.x * kRowThreads + threadIdx.x;
  const uint32_t key_chunks = args.head_dim_qk * cache_element_bytes / kChunkBytes;
  const uint32_t value_chunks = args.head_dim_vo * cache_element_bytes / kChunkBytes;
  const uint32_t head_chunks = max(key_chunks, value_chunks);
  const uint32_t row_chunk = thread / head_chunks;
  const uint32_t chunk = thread - row_chunk * head_chunks;
  const uint32_t row = row_chunk / args.num_kv_heads;
  const uint32_t head = row_chunk - row * args.num_kv_heads;
  if (row >= static_cast<uint32_t>(args.num_rows)) return;
  // Before the slot is known: they are on their way while it is looked up.
  Chunk key{}, value{};
  if (chunk < key_chunks)
    key.load(find_row(args.append_key, row, head, row_element_bytes), chunk, args.k_scale, head);
  if (chunk < value_chunks)
    value.load(find_row(args.append_value, row, head, row_element_bytes), chunk, args.v_scale, head);
  const CacheSlot slot = find_slot(args, row);
  if (slot.page < 0) return;
  if (chunk < key_chunks) store_chunk(args.k, slot, head, chunk, cache_element_bytes, key.to_cache());
  if (chunk < value_chunks) store_chunk(args.v, slot, head, chunk, cache_element_bytes, value.to_cache());
}

}  // namespace onewave
