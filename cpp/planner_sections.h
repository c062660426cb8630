#pragma once

/// The order of the wide items of a batch that also streams. What streams past turns the L2 over in some 15
/// us, so K and V of a prompt that wait for the next CTA which needs them are pushed out and read again. Wide
/// items therefore run in turns, each of as many keys as the L2 keeps while they are used: some requests with
/// all their kv heads, or one longer request a few kv heads at a time.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner_internal.h"

namespace onewave::planner {

/// Requests that run together.
struct WideSection {
  size_t begin;  ///< of their tiles, in the order
  size_t end;
  int32_t num_heads;  ///< kv heads of a turn
};

class WideSections {
 public:
  /// Sorts `order`, whose low halves are indices of tiles, by sections; within one it stays as it is. A turn
  /// has at most `turn_bytes` of K and V, or one kv head of one request. `key_bytes`: of a key of one kv
  /// head.
  void divide(const std::vector<Tile>& tiles, double turn_bytes, double key_bytes,
              std::vector<uint64_t>& order);

  std::vector<WideSection>::const_iterator begin() const { return sections_.begin(); }
  std::vector<WideSection>::const_iterator end() const { return sections_.end(); }

 private:
  std::vector<WideSection> sections_;
  std::vector<int32_t> section_of_request_;
  std::vector<size_t> next_places_;
  std::vector<uint64_t> sorted_;
};

}  // namespace onewave::planner
