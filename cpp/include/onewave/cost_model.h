#pragma once

/// What the planner takes work to cost on a GPU. A wide item costs tensor time, a narrow item costs bytes; on
/// different SMs they disturb each other on the way out of the L2, which wide items need as much as narrow
/// ones (wide_slowdown), and each read of a wide item waits behind theirs (wide_unit_slowdown). All numbers
/// are measured, by `python -m onewave calibrate`.

#include <onewave/plan_format.h>
#include <onewave/types.h>
#include <onewave/version.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace onewave {

/// Packed rows of a narrow item, padded: 8, 16 or 32.
inline constexpr int kNumRowClasses = 3;
inline int row_class(int32_t num_rows) { return narrow_rows_shift(num_rows) - narrow_rows_shift(1); }

/// Of one kernel on one CTA. A step is kTileKv keys of one kv head (see plan_format.h), a unit a tile of
/// packed rows with all its keys, for the kv heads that it takes together.
struct KernelRates {
  int32_t head_dim;  ///< of Q, K, V and the output
  Loader loader;
  int32_t q_bytes;  ///< of an element of Q
  int32_t kv_bytes;
  float wide_step_us;
  float wide_unit_us;        ///< beside its steps: the first tile, the mask, the output
  float wide_slowdown;       ///< part that steps take longer beside CTAs that stream, extrapolated to all
  float wide_unit_slowdown;  ///< the same of wide_unit_us, which waits for one read after another
  float narrow_unit_us;
  std::array<float, kNumRowClasses> narrow_gb_per_s;  ///< K and V, beside CTAs that multiply
};

/// What the memory gives to so many CTAs together that read as fast as they can.
struct MemoryRate {
  int32_t num_ctas;
  float gb_per_s;
};

/// One GPU. Any number of threads may read one.
struct Calibration {
  std::string gpu;         ///< as CUDA names it
  float launch_us;         ///< of a run beside its items
  float split_us;          ///< of a piece of a cut unit, beside its partials: a fence, an atomic, the merge
  float partial_gb_per_s;  ///< at which one CTA writes or reads partials
  std::vector<MemoryRate> memory;  ///< ascending
  std::vector<KernelRates> kernels;

  /// Linear between the points of `memory`, constant outside. Throws InvalidArgument where there are none.
  double memory_gb_per_s(int num_ctas) const;
};

/// Those in the library; they live as long as it does.
const std::vector<Calibration>& calibrations();

/// The GPU's own where the library has it, that of an H100 or H200 of another make for one of these, and the
/// H200's for anything else.
const Calibration& calibration_of(std::string_view gpu);

/// A calibration for one shape, as the planner asks for it. Costs are microseconds of one CTA. Never changes:
/// any number of threads may plan with one.
class CostModel {
 public:
  /// A head_dim that the calibration lacks goes by the nearest, and types that it lacks by any others. Throws
  /// InvalidArgument where it lacks the shape's loader, or a rate is beyond 1e-6 to 1e6.
  CostModel(const AttentionShape& shape, const Calibration& calibration);

  double launch_us() const { return launch_us_; }
  /// K and V of one key of one kv head.
  double key_bytes() const { return key_bytes_; }

  /// Where `num_narrow_ctas` of `num_ctas` CTAs stream.
  double wide_unit_us(int num_ctas, int num_narrow_ctas) const {
    return kernel_.wide_unit_us * slowdown(kernel_.wide_unit_slowdown, num_ctas, num_narrow_ctas);
  }
  double wide_step_us(int num_ctas, int num_narrow_ctas) const {
    return kernel_.wide_step_us * slowdown(kernel_.wide_slowdown, num_ctas, num_narrow_ctas);
  }
  /// A step where no other tile reads these keys, and all of `num_ctas` CTAs do such work.
  double wide_alone_step_us(int num_ctas) const { return step_us_[kNumRowClasses][num_ctas]; }

  double narrow_unit_us() const { return kernel_.narrow_unit_us; }
  /// Of one of `num_ctas` CTAs that read at the same time.
  double narrow_step_us(int row_class, int num_ctas) const { return step_us_[row_class][num_ctas]; }

  double split_us() const { return split_us_; }
  /// Leaving one partial row and merging it.
  double partial_row_us() const { return partial_row_us_; }

 private:
  /// What multiplies waits behind the reads of what streams. Where all CTAs stream, what is wide comes after.
  static double slowdown(float part, int num_ctas, int num_narrow_ctas) {
    return num_narrow_ctas == num_ctas ? 1 : 1 + static_cast<double>(part) * num_narrow_ctas / num_ctas;
  }

  KernelRates kernel_;
  double launch_us_;
  double key_bytes_;
  double split_us_;
  double partial_row_us_;
  /// By class, the last for wide items alone, and by CTAs: the planner asks for all of them in every plan.
  std::array<std::array<float, kMaxNumCtas + 1>, kNumRowClasses + 1> step_us_;
};

}  // namespace onewave
