#include "cost_model.h"

#include <onewave/plan_format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <iterator>

namespace onewave {
namespace {

struct BandwidthPoint {
  int num_ctas;
  double gb_per_s;
};

/// Read-only HBM bandwidth against streaming CTAs: contiguous 16 KiB bulk copies, 12 in flight per CTA.
constexpr BandwidthPoint kBandwidth[] = {{0, 0},     {8, 1270},  {16, 2250}, {33, 3480},  {44, 3950},
                                         {66, 4130}, {88, 4260}, {99, 4380}, {110, 4500}, {132, 4700}};

double interpolate(int num_ctas) {
  const auto* above = std::find_if(std::begin(kBandwidth), std::end(kBandwidth),
                                   [&](const BandwidthPoint& point) { return point.num_ctas >= num_ctas; });
  if (above == std::end(kBandwidth)) return std::prev(above)->gb_per_s;
  if (above->num_ctas == num_ctas) return above->gb_per_s;
  const BandwidthPoint& below = *std::prev(above);
  const double share = static_cast<double>(num_ctas - below.num_ctas) / (above->num_ctas - below.num_ctas);
  return below.gb_per_s + share * (above->gb_per_s - below.gb_per_s);
}

/// The curve at every number of CTAs: the planner asks for all of them in every plan.
double memory_gb_per_s(int num_ctas) {
  static const std::array<double, kMaxNumCtas + 1> table = [] {
    std::array<double, kMaxNumCtas + 1> values{};
    for (int count = 0; count <= kMaxNumCtas; ++count) values[count] = interpolate(count);
    return values;
  }();
  return table[num_ctas];
}

/// What its loader lets one SM draw: 33 CTAs streaming pages in random order. TMA with a box per page and
/// 64-column panel pays by the box, so by the page; the gather of everything that TMA does not take (see
/// choose_loader) pays by the row.
double cta_gb_per_s(int32_t page_size) {
  if (page_size < 8 || !std::has_single_bit(static_cast<uint32_t>(page_size))) return 47;
  if (page_size == 8) return 26;
  if (page_size == 16) return 42;
  if (page_size == 32) return 61;
  return 77;
}

}  // namespace

CostModel::CostModel(const AttentionShape& shape)
    : wide_step_us_(4.0 * kWideTileQ * kTileKv * shape.head_dim / kWideFlopPerUs),
      narrow_step_bytes_(2.0 * kTileKv * shape.head_dim * dtype_bytes(shape.dtype)),
      cta_bytes_per_us_(cta_gb_per_s(shape.page_size) * 1e3),
      partial_row_us_(2.0 * shape.head_dim * sizeof(float) / kPartialBytesPerUs) {}

double CostModel::narrow_step_us(int num_streaming_ctas) const {
  const double fair_share = memory_gb_per_s(num_streaming_ctas) * 1e3 / num_streaming_ctas;
  return narrow_step_bytes_ / std::min(fair_share, cta_bytes_per_us_);
}

}  // namespace onewave
