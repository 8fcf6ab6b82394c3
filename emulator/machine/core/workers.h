// Host threads that outlive the work they are given.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace l4k::emu {

class Workers {
 public:
  // Calls task(0) to task(count - 1), each once, on up to this many threads: the caller's is one of
  // them, and does all of it where there are no others (after a fork). Returns when all are done.
  void run(uint32_t threads, uint32_t count, const std::function<void(uint32_t)>& task);

 private:
  struct Job {
    const std::function<void(uint32_t)>& task;
    const uint32_t count;
    uint32_t seats;  // for threads that may still join
    std::atomic<uint32_t> next{0}, done{0};
  };
  void join_jobs(const std::stop_token& stop);
  static void work(Job& job);

  std::mutex mutex_;
  std::condition_variable_any offered_;
  std::shared_ptr<Job> job_;
  std::vector<std::jthread> threads_;  // last: they end before what they use
};

}  // namespace l4k::emu
