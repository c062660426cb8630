#include <onewave/cost_model.h>
#include <onewave/error.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <string>
#include <utility>

namespace onewave {
namespace {

/// Microseconds for `bytes` on each of `num_ctas` CTAs of which one alone reads `cta_gb_per_s`. The two
/// bounds meet in a curve, not a corner: the fourth power fits bench/results/narrow_curve_h100.json, of the
/// loaders of then, within 3 %.
double read_us(double bytes, double cta_gb_per_s, double memory_gb_per_s, int num_ctas) {
  const double alone_us = bytes / cta_gb_per_s * 1e-3;
  const double share_us = bytes * num_ctas / memory_gb_per_s * 1e-3;
  const double squares[] = {alone_us * alone_us, share_us * share_us};
  return std::sqrt(std::sqrt(squares[0] * squares[0] + squares[1] * squares[1]));
}

/// Where the head_dim was not measured, the nearest, whose wide work takes as much more as there are columns;
/// but sooner another head_dim than other types.
KernelRates find_rates(const AttentionShape& shape, const Calibration& calibration) {
  const Loader loader = choose_loader(shape.page_size);
  const int32_t columns = shape.head_dim_qk + shape.head_dim_vo;
  const KernelRates* nearest = nullptr;
  for (const KernelRates& kernel : calibration.kernels) {
    if (kernel.loader != loader) continue;
    const auto distance = [&](const KernelRates& rates) {
      const bool has_types =
          rates.q_bytes == dtype_bytes(shape.dtype) && rates.kv_bytes == dtype_bytes(shape.kv_dtype);
      return std::pair(!has_types, std::abs(2 * rates.head_dim - columns));
    };
    if (nearest == nullptr || distance(kernel) < distance(*nearest)) nearest = &kernel;
  }
  if (nearest == nullptr) {
    throw InvalidArgument("calibration of " + calibration.gpu + " has no kernel that " +
                          (loader == Loader::kTma ? "loads by TMA" : "gathers"));
  }
  KernelRates rates = *nearest;
  const float part = static_cast<float>(columns) / static_cast<float>(2 * nearest->head_dim);
  rates.wide_step_us *= part;
  rates.wide_unit_us *= part;
  return rates;
}

/// Far beyond any GPU's, and all that is made of them stays finite in float32.
bool is_rate(float value) { return value >= 1e-6f && value <= 1e6f; }
bool is_rate_or_less(float value) { return value >= 0 && value <= 1e6f; }

void check_rates(const Calibration& calibration, const KernelRates& kernel) {
  bool are_right = is_rate_or_less(calibration.launch_us) && is_rate_or_less(calibration.split_us) &&
                   is_rate(calibration.partial_gb_per_s) && is_rate(kernel.wide_step_us) &&
                   is_rate(kernel.wide_unit_us) && is_rate_or_less(kernel.wide_slowdown) &&
                   is_rate_or_less(kernel.wide_unit_slowdown) && is_rate(kernel.narrow_unit_us) &&
                   !calibration.memory.empty();
  for (const float rate : kernel.narrow_gb_per_s) are_right = are_right && is_rate(rate);
  int32_t num_ctas = 0;
  for (const MemoryRate& point : calibration.memory) {
    are_right = are_right && is_rate(point.gb_per_s) && point.num_ctas > num_ctas;
    num_ctas = point.num_ctas;
  }
  if (!are_right) {
    throw InvalidArgument(
        "calibration of " + calibration.gpu +
        ": every rate and time must be positive, from 1e-6 to 1e6, and the memory's points ascend");
  }
}

}  // namespace

double Calibration::memory_gb_per_s(int num_ctas) const {
  if (memory.empty()) throw InvalidArgument("calibration of " + gpu + " has no points of the memory");
  const auto above = std::find_if(memory.begin(), memory.end(),
                                  [&](const MemoryRate& point) { return point.num_ctas >= num_ctas; });
  if (above == memory.begin()) return above->gb_per_s;
  if (above == memory.end()) return memory.back().gb_per_s;
  const MemoryRate& below = *std::prev(above);
  const double from = below.num_ctas;
  const double share = (num_ctas - from) / (above->num_ctas - from);
  // Positive like both, however far apart they are.
  return (1 - share) * below.gb_per_s + share * above->gb_per_s;
}

const Calibration& calibration_of(std::string_view gpu) {
  const std::vector<Calibration>& known = calibrations();
  const auto exact = std::find_if(known.begin(), known.end(),
                                  [&](const Calibration& calibration) { return calibration.gpu == gpu; });
  if (exact != known.end()) return *exact;
  const std::string_view kind = gpu.find("H100") != std::string_view::npos ? "H100" : "H200";
  return *std::find_if(known.begin(), known.end(), [&](const Calibration& calibration) {
    return calibration.gpu.find(kind) != std::string::npos;
  });
}

CostModel::CostModel(const AttentionShape& shape, const Calibration& calibration)
    : kernel_(find_rates(shape, calibration)),
      launch_us_(calibration.launch_us),
      key_bytes_(1.0 * (shape.head_dim_qk + shape.head_dim_vo) * dtype_bytes(shape.kv_dtype)),
      split_us_(calibration.split_us),
      partial_row_us_(2.0 * shape.head_dim_vo * sizeof(float) / calibration.partial_gb_per_s * 1e-3) {
  check_rates(calibration, kernel_);
  const double step_bytes = kTileKv * key_bytes_;
  std::array<double, kNumRowClasses + 1> cta_gb_per_s;
  std::copy(kernel_.narrow_gb_per_s.begin(), kernel_.narrow_gb_per_s.end(), cta_gb_per_s.begin());
  cta_gb_per_s.back() = step_bytes / kernel_.wide_step_us * 1e-3;
  for (int num_ctas = 0; num_ctas <= kMaxNumCtas; ++num_ctas) {
    const double memory = calibration.memory_gb_per_s(num_ctas);
    for (size_t i = 0; i < cta_gb_per_s.size(); ++i)
      step_us_[i][num_ctas] = static_cast<float>(read_us(step_bytes, cta_gb_per_s[i], memory, num_ctas));
  }
}

}  // namespace onewave
