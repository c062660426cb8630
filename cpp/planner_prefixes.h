#pragma once

/// Shared prefixes. Each group of requests becomes tiles like those of one request: their rows are the rows
/// of its members, one after another as they lie in q, and their keys what the group shares beyond the group
/// around it. A member is the tile of a request of few rows; its own keys begin where the innermost of its
/// groups ends. Both leave partials, which are merged member by member (SplitTile).

#include <onewave/plan_format.h>
#include <onewave/planner.h>

#include <cstdint>
#include <vector>

#include "planner_internal.h"

namespace onewave::planner {

/// Packed rows of a request that is to be a member, at most: of more, no two such fit in a tile of a prefix.
inline constexpr int32_t kMostMemberRows = kWideTileQ / 2;

class Prefixes {
 public:
  /// Takes the groups of a batch, whose requests are checked. None counts in a plan of a window. Throws
  /// InvalidArgument where they do not nest.
  void start(const BatchSpec& batch);

  bool empty() const { return groups_.empty(); }
  /// Keys at the start of a request that are not read for it alone; where it is no member, 0.
  int32_t num_shared_keys(int32_t request) const { return empty() ? 0 : requests_[request].num_keys; }

  /// Makes the tile of a request a member and gives it its SplitTiles: request by request, before any other.
  void add_member(Tile& tile, Schedule& schedule);
  /// The tiles of all prefixes, when all members are there.
  void add_tiles(const BatchSpec& batch, std::vector<Tile>& narrow_tiles, std::vector<Tile>& wide_tiles,
                 Schedule& schedule);
  /// The partial rows of members and prefixes, when all is scheduled.
  void place_partials(Schedule& schedule);

  /// Of a wide tile of the prefix of a request that has this key. Throws InvalidArgument where there is none.
  WideClass class_of_wide_tile(int32_t request, int32_t key) const;

  /// Query tokens of all members, counted in each of their groups.
  int64_t shared_qo_len() const { return shared_qo_len_; }
  const std::vector<PartialRows>& partial_rows() const { return partial_rows_; }
  const std::vector<int32_t>& row_members() const { return row_members_; }

 private:
  /// A PrefixGroup that has something to share: keys [kv_begin, kv_end).
  struct Group {
    int32_t request_begin;
    int32_t request_end;
    int32_t kv_begin;
    int32_t kv_end;
    int64_t num_rows;  ///< of its members
  };
  /// Of the innermost group.
  struct Request {
    int32_t num_keys;
    int32_t num_groups;  ///< around the request
  };
  struct Member {
    int32_t request;
    int32_t num_rows;
    int32_t q_token_begin;
    int32_t prefix_begin;  ///< in prefix_tiles_, outer ones first
    int32_t prefix_end;
  };

  /// The rows of the members [member_begin, member_end) against the keys of a group, by the pages of its
  /// first.
  Tile make_tile(const BatchSpec& batch, const Group& group, int32_t first_request, size_t member_begin,
                 size_t member_end, bool is_narrow, Schedule& schedule);
  size_t end_of_run(size_t begin, size_t members_end, int32_t most_rows) const;
  int32_t num_rows(size_t member_begin, size_t member_end) const;

  std::vector<PrefixGroup> sorted_;
  std::vector<Group> around_;  ///< the groups around the one that is looked at, the innermost last
  std::vector<Group> groups_;  ///< an outer one before those in it
  std::vector<Request> requests_;
  std::vector<int32_t> members_before_;  ///< of each request: those before it that may be members,
  std::vector<int64_t> rows_before_;     ///< and their packed rows
  std::vector<Member> members_;
  std::vector<int32_t> prefix_tiles_;  ///< of members: SplitTiles of their prefixes' first kv heads
  std::vector<PartialRows> partial_rows_;
  std::vector<int32_t> row_members_;
  int32_t num_kv_heads_ = 0;
  int32_t group_size_ = 0;
  int64_t shared_qo_len_ = 0;
  size_t num_split_tiles_ = 0;  ///< of members and prefixes, the plan's first
};

/// Throws InvalidArgument where a group is of other requests than the batch has.
void check_prefix_requests(const BatchSpec& batch);

/// All that can be wrong with them, but for how they nest, which start() says. Throws InvalidArgument.
void check_prefix_groups(const BatchSpec& batch, const PlanLimits& limits);

}  // namespace onewave::planner
