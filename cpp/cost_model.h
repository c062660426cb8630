#pragma once

/// What the planner believes an item costs, in microseconds of one CTA. The two kinds are bound by different
/// things and do not disturb each other on different SMs: a wide item costs tensor time, a narrow item costs
/// bytes. Every constant is a measurement on one H200 (132 SMs), or an estimate that says so.

#include <onewave/planner.h>

namespace onewave {

/// Wide loop at a sustained 640 TFLOP/s over 132 SMs, in FLOP per microsecond and CTA.
inline constexpr double kWideFlopPerUs = 640e6 / 132;

/// Estimates: filling the pipeline, joining the warps and storing the output, for each (tile, kv head).
inline constexpr double kNarrowUnitUs = 1.0;
inline constexpr double kWideUnitUs = 1.5;

/// Estimate: what a split item pays beside its keys, a barrier, a fence and an atomic.
inline constexpr double kSplitUs = 1.0;

/// Partials are written once and read once, by one SM at a time: what one SM draws from L2, in bytes per
/// microsecond.
inline constexpr double kPartialBytesPerUs = 85e3;

class CostModel {
 public:
  explicit CostModel(const AttentionShape& shape);

  /// 128 query rows against kTileKv keys of one kv head.
  double wide_step_us() const { return wide_step_us_; }

  /// kTileKv keys of one kv head, read by one of `num_streaming_ctas` CTAs that read at the same time.
  double narrow_step_us(int num_streaming_ctas) const;

  /// Leaving one partial row and merging it.
  double partial_row_us() const { return partial_row_us_; }

 private:
  double wide_step_us_;
  double narrow_step_bytes_;
  double cta_bytes_per_us_;  ///< of one CTA, when the memory is not the limit
  double partial_row_us_;
};

}  // namespace onewave
