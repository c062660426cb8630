/// Where the fields of the records lie that a plan and a profile are made of.

#include <onewave/plan_format.h>
#include <onewave/profile.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "bindings.h"

namespace onewave {
namespace {

/// Name, struct-module character and offset of a record's field, as a tuple.
template <class Field>
nb::tuple layout_field(const char* name, size_t offset) {
  static_assert(sizeof(Field) == 4 || std::is_same_v<Field, uint64_t> || std::is_same_v<Field, uint16_t>);
  const char* format = std::is_same_v<Field, float>      ? "f"
                       : std::is_same_v<Field, int32_t>  ? "i"
                       : std::is_same_v<Field, uint32_t> ? "I"
                       : std::is_same_v<Field, uint16_t> ? "H"
                                                         : "Q";
  return nb::make_tuple(name, format, offset);
}

// The only way to say a member's name and its offset together.
#define ONEWAVE_FIELD(record, field) layout_field<decltype(record::field)>(#field, offsetof(record, field))

template <class... Fields>
nb::tuple record_layout(size_t size, Fields... fields) {
  nb::list list;
  (list.append(fields), ...);
  return nb::make_tuple(size, list);
}

nb::tuple header_layout() {
  return record_layout(
      sizeof(PlanHeader), ONEWAVE_FIELD(PlanHeader, magic), ONEWAVE_FIELD(PlanHeader, version),
      ONEWAVE_FIELD(PlanHeader, num_bytes), ONEWAVE_FIELD(PlanHeader, num_ctas),
      ONEWAVE_FIELD(PlanHeader, num_items), ONEWAVE_FIELD(PlanHeader, wide_begin),
      ONEWAVE_FIELD(PlanHeader, num_split_tiles), ONEWAVE_FIELD(PlanHeader, num_partial_rows),
      ONEWAVE_FIELD(PlanHeader, ctas_offset), ONEWAVE_FIELD(PlanHeader, items_offset),
      ONEWAVE_FIELD(PlanHeader, split_tiles_offset), ONEWAVE_FIELD(PlanHeader, counters_offset),
      ONEWAVE_FIELD(PlanHeader, num_narrow_ctas), ONEWAVE_FIELD(PlanHeader, num_first_items),
      ONEWAVE_FIELD(PlanHeader, num_draws), ONEWAVE_FIELD(PlanHeader, item_bounds_offset),
      ONEWAVE_FIELD(PlanHeader, actual_kv_lens), ONEWAVE_FIELD(PlanHeader, kv_indices),
      ONEWAVE_FIELD(PlanHeader, batch_size), ONEWAVE_FIELD(PlanHeader, total_qo_len),
      ONEWAVE_FIELD(PlanHeader, num_qo_heads), ONEWAVE_FIELD(PlanHeader, num_kv_heads),
      ONEWAVE_FIELD(PlanHeader, group_size), ONEWAVE_FIELD(PlanHeader, head_dim_qk),
      ONEWAVE_FIELD(PlanHeader, head_dim_vo), ONEWAVE_FIELD(PlanHeader, page_size),
      ONEWAVE_FIELD(PlanHeader, sm_scale_log2), ONEWAVE_FIELD(PlanHeader, logits_soft_cap),
      ONEWAVE_FIELD(PlanHeader, mask_tiles_offset), ONEWAVE_FIELD(PlanHeader, mask_rows_offset),
      ONEWAVE_FIELD(PlanHeader, partial_rows_offset), ONEWAVE_FIELD(PlanHeader, row_members_offset),
      ONEWAVE_FIELD(PlanHeader, is_masked));
}

nb::tuple work_item_layout() {
  return record_layout(sizeof(WorkItem), ONEWAVE_FIELD(WorkItem, request),
                       ONEWAVE_FIELD(WorkItem, q_token_begin), ONEWAVE_FIELD(WorkItem, row_begin),
                       ONEWAVE_FIELD(WorkItem, num_rows), ONEWAVE_FIELD(WorkItem, causal_shift),
                       ONEWAVE_FIELD(WorkItem, window_shift), ONEWAVE_FIELD(WorkItem, mask_begin),
                       ONEWAVE_FIELD(WorkItem, kv_begin), ONEWAVE_FIELD(WorkItem, kv_end),
                       ONEWAVE_FIELD(WorkItem, page_begin), ONEWAVE_FIELD(WorkItem, kv_head_begin),
                       ONEWAVE_FIELD(WorkItem, kv_head_end), ONEWAVE_FIELD(WorkItem, heads_per_step),
                       ONEWAVE_FIELD(WorkItem, split_tile), ONEWAVE_FIELD(WorkItem, split_idx));
}

nb::dict plan_layout() {
  nb::dict layout;
  layout["PlanHeader"] = header_layout();
  layout["CtaRecord"] = record_layout(
      sizeof(CtaRecord), ONEWAVE_FIELD(CtaRecord, narrow_begin), ONEWAVE_FIELD(CtaRecord, narrow_end),
      ONEWAVE_FIELD(CtaRecord, first_item), ONEWAVE_FIELD(CtaRecord, predicted_us));
  layout["WorkItem"] = work_item_layout();
  layout["SplitTile"] = record_layout(
      sizeof(SplitTile), ONEWAVE_FIELD(SplitTile, q_token_begin), ONEWAVE_FIELD(SplitTile, row_begin),
      ONEWAVE_FIELD(SplitTile, num_rows), ONEWAVE_FIELD(SplitTile, kv_head_begin),
      ONEWAVE_FIELD(SplitTile, kv_head_end), ONEWAVE_FIELD(SplitTile, num_splits),
      ONEWAVE_FIELD(SplitTile, partial_row_begin), ONEWAVE_FIELD(SplitTile, is_of_one_cta),
      ONEWAVE_FIELD(SplitTile, list_begin), ONEWAVE_FIELD(SplitTile, num_prefixes),
      ONEWAVE_FIELD(SplitTile, first_member), ONEWAVE_FIELD(SplitTile, num_members));
  layout["PartialRows"] = record_layout(
      sizeof(PartialRows), ONEWAVE_FIELD(PartialRows, first), ONEWAVE_FIELD(PartialRows, stride),
      ONEWAVE_FIELD(PartialRows, num_splits), ONEWAVE_FIELD(PartialRows, reserved));
  layout["ItemBounds"] =
      record_layout(sizeof(ItemBounds), ONEWAVE_FIELD(ItemBounds, causal_shift),
                    ONEWAVE_FIELD(ItemBounds, window_shift), ONEWAVE_FIELD(ItemBounds, kv_begin),
                    ONEWAVE_FIELD(ItemBounds, kv_end), ONEWAVE_FIELD(ItemBounds, kv_len));
  layout["MaskTile"] =
      record_layout(sizeof(MaskTile), ONEWAVE_FIELD(MaskTile, tile), ONEWAVE_FIELD(MaskTile, first_row));
  return layout;
}

/// Beside the fields: PROFILE_TRACKS_OFFSET, PROFILE_CYCLES_OFFSET.
nb::dict profile_layout() {
  nb::dict layout;
  layout["ProfileHeader"] = record_layout(
      sizeof(ProfileHeader), ONEWAVE_FIELD(ProfileHeader, magic), ONEWAVE_FIELD(ProfileHeader, version),
      ONEWAVE_FIELD(ProfileHeader, num_ctas), ONEWAVE_FIELD(ProfileHeader, max_items),
      ONEWAVE_FIELD(ProfileHeader, num_tracks), ONEWAVE_FIELD(ProfileHeader, window));
  layout["CtaProfile"] = record_layout(
      sizeof(CtaProfile), ONEWAVE_FIELD(CtaProfile, begin_ns), ONEWAVE_FIELD(CtaProfile, end_ns),
      ONEWAVE_FIELD(CtaProfile, begin_clock), ONEWAVE_FIELD(CtaProfile, end_clock),
      ONEWAVE_FIELD(CtaProfile, sm), ONEWAVE_FIELD(CtaProfile, num_items));
  // Behind a WorkItem.
  static_assert(offsetof(ItemProfile, item) == 0);
  layout["ItemProfile"] =
      record_layout(sizeof(ItemProfile), ONEWAVE_FIELD(ItemProfile, kv_head),
                    ONEWAVE_FIELD(ItemProfile, num_heads), ONEWAVE_FIELD(ItemProfile, is_wide));
  layout["ProfileTrack"] = record_layout(sizeof(ProfileTrack), ONEWAVE_FIELD(ProfileTrack, begin),
                                         ONEWAVE_FIELD(ProfileTrack, end));
  return layout;
}

#undef ONEWAVE_FIELD

const char* phase_name(ProfilePhase phase) {
  switch (phase) {
    case ProfilePhase::kWaitQueries:
      return "wait for queries";
    case ProfilePhase::kWaitKeys:
      return "wait for keys";
    case ProfilePhase::kWaitValues:
      return "wait for values";
    case ProfilePhase::kSoftmax:
      return "softmax";
    case ProfilePhase::kProducts:
      return "products";
    case ProfilePhase::kWaitTurn:
      return "wait for turn";
    case ProfilePhase::kJoin:
      return "join";
    case ProfilePhase::kStore:
      return "store";
    case ProfilePhase::kArrive:
      return "arrive";
    case ProfilePhase::kMerge:
      return "merge";
  }
  return "unknown";
}

nb::list profile_phases() {
  nb::list names;
  for (int32_t phase = 0; phase < kNumProfilePhases; ++phase)
    names.append(phase_name(static_cast<ProfilePhase>(phase)));
  return names;
}

}  // namespace

void bind_layouts(nb::module_& m) {
  m.def("plan_layout", &plan_layout);
  m.def("profile_layout", &profile_layout);
  m.def("profile_bytes", &profile_bytes, "num_ctas"_a, "max_items"_a);
  m.attr("PROFILE_PHASES") = profile_phases();
  m.attr("PROFILE_MAGIC") = kProfileMagic;
  m.attr("PROFILE_VERSION") = kProfileVersion;
  m.attr("MAX_PROFILE_TRACKS") = kMaxProfileTracks;
  m.attr("PROFILE_TRACKS_OFFSET") = offsetof(ItemProfile, tracks);
  m.attr("PROFILE_CYCLES_OFFSET") = offsetof(ProfileTrack, cycles);
}

}  // namespace onewave
