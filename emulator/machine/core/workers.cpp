#include "machine/core/workers.h"

#include <thread>

namespace l4k::emu {

void Workers::run(uint32_t threads, uint32_t count, const std::function<void(uint32_t)>& task) {
  uint32_t others = std::min(threads, count) - 1;
  auto job = std::make_shared<Job>(task, count, others);
  if (others) {
    std::lock_guard lock(mutex_);
    job_ = job;
    // Never joined: they wait for the next job until the process ends.
    for (; threads_ < others; ++threads_) std::thread([this] { join_jobs(); }).detach();
    offered_.notify_all();
  }
  work(*job);
  for (uint32_t done; (done = job->done) != count;) job->done.wait(done);
}

void Workers::join_jobs() {
  for (;;) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock lock(mutex_);
      offered_.wait(lock, [&] { return job_ && job_->seats; });
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
