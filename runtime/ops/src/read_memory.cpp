// Reads memory and does nothing else: what a machine's memory gives is the roof over decoding.

#include <cstddef>
#include <cstdint>

namespace {

using Line = uint64_t __attribute__((vector_size(64)));

constexpr size_t kLines = 2;  // of a step
constexpr size_t kAhead = 8;  // lines that are asked for before: a fifth more than without

// Wide registers: with narrow ones fewer lines are under way at a time.
__attribute__((target_clones("avx512f", "avx2", "default"))) uint64_t read_lines(const void* from,
                                                                                 size_t count) {
  const Line* lines = static_cast<const Line*>(from);
  Line sums[kLines] = {};
  for (size_t i = 0; i < count; i += kLines) {
    for (size_t k = 0; k < kLines; ++k) {
      __builtin_prefetch(lines + i + k + kAhead);
      sums[k] ^= lines[i + k];
    }
  }
  uint64_t sum = 0;
  for (const Line& line : sums) {
    for (size_t lane = 0; lane < 8; ++lane) sum ^= line[lane];
  }
  return sum;
}

}  // namespace

// Read whole lines behind an address where one begins, on this thread. What is returned depends on
// all that was read, so that no compiler drops it.
extern "C" __attribute__((visibility("default"))) uint64_t kimivl_read_memory(const void* from,
                                                                              size_t bytes) {
  return read_lines(from, bytes / sizeof(Line) / kLines * kLines);
}
