// What a call's steps did when, noted while somebody traces (Engine::start_trace). Times: CLOCK_MONOTONIC, in seconds,
// which all processes of a host share.
#pragma once
#include <vector>

#include "program.hpp"
#include "system.hpp"

namespace treering {

struct TracedStep {
  Kind kind;
  int32_t peer;
  uint16_t lane;
  uint64_t bytes;
  double began_s = 0, ended_s = 0;  // its first byte, its last byte
};

struct TracedCall {
  Call call;
  double began_s = 0, ended_s = 0;
  std::vector<TracedStep> steps;

  TracedCall(const Program& program, const Call& numbered, double now) : call(numbered), began_s(now) {
    steps.reserve(program.steps.size());
    for (const Step& s : program.steps) steps.push_back({s.kind, s.peer, s.lane, s.bytes});
  }
  void began(uint32_t step) { steps[step].began_s = now_s(); }
  void ended(uint32_t step) { steps[step].ended_s = now_s(); }
};

// Calls in the order in which they ran; the last one may be running, or have failed.
using Trace = std::vector<TracedCall>;

}  // namespace treering
