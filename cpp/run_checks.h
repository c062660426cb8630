#pragma once

/// Everything that can be wrong with the arguments of a launch.

#include <onewave/device.h>
#include <onewave/plan_format.h>
#include <onewave/row_kernels.h>

#include <cstdint>

namespace onewave {

/// What a run's arguments are checked against.
struct RunSituation {
  const AttentionShape& shape;
  Loader loader;
  int32_t max_total_qo_len;  ///< PlanLimits: what a later plan may have
  const PlanHeader& plan;    ///< the last
  bool is_capturing;         ///< the arguments are baked in, for plans that are not known yet
  int32_t num_ctas;          ///< of the launch
};

/// All throw InvalidArgument, and allocate nothing where the arguments are good.
///
/// Of the output on a GPU, beside queries of `dtype`.
void check_out_dtype(DType dtype, DType out_dtype);
void check_cpu_dtypes(const RunArgs& args);
void check_run_args(const RunArgs& args, const RunSituation& situation);
void check_profile(const RunArgs& args, int32_t num_ctas);
void check_append_args(const AppendArgs& args);
void check_merge_args(const MergeArgs& args);

}  // namespace onewave
