// CachedAttention: from the raw projections of new tokens to the values of their heads.
//
// New rows are normalised, turned, rounded and written behind the slot's old ones; queries are
// turned and absorbed; all heads meet the int8 cache; the value half of `kv_b` comes last.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "dense_product.h"
#include "kept_weights.h"
#include "latent_attention.h"
#include "op.h"
#include "pool.h"

namespace kimivl {
namespace {

constexpr float kSmallestScale = 0x1p-24f;  // of zeros, as in the graph
constexpr int64_t kRowsOfTask = 32;

// Sizes and values of one call.
struct Sizes {
  int64_t batch, tokens, capacity;
  int64_t heads, nope, rope, rank, value, groups;

  int64_t query_size() const { return nope + rope; }
  int64_t group() const { return rank / groups; }
};

// One slot of the three cache tensors.
struct Slot {
  int8_t* codes;
  float* keys;
  float* scales;
};

// Cosines and sines of the new tokens' positions, (tokens, rope / 2) each.
struct Turns {
  std::vector<float> cosines, sines;

  void fill(const Sizes& sizes, int64_t length, const float* frequencies) {
    const int64_t half = sizes.rope / 2;
    cosines.resize(static_cast<size_t>(sizes.tokens * half));
    sines.resize(cosines.size());
    for (int64_t s = 0; s < sizes.tokens; ++s) {
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(length + s) * frequencies[i];
        cosines[static_cast<size_t>(s * half + i)] = std::cos(angle);
        sines[static_cast<size_t>(s * half + i)] = std::sin(angle);
      }
    }
  }

  // Turn neighbouring pairs of one token.
  void apply(int64_t token, int64_t rope, const float* from, float* to) const {
    const float* c = cosines.data() + token * rope / 2;
    const float* s = sines.data() + token * rope / 2;
    for (int64_t i = 0; i < rope / 2; ++i) {
      const float a = from[2 * i], b = from[2 * i + 1];
      to[2 * i] = a * c[i] - b * s[i];
      to[2 * i + 1] = b * c[i] + a * s[i];
    }
  }
};

// Round one group: codes, and the scale that they are multiples of.
float round_group(const float* values, int64_t count, int8_t* codes) {
  float most = 0;
  bool is_number = true;
  for (int64_t i = 0; i < count; ++i) {
    most = std::max(most, std::fabs(values[i]));
    is_number = is_number && std::isfinite(values[i]);
  }
  if (!is_number) {
    std::fill_n(codes, count, int8_t{1});
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float scale = std::max(most / 127.0f, kSmallestScale);
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = static_cast<int8_t>(std::nearbyint(values[i] / scale));
  }
  return scale;
}

class CachedAttention final : public Kernel {
 public:
  explicit CachedAttention(const Attributes& attributes)
      : scale_(attributes.number("scale")), epsilon_(attributes.number("epsilon")),
        key_(attributes, 3),
        value_(attributes, 4) {}

  void run(const Call& call) const override {
    const Input query = call.input(0), rows = call.input(1), norm = call.input(2);
    const Input key = key_.of(call), value = value_.of(call), frequencies = call.input(5);
    const Input lengths = call.input(9);
    const Sizes sizes = sizes_of(call, query, key, value, frequencies);
    expect(rows.last() == sizes.rank + sizes.rope && norm.last() == sizes.rank,
           "attention: rows do not fit the cache");
    auto* values = call.output_as<float>(
        0, {sizes.batch, sizes.tokens, sizes.heads * sizes.value});
    const Slot cache{static_cast<int8_t*>(written(call, 6, 1, 1)),
                     static_cast<float*>(written(call, 7, 2, 4)),
                     static_cast<float*>(written(call, 8, 3, 4))};
    const Team team = library_team();
    for (int64_t b = 0; b < sizes.batch; ++b) {
      const int64_t length = lengths.as<int64_t>()[b];
      expect(length >= 0 && length + sizes.tokens <= sizes.capacity,
             "attention: the cache has no room for the new tokens");
      const Slot slot{cache.codes + b * sizes.capacity * sizes.rank,
                      cache.keys + b * sizes.capacity * sizes.rope,
                      cache.scales + b * sizes.capacity * sizes.groups};
      thread_local Turns memory;
      Turns& turns = memory;
      turns.fill(sizes, length, frequencies.as<float>());
      const int64_t first = b * sizes.tokens;
      write_rows(sizes, rows.as<float>() + first * rows.last(), norm.as<float>(), turns, length,
                 slot);
      attend(sizes, team, query.as<float>() + first * query.last(), key, value, turns, length, slot,
             values + first * sizes.heads * sizes.value);
    }
  }

 private:
  static Sizes sizes_of(const Call& call, const Input& query, const Input& key, const Input& value,
                        const Input& frequencies) {
    const Input codes = call.input(6), scales = call.input(8);
    Sizes sizes{};
    sizes.batch = query.shape[0];
    sizes.tokens = query.shape[1];
    sizes.capacity = codes.shape[2];
    sizes.heads = key.shape[0];
    sizes.nope = key.shape[1];
    sizes.rank = key.shape[2];
    sizes.rope = 2 * frequencies.last();
    sizes.value = value.last();
    sizes.groups = scales.last();
    expect(query.last() == sizes.heads * sizes.query_size() && codes.last() == sizes.rank &&
               value.shape[1] == sizes.rank && codes.shape[0] == sizes.batch,
           "attention: shapes do not match");
    return sizes;
  }

  // The output that a cache tensor becomes; the same memory where the engine bound it so.
  static void* written(const Call& call, size_t input, size_t output, size_t bytes) {
    const Input old = call.input(input);
    void* target = call.output(output, old.shape);
    if (target != old.data) {
      std::memcpy(target, old.data, static_cast<size_t>(old.leading(0)) * bytes);
    }
    return target;
  }

  void write_rows(const Sizes& sizes, const float* rows, const float* norm, const Turns& turns,
                  int64_t length, const Slot& slot) const {
    thread_local std::vector<float> latent;
    latent.resize(static_cast<size_t>(sizes.rank));
    for (int64_t s = 0; s < sizes.tokens; ++s) {
      const float* row = rows + s * (sizes.rank + sizes.rope);
      double squares = 0;
      for (int64_t i = 0; i < sizes.rank; ++i) squares += double{row[i]} * row[i];
      const auto factor = static_cast<float>(
          1.0 / std::sqrt(squares / static_cast<double>(sizes.rank) + double{epsilon_}));
      for (int64_t i = 0; i < sizes.rank; ++i) {
        latent[static_cast<size_t>(i)] = row[i] * factor * norm[i];
      }
      const int64_t place = length + s;
      for (int64_t g = 0; g < sizes.groups; ++g) {
        slot.scales[place * sizes.groups + g] =
            round_group(latent.data() + g * sizes.group(), sizes.group(),
                        slot.codes + place * sizes.rank + g * sizes.group());
      }
      turns.apply(s, sizes.rope, row + sizes.rank, slot.keys + place * sizes.rope);
    }
  }

  void attend(const Sizes& sizes, const Team& team, const float* query, const Input& key,
              const Input& value, const Turns& turns, int64_t length, const Slot& slot,
              float* values) const {
    thread_local std::vector<float> absorbed_memory, mixed_memory;
    const int64_t row = sizes.rank + sizes.rope;
    absorbed_memory.resize(static_cast<size_t>(sizes.tokens * sizes.heads * row));
    mixed_memory.resize(static_cast<size_t>(sizes.tokens * sizes.heads * sizes.rank));
    float *absorbed = absorbed_memory.data(), *mixed = mixed_memory.data();
    const DenseWeights keys{key.data, key.type, sizes.nope, sizes.rank};
    const DenseWeights heads{value.data, value.type, sizes.rank, sizes.value};
    by_head(sizes, team, [&](int64_t head, int64_t first, int64_t count) {
      const float* from = query + (first * sizes.heads + head) * sizes.query_size();
      float* to = absorbed + (first * sizes.heads + head) * row;
      multiply_dense(keys.at(head), from, sizes.heads * sizes.query_size(), count, to,
                     sizes.heads * row);
      for (int64_t i = 0; i < count; ++i) {
        turns.apply(first + i, sizes.rope, from + i * sizes.heads * sizes.query_size() + sizes.nope,
                    to + i * sizes.heads * row + sizes.rank);
      }
    });
    const LatentShape shape{static_cast<int>(sizes.heads), static_cast<int>(sizes.rank),
                            static_cast<int>(sizes.rope), static_cast<int>(sizes.group()), scale_};
    latent_attention(shape, absorbed, {slot.codes, slot.scales, slot.keys}, length, sizes.tokens,
                     mixed, team);
    by_head(sizes, team, [&](int64_t head, int64_t first, int64_t count) {
      multiply_dense(heads.at(head), mixed + (first * sizes.heads + head) * sizes.rank,
                     sizes.heads * sizes.rank, count,
                     values + (first * sizes.heads + head) * sizes.value,
                     sizes.heads * sizes.value);
    });
  }

  // Tasks of one head and some tokens.
  template <typename Each>
  static void by_head(const Sizes& sizes, const Team& team, Each&& each) {
    const int64_t parts = (sizes.tokens + kRowsOfTask - 1) / kRowsOfTask;
    team.run(static_cast<size_t>(sizes.heads * parts), [&](size_t task) {
      const int64_t head = static_cast<int64_t>(task) / parts;
      const int64_t first = static_cast<int64_t>(task) % parts * kRowsOfTask;
      each(head, first, std::min(kRowsOfTask, sizes.tokens - first));
    });
  }

  float scale_, epsilon_;
  KeptInput key_, value_;
};

}  // namespace

OpInfo cached_attention_op() {
  return {"kimivl.cpu",
          "CachedAttention",
          {Type::kFloat, Type::kFloat, Type::kFloat, Type::kAny, Type::kAny, Type::kFloat,
           Type::kInt8, Type::kFloat, Type::kFloat, Type::kInt64},
          {Type::kFloat, Type::kInt8, Type::kFloat, Type::kFloat},
          [](const Attributes& attributes) -> Kernel* { return new CachedAttention(attributes); }};
}

}  // namespace kimivl
