// Attention over the int8 latent cache, absorbed: queries meet the codes as they are.
#pragma once

#include <cstdint>

#include "team.h"

namespace kimivl {

// One slot's cache of one layer. A cached token is R codes in groups, a scale for each group, and
// its rotated key.
struct CachedTokens {
  const int8_t* codes;  // (T, rank)
  const float* scales;  // (T, rank / group)
  const float* keys;    // (T, rope)
};

struct LatentShape {
  int heads;
  int rank;
  int rope;
  int group;  // of 16, 32, 64, 128
  float scale;
};

// Attend causally: of S queries, number s sees the first `length + s + 1` tokens.
//
// query is (S, heads, rank + rope), mixed (S, heads, rank).
void latent_attention(const LatentShape& shape, const float* query, const CachedTokens& cache,
                      int64_t length, int64_t num_queries, float* mixed, const Team& team);

}  // namespace kimivl
