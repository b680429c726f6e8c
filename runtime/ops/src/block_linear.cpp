// BlockLinear: y = x @ W, W in blocks, x rounded to int8 in the same blocks.

#include "block_input.h"
#include "kept_weights.h"
#include "op.h"
#include "pool.h"
#include "product.h"
#include "rounded.h"
#include "split.h"

namespace kimivl {
namespace {

class BlockLinear final : public Kernel {
 public:
  explicit BlockLinear(const Attributes& attributes)
      : form_(attributes), codes_(attributes, 1), scales_(attributes, 2) {}

  void run(const Call& call) const override {
    const Input x = call.input(0);
    const BlockWeights weights =
        block_weights(codes_.of(call), scales_.of(call), form_.bits, form_.block);
    expect(x.last() <= weights.width && weights.width - x.last() < form_.block,
           "x and the weights have other widths");
    std::vector<int64_t> shape = x.shape;
    shape.back() = weights.rows;
    float* y = call.output_as<float>(0, shape);
    const int64_t count = x.leading(1);
    if (count == 0) return;
    thread_local RoundedRows rounded;
    RoundedRows& rows = rounded;  // of this thread, for all of the team
    const Team team = library_team();
    rows.reset(RoundingShape::meeting(weights, x.last()), count);
    round_rows(team, rows, x.as<float>(), x.last());
    const OutputSplit split(weights, rows.is_few());
    team.run(split.tasks(), [&](size_t task) {
      const Range range = split.range(task);
      multiply(weights, range.first, range.last, rows, y + range.first, weights.rows);
    });
  }

 private:
  BlockForm form_;
  KeptInput codes_, scales_;
};

}  // namespace

OpInfo block_linear_op() {
  return {"kimivl.cpu",
          "BlockLinear",
          {Type::kFloat, Type::kUint8, Type::kAny},
          {Type::kFloat},
          [](const Attributes& attributes) -> Kernel* { return new BlockLinear(attributes); }};
}

}  // namespace kimivl
