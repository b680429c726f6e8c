// Asking for memory before it is needed.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace kimivl {

// A stream of memory is read to the end of a line here: ask for lines of it into the second cache so
// early that a page's first ones are on their way before the processor's own prefetching could know
// of the page, and from there into the first cache.
inline void ask_ahead(const void* place) {
  constexpr int64_t kFarAhead = 6144, kAhead = 1024;  // bytes
  const char* next = static_cast<const char*>(place);
  _mm_prefetch(next + kFarAhead, _MM_HINT_T1);
  _mm_prefetch(next + kAhead, _MM_HINT_T0);
}

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
