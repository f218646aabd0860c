#include "engine.hpp"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <stdexcept>

namespace treering {
namespace {

constexpr size_t kSegmentBytes = 64 << 10;  // what one step moves before another has its turn; fits the L2 cache
constexpr size_t kDirectBytes = 32 << 10;   // from here on, registered memory is read in place
constexpr double kYieldFor_s = 1e-3;        // idle time before a caller sleeps
constexpr double kLookEvery_s = 0.02;       // how often a waiting caller looks at signals, deadlines and peers
constexpr double kQueryEvery_s = 0.2;

double now_s() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void signal_fd(int fd) {
  uint64_t one = 1;
  [[maybe_unused]] auto n = ::write(fd, &one, sizeof one);
}
void clear_fd(int fd) {
  uint64_t count;
  [[maybe_unused]] auto n = ::read(fd, &count, sizeof count);
}

}  // namespace

Engine::Engine(int rank, int size, uint32_t comm, uint16_t epoch, int spins)
    : rank_(rank), size_(size), comm_(comm), epoch_(epoch), spins_(spins) {
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

// ---------------------------------------------------------------------------------------------------- links

void Engine::attach_control(int peer, int fd) {
  std::lock_guard lock(mutex_);
  Link& link = *links_.at(static_cast<size_t>(peer));
  if (link.control >= 0 || closed_) {
    ::close(fd);
    return;
  }
  link.control = fd;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u32 = static_cast<uint32_t>(peer);
  epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event);
  if (!control_thread_.joinable()) control_thread_ = std::thread([this] { control_loop(); });
  if (failed_.load(std::memory_order_relaxed)) {  // it comes late: tell it the cause
    Frame frame;
    frame.type = FrameType::revoke;
    frame.failure = failure_;
    send_frame(peer, frame);
  }
}

void Engine::attach_lane(int peer, int lane, std::unique_ptr<Lane> made) {
  std::lock_guard lock(mutex_);
  auto& place = links_.at(static_cast<size_t>(peer))->lanes[lane];
  if (!place && !closed_) place = std::move(made);
}

bool Engine::has_lane(int peer, int lane) {
  std::lock_guard lock(mutex_);
  Link& link = *links_.at(static_cast<size_t>(peer));
  return link.control >= 0 && link.lanes[lane] != nullptr;
}

const char* Engine::peer_region(int peer, uint32_t id, uint64_t up_to) {
  std::lock_guard lock(mutex_);
  auto& regions = links_[static_cast<size_t>(peer)]->regions;
  if (id >= regions.size() || regions[id].base == nullptr || up_to > regions[id].bytes) return nullptr;
  return regions[id].base;
}

uint32_t Engine::add_region(char* base, uint64_t bytes, int fd) {
  std::lock_guard lock(mutex_);
  if (regions_.empty()) regions_.emplace_back();  // id 0 means "not registered"
  auto free = std::find_if(regions_.begin() + 1, regions_.end(), [](const Region& r) { return r.base == nullptr; });
  if (free == regions_.end()) {
    if (regions_.size() == (1 << 16)) throw std::runtime_error("more than 65535 registered buffers");
    free = regions_.insert(free, Region{});
  }
  *free = Region{base, bytes, fd};
  return static_cast<uint32_t>(free - regions_.begin());
}

void Engine::drop_region(uint32_t id) {
  std::lock_guard lock(mutex_);
  if (closed_ || id >= regions_.size()) return;
  ::close(regions_[id].fd);
  regions_[id] = Region{};
  for (int peer = 0; peer < size_; peer++) {
    Link& link = *links_[static_cast<size_t>(peer)];
    if (id >= link.announced.size() || !link.announced[id]) continue;
    link.announced[id] = false;
    Frame frame;
    frame.type = FrameType::region_drop;
    frame.id = id;
    send_frame(peer, frame);
  }
}

// Where `data` lies in registered memory, as a header says it; 0 if the payload should travel in the lane.
// The first use of a region with a peer passes its descriptor over the control connection.
uint64_t Engine::direct_for(const Step& step, const char* data, const Lane& lane) {
  if (step.bytes < kDirectBytes || dynamic_cast<const ShmLane*>(&lane) == nullptr) return 0;
  std::lock_guard lock(mutex_);
  for (size_t id = 1; id < regions_.size(); id++) {
    const Region& region = regions_[id];
    if (region.base == nullptr || data < region.base || data + step.bytes > region.base + region.bytes) continue;
    Link& link = *links_[static_cast<size_t>(step.peer)];
    if (link.announced.size() <= id) link.announced.resize(id + 1);
    if (!link.announced[id]) {
      Frame frame;
      frame.type = FrameType::region;
      frame.id = static_cast<uint32_t>(id);
      frame.bytes = region.bytes;
      send_frame(step.peer, frame, region.fd);
      link.announced[id] = true;
    }
    return (uint64_t{id} << 48) | static_cast<uint64_t>(data - region.base);
  }
  return 0;
}

// ---------------------------------------------------------------------------------------------------- running

FailureKind Engine::run(const std::shared_ptr<Program>& program, const std::vector<char*>& buffers, double timeout_s,
                        const std::function<bool()>& interrupted) {
  if (jobs_pending_.load(std::memory_order_acquire) == 0 && run_mutex_.try_lock()) {
    std::lock_guard lock(run_mutex_, std::adopt_lock);
    return execute(*program, buffers, timeout_s, &interrupted);
  }
  auto job = start(program, buffers, timeout_s);  // keeps the order of the calls
  while (!wait(*job, kLookEvery_s)) {
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
  }
  program.bound = true;
  return true;
}

FailureKind Engine::execute(Program& program, const std::vector<char*>& buffers, double timeout_s,
                            const std::function<bool()>* interrupted) {
  if (failed_.load(std::memory_order_acquire)) return failure().kind;
  if (!program.bound && !bind(program)) throw std::logic_error("a program ran before its lanes were connected");
  program.rewind();
  buffers_ = &buffers;
  call_ = program.call;
  if (call_.point_to_point == 0) {
    uint64_t seq = begun_.load(std::memory_order_relaxed) + 1;
    call_.seq = seq;
    history_[seq % kHistory] = call_;
    begun_.store(seq, std::memory_order_release);  // pairs with the control thread's reading of history_
  } else {
    const Step& step = program.steps[0];
    Link& link = *links_[static_cast<size_t>(step.peer)];
    call_.seq = step.sends() ? ++link.messages_sent : ++link.messages_received;
  }

  Wait wait{timeout_s, 0, 0, 0, 0, false, interrupted};
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
  size_t ready = static_cast<size_t>(std::min<uint64_t>(limit - std::min(limit, s.done), kSegmentBytes));
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
        bytes_sent += s.bytes;
        if (s.direct != 0) bytes_direct += s.bytes;
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
  failure.step = header.step;
  fail(failure);
  return false;
}

// ---------------------------------------------------------------------------------------------------- waiting

bool Engine::idle(Program& program, Wait& wait) {
  if (++wait.idle <= static_cast<uint32_t>(spins_)) {
    pause_cpu();
    return true;
  }
  double now = now_s();
  if (wait.idle == static_cast<uint32_t>(spins_) + 1) wait.idle_since = now;
  if (now - wait.idle_since < kYieldFor_s) {
    sched_yield();
    return true;
  }
  if (!look_around(program, wait, now)) return false;
  if (!wait.armed) {  // one more pass after the peers can know that we sleep
    announce_sleep(program, wait.armed = true);
    return true;
  }
  sleep(program);
  return true;
}

void Engine::announce_sleep(Program& program, bool asleep) {
  for (Queue& queue : program.queues) {
    if (queue.lane != nullptr) queue.lane->announce_sleep(asleep);
  }
}

void Engine::sleep(Program& program) {
  std::vector<pollfd> fds{{wake_fd_, POLLIN, 0}};
  std::vector<Lane*> lanes;
  for (uint32_t q : program.active) {
    Queue& queue = program.queues[q];
    if (queue.lane == nullptr) continue;
    Step& step = program.steps[queue.steps[queue.at]];
    short events = 0;
    if (dynamic_cast<ShmLane*>(queue.lane) != nullptr) {
      events = POLLIN;
    } else if (step.receives()) {
      if (step.bytes == 0 || program.limit(step) > step.done) events = POLLIN;
    } else if (queue.lane->write_blocked()) {
      events = POLLOUT;
    }
    if (events == 0) continue;
    fds.push_back({queue.lane->poll_fd(), events, 0});
    lanes.push_back(queue.lane);
  }
  ::poll(fds.data(), fds.size(), static_cast<int>(kLookEvery_s * 1e3));
  if (fds[0].revents != 0) clear_fd(wake_fd_);
  for (size_t i = 1; i < fds.size(); i++) {
    if ((fds[i].revents & POLLIN) != 0) lanes[i - 1]->drain_bell();
  }
}

// The steps at the head of their lane that wait for a peer rather than for another step of ours.
std::vector<Step*> Engine::stuck(Program& program) {
  std::vector<Step*> found;
  for (uint32_t q : program.active) {
    Queue& queue = program.queues[q];
    if (queue.lane == nullptr || queue.at >= queue.steps.size()) continue;
    Step& step = program.steps[queue.steps[queue.at]];
    if (step.bytes == 0 || program.limit(step) > step.done || step.done == step.bytes) found.push_back(&step);
  }
  return found;
}

// Now and then while waiting: signals, ended streams, questions to peers, the deadline.
bool Engine::look_around(Program& program, Wait& wait, double now) {
  if (failed_.load(std::memory_order_acquire)) return false;
  if (now - wait.last_look < kLookEvery_s) return true;
  wait.last_look = now;
  if (wait.interrupted != nullptr && (*wait.interrupted)()) {
    Failure failure;
    failure.kind = FailureKind::interrupted;
    failure.culprit = failure.detector = rank_;
    failure.mine = call_;
    fail(failure);
    return false;
  }
  if (wait.idle == 0) return true;
  for (Step* step : stuck(program)) {
    Link& link = *links_[static_cast<size_t>(step->peer)];
    bool departed = link.departed.load(std::memory_order_acquire);
    bool broken = link.lanes[step->lane]->broken();
    if (!departed && !broken) continue;
    if (broken && !departed && now - wait.idle_since < 0.1) continue;  // the control connection knows more, soon
    if (departed && !broken && now - wait.idle_since < 0.05) continue;  // its last bytes may still be under way
    Failure failure;
    failure.kind = departed ? FailureKind::left : FailureKind::lost;
    failure.culprit = step->peer;
    failure.detector = rank_;
    failure.mine = call_;
    failure.step = static_cast<uint32_t>(step - program.steps.data());
    fail(failure);
    return false;
  }
  double waited = now - wait.idle_since;
  if (waited > wait.timeout_s) {
    judge_deadline(program, waited);
    return false;
  }
  double every = std::min(kQueryEvery_s, wait.timeout_s / 10);
  if (waited > every && now - wait.last_query > every) {
    wait.last_query = now;
    query(program, wait, now);
  }
  return true;
}

// Asks the peers waited for where they are. The answers say whether a peer made another call, has not called yet,
// or itself waits for a third rank: so the blame travels along the chain of waiting to its end.
void Engine::query(Program& program, Wait& wait, double now) {
  std::lock_guard lock(mutex_);
  int blames = -1;
  Reason reason = Reason::unknown;
  uint64_t blamed_seq = 0;
  auto weight = [](Reason r) { return r == Reason::not_called ? 2 : r == Reason::silent ? 1 : 0; };
  for (Step* step : stuck(program)) {
    int peer = step->peer;
    Link& link = *links_[static_cast<size_t>(peer)];
    int candidate = peer;
    Reason why = Reason::unknown;
    uint64_t last = 0;
    if (link.asked_at >= wait.idle_since && link.answered_at < link.asked_at) {
      why = Reason::silent;
    } else if (link.answered_at >= wait.idle_since) {
      if (link.state.inside == 0) {
        why = Reason::not_called;
        last = link.state.last_seq;
      } else if (link.state.blames >= 0 && link.state.blames != rank_) {
        candidate = link.state.blames;
        why = link.state.reason;
        last = link.state.blamed_seq;
      }
    }
    if (blames < 0 || weight(why) > weight(reason)) {
      blames = candidate;
      reason = why;
      blamed_seq = last;
    }
    bool settled = link.answered_at >= link.asked_at || link.asked_at < wait.idle_since;
    if (settled) link.asked_at = now;  // the time of the oldest question without an answer
    Frame frame;
    frame.type = FrameType::query;
    frame.call = call_;
    send_frame(peer, frame);
  }
  blames_ = blames;
  reason_ = reason;
  blamed_seq_ = blamed_seq;
}

void Engine::judge_deadline(Program& program, double waited_s) {
  auto waiting = stuck(program);
  Failure failure;
  failure.kind = FailureKind::deadline;
  failure.detector = rank_;
  failure.mine = call_;
  failure.waited_s = waited_s;
  if (!waiting.empty()) failure.step = static_cast<uint32_t>(waiting[0] - program.steps.data());
  std::lock_guard lock(mutex_);
  failure.culprit = blames_ >= 0 ? blames_ : (waiting.empty() ? -1 : waiting[0]->peer);
  failure.reason = reason_;
  failure.theirs.seq = blamed_seq_;
  fail_locked(failure, -1);
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
    {
      std::lock_guard running(run_mutex_);
      result = closing_.load() ? FailureKind::closed : execute(*job->program, job->buffers, job->timeout_s, nullptr);
      step = failed_step_;
    }
    lock.lock();
    jobs_.pop_front();
    jobs_pending_.fetch_sub(1, std::memory_order_release);
    job->result = result;
    job->step = step;
    job->done = true;
    changed_.notify_all();
  }
}

// ---------------------------------------------------------------------------------------------------- failure

void Engine::fail(Failure failure) {
  std::lock_guard lock(mutex_);
  fail_locked(failure, -1);
}

void Engine::fail_locked(Failure failure, int but_not_to) {
  if (failure_.kind != FailureKind::none) return;
  failure_ = failure;
  failed_.store(true, std::memory_order_release);
  Frame frame;
  frame.type = FrameType::revoke;
  frame.failure = failure;
  for (int peer = 0; peer < size_; peer++) {
    if (peer != but_not_to) send_frame(peer, frame);
  }
  wake();
}

Failure Engine::failure() {
  std::lock_guard lock(mutex_);
  return failure_;
}

void Engine::wake() {
  signal_fd(wake_fd_);
  changed_.notify_all();
}

// ---------------------------------------------------------------------------------------------------- control

void Engine::send_frame(int peer, const Frame& given, int pass_fd) {
  Link& link = *links_[static_cast<size_t>(peer)];
  if (link.control < 0 || link.departed.load(std::memory_order_relaxed)) return;
  Frame frame = given;
  frame.comm = comm_;
  iovec part{&frame, sizeof frame};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
  if (pass_fd >= 0) {
    message.msg_control = space;
    message.msg_controllen = sizeof space;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &pass_fd, sizeof(int));
  }
  // A frame is far smaller than the socket's buffer, which holds more than can ever be outstanding: it goes out whole,
  // or the peer is stopped or dead and does not miss it.
  [[maybe_unused]] auto n = ::sendmsg(link.control, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void Engine::control_loop() {
  epoll_event events[32];
  while (!closing_.load(std::memory_order_acquire)) {
    int n = epoll_wait(epoll_fd_, events, 32, -1);
    for (int i = 0; i < n; i++) {
      uint32_t peer = events[i].data.u32;
      if (peer == static_cast<uint32_t>(size_)) {
        clear_fd(control_wake_fd_);
      } else {
        read_control(static_cast<int>(peer));
      }
    }
  }
}

void Engine::read_control(int peer) {
  std::lock_guard lock(mutex_);
  Link& link = *links_[static_cast<size_t>(peer)];
  if (link.control < 0) return;
  char data[4096];
  iovec part{data, sizeof data};
  alignas(cmsghdr) char space[CMSG_SPACE(8 * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = space;
  message.msg_controllen = sizeof space;
  ssize_t n = ::recvmsg(link.control, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, link.control, nullptr);
    if (!link.departed.load(std::memory_order_relaxed)) {  // an end without GOODBYE
      Failure failure;
      failure.kind = FailureKind::lost;
      failure.culprit = peer;
      failure.detector = rank_;
      failure.mine = history_[begun_.load(std::memory_order_relaxed) % kHistory];
      fail_locked(failure, peer);
    }
    return;
  }
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    size_t fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < fds; i++) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      link.passed_fds.push_back(fd);
    }
  }
  link.partial.append(data, static_cast<size_t>(n));
  while (link.partial.size() >= sizeof(Frame)) {
    Frame frame;
    std::memcpy(&frame, link.partial.data(), sizeof frame);
    link.partial.erase(0, sizeof frame);
    handle(peer, frame);
  }
}

void Engine::handle(int peer, const Frame& frame) {
  Link& link = *links_[static_cast<size_t>(peer)];
  Failure failure;
  failure.culprit = peer;
  failure.detector = rank_;
  if (frame.magic != kMagic || frame.comm != comm_) {
    failure.kind = FailureKind::wire;
    fail_locked(failure, -1);
    return;
  }
  switch (frame.type) {
    case FrameType::goodbye:
      link.departed.store(true, std::memory_order_release);
      wake();
      break;
    case FrameType::revoke:
      fail_locked(frame.failure, peer);
      break;
    case FrameType::query: {
      uint64_t begun = begun_.load(std::memory_order_acquire);
      const Call& asked = frame.call;
      Frame answer;
      answer.type = FrameType::state;
      answer.last_seq = begun;
      if (asked.point_to_point == 0 && asked.seq <= begun) {
        if (begun - asked.seq < kHistory) {
          const Call& ours = history_[asked.seq % kHistory];
          if (std::memcmp(&ours, &asked, sizeof(Call)) != 0) {
            failure.kind = FailureKind::mismatch;
            failure.mine = ours;
            failure.theirs = asked;
            fail_locked(failure, -1);
            return;
          }
        }
        answer.inside = ended_.load(std::memory_order_acquire) >= asked.seq ? 2 : 1;
        answer.blames = blames_;
        answer.reason = reason_;
        answer.blamed_seq = blamed_seq_;
      }
      send_frame(peer, answer);
      break;
    }
    case FrameType::state:
      link.state = frame;
      link.answered_at = now_s();
      break;
    case FrameType::region: {
      if (link.passed_fds.empty() || frame.id >= (1 << 16)) break;
      int fd = link.passed_fds.front();
      link.passed_fds.pop_front();
      void* base = mmap(nullptr, frame.bytes, PROT_READ, MAP_SHARED, fd, 0);
      ::close(fd);
      if (base == MAP_FAILED) break;
      if (link.regions.size() <= frame.id) link.regions.resize(frame.id + 1);
      link.regions[frame.id] = Region{static_cast<char*>(base), frame.bytes, -1};
      wake();
      break;
    }
    case FrameType::region_drop:
      if (frame.id < link.regions.size() && link.regions[frame.id].base != nullptr) {
        munmap(link.regions[frame.id].base, link.regions[frame.id].bytes);
        link.regions[frame.id] = Region{};
      }
      break;
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
    for (Region& region : link->regions) {
      if (region.base != nullptr) munmap(region.base, region.bytes);
    }
    link->regions.clear();
  }
  for (Region& region : regions_) {
    if (region.base != nullptr) ::close(region.fd);
  }
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
