// Asking for memory before it is needed.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace kimivl {

// Memory that will be read soon, asked for a few lines at a time: so many at once would find no
// places for lines under way.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const void* start, int64_t bytes) : next_(static_cast<const char*>(start)), left_(bytes) {}

  void ask(int64_t lines) {
    if (left_ <= 0) return;
    for (int64_t i = 0; i < lines; ++i) _mm_prefetch(next_ + i * 64, _MM_HINT_T1);
    next_ += lines * 64;
    left_ -= lines * 64;
  }

 private:
  const char* next_ = nullptr;
  int64_t left_ = 0;
};

}  // namespace kimivl
