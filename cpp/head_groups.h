#pragma once

/// How many kv heads a narrow item may take together (WorkItem::heads_per_step): 1, `box` or `most`. The
/// planner chooses among them, and the tensor maps have boxes for them.

#include <onewave/plan_format.h>
#include <onewave/types.h>

#include <algorithm>
#include <cstdint>

namespace onewave {

struct HeadGroups {
  int32_t most;  ///< a power of two that divides the number of kv heads, max_heads_per_step() at most
  int32_t box;   ///< kv heads of one TMA box: the same or half of it, where more packed rows leave less room
};

inline HeadGroups head_groups(const AttentionShape& shape) {
  const int32_t limit = max_heads_per_step(shape.head_dim_vo);
  const int32_t most = std::min(shape.num_kv_heads & -shape.num_kv_heads, limit);
  return {.most = most, .box = std::min(most, limit / 2)};
}

}  // namespace onewave
