// BlockExperts: the chosen and the shared experts of each token, weighed and summed.
//
// Tokens are put together by expert, so that an expert's weights are read once however many tokens
// chose it. Activations are rounded to int8 before each of the two products.

#include <algorithm>

#include "block_input.h"
#include "kept_weights.h"
#include "op.h"
#include "pool.h"
#include "product.h"
#include "rounded.h"
#include "split.h"

namespace kimivl {
namespace {

struct Weighed {
  int64_t token;
  float weight;
};

// One expert and the tokens that it gets.
struct Work {
  int64_t expert = 0;
  int64_t first = 0;  // of its rows among the inner values of all
  std::vector<Weighed> tokens;
  RoundedRows* outer = nullptr;
  RoundedRows own, inner;

  int64_t count() const { return static_cast<int64_t>(tokens.size()); }
};

// Everything of one call.
struct Batch {
  BlockWeights up, down;  // all experts one above the other
  int64_t tokens, width, inner, experts;
  std::vector<Work>& works;    // the first `used`; the others only keep their memory
  std::vector<float>& values;  // (assignments, inner)
  size_t used = 0;

  BlockWeights up_of(const Work& work) const { return up.slice(work.expert, 2 * inner); }
  BlockWeights down_of(const Work& work) const { return down.slice(work.expert, width); }
  float* inner_of(const Work& work) const { return values.data() + work.first * inner; }
};

class BlockExperts final : public Kernel {
 public:
  explicit BlockExperts(const Attributes& attributes)
      : form_(attributes),
        num_shared_(attributes.integer("num_shared")),
        up_codes_(attributes, 3),
        up_scales_(attributes, 4),
        down_codes_(attributes, 5),
        down_scales_(attributes, 6) {}

  void run(const Call& call) const override {
    const Input x = call.input(0), chosen = call.input(1), scores = call.input(2);
    const Input up_scales = up_scales_.of(call), down_scales = down_scales_.of(call);
    thread_local std::vector<Work> works;
    thread_local std::vector<float> values;
    Batch batch{block_weights(up_codes_.of(call), up_scales, form_.bits, form_.block),
                block_weights(down_codes_.of(call), down_scales, form_.bits, form_.block),
                x.leading(1), x.last(), up_scales.shape[1] / 2, up_scales.shape[0], works, values, 0};
    expect(batch.down.rows == batch.experts * batch.width, "experts: up and down do not match");
    expect(chosen.leading(0) == scores.leading(0), "experts: one score for each chosen one");
    auto* y = call.output_as<float>(0, x.shape);
    if (batch.tokens == 0) return;
    group(batch, chosen, scores);
    const Team team = library_team();
    round_outer(team, batch, x.as<float>());
    multiply_up(team, batch);
    round_inner(team, batch);
    if (batch.tokens == 1) {
      multiply_down_one(team, batch, y);
    } else {
      multiply_down(team, batch, y);
    }
  }

 private:
  // Put tokens together by expert; experts without any are left out.
  void group(Batch& batch, const Input& chosen, const Input& scores) const {
    const int64_t per_token = chosen.last(), routed = batch.experts - num_shared_;
    thread_local std::vector<int64_t> place;
    place.assign(static_cast<size_t>(batch.experts), -1);
    const auto add = [&](int64_t expert, int64_t token, float weight) {
      int64_t& index = place[static_cast<size_t>(expert)];
      if (index < 0) {
        index = static_cast<int64_t>(batch.used++);
        if (batch.works.size() < batch.used) batch.works.emplace_back();
        batch.works[static_cast<size_t>(index)].expert = expert;
        batch.works[static_cast<size_t>(index)].tokens.clear();
      }
      batch.works[static_cast<size_t>(index)].tokens.push_back({token, weight});
    };
    for (int64_t token = 0; token < batch.tokens; ++token) {
      for (int64_t i = token * per_token; i < (token + 1) * per_token; ++i) {
        const int64_t expert = chosen.as<int64_t>()[i];
        expect(expert >= 0 && expert < routed, "experts: there is no such expert");
        add(expert, token, scores.as<float>()[i]);
      }
      for (int64_t shared = routed; shared < batch.experts; ++shared) add(shared, token, 1.0f);
    }
    int64_t total = 0;
    for (size_t index = 0; index < batch.used; ++index) {
      batch.works[index].first = total;
      total += batch.works[index].count();
    }
    batch.values.resize(static_cast<size_t>(total * batch.inner));
  }

  // Round what meets the first product; a single token is rounded once for all its experts.
  void round_outer(const Team& team, const Batch& batch, const float* x) const {
    const RoundingShape shape = RoundingShape::meeting(batch.up, batch.width);
    const auto fill = [&](Work& work) {
      work.outer = &work.own;
      work.own.reset(shape, work.count());
      for (int64_t i = 0; i < work.count(); ++i) {
        work.own.fill(i, x + work.tokens[static_cast<size_t>(i)].token * batch.width);
      }
    };
    if (batch.tokens > 1) {
      team.run(batch.used, [&](size_t index) { fill(batch.works[index]); });
      return;
    }
    fill(batch.works[0]);
    for (size_t i = 0; i < batch.used; ++i) batch.works[i].outer = &batch.works[0].own;
  }

  void multiply_up(const Team& team, const Batch& batch) const {
    const BlockWeights one = batch.up.slice(0, 2 * batch.inner);
    const OutputSplit few(one, true), many(one, false);
    run_split(team, batch, few, many, [&](Work& work, Range range) {
      thread_local std::vector<float> pairs;
      const int64_t size = range.last - range.first;
      pairs.resize(static_cast<size_t>(work.count() * size));
      multiply(batch.up_of(work), range.first, range.last, *work.outer, pairs.data(), size);
      for (int64_t row = 0; row < work.count(); ++row) {
        float* inner = batch.inner_of(work) + row * batch.inner + range.first / 2;
        product_functions().swiglu(pairs.data() + row * size, size / 2, inner);
      }
    });
  }

  // One task for each expert and range of its outputs.
  template <typename Each>
  static void run_split(const Team& team, const Batch& batch, const OutputSplit& few,
                        const OutputSplit& many, Each&& each) {
    thread_local std::vector<std::pair<size_t, size_t>> memory;
    auto& tasks = memory;
    tasks.clear();
    for (size_t w = 0; w < batch.used; ++w) {
      const OutputSplit& split = batch.works[w].outer->is_few() ? few : many;
      for (size_t part = 0; part < split.tasks(); ++part) tasks.emplace_back(w, part);
    }
    team.run(tasks.size(), [&](size_t index) {
      Work& work = batch.works[tasks[index].first];
      each(work, (work.outer->is_few() ? few : many).range(tasks[index].second));
    });
  }

  void round_inner(const Team& team, const Batch& batch) const {
    const RoundingShape shape = RoundingShape::meeting(batch.down, batch.inner);
    team.run(batch.used, [&](size_t index) {
      Work& work = batch.works[index];
      work.inner.reset(shape, work.count());
      for (int64_t i = 0; i < work.count(); ++i) {
        work.inner.fill(i, batch.inner_of(work) + i * batch.inner);
      }
    });
  }

  // A single token: experts one behind the other as they lie in memory, in tasks so small that
  // threads end together; then their sum.
  static void multiply_down_one(const Team& team, const Batch& batch, float* y) {
    const OutputSplit split(batch.down.slice(0, batch.width), true);
    thread_local std::vector<float> memory;
    memory.resize(batch.used * static_cast<size_t>(batch.width));
    float* parts = memory.data();  // of this thread, for all of the team
    team.run(batch.used * split.tasks(), [&](size_t task) {
      const size_t index = task / split.tasks();
      const Work& work = batch.works[index];
      const Range range = split.range(task % split.tasks());
      multiply(batch.down_of(work), range.first, range.last, work.inner,
               parts + static_cast<int64_t>(index) * batch.width + range.first, batch.width);
    });
    std::fill_n(y, batch.width, 0.0f);
    for (size_t index = 0; index < batch.used; ++index) {
      const float weight = batch.works[index].tokens[0].weight;
      const float* part = parts + static_cast<int64_t>(index) * batch.width;
      for (int64_t i = 0; i < batch.width; ++i) y[i] += weight * part[i];
    }
  }

  // One task for each range of outputs, which goes through all experts: no two write to one place.
  void multiply_down(const Team& team, const Batch& batch, float* y) const {
    const BlockWeights one = batch.down.slice(0, batch.width);
    const OutputSplit split(one, batch.tokens == 1);
    team.run(split.tasks(), [&](size_t task) {
      const Range range = split.range(task);
      const int64_t size = range.last - range.first;
      thread_local std::vector<float> part;
      for (int64_t token = 0; token < batch.tokens; ++token) {
        std::fill_n(y + token * batch.width + range.first, size, 0.0f);
      }
      for (size_t index = 0; index < batch.used; ++index) {
        const Work& work = batch.works[index];
        part.resize(static_cast<size_t>(work.count() * size));
        multiply(batch.down_of(work), range.first, range.last, work.inner, part.data(), size);
        for (int64_t row = 0; row < work.count(); ++row) {
          const Weighed& weighed = work.tokens[static_cast<size_t>(row)];
          float* target = y + weighed.token * batch.width + range.first;
          const float* source = part.data() + row * size;
          for (int64_t i = 0; i < size; ++i) target[i] += weighed.weight * source[i];
        }
      }
    });
  }

  BlockForm form_;
  int64_t num_shared_;
  KeptInput up_codes_, up_scales_, down_codes_, down_scales_;
};

}  // namespace

OpInfo block_experts_op() {
  return {"kimivl.cpu",
          "BlockExperts",
          {Type::kFloat, Type::kInt64, Type::kFloat, Type::kUint8, Type::kAny, Type::kUint8,
           Type::kAny},
          {Type::kFloat},
          [](const Attributes& attributes) -> Kernel* { return new BlockExperts(attributes); }};
}

}  // namespace kimivl
