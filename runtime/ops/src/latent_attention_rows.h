// What the instruction sets share: a task of attention, and where its result goes.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>

#include "latent_attention.h"

namespace kimivl {

// A row is one head of one query, counted through: row = query * heads + head.
struct LatentTask {
  const LatentShape& shape;
  const float* query;  // (rows, rank + rope)
  const CachedTokens& cache;
  int64_t length;  // tokens in the cache before the first query's own

  int64_t width() const { return shape.rank + shape.rope; }
  int64_t groups() const { return shape.rank / shape.group; }
  // Scores are powers of two, which are cheaper than powers of e.
  float score_scale() const { return shape.scale * 1.44269504088896341f; }
  int64_t visible(int64_t row) const { return length + row / shape.heads + 1; }
};

struct Range {
  int64_t first;
  int64_t last;  // exclusive

  int64_t count() const { return last - first; }
};

// The softmax over some of the tokens, not divided yet. Below, `weight` is 2^(score - peak).
struct PartialRows {
  float* mixed;  // (rows, rank): sums of weight * token
  float* peaks;  // (rows): a bound of the scores that were met
  float* sums;   // (rows): sums of weight; NaN where anything that was met is not finite
};

// Stands for "no token yet": below every score, and finite, so that differences are numbers.
constexpr float kNoPeak = -1e30f;

// What a score gets added if its token cannot be trusted. The scale itself becomes 0 then: times
// the zero weight of a token that a row may not see, NaN would reach that row.
inline float taint_of(float scale) {
  return std::isfinite(scale) ? 0.0f : std::numeric_limits<float>::quiet_NaN();
}

using AttendRows = void (*)(const LatentTask& task, Range rows, Range tokens,
                            const PartialRows& out);

// For groups of whole 64 channels.
void attend_rows_amx(const LatentTask& task, Range rows, Range tokens, const PartialRows& out);
void attend_rows_avx512(const LatentTask& task, Range rows, Range tokens, const PartialRows& out);
void attend_rows_avx2(const LatentTask& task, Range rows, Range tokens, const PartialRows& out);
void attend_rows_plain(const LatentTask& task, Range rows, Range tokens, const PartialRows& out);

// Memory that a thread keeps between calls, handed out in pieces for whole cache lines.
class Arena {
 public:
  // Give everything back; `bytes` is what the pieces until the next reset take together.
  void reset(size_t bytes) {
    if (bytes + kLine > size_) {
      size_ = bytes + kLine;
      memory_ = std::make_unique<char[]>(size_);
    }
    next_ = (reinterpret_cast<uintptr_t>(memory_.get()) + kLine - 1) & ~uintptr_t{kLine - 1};
  }

  template <typename T>
  T* take(int64_t count) {
    const uintptr_t piece = next_;
    next_ += bytes_of<T>(count);
    return reinterpret_cast<T*>(piece);
  }

  template <typename T>
  static size_t bytes_of(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + kLine - 1) & ~size_t{kLine - 1};
  }

 private:
  static constexpr size_t kLine = 64;
  std::unique_ptr<char[]> memory_;
  size_t size_ = 0;
  uintptr_t next_ = 0;
};

}  // namespace kimivl
