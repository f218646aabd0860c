// The life of an engine, running programs, and asynchronous calls. waiting.cpp and control.cpp have the rest.
#include "engine.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <stdexcept>

#include "system.hpp"

namespace treering {
namespace {

constexpr size_t kLocalSegmentBytes = 64 << 10;  // of a local step; fits the L2 cache

}  // namespace

Engine::Engine(int rank, int size, uint32_t comm, uint16_t epoch, int spins)
    : rank_(rank), size_(size), comm_(comm), epoch_(epoch), spins_(spins), bytes_to_(static_cast<size_t>(size)) {
  links_.reserve(static_cast<size_t>(size));
  for (int i = 0; i < size; i++) links_.push_back(std::make_unique<Link>());
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  control_wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  if (wake_fd_ < 0 || control_wake_fd_ < 0 || epoll_fd_ < 0) {
    throw std::runtime_error("no descriptors left for a communicator: raise the limit (ulimit -n)");
  }
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u32 = static_cast<uint32_t>(size);  // no peer: the wake-up
  epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, control_wake_fd_, &event);
}

Engine::~Engine() {
  close();
  for (int fd : {wake_fd_, control_wake_fd_, epoll_fd_}) {
    if (fd >= 0) ::close(fd);
  }
}

// ---------------------------------------------------------------------------------------------------- running

FailureKind Engine::run(const std::shared_ptr<Program>& program, const std::vector<char*>& buffers, double timeout_s,
                        const std::function<bool()>& interrupted) {
  if (forked_) return FailureKind::forked;  // a thread of the parent may have held the locks, for ever
  if (jobs_pending_.load(std::memory_order_acquire) == 0 && run_mutex_.try_lock()) {
    std::lock_guard lock(run_mutex_, std::adopt_lock);
    return execute(*program, buffers, timeout_s, &interrupted);
  }
  auto job = start(program, buffers, timeout_s);  // keeps the order of the calls
  while (!wait(*job, 0.02)) {
    if (interrupted()) {
      Failure failure;
      failure.kind = FailureKind::interrupted;
      failure.culprit = rank_;
      fail(failure);
      while (!wait(*job, 1.0)) {}
    }
  }
  return job->result;
}

bool Engine::bind(Program& program) {
  for (Queue& queue : program.queues) {
    const Step& first = program.steps[queue.steps[0]];
    if (!first.sends() && !first.receives()) continue;
    std::lock_guard lock(mutex_);
    queue.lane = links_.at(static_cast<size_t>(first.peer))->lanes[first.lane].get();
    if (queue.lane == nullptr) return false;
    program.polls_by_system_call |= queue.lane->polls_by_system_call();
  }
  program.bound = true;
  return true;
}

FailureKind Engine::execute(Program& program, const std::vector<char*>& buffers, double timeout_s,
                            const std::function<bool()>* interrupted) {
  call_ = program.call;
  if (call_.point_to_point == 0) {
    uint64_t seq = begun_.load(std::memory_order_relaxed) + 1;
    call_.seq = seq;
    history_[seq % kHistory] = call_;
    begun_.store(seq, std::memory_order_release);  // pairs with the control thread's reading of history_
  }
  if (failed_.load(std::memory_order_acquire)) {
    failed_step_ = 0;
    return failure().kind;
  }
  if (!program.bound && !bind(program)) throw std::logic_error("a program ran before its lanes were connected");
  double began_s = trace_ == nullptr ? 0 : now_s();
  program.rewind();
  buffers_ = &buffers;
  if (call_.point_to_point != 0) {
    const Step& step = program.steps[0];
    Link& link = *links_[static_cast<size_t>(step.peer)];
    call_.seq = step.sends() ? ++link.messages_sent : ++link.messages_received;
  }

  traced_ = trace_ == nullptr ? nullptr : &trace_->emplace_back(program, call_, began_s);

  Wait wait{.timeout_s = timeout_s, .background = interrupted == nullptr, .interrupted = interrupted};
  uint32_t passes = 0;
  auto& active = program.active;
  while (!active.empty()) {
    bool progress = false;
    for (size_t i = 0; i < active.size();) {
      Queue& queue = program.queues[active[i]];
      bool emptied = false;
      for (;;) {
        uint32_t index = queue.steps[queue.at];
        Step& step = program.steps[index];
        progress |= advance(program, step, index, queue.lane);
        if (!step.finished) break;
        if (traced_ != nullptr) [[unlikely]] traced_->ended(index);
        if (++queue.at == queue.steps.size()) {
          emptied = true;
          break;
        }
      }
      if (emptied) {
        active[i] = active.back();
        active.pop_back();
      } else {
        i++;
      }
    }
    if (!dirty_.empty()) {
      std::atomic_thread_fence(std::memory_order_seq_cst);  // pairs with announce_sleep: one of us sees the other
      for (Lane* lane : dirty_) lane->wake_peer();
      dirty_.clear();
    }
    bool alive = true;
    if (progress) {
      if (wait.armed) announce_sleep(program, wait.armed = false);
      wait.idle = 0;
      if ((++passes & 1023) == 0) alive = look_around(program, wait, now_s());
    } else {
      alive = idle(program, wait);
    }
    if (!alive || failed_.load(std::memory_order_relaxed)) {
      if (wait.armed) announce_sleep(program, false);
      auto waiting = stuck(program);
      failed_step_ = waiting.empty() ? 0 : static_cast<uint32_t>(waiting[0] - program.steps.data());
      return failure().kind;
    }
  }
  if (wait.armed) announce_sleep(program, false);
  if (traced_ != nullptr) [[unlikely]] traced_->ended_s = now_s();
  if (call_.point_to_point == 0) ended_.store(call_.seq, std::memory_order_release);
  if (wait.last_query > 0) {
    std::lock_guard lock(mutex_);
    blames_ = -1;
  }
  return FailureKind::none;
}

// Does what can be done on a step now; true if anything moved.
bool Engine::advance(Program& program, Step& s, uint32_t index, Lane* lane) {
  const auto& buffers = *buffers_;
  uint64_t limit = program.limit(s);
  size_t element = kElementBytes[static_cast<int>(s.dtype)];
  size_t segment = lane != nullptr ? lane->segment_bytes() : kLocalSegmentBytes;
  size_t ready = static_cast<size_t>(std::min<uint64_t>(limit - std::min(limit, s.done), segment));
  size_t moved = 0;
  bool began = false;
  switch (s.kind) {
    case Kind::send: {
      const char* from = buffers[s.a_buffer] + s.a_offset;
      if (!s.started) {
        if (ready == 0 && s.bytes > 0) return false;
        s.direct = direct_for(s, from, *lane);
        Header header;
        header.comm = comm_;
        header.call = call_;
        header.payload_bytes = s.bytes;
        header.lane = s.lane;
        header.epoch = epoch_;
        header.step = index;
        header.direct = s.direct;
        if (!lane->start(header)) return false;
        s.started = began = true;
        if (traced_ != nullptr) [[unlikely]] traced_->began(index);
      }
      if (s.direct != 0) {
        began |= static_cast<ShmLane*>(lane)->offer(limit);
        moved = static_cast<ShmLane*>(lane)->taken() - s.done;
      } else {
        moved = lane->write(from + s.done, ready);
      }
      s.done += moved;
      if (s.done == s.bytes && lane->finish_write()) {
        if (s.direct != 0) static_cast<ShmLane*>(lane)->finish_offer(s.bytes);
        s.finished = true;
        auto& total = s.direct != 0 ? bytes_direct_ : bytes_sent_;
        total.store(total.load(std::memory_order_relaxed) + s.bytes, std::memory_order_relaxed);
        auto& to = bytes_to_[static_cast<size_t>(s.peer)];
        to.store(to.load(std::memory_order_relaxed) + s.bytes, std::memory_order_relaxed);
      }
      break;
    }
    case Kind::recv:
    case Kind::recv_reduce: {
      if (!s.started) {
        if (ready == 0 && s.bytes > 0) return false;
        Header header;
        if (!lane->next(header)) return false;
        if (!check(header, s)) return false;
        s.started = began = true;
        if (traced_ != nullptr) [[unlikely]] traced_->began(index);
      }
      char* out = buffers[s.out_buffer] + s.out_offset + s.done;
      if (s.kind == Kind::recv) {
        moved = lane->read(out, ready);
      } else if (auto in = lane->window(ready - ready % element, element); !in.empty()) {
        const char* local = buffers[s.a_buffer] + s.a_offset + s.done;
        moved = in.size();
        s.combine(out, s.local_first ? local : in.data(), s.local_first ? in.data() : local, moved / element);
        lane->consume(moved);
      }
      s.done += moved;
      if (s.done == s.bytes) {
        lane->finish_read();
        s.finished = true;
      }
      break;
    }
    case Kind::copy:
    case Kind::reduce:
    case Kind::divide: {
      if (s.kind != Kind::copy) ready -= ready % element;
      if (traced_ != nullptr && s.done == 0 && (ready > 0 || s.bytes == 0)) [[unlikely]] traced_->began(index);
      const char* a = buffers[s.a_buffer] + s.a_offset + s.done;
      char* out = buffers[s.out_buffer] + s.out_offset + s.done;
      if (s.kind == Kind::copy) {
        if (out != a) std::memcpy(out, a, ready);
      } else if (s.kind == Kind::divide) {
        s.divide(out, a, ready / element, program.divisor);
      } else {
        const char* b = buffers[s.b_buffer] + s.b_offset + s.done;
        s.combine(out, s.local_first ? a : b, s.local_first ? b : a, ready / element);
      }
      moved = ready;
      s.done += moved;
      s.finished = s.done == s.bytes;
      return moved > 0 || s.finished;
    }
  }
  if (moved > 0 || began || s.finished) {
    lane->publish();
    dirty_.push_back(lane);
    return true;
  }
  return false;
}

bool Engine::check(const Header& header, const Step& step) {
  Header expected;
  expected.comm = comm_;
  expected.call = call_;
  expected.payload_bytes = step.bytes;
  expected.lane = step.lane;
  expected.epoch = epoch_;
  if (std::memcmp(&header, &expected, kComparedBytes) == 0) return true;
  Failure failure;
  bool ours = header.magic == kMagic && header.comm == comm_ && header.epoch == epoch_ && header.lane == step.lane;
  failure.kind = ours ? FailureKind::mismatch : FailureKind::wire;
  failure.culprit = step.peer;
  failure.detector = rank_;
  failure.mine = call_;
  failure.theirs = header.call;
  if (header.call.point_to_point == 0 && call_.point_to_point == 0 && header.call.seq < call_.seq &&
      call_.seq - header.call.seq < kHistory) {
    failure.mine = history_[header.call.seq % kHistory];  // the call of ours that ended without this message
  }
  failure.step = header.step;
  fail(failure);
  return false;
}

void Engine::start_trace() {
  std::lock_guard running(run_mutex_);
  trace_ = std::make_unique<Trace>();
}

Trace Engine::stop_trace() {
  std::lock_guard running(run_mutex_);
  Trace taken = trace_ == nullptr ? Trace() : std::move(*trace_);
  trace_.reset();
  std::erase_if(taken, [](const TracedCall& call) { return call.ended_s == 0; });
  return taken;
}

// ---------------------------------------------------------------------------------------------------- asynchronous

std::shared_ptr<Job> Engine::start(std::shared_ptr<Program> program, std::vector<char*> buffers, double timeout_s) {
  auto job = std::make_shared<Job>();
  job->program = std::move(program);
  job->buffers = std::move(buffers);
  job->timeout_s = timeout_s;
  std::lock_guard lock(mutex_);
  jobs_.push_back(job);
  jobs_pending_.fetch_add(1, std::memory_order_release);
  if (!progress_thread_.joinable() && !closing_.load()) progress_thread_ = std::thread([this] { progress_loop(); });
  changed_.notify_all();
  return job;
}

bool Engine::wait(Job& job, double wait_s) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::duration<double>(wait_s), [&] { return job.done; });
}

void Engine::progress_loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return !jobs_.empty() || closing_.load(); });
    if (jobs_.empty()) return;
    auto job = jobs_.front();
    lock.unlock();
    FailureKind result;
    uint32_t step = 0;
    uint64_t seq = 0;
    {
      std::lock_guard running(run_mutex_);
      result = closing_.load() ? FailureKind::closed : execute(*job->program, job->buffers, job->timeout_s, nullptr);
      step = failed_step_;
      seq = call_.seq;
    }
    lock.lock();
    jobs_.pop_front();
    jobs_pending_.fetch_sub(1, std::memory_order_release);
    job->result = result;
    job->step = step;
    job->seq = seq;
    job->done = true;
    changed_.notify_all();
  }
}


// ---------------------------------------------------------------------------------------------------- the end

void Engine::close() {
  if (forked_) {
    if (control_thread_.joinable()) control_thread_.detach();
    if (progress_thread_.joinable()) progress_thread_.detach();
    return;
  }
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
    closing_.store(true, std::memory_order_release);
    if (failure_.kind == FailureKind::none) {  // ends a call that another thread is in; peers get GOODBYE instead
      failure_.kind = FailureKind::closed;
      failure_.culprit = rank_;
      failed_.store(true, std::memory_order_release);
    }
    Frame frame;
    frame.type = FrameType::goodbye;
    for (int peer = 0; peer < size_; peer++) send_frame(peer, frame);
    wake();
    signal_fd(control_wake_fd_);
  }
  if (control_thread_.joinable()) control_thread_.join();
  if (progress_thread_.joinable()) progress_thread_.join();
  std::lock_guard running(run_mutex_);
  std::lock_guard lock(mutex_);
  for (auto& link : links_) {
    for (auto& lane : link->lanes) lane.reset();
    if (link->control >= 0) ::close(link->control);
    link->control = -1;
    for (int fd : link->passed_fds) ::close(fd);
    for (auto& [id, region] : link->regions) munmap(region.base, region.bytes);
    link->regions.clear();
  }
  for (auto& [base, region] : regions_) ::close(region.fd);
  regions_.clear();
}

// The parent's threads do not exist in the child, and a lock may be held for ever: only descriptors are dropped, so that
// peers see the parent's end when it comes.
void Engine::forked() {
  forked_ = true;
  failure_.kind = FailureKind::forked;
  failed_.store(true, std::memory_order_release);
  for (auto& link : links_) {
    if (link->control >= 0) ::close(link->control);
    link->control = -1;
    for (auto& lane : link->lanes) {
      if (Lane* left = lane.release(); left != nullptr) left->drop_descriptors();
    }
  }
}

}  // namespace treering
