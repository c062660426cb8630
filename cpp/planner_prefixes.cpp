#include "planner_prefixes.h"

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "fail.h"
#include "planner_masks.h"

namespace onewave::planner {
namespace {

int64_t num_packed_rows(const BatchSpec& batch, int32_t request) {
  const int64_t qo_len = batch.qo_indptr[request + 1] - batch.qo_indptr[request];
  return qo_len * (batch.shape.num_qo_heads / batch.shape.num_kv_heads);
}

/// Keys that every query of a request sees, as far as they are known: of a custom mask the bits say it
/// (add_mask_tiles()).
int64_t keys_of_all(const BatchSpec& batch, int32_t request) {
  const int64_t qo_len = batch.qo_indptr[request + 1] - batch.qo_indptr[request];
  const int64_t kv_len = batch.kv_len_arr[request];
  if (!is_causal(batch, request) || has_custom_mask(batch, request)) return kv_len;
  return std::max<int64_t>(kv_len - qo_len + 1, 0);
}

void check_tokens(const BatchSpec& batch, int32_t index) {
  const PrefixGroup& group = batch.prefix_groups[index];
  if (group.num_tokens < 0)
    fail("prefix_groups[", index, "] has ", group.num_tokens, " tokens, it must have 0 or more");
  for (int32_t i = group.request_begin; i < group.request_end; ++i) {
    const bool has_queries = batch.qo_indptr[i + 1] > batch.qo_indptr[i];
    if (has_queries && group.num_tokens > keys_of_all(batch, i)) {
      fail("prefix_groups[", index, "] has ", group.num_tokens, " tokens, it must have at most ",
           keys_of_all(batch, i), ", which all queries of request ", i, " see");
    }
  }
}

}  // namespace

void check_prefix_requests(const BatchSpec& batch) {
  if (batch.num_prefix_groups == 0) return;
  if (batch.num_prefix_groups < 0 || batch.prefix_groups == nullptr) {
    fail("prefix_groups is null or has ", batch.num_prefix_groups, " groups, it must have 0 or more");
  }
  for (int32_t i = 0; i < batch.num_prefix_groups; ++i) {
    const PrefixGroup& group = batch.prefix_groups[i];
    if (group.request_begin < 0 || group.request_end < group.request_begin ||
        group.request_end > batch.batch_size) {
      fail("prefix_groups[", i, "] has the requests ", group.request_begin, "..", group.request_end,
           ", they must be a range of the ", batch.batch_size, " of the batch");
    }
  }
}

void check_prefix_groups(const BatchSpec& batch, const PlanLimits& limits) {
  if (batch.num_prefix_groups == 0) return;
  check_prefix_requests(batch);
  if (limits.split_policy == SplitPolicy::kFixed) {
    fail("prefix_groups is given with fixed splits; a request's bits would depend on its group");
  }
  for (int32_t i = 0; i < batch.num_prefix_groups; ++i) check_tokens(batch, i);
}

void Prefixes::start(const BatchSpec& batch) {
  groups_.clear();
  requests_.clear();
  members_.clear();
  prefix_tiles_.clear();
  partial_rows_.clear();
  row_members_.clear();
  shared_qo_len_ = 0;
  num_split_tiles_ = 0;
  num_kv_heads_ = batch.shape.num_kv_heads;
  group_size_ = batch.shape.num_qo_heads / num_kv_heads_;
  if (batch.num_prefix_groups == 0) return;

  sorted_.assign(batch.prefix_groups, batch.prefix_groups + batch.num_prefix_groups);
  std::sort(sorted_.begin(), sorted_.end(), [](const PrefixGroup& a, const PrefixGroup& b) {
    return std::tuple(a.request_begin, -a.request_end, a.num_tokens) <
           std::tuple(b.request_begin, -b.request_end, b.num_tokens);
  });
  members_before_.assign(1, 0);
  rows_before_.assign(1, 0);
  for (int32_t i = 0; i < batch.batch_size; ++i) {
    const int64_t num_rows = num_packed_rows(batch, i);
    const bool may_share = num_rows > 0 && num_rows <= kMostMemberRows;
    members_before_.push_back(members_before_.back() + may_share);
    rows_before_.push_back(rows_before_.back() + (may_share ? num_rows : 0));
  }
  requests_.assign(batch.batch_size, {});
  around_.clear();
  for (const PrefixGroup& group : sorted_) {
    while (!around_.empty() && around_.back().request_end <= group.request_begin) around_.pop_back();
    if (!around_.empty() && group.request_end > around_.back().request_end) {
      fail("prefix_groups has requests ", around_.back().request_begin, "..", around_.back().request_end,
           " and ", group.request_begin, "..", group.request_end,
           ", one must have all of the other's or none");
    }
    const int32_t kv_begin = around_.empty() ? 0 : around_.back().kv_end;
    const int32_t kv_end = std::max(group.num_tokens / kTileKv * kTileKv, kv_begin);
    const int32_t num_members = members_before_[group.request_end] - members_before_[group.request_begin];
    const int64_t num_rows = rows_before_[group.request_end] - rows_before_[group.request_begin];
    around_.push_back({group.request_begin, group.request_end, kv_begin, kv_end, num_rows});
    if (num_members < 2 || kv_end == kv_begin) continue;
    groups_.push_back(around_.back());
    shared_qo_len_ += num_rows / group_size_;
    for (int32_t i = group.request_begin; i < group.request_end; ++i) {
      if (members_before_[i + 1] == members_before_[i]) continue;
      requests_[i].num_keys = kv_end;
      ++requests_[i].num_groups;
    }
  }
  if (batch.masks.window_left < 0) return;
  groups_.clear();
  shared_qo_len_ = 0;
}

void Prefixes::add_member(Tile& tile, Schedule& schedule) {
  const int32_t num_groups = requests_[tile.request].num_groups;
  tile.split_tile = static_cast<int32_t>(schedule.split_tiles.size());
  tile.cost_class = merged_class(tile.cost_class);
  for (int32_t head = 0; head < tile.kv_head_end; ++head) {
    SplitTile& split_tile = schedule.split_tiles.emplace_back(new_split_tile(tile, head));
    split_tile.num_prefixes = num_groups;
  }
  const auto num_prefixes = static_cast<int32_t>(prefix_tiles_.size());
  members_.push_back({.request = tile.request,
                      .num_rows = tile.num_rows,
                      .q_token_begin = tile.q_token_begin,
                      .prefix_begin = num_prefixes,
                      .prefix_end = num_prefixes});
  prefix_tiles_.resize(prefix_tiles_.size() + num_groups);
}

void Prefixes::add_tiles(const BatchSpec& batch, std::vector<Tile>& narrow_tiles,
                         std::vector<Tile>& wide_tiles, Schedule& schedule) {
  const auto member_of = [&](int32_t request) {
    const auto is_before = [](const Member& member, int32_t value) { return member.request < value; };
    return static_cast<size_t>(std::lower_bound(members_.begin(), members_.end(), request, is_before) -
                               members_.begin());
  };
  for (const Group& group : groups_) {
    const size_t members_end = member_of(group.request_end);
    size_t begin = member_of(group.request_begin);
    const int32_t first_request = members_[begin].request;
    while (begin < members_end) {
      const size_t run_end = end_of_run(begin, members_end, INT32_MAX);
      const bool is_narrow = num_rows(begin, run_end) <= kNarrowTileQ;
      std::vector<Tile>& tiles = is_narrow ? narrow_tiles : wide_tiles;
      while (begin < run_end) {
        const size_t end = end_of_run(begin, run_end, kWideTileQ);
        tiles.push_back(make_tile(batch, group, first_request, begin, end, is_narrow, schedule));
        begin = end;
      }
    }
  }
  num_split_tiles_ = schedule.split_tiles.size();
}

/// Behind the members from `begin` on that lie side by side in q and have at most so many rows.
size_t Prefixes::end_of_run(size_t begin, size_t members_end, int32_t most_rows) const {
  int64_t num_rows = members_[begin].num_rows;
  size_t end = begin + 1;
  for (; end < members_end; ++end) {
    const Member& last = members_[end - 1];
    num_rows += members_[end].num_rows;
    const bool is_next = members_[end].q_token_begin == last.q_token_begin + last.num_rows / group_size_;
    if (!is_next || num_rows > most_rows) break;
  }
  return end;
}

/// Of members that lie side by side.
int32_t Prefixes::num_rows(size_t member_begin, size_t member_end) const {
  const Member& last = members_[member_end - 1];
  return (last.q_token_begin - members_[member_begin].q_token_begin) * group_size_ + last.num_rows;
}

Tile Prefixes::make_tile(const BatchSpec& batch, const Group& group, int32_t first_request,
                         size_t member_begin, size_t member_end, bool is_narrow, Schedule& schedule) {
  const WorkItem whole{
      .request = first_request,
      .q_token_begin = members_[member_begin].q_token_begin,
      .row_begin = 0,
      .num_rows = num_rows(member_begin, member_end),
      .causal_shift = group.kv_end,  // all rows see all keys
      .window_shift = kNoWindow,
      .mask_begin = kNoMask,
      .kv_begin = group.kv_begin,
      .kv_end = group.kv_end,
      .page_begin = first_page(batch, first_request),
      .kv_head_begin = 0,
      .kv_head_end = num_kv_heads_,
      .heads_per_step = 1,
      .split_tile = static_cast<int32_t>(schedule.split_tiles.size()),
      .split_idx = 0,
  };
  const int32_t cost_class = is_narrow ? row_class(whole.num_rows) : wide_class(group.num_rows);
  const Tile tile{whole, merged_class(cost_class)};
  const auto list_begin = static_cast<int32_t>(row_members_.size());
  for (int32_t head = 0; head < num_kv_heads_; ++head) {
    SplitTile& split_tile = schedule.split_tiles.emplace_back(new_split_tile(tile, head));
    split_tile.list_begin = list_begin;
    split_tile.first_member = static_cast<int32_t>(member_begin) * num_kv_heads_ + head;
    split_tile.num_members = static_cast<int32_t>(member_end - member_begin);
  }
  for (size_t i = member_begin; i < member_end; ++i) {
    prefix_tiles_[members_[i].prefix_end++] = whole.split_tile;
    row_members_.insert(row_members_.end(), members_[i].num_rows, static_cast<int32_t>(i - member_begin));
  }
  return tile;
}

void Prefixes::place_partials(Schedule& schedule) {
  if (empty()) return;
  const auto count = [&](const WorkItem& item) {
    if (item.split_tile < 0 || static_cast<size_t>(item.split_tile) >= num_split_tiles_) return;
    for (int32_t head = item.kv_head_begin; head < item.kv_head_end; ++head) {
      SplitTile& tile = schedule.split_tiles[item.split_tile + head - item.kv_head_begin];
      tile.num_splits = std::max(tile.num_splits, item.split_idx + 1);
    }
  };
  for (const WorkItem& item : schedule.narrow_items) count(item);
  for (const WideItem& wide : schedule.wide_items) count(wide.item);
  for (size_t i = 0; i < num_split_tiles_; ++i) {
    SplitTile& tile = schedule.split_tiles[i];
    tile.partial_row_begin = schedule.num_partial_rows;
    schedule.num_partial_rows += tile.num_splits * tile.num_rows;
  }
  const auto add_rows = [&](const SplitTile& tile, int32_t row) {
    partial_rows_.push_back({.first = tile.partial_row_begin + row,
                             .stride = tile.num_rows,
                             .num_splits = tile.num_splits,
                             .reserved = 0});
  };
  SplitTile* tile = schedule.split_tiles.data();
  for (const Member& member : members_) {
    for (int32_t head = 0; head < num_kv_heads_; ++head, ++tile) {
      tile->list_begin = static_cast<int32_t>(partial_rows_.size());
      for (int32_t i = member.prefix_begin; i < member.prefix_end; ++i) {
        const SplitTile& prefix = schedule.split_tiles[prefix_tiles_[i] + head];
        add_rows(prefix, (member.q_token_begin - prefix.q_token_begin) * group_size_);
      }
      add_rows(*tile, 0);
    }
  }
}

WideClass Prefixes::class_of_wide_tile(int32_t request, int32_t key) const {
  const auto group = std::find_if(groups_.begin(), groups_.end(), [&](const Group& candidate) {
    return candidate.request_begin <= request && request < candidate.request_end &&
           candidate.kv_begin <= key && key < candidate.kv_end;
  });
  if (group == groups_.end()) fail("prefix_groups has none that shares key ", key, " of request ", request);
  return wide_class(group->num_rows);
}

}  // namespace onewave::planner
