#include "pool.h"

#include <immintrin.h>

#include <algorithm>

namespace kimivl {
namespace {

constexpr int kSpins = 20000;  // about a millisecond
constexpr int kPatience = 2000;

uint32_t job_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }
uint32_t left_of(uint64_t ticket) { return static_cast<uint32_t>(ticket); }

}  // namespace

Pool& Pool::shared() {
  static Pool pool;
  return pool;
}

Pool::~Pool() { stop(); }

void Pool::resize(int threads) {
  const std::lock_guard<std::mutex> lock(run_mutex_);
  const int count = std::clamp(threads, 1, static_cast<int>(kMostThreads));
  const auto others = static_cast<size_t>(count - 1);
  if (threads_.size() == others) return;
  stop();
  num_shares_ = others + 1;
  for (size_t i = 1; i <= others; ++i) threads_.emplace_back([this, i] { work(i); });
}

void Pool::stop() {
  is_stopping_ = true;
  {
    const std::lock_guard<std::mutex> lock(sleep_mutex_);
    wake_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  is_stopping_ = false;
}

void Pool::run(Team::Task task, size_t count, void* state) {
  std::unique_lock<std::mutex> lock(run_mutex_, std::try_to_lock);
  if (!lock.owns_lock() || threads_.empty() || count < 2) {
    for (size_t index = 0; index < count; ++index) task(state, index);
    return;
  }
  const uint32_t job = job_.load() + 1;
  task_.store(task, std::memory_order_relaxed);
  state_.store(state, std::memory_order_relaxed);
  count_.store(count, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  for (size_t share = 0; share < num_shares_; ++share) {
    shares_[share].ticket.store(uint64_t{job} << 32 | (first_of(share + 1) - first_of(share)),
                                std::memory_order_release);
  }
  job_.store(job);
  if (sleeping_.load() > 0) {
    const std::lock_guard<std::mutex> guard(sleep_mutex_);
    wake_.notify_all();
  }
  do_tasks(job, 0);
  for (int spins = 0; done_.load(std::memory_order_acquire) < count; ++spins) {
    _mm_pause();
    if (spins > kPatience) std::this_thread::yield();  // the last task's thread may have no core
  }
}

size_t Pool::first_of(size_t share) const {
  return share * count_.load(std::memory_order_relaxed) / num_shares_;
}

// Begin half of the tasks that are left, unless there are none or the job is over. Every taking waits
// for all reads that are under way, so it is done a few times, not once for each task.
Pool::Taken Pool::take(Share& share, uint32_t job) {
  uint64_t ticket = share.ticket.load(std::memory_order_acquire);
  while (job_of(ticket) == job && left_of(ticket) > 0) {
    const uint32_t count = (left_of(ticket) + 1) / 2;
    if (share.ticket.compare_exchange_weak(ticket, ticket - count, std::memory_order_acq_rel)) {
      return {left_of(ticket), count};
    }
  }
  return {0, 0};
}

void Pool::do_tasks(uint32_t job, size_t self) {
  for (size_t i = 0; i < num_shares_; ++i) {
    const size_t share = (self + i) % num_shares_;
    for (Taken taken = take(shares_[share], job); taken.count > 0; taken = take(shares_[share], job)) {
      // Tasks were taken, so the job is not over and these are its own.
      const size_t first = first_of(share + 1) - taken.left;
      const Team::Task task = task_.load(std::memory_order_relaxed);
      void* state = state_.load(std::memory_order_relaxed);
      for (size_t index = first; index < first + taken.count; ++index) task(state, index);
      done_.fetch_add(taken.count, std::memory_order_acq_rel);
    }
  }
}

void Pool::work(size_t self) {
  uint32_t seen = job_.load();
  while (!is_stopping_) {
    int spins = 0;
    while (job_.load(std::memory_order_acquire) == seen && spins < kSpins) {
      _mm_pause();
      ++spins;
    }
    if (spins == kSpins) sleep(seen);
    seen = job_.load();
    do_tasks(seen, self);
  }
}

void Pool::sleep(uint32_t job) {
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  ++sleeping_;
  wake_.wait(lock, [&] { return is_stopping_ || job_.load() != job; });
  --sleeping_;
}

}  // namespace kimivl

extern "C" __attribute__((visibility("default"))) void kimivl_use_threads(int count) {
  kimivl::Pool::shared().resize(count);
}
