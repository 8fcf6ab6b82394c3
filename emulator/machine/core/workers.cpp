#include "machine/core/workers.h"

#include <algorithm>

namespace l4k::emu {

void Workers::run(uint32_t threads, uint32_t count, const std::function<void(uint32_t)>& task) {
  uint32_t others = std::min(threads, count) - 1;
  auto job = std::make_shared<Job>(task, count, others);
  if (others) {
    std::lock_guard lock(mutex_);
    job_ = job;
    while (threads_.size() < others)
      threads_.emplace_back([this](const std::stop_token& stop) { join_jobs(stop); });
    offered_.notify_all();
  }
  work(*job);
  for (uint32_t done; (done = job->done) != count;) job->done.wait(done);
}

void Workers::join_jobs(const std::stop_token& stop) {
  for (;;) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock lock(mutex_);
      if (!offered_.wait(lock, stop, [&] { return job_ && job_->seats; })) return;
      --job_->seats;
      job = job_;
    }
    work(*job);
  }
}

void Workers::work(Job& job) {
  for (uint32_t i; (i = job.next++) < job.count;) {
    job.task(i);
    ++job.done;
    job.done.notify_one();
  }
}

}  // namespace l4k::emu
