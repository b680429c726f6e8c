// Tile registers: eight of up to 16 rows of 64 bytes, and what is done with them.
//
// The instructions are written out: GCC's own functions do not say that a load reads memory, so that
// it moves stores behind them.
#pragma once

#include <cstdint>
#include <type_traits>

namespace kimivl {

// Makes all eight registers 16 rows of 64 bytes on this thread, as long as it lives. Afterwards the
// thread has no tiles: the system would save and load them whenever it runs another.
class TileRegisters {
 public:
  TileRegisters() {
    Shape shape;
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
  }
  ~TileRegisters() { __asm__ volatile("tilerelease"); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  struct alignas(64) Shape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
};

constexpr int64_t kTileBytes = 1024;

template <int tile>
inline void load_tile(const void* from, int64_t stride_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride_bytes), "i"(tile)
                   : "memory");
}

template <int tile>
inline void store_tile(void* to, int64_t stride_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride_bytes), "i"(tile)
                   : "memory");
}

template <int tile>
inline void clear_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
}

// sums (16, 16) += first (16, 64) @ second, of which four rows are one: (64 / 4, 16, 4). The names
// say which factor's bytes have a sign.
template <int sums, int first, int second>
inline void add_signed_signed() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(first), "i"(second));
}

template <int sums, int first, int second>
inline void add_unsigned_signed() {
  __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(first), "i"(second));
}

// The same of bfloat16: first (16, 32), second (32 / 2, 16, 2), sums of fp32.
template <int sums, int first, int second>
inline void add_bfloat16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(first), "i"(second));
}

// The first of two tile registers, for a function that is made for each.
template <int tile>
using First = std::integral_constant<int, tile>;

// A step that is known by its number.
struct Counter {
  int64_t index = 0;

  void advance() { ++index; }
};

// Do `count` steps, each of which multiplies into two tile registers, stores them and uses what was
// stored. A store waits for its products, and products for the stores before them: so a step's
// store comes behind the products of the next, in two other registers.
template <typename Step, typename Multiply, typename Store, typename Use>
inline void in_steps(int64_t count, Step step, Multiply&& multiply, Store&& store, Use&& use) {
  Step before = step, last = step;
  for (int64_t i = 0; i < count + 2; ++i) {
    const bool is_odd = i % 2 != 0;
    if (i < count) is_odd ? multiply(First<2>(), step) : multiply(First<0>(), step);
    if (i > 0 && i <= count) is_odd ? store(First<0>(), before) : store(First<2>(), before);
    if (i > 1) is_odd ? use(First<2>(), last) : use(First<0>(), last);
    last = before;
    before = step;
    step.advance();
  }
}

}  // namespace kimivl
