// Attention over the latent cache, divided among threads: tiles of rows, and tokens where rows are
// few. What the parts found is merged afterwards.
#include "latent_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa.h"
#include "latent_attention_rows.h"

namespace kimivl {
namespace {

// Rows that share a pass over the tokens: their sums (2 KiB a row) stay in the second-level cache.
constexpr int64_t kMostRows = 128;
constexpr int64_t kFewestTokens = 256;  // below, a part costs more than it saves

AttendRows best_attend_rows(const LatentShape& shape) {
  switch (best_isa()) {
    case Isa::kAmx:
      if (shape.group % 64 == 0) return attend_rows_amx;
      [[fallthrough]];
    case Isa::kAvx512:
      return attend_rows_avx512;
    case Isa::kAvx2:
      return attend_rows_avx2;
    default:
      return attend_rows_plain;
  }
}

// Which part does what: `row_parts` times `token_parts` of equal size.
struct Division {
  int64_t rows;
  int64_t tokens;
  int64_t rows_each;
  int64_t tokens_each;

  Division(int64_t num_rows, int64_t num_tokens, int64_t wanted_parts)
      : rows(num_rows), tokens(num_tokens) {
    rows_each = std::min(kMostRows, rows);
    const int64_t wanted = (wanted_parts + row_parts() - 1) / row_parts();
    const int64_t possible = std::max<int64_t>(1, tokens / kFewestTokens);
    const int64_t parts = std::min(wanted, possible);
    tokens_each = ((tokens + parts - 1) / parts + 63) / 64 * 64;
  }
  int64_t row_parts() const { return (rows + rows_each - 1) / rows_each; }
  int64_t token_parts() const { return (tokens + tokens_each - 1) / tokens_each; }
  Range row_range(int64_t part) const { return range(part, rows_each, rows); }
  Range token_range(int64_t part) const { return range(part, tokens_each, tokens); }

 private:
  static Range range(int64_t part, int64_t each, int64_t count) {
    return {part * each, std::min(count, (part + 1) * each)};
  }
};

// The results of all parts: each has all rows, of some tokens.
struct Parts {
  int64_t rows;
  int64_t rank;
  int64_t count;
  float* mixed;
  float* peaks;
  float* sums;

  PartialRows at(int64_t part, int64_t row) const {
    const int64_t index = part * rows + row;
    return {mixed + index * rank, peaks + index, sums + index};
  }
};

// Bring one row's parts under a common peak, add them up and divide.
void merge_row(const Parts& parts, int64_t row, float* mixed) {
  float peak = kNoPeak;
  for (int64_t i = 0; i < parts.count; ++i) peak = std::max(peak, *parts.at(i, row).peaks);
  float sum = 0;
  for (int64_t i = 0; i < parts.count; ++i) {
    const PartialRows part = parts.at(i, row);
    sum += *part.sums * std::exp2(*part.peaks - peak);
  }
  for (int64_t i = 0; i < parts.count; ++i) {
    const PartialRows part = parts.at(i, row);
    const float share = std::exp2(*part.peaks - peak) / sum;
    for (int64_t c = 0; c < parts.rank; ++c) {
      mixed[c] = part.mixed[c] * share + (i > 0 ? mixed[c] : 0.0f);
    }
  }
}

Parts take_parts(Arena& arena, int64_t rows, int64_t rank, int64_t count, float* mixed) {
  const int64_t total = rows * count;
  const int64_t values = count > 1 ? total * rank : 0;
  arena.reset(Arena::bytes_of<float>(values) + 2 * Arena::bytes_of<float>(total));
  float* sums = arena.take<float>(total);
  float* peaks = arena.take<float>(total);
  return {rows, rank, count, count > 1 ? arena.take<float>(values) : mixed, peaks, sums};
}

}  // namespace

void latent_attention(const LatentShape& shape, const float* query, const CachedTokens& cache,
                      int64_t length, int64_t num_queries, float* mixed, const Team& team) {
  if (num_queries == 0) return;
  const AttendRows attend_rows = best_attend_rows(shape);
  thread_local Arena arena;
  const LatentTask task{shape, query, cache, length};
  const Division division(num_queries * shape.heads, length + num_queries,
                          team.threads());
  const int64_t token_parts = division.token_parts();
  const Parts parts = take_parts(arena, division.rows, shape.rank, token_parts, mixed);
  team.run(static_cast<size_t>(division.row_parts() * token_parts), [&](size_t index) {
    const auto part = static_cast<int64_t>(index) % token_parts;
    const Range rows = division.row_range(static_cast<int64_t>(index) / token_parts);
    const PartialRows out = parts.at(part, rows.first);
    attend_rows(task, rows, division.token_range(part), out);
    if (token_parts > 1) return;
    for (int64_t row = rows.first; row < rows.last; ++row) {
      merge_row(parts, row, mixed + row * shape.rank);
    }
  });
  if (token_parts == 1) return;
  team.run(static_cast<size_t>((division.rows + 3) / 4), [&](size_t index) {
    const auto first = static_cast<int64_t>(index) * 4;
    for (int64_t row = first; row < std::min(division.rows, first + 4); ++row) {
      merge_row(parts, row, mixed + row * shape.rank);
    }
  });
}

}  // namespace kimivl
