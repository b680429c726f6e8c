#include "kept_weights.h"

#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <new>

namespace kimivl {
namespace {

constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kChunkBytes = size_t{64} << 20;
constexpr size_t kAlignment = 64;

std::atomic<bool> packing{false};

// A stretch of memory in large pages, where the system has some.
class Chunk {
 public:
  explicit Chunk(size_t bytes) : bytes_(bytes + kLargePage) {
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    start_ = reinterpret_cast<char*>((address + kLargePage - 1) & ~(kLargePage - 1));
    madvise(start_, bytes, MADV_HUGEPAGE);
  }
  ~Chunk() { munmap(memory_, bytes_); }
  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;

  char* start() const { return start_; }

 private:
  size_t bytes_;
  void* memory_;
  char* start_;
};

struct Room {
  std::shared_ptr<Chunk> chunk;
  char* start;
};

// Take memory for one tensor; small ones share a chunk, which lives as long as any of them.
Room take(size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Chunk> shared;
  static size_t used = 0;
  bytes = (bytes + kAlignment - 1) & ~(kAlignment - 1);
  if (bytes > kChunkBytes / 2) {
    auto own = std::make_shared<Chunk>(bytes);
    return {own, own->start()};
  }
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Chunk> chunk = shared.lock();
  if (chunk == nullptr || used + bytes > kChunkBytes) {
    chunk = std::make_shared<Chunk>(kChunkBytes);
    shared = chunk;
    used = 0;
  }
  char* start = chunk->start() + used;
  used += bytes;
  return {chunk, start};
}

size_t bytes_of(const Input& value) {
  const auto count = static_cast<size_t>(value.leading(0));
  switch (value.type) {
    case Type::kFloat:
      return 4 * count;
    case Type::kFloat16:
    case Type::kBfloat16:
      return 2 * count;
    case Type::kInt64:
      return 8 * count;
    default:
      return count;
  }
}

}  // namespace

void set_packing(bool is_wanted) { packing = is_wanted; }

KeptInput::KeptInput(const Attributes& attributes, size_t index) : index_(index) {
  if (!packing || !attributes.constant(index, &value_)) return;
  const size_t bytes = bytes_of(value_);
  const Room room = take(bytes);
  std::memcpy(room.start, value_.data, bytes);
  value_.data = room.start;
  copy_ = room.chunk;
}

}  // namespace kimivl

extern "C" __attribute__((visibility("default"))) void kimivl_pack_weights(int is_wanted) {
  kimivl::set_packing(is_wanted != 0);
}
