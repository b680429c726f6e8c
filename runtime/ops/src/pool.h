// The threads of the library, shared by all sessions of a process.
//
// ONNX Runtime gives each session threads of its own, which sleep while another session runs. A
// token goes through some thirty sessions; waking threads for each costs more than a tenth of it.
// Here a thread that finds nothing to do spins for a moment, then sleeps. Nobody waits for a thread
// that has not begun a task: where another program holds its core, the others do the work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "team.h"

namespace kimivl {

class Pool {
 public:
  static Pool& shared();

  // Use so many threads, the caller's among them, from the next run on.
  void resize(int threads);

  // Run task(state, index) for each index below count; then return. A second caller at the same
  // time does all of its tasks alone.
  void run(Team::Task task, size_t count, void* state);

  int64_t threads() const { return static_cast<int64_t>(num_shares_.load()); }

  ~Pool();

 private:
  // A stretch of a job's tasks, one for each thread, which begins with its own: neighbouring tasks
  // read neighbouring memory. The ticket has the job's number in its high half and the tasks that
  // nobody has begun in the low one, so that a thread that comes late cannot take a task of a later
  // job for one of its own.
  struct alignas(64) Share {
    std::atomic<uint64_t> ticket{0};
  };
  // The first `count` of the `left` tasks that nobody had begun.
  struct Taken {
    size_t left, count;
  };
  static constexpr size_t kMostThreads = 64;

  void work(size_t self);
  void stop();
  Taken take(Share& share, uint32_t job);
  void do_tasks(uint32_t job, size_t self);
  void sleep(uint32_t job);
  size_t first_of(size_t share) const;

  std::vector<std::thread> threads_;
  std::mutex run_mutex_;
  Share shares_[kMostThreads];
  std::atomic<size_t> num_shares_{1};
  alignas(64) std::atomic<uint32_t> job_{0};
  alignas(64) std::atomic<size_t> done_{0};
  std::atomic<Team::Task> task_{nullptr};
  std::atomic<void*> state_{nullptr};
  std::atomic<size_t> count_{0};
  std::atomic<bool> is_stopping_{false};
  std::atomic<int> sleeping_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

// The shared pool, as kernels see it.
inline Team library_team() {
  return Team([](void*, Team::Task task, size_t count,
                 void* state) { Pool::shared().run(task, count, state); },
              nullptr, Pool::shared().threads());
}

}  // namespace kimivl
