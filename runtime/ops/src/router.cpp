// Router: sigmoid scores, chosen by score plus bias, weighed by score alone; all in fp32.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kept_weights.h"
#include "op.h"
#include "pool.h"

namespace kimivl {
namespace {

constexpr int64_t kPart = 256;  // channels that are summed at a time

// sums[e] = sum over some channels of x[c] * weight[c][e]
__attribute__((target_clones("avx512f", "avx2", "default"))) void add_channels(
    const float* x, const float* weight, int64_t channels, int64_t experts, float* sums) {
  std::fill(sums, sums + experts, 0.0f);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t e = 0; e < experts; ++e) sums[e] += x[c] * weight[c * experts + e];
  }
}

class Router final : public Kernel {
 public:
  explicit Router(const Attributes& attributes)
      : k_(attributes.integer("k")),
        scale_(attributes.number("scale")),
        normalize_(attributes.integer("normalize") != 0),
        weight_(attributes, 1) {}

  void run(const Call& call) const override {
    const Input hidden = call.input(0), weight = weight_.of(call), bias = call.input(2);
    const int64_t rows = hidden.leading(1), width = hidden.last(), experts = weight.last();
    expect(weight.leading(1) == width && bias.last() == experts, "router: shapes do not match");
    expect(k_ <= experts, "router: fewer experts than are chosen");
    auto* chosen = call.output_as<int64_t>(0, {rows, k_});
    auto* scores = call.output_as<float>(1, {rows, k_});
    const int64_t parts = (width + kPart - 1) / kPart;
    thread_local std::vector<float> memory;
    memory.resize(static_cast<size_t>(rows * parts * experts));
    float* sums = memory.data();
    const Team team = library_team();
    const float* x = hidden.as<float>();
    team.run(static_cast<size_t>(rows * parts), [&](size_t task) {
      const auto row = static_cast<int64_t>(task) / parts, part = static_cast<int64_t>(task) % parts;
      const int64_t first = part * kPart;
      add_channels(x + row * width + first, weight.as<float>() + first * experts,
                   std::min(kPart, width - first), experts,
                   sums + static_cast<int64_t>(task) * experts);
    });
    for (int64_t row = 0; row < rows; ++row) {
      choose(sums + row * parts * experts, parts, bias.as<float>(), experts, chosen + row * k_,
             scores + row * k_);
    }
  }

 private:
  // Take the best of one token; of equal ones the lowest. `sums` is used up.
  void choose(float* sums, int64_t parts, const float* bias, int64_t experts, int64_t* chosen,
              float* scores) const {
    thread_local std::vector<float> biased;
    thread_local std::vector<int64_t> order;
    biased.resize(static_cast<size_t>(experts));
    order.resize(static_cast<size_t>(experts));
    for (int64_t e = 0; e < experts; ++e) {
      float logit = sums[e];
      for (int64_t part = 1; part < parts; ++part) logit += sums[part * experts + e];
      sums[e] = 1.0f / (1.0f + std::exp(-logit));
      biased[static_cast<size_t>(e)] = sums[e] + bias[e];
    }
    std::iota(order.begin(), order.end(), int64_t{0});
    std::partial_sort(order.begin(), order.begin() + k_, order.end(), [&](int64_t a, int64_t b) {
      const float first = biased[static_cast<size_t>(a)], second = biased[static_cast<size_t>(b)];
      return first > second || (first == second && a < b);
    });
    float total = 0;
    for (int64_t i = 0; i < k_; ++i) total += sums[order[static_cast<size_t>(i)]];
    const float divisor = normalize_ ? total + 1e-20f : 1.0f;
    for (int64_t i = 0; i < k_; ++i) {
      chosen[i] = order[static_cast<size_t>(i)];
      scores[i] = sums[chosen[i]] / divisor * scale_;
    }
  }

  int64_t k_;
  float scale_;
  bool normalize_;
  KeptInput weight_;
};

}  // namespace

OpInfo router_op() {
  return {"kimivl",
          "Router",
          {Type::kFloat, Type::kFloat, Type::kFloat},
          {Type::kInt64, Type::kFloat},
          [](const Attributes& attributes) -> Kernel* { return new Router(attributes); }};
}

}  // namespace kimivl
