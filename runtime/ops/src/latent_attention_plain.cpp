// Attention over the latent cache with whatever every x86-64 or other processor has.
#include "latent_attention_rows.h"

namespace kimivl {
namespace {

constexpr int kLanes = 4;
using Lanes = float __attribute__((vector_size(kLanes * 4), may_alias));
using IntLanes = int32_t __attribute__((vector_size(kLanes * 4), may_alias));

inline void add_product(Lanes& sum, const Lanes& first, float second) {
  sum += first * second;
}

}  // namespace
}  // namespace kimivl

#include "latent_attention_float.h"

namespace kimivl {

void attend_rows_plain(const LatentTask& task, Range rows, Range tokens, const PartialRows& out) {
  attend_rows(task, rows, tokens, out);
}

}  // namespace kimivl
