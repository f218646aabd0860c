// A program: what one rank does in one collective, on byte ranges of buffers (transports/program.py builds it).
#pragma once
#include <cstdint>
#include <map>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "kernels.hpp"
#include "lane.hpp"

namespace treering {

enum class Kind : uint8_t { send, recv, recv_reduce, copy, reduce, divide };

// Byte `their_begin + k` of step `step` must be done before byte `my_begin + k` of the step that has this dependency.
struct Dependency {
  uint32_t step;
  uint64_t their_begin, my_begin, bytes;
};

struct Step {
  Kind kind;
  Dtype dtype;
  bool local_first;  // recv_reduce, reduce: the operand `a` comes first
  uint16_t lane;
  int32_t peer;
  uint32_t a_buffer, b_buffer, out_buffer;
  uint64_t a_offset, b_offset, out_offset;
  uint64_t bytes;
  uint32_t dependencies_begin, dependencies_end;
  Combine combine = nullptr;
  Divide divide = nullptr;

  // The state of the run in progress.
  uint64_t done = 0;
  uint64_t direct = 0;  // as in Header
  bool started = false, free = false, finished = false;

  bool sends() const { return kind == Kind::send; }
  bool receives() const { return kind == Kind::recv || kind == Kind::recv_reduce; }
};

// The steps that must follow each other: those of one lane and direction. Every local step is alone.
struct Queue {
  Lane* lane = nullptr;
  std::vector<uint32_t> steps;
  size_t at = 0;
};

struct Program {
  Call call;  // all but seq
  int64_t divisor = 1;
  size_t buffers = 0;
  std::vector<Step> steps;
  std::vector<Dependency> dependencies;
  std::vector<Queue> queues;
  bool bound = false;                 // queues point at lanes
  bool polls_by_system_call = false;  // to look for data on some lane costs as much as letting others run
  std::vector<uint32_t> active;  // queues that are not finished

  void make_queues() {
    std::map<std::tuple<int32_t, uint16_t, bool>, size_t> of_lane;
    for (uint32_t i = 0; i < steps.size(); i++) {
      const Step& s = steps[i];
      if (s.sends() || s.receives()) {
        auto [it, is_new] = of_lane.try_emplace({s.peer, s.lane, s.sends()}, queues.size());
        if (is_new) queues.emplace_back();
        queues[it->second].steps.push_back(i);
      } else {
        queues.emplace_back().steps.push_back(i);
      }
    }
  }
  void rewind() {
    for (Step& s : steps) {
      s.done = s.direct = 0;
      s.started = s.finished = false;
      s.free = s.dependencies_begin == s.dependencies_end;
    }
    active.clear();
    for (uint32_t q = 0; q < queues.size(); q++) {
      queues[q].at = 0;
      active.push_back(q);
    }
  }
  // How many bytes of the step may be worked on now. [Note: steps stream] A step waits for bytes, not for steps.
  uint64_t limit(Step& s) const {
    if (s.free) return s.bytes;
    uint64_t limit = s.bytes;
    bool waits = false;
    for (uint32_t d = s.dependencies_begin; d < s.dependencies_end; d++) {
      const Dependency& dep = dependencies[d];
      uint64_t done = steps[dep.step].done;
      if (done >= dep.their_begin + dep.bytes) continue;
      waits = true;
      uint64_t ready = dep.my_begin + (done > dep.their_begin ? done - dep.their_begin : 0);
      if (ready < limit) limit = ready;
    }
    s.free = !waits;
    return limit;
  }
};

}  // namespace treering
