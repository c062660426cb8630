#include "planner_masks.h"

#include <algorithm>
#include <array>

#include "fail.h"

namespace onewave::planner {
namespace {

constexpr int kWords = kTileKv / 32;

/// The first `n` bits of a row set, n from 0 to kTileKv; where it is less than 0 or more, none or all.
MaskRow first_bits(int64_t n) {
  MaskRow row;
  for (int i = 0; i < kWords; ++i) {
    const int64_t left = std::clamp<int64_t>(n - 32 * i, 0, 32);
    row.words[i] = static_cast<uint32_t>((uint64_t{1} << left) - 1);
  }
  return row;
}

/// Bits [begin, begin + num_bits) of a mask, num_bits at most kTileKv.
MaskRow read_bits(const uint8_t* mask, int64_t begin, int32_t num_bits) {
  const int shift = static_cast<int>(begin % 8);
  const uint8_t* bytes = mask + begin / 8;
  const int num_bytes = (shift + num_bits + 7) / 8;
  std::array<uint64_t, kWords / 2 + 1> words{};
  for (int i = 0; i < num_bytes; ++i) words[i / 8] |= static_cast<uint64_t>(bytes[i]) << i % 8 * 8;
  const MaskRow used = first_bits(num_bits);
  MaskRow row;
  for (int i = 0; i < kWords / 2; ++i) {
    const uint64_t high = shift == 0 ? 0 : words[i + 1] << (64 - shift);
    const uint64_t both = words[i] >> shift | high;
    row.words[2 * i] = static_cast<uint32_t>(both) & used.words[2 * i];
    row.words[2 * i + 1] = static_cast<uint32_t>(both >> 32) & used.words[2 * i + 1];
  }
  return row;
}

/// Keys before `key_end`, by the query tokens [token_begin, token_end).
void check_prefix_is_seen(const BatchSpec& batch, int32_t request, int32_t token_begin, int32_t token_end,
                          int32_t key_end) {
  const uint8_t* bits = batch.masks.custom_mask + batch.masks.mask_indptr[request];
  const MaskRow all = first_bits(kTileKv);
  for (int32_t token = token_begin; token < token_end; ++token) {
    for (int32_t key = 0; key < key_end; key += kTileKv) {
      const MaskRow row = read_bits(bits, int64_t{token} * batch.kv_len_arr[request] + key, kTileKv);
      if (std::equal(row.words, row.words + kWords, all.words)) continue;
      fail("custom_mask hides keys of ", key, "..", key + kTileKv, " from token ", token, " of request ",
           request, ", it must show all of a prefix in prefix_groups");
    }
  }
}

}  // namespace

bool has_custom_mask(const BatchSpec& batch, int32_t request) {
  const MaskSpec& masks = batch.masks;
  return masks.custom_mask != nullptr && masks.mask_indptr[request + 1] > masks.mask_indptr[request];
}

int32_t add_mask_tiles(const BatchSpec& batch, int32_t request, int32_t token_begin, int32_t token_end,
                       int32_t key_begin, PlanMasks& masks) {
  const uint8_t* bits = batch.masks.custom_mask + batch.masks.mask_indptr[request];
  const int32_t kv_len = batch.kv_len_arr[request];
  const int32_t qo_len = batch.qo_indptr[request + 1] - batch.qo_indptr[request];
  check_prefix_is_seen(batch, request, token_begin, token_end, key_begin);
  int32_t num_keys = 0;
  for (int32_t key = key_begin; key < kv_len; key += kTileKv) {
    const int32_t tile_keys = std::min(kTileKv, kv_len - key);
    const MaskRow all = first_bits(tile_keys);
    const size_t first_row = masks.rows.size();
    bool sees_any = false;
    bool sees_all = true;
    for (int32_t token = token_begin; token < token_end; ++token) {
      MaskRow row = read_bits(bits, int64_t{token} * kv_len + key, tile_keys);
      if (batch.masks.window_left >= 0) {
        const MaskRow hidden = first_bits(int64_t{kv_len} - qo_len + token - batch.masks.window_left - key);
        for (int i = 0; i < kWords; ++i) row.words[i] &= ~hidden.words[i];
      }
      for (int i = 0; i < kWords; ++i) {
        sees_any = sees_any || row.words[i] != 0;
        sees_all = sees_all && row.words[i] == all.words[i];
      }
      masks.rows.push_back(row);
    }
    if (!sees_any || sees_all) masks.rows.resize(first_row);
    if (!sees_any) continue;
    masks.tiles.push_back(
        {.tile = key / kTileKv, .first_row = sees_all ? -1 : static_cast<int32_t>(first_row)});
    num_keys = (num_keys + kTileKv - 1) / kTileKv * kTileKv + tile_keys;
  }
  return num_keys;
}

}  // namespace onewave::planner
