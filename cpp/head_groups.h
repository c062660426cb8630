#pragma once

/// How many kv heads a narrow item may take together (WorkItem::heads_per_step): 1, `box` or `most`. The
/// planner chooses among them, and the tensor maps have boxes for them.

#include <onewave/plan_format.h>

#include <algorithm>
#include <cstdint>

namespace onewave {

struct HeadGroups {
  int32_t most;  ///< a power of two that divides the number of kv heads, kMaxHeadsPerStep at most
  int32_t box;   ///< kv heads of one TMA box: the same or half of it, where more packed rows leave less room
};

inline HeadGroups head_groups(int32_t num_kv_heads) {
  const int32_t most = std::min(num_kv_heads & -num_kv_heads, kMaxHeadsPerStep);
  return {.most = most, .box = std::min(most, kMaxHeadsPerStep / 2)};
}

}  // namespace onewave
