// What a caller does when nothing moves. [Note: waiting] It polls a little, then lets others run, then sleeps until a
// peer rings. Now and then it looks at signals, asks the peers where they are, and minds the deadline.
//
// The progress thread sleeps at once: the user's threads compute meanwhile, and on their core who yields gets it back only
// after a whole time slice, milliseconds for every ring's worth of bytes, while who sleeps is put in front when woken.
#include <poll.h>
#include <sched.h>

#include <algorithm>

#include "engine.hpp"
#include "system.hpp"

namespace treering {
namespace {

constexpr double kYieldFor_s = 1e-3;   // idle time before a caller sleeps
constexpr double kLookEvery_s = 0.02;  // between looks at signals, deadlines and peers
constexpr double kQueryEvery_s = 0.2;
constexpr double kHearWhy_s = 0.1;     // from the end of a lane to what the control connection says of it
constexpr double kLastBytes_s = 0.05;  // from a GOODBYE to the end of the lanes
constexpr double kStoodStill_s = 0.5;  // without a look: this process was stopped, so it cannot tell who is slow

}  // namespace

bool Engine::idle(Program& program, Wait& wait) {
  uint32_t spins = static_cast<uint32_t>(program.polls_by_system_call ? spins_ / 10 : spins_);
  if (++wait.idle <= spins) {
    pause_cpu();
    return true;
  }
  double now = now_s();
  if (wait.idle == spins + 1) wait.idle_since = now;
  if (!wait.background && now - wait.idle_since < kYieldFor_s) {
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
  double stood_still_s = now - std::max(wait.last_look, wait.idle_since);
  if (wait.idle > 0 && stood_still_s > kStoodStill_s) wait.idle_since += stood_still_s;
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
    if (wait.ended_at < wait.idle_since) wait.ended_at = now;
    // The control connection knows more, soon; and of a rank that has left, the last bytes may still be under way.
    if (departed != broken && now - wait.ended_at < (broken ? kHearWhy_s : kLastBytes_s)) continue;
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
    if (!settled) continue;  // one question at a time: more would only fill the socket of a rank that is stopped
    link.asked_at = now;
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

}  // namespace treering
