// The threads that share an op's work.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kimivl {

// Runs tasks on some threads; kernels know no more of them.
class Team {
 public:
  using Task = void (*)(void* state, size_t index);
  using Runner = void (*)(void* context, Task task, size_t count, void* state);

  Team(Runner runner, void* context, int64_t threads)
      : runner_(runner), context_(context), threads_(threads) {}

  // How many threads there are, the caller's among them.
  int64_t threads() const { return threads_; }

  // Calls work(index) for each index below count, in any order and on any thread; then returns.
  template <typename Work>
  void run(size_t count, Work&& work) const {
    if (count == 1) {
      work(size_t{0});
      return;
    }
    auto* state = const_cast<void*>(static_cast<const void*>(&work));
    runner_(context_, [](void* s, size_t i) { (*static_cast<Work*>(s))(i); }, count, state);
  }

 private:
  Runner runner_;
  void* context_;
  int64_t threads_;
};

}  // namespace kimivl
