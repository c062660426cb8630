#include "planner_sections.h"

#include <algorithm>

namespace onewave::planner {

void WideSections::divide(const std::vector<Tile>& tiles, double turn_bytes, double key_bytes,
                          std::vector<uint64_t>& order) {
  sections_.clear();
  section_of_request_.clear();
  const auto tile_of = [&](uint64_t entry) -> const Tile& { return tiles[static_cast<uint32_t>(entry)]; };
  double bytes = 0;
  for (const uint64_t entry : order) {
    const Tile& tile = tile_of(entry);
    const auto request = static_cast<size_t>(tile.request);
    if (section_of_request_.size() <= request) section_of_request_.resize(request + 1, -1);
    int32_t& section = section_of_request_[request];
    if (section < 0) {
      const int32_t num_kv_heads = tile.kv_head_end;
      const double head_bytes = key_bytes * num_keys(tile);
      bytes += head_bytes * num_kv_heads;
      if (sections_.empty() || bytes > turn_bytes) {
        bytes = head_bytes * num_kv_heads;
        const double fitting = std::clamp<double>(turn_bytes / head_bytes, 1, num_kv_heads);
        sections_.push_back({0, 0, static_cast<int32_t>(fitting)});
      }
      section = static_cast<int32_t>(sections_.size()) - 1;
    }
    ++sections_[section].end;  // its size, for now
  }
  if (sections_.size() == 1) return;

  size_t end = 0;
  next_places_.clear();
  for (WideSection& section : sections_) {
    section.begin = end;
    end += section.end;
    section.end = end;
    next_places_.push_back(section.begin);
  }
  sorted_.resize(order.size());
  for (const uint64_t entry : order)
    sorted_[next_places_[section_of_request_[tile_of(entry).request]]++] = entry;
  order.swap(sorted_);
}

}  // namespace onewave::planner
