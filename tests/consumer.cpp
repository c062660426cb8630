/// A C++ program that has nothing but the wheel: prints the size of a workspace, and what a mistake is
/// called.

#include <onewave/error.h>
#include <onewave/planner.h>

#include <iostream>

int main() {
  const onewave::AttentionShape shape = {
      .num_qo_heads = 32,
      .num_kv_heads = 8,
      .head_dim = 128,
      .page_size = 16,
      .dtype = onewave::DType::kBFloat16,
  };
  onewave::PlanLimits limits = {
      .max_batch_size = 8, .max_total_qo_len = 128, .max_kv_len = 4096, .num_ctas = 132};
  std::cout << onewave::workspace_layout(limits, shape).total_bytes << "\n";
  limits.num_ctas = 0;
  try {
    onewave::workspace_layout(limits, shape);
  } catch (const onewave::InvalidArgument& error) {
    std::cout << error.what() << "\n";
  }
}
