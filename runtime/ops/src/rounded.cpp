#include "rounded.h"

#include <algorithm>
#include <cstring>

#include "product.h"

namespace kimivl {
namespace {

// Even elements of each chunk first: they meet the low nibbles of 64 bytes.
void part_evens(const int8_t* row, int64_t size, int8_t* parted) {
  for (int64_t start = 0; start < size; start += kChunk) {
    for (int64_t i = 0; i < kChunk / 2; ++i) {
      parted[start + i] = row[start + 2 * i];
      parted[start + kChunk / 2 + i] = row[start + 2 * i + 1];
    }
  }
}

}  // namespace

void RoundedRows::reset(const RoundingShape& shape, int64_t count) {
  shape_ = shape;
  count_ = count;
  const ProductFunctions& functions = product_functions();
  const bool has_panels = functions.multiply_panel != nullptr;
  const int many = functions.shape_of(shape.bits, shape.block).rows;
  tile_rows_ = count <= kFewRows || !has_panels ? 1 : many;
  codes_.resize(static_cast<size_t>(count * shape.stored()) + kSlack);
  scales_.resize(static_cast<size_t>(count * shape.blocks()));
  offsets_.resize(static_cast<size_t>(count * shape.blocks()));
}

int RoundedRows::rows_of(int64_t tile) const {
  return static_cast<int>(std::min<int64_t>(tile_rows_, count_ - tile * tile_rows_));
}

Tile RoundedRows::tile(int64_t index) const {
  const int64_t first = index * tile_rows_;
  return {rows_of(index), codes_.data() + first * shape_.stored(),
          scales_.data() + first * shape_.blocks(), offsets_.data() + first * shape_.blocks()};
}

void RoundedRows::fill(int64_t index, const float* row) {
  thread_local std::vector<int8_t> natural, parted;
  thread_local std::vector<float> scales;
  thread_local std::vector<int32_t> sums;
  const int64_t size = shape_.stored(), blocks = shape_.blocks();
  natural.assign(static_cast<size_t>(size), 0);
  scales.resize(static_cast<size_t>(blocks));
  sums.resize(static_cast<size_t>(blocks));
  product_functions().round_row(shape_, row, natural.data(), scales.data(), sums.data());
  const int8_t* ordered = natural.data();
  if (shape_.bits == 4) {
    parted.resize(static_cast<size_t>(size));
    part_evens(natural.data(), size, parted.data());
    ordered = parted.data();
  }
  const int64_t tile = index / tile_rows_, place = index % tile_rows_, rows = rows_of(tile);
  int8_t* codes = codes_.data() + tile * tile_rows_ * size;
  const int64_t first = tile * tile_rows_ * blocks;
  if (rows == 1) {
    std::memcpy(codes, ordered, static_cast<size_t>(size));
  } else {
    for (int64_t i = 0; i < size / 4; ++i) {
      std::memcpy(codes + (i * rows + place) * 4, ordered + i * 4, 4);
    }
  }
  const int zero_point = 1 << (shape_.bits - 1);
  for (int64_t block = 0; block < blocks; ++block) {
    scales_[static_cast<size_t>(first + block * rows + place)] = scales[static_cast<size_t>(block)];
    offsets_[static_cast<size_t>(first + block * rows + place)] =
        -zero_point * sums[static_cast<size_t>(block)];
  }
}

void round_rows(const Team& team, RoundedRows& rows, const float* values, int64_t width) {
  constexpr int64_t kRowsOfTask = 8;
  const auto tasks = static_cast<size_t>((rows.count() + kRowsOfTask - 1) / kRowsOfTask);
  team.run(tasks, [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * kRowsOfTask;
    for (int64_t i = first; i < std::min(first + kRowsOfTask, rows.count()); ++i) {
      rows.fill(i, values + i * width);
    }
  });
}

}  // namespace kimivl
