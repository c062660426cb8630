/// Many threads plan and execute at once, for ThreadSanitizer: equal and other batches, two shapes, cost
/// models and plans that they share. What each makes must be what one thread made before, to the bit. Ends
/// with status 0 where it is.

#include <onewave/cost_model.h>
#include <onewave/executor.h>
#include <onewave/planner.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <latch>
#include <thread>
#include <vector>

namespace {

using namespace onewave;

constexpr int kNumThreads = 8;
constexpr int kNumRounds = 12;
constexpr int kNumCtas = 24;
constexpr int32_t kNumKvHeads = 2;
constexpr int32_t kNumQoHeads = 4;
constexpr PlanLimits kLimits{
    .max_batch_size = 16, .max_total_qo_len = 512, .max_kv_len = 4096, .num_ctas = kNumCtas};

struct Request {
  int32_t kv_len;
  int32_t qo_len;
};

/// Splits of narrow items, of wide ones, of neither.
const std::vector<std::vector<Request>> kBatches = {
    {{3000, 1}, {700, 2}, {0, 1}},
    {{1500, 40}},
    {{2000, 1}, {2000, 1}, {300, 30}, {5, 9}},
    {{64, 1}, {33, 0}, {40, 40}},
};

/// A shape, and what all plans of it are made with.
struct Model {
  explicit Model(int32_t page_size)
      : shape{.num_qo_heads = kNumQoHeads,
              .num_kv_heads = kNumKvHeads,
              .head_dim_qk = 64,
              .head_dim_vo = 64,
              .page_size = page_size,
              .dtype = DType::kFloat32},
        costs(shape, calibration_of("")) {}

  AttentionShape shape;
  CostModel costs;
};

struct alignas(16) Block {
  unsigned char bytes[16];
};

struct Results {
  std::vector<unsigned char> plan;
  std::vector<float> out;
  std::vector<float> lse;

  bool operator==(const Results& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    return same(plan, other.plan) && same(out, other.out) && same(lse, other.lse);
  }
};

/// One batch with its tensors, which threads only read.
class Step {
 public:
  Step(const Model& model, const std::vector<Request>& requests) : model_(model) {
    for (const Request& request : requests) {
      qo_indptr_.push_back(qo_indptr_.back() + request.qo_len);
      kv_indptr_.push_back(kv_indptr_.back() +
                           (request.kv_len + model.shape.page_size - 1) / model.shape.page_size);
      kv_len_arr_.push_back(request.kv_len);
    }
    for (int32_t page = kv_indptr_.back() - 1; page >= 0; --page) kv_indices_.push_back(page);
    q_.resize(static_cast<size_t>(qo_indptr_.back()) * kNumQoHeads * model.shape.head_dim_qk);
    kv_.resize(static_cast<size_t>(kv_indptr_.back()) * page_elements());
    for (size_t i = 0; i < q_.size(); ++i) q_[i] = std::sin(static_cast<float>(i));
    for (size_t i = 0; i < kv_.size(); ++i) kv_[i] = std::cos(static_cast<float>(i));
  }

  const PlanHeader* plan(std::vector<Block>& buffer) const {
    buffer.resize(workspace_layout(kLimits, model_.shape).plan_bytes / sizeof(Block));
    const BatchSpec batch{.shape = model_.shape,
                          .causal = true,
                          .sm_scale = 0.125f,
                          .batch_size = static_cast<int32_t>(kv_len_arr_.size()),
                          .qo_indptr = qo_indptr_.data(),
                          .kv_indptr = kv_indptr_.data(),
                          .kv_len_arr = kv_len_arr_.data(),
                          .kv_indices = kv_indices_.data()};
    return plan_batch(batch, kLimits, model_.costs, buffer.data());
  }

  Results execute(const PlanHeader* plan, int num_threads) const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(plan);
    Results results{.plan = {bytes, bytes + plan->num_bytes},
                    .out = std::vector<float>(q_.size()),
                    .lse = std::vector<float>(q_.size() / model_.shape.head_dim_qk)};
    const int64_t row = model_.shape.head_dim_qk;
    const PagedTensor kv{.data = kv_.data(),
                         .page_stride = page_elements(),
                         .token_stride = kNumKvHeads * row,
                         .head_stride = row};
    execute_plan(plan,
                 {.dtype = model_.shape.dtype,
                  .q = q_.data(),
                  .q_token_stride = kNumQoHeads * row,
                  .q_head_stride = row,
                  .k = kv,
                  .v = kv,
                  .num_pages = kv_indptr_.back(),
                  .out = results.out.data(),
                  .out_token_stride = kNumQoHeads * row,
                  .out_head_stride = row,
                  .num_rows = qo_indptr_.back(),
                  .lse = results.lse.data()},
                 num_threads);
    return results;
  }

 private:
  int64_t page_elements() const {
    return int64_t{model_.shape.page_size} * kNumKvHeads * model_.shape.head_dim_qk;
  }

  const Model& model_;
  std::vector<int32_t> qo_indptr_{0};
  std::vector<int32_t> kv_indptr_{0};
  std::vector<int32_t> kv_len_arr_;
  std::vector<int32_t> kv_indices_;
  std::vector<float> q_;
  std::vector<float> kv_;
};

struct Case {
  Step step;
  std::vector<Block> buffer;  ///< of the plan that threads share
  const PlanHeader* plan;
  Results expected;
};

}  // namespace

int main() {
  const Model models[] = {Model(16), Model(3)};
  std::vector<Case> cases;
  for (const Model& model : models) {
    for (const auto& requests : kBatches) {
      Case& made = cases.emplace_back(
          Case{.step = Step(model, requests), .buffer = {}, .plan = nullptr, .expected = {}});
      made.plan = made.step.plan(made.buffer);
      made.expected = made.step.execute(made.plan, 1);
    }
  }
  const auto num_split = std::count_if(cases.begin(), cases.end(),
                                       [](const Case& one) { return one.plan->num_split_tiles > 0; });
  if (num_split < 4) {
    std::cerr << "only " << num_split << " plans have splits: merges would go untested\n";
    return 1;
  }

  std::atomic<int> num_wrong = 0;
  std::latch start(kNumThreads);
  const auto work = [&](int thread) {
    std::vector<Block> buffer;
    start.arrive_and_wait();
    for (int round = 0; round < kNumRounds; ++round) {
      // In turns: all threads the same batch, in plans of their own, and each another, in plans that they
      // share.
      const bool is_own = round % 2 == 0;
      const Case& one = cases[(round / 2 + (is_own ? 0 : thread)) % cases.size()];
      const PlanHeader* own = one.step.plan(buffer);
      num_wrong += one.step.execute(is_own ? own : one.plan, is_own ? 2 : 1) != one.expected;
      num_wrong += std::memcmp(own, one.plan, own->num_bytes) != 0;
    }
  };
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < kNumThreads; ++thread) threads.emplace_back(work, thread);
  threads.clear();
  std::cout << num_wrong << " plans and results of " << kNumRounds * kNumThreads << " differ\n";
  return num_wrong == 0 ? 0 : 1;
}
