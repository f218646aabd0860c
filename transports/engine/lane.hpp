// A lane: an ordered stream of messages to and from one peer. Two kinds: shm_lane.hpp, tcp_lane.hpp.
#pragma once
#include <cstddef>
#include <span>

#include "wire.hpp"

namespace treering {

// Used by one thread at a time (the engine's run lock). Nothing here blocks: every function does what it can now.
class Lane {
 public:
  virtual ~Lane() = default;

  // Sending: start, write until all bytes are taken, finish (repeat until true). Then the message is on its way.
  virtual bool start(const Header& header) = 0;
  virtual size_t write(const char* data, size_t bytes) = 0;
  virtual bool finish_write() = 0;

  // Receiving: next (repeat until true), then read or window+consume until the payload is in, then finish_read.
  virtual bool next(Header& header) = 0;
  virtual size_t read(char* data, size_t bytes) = 0;
  // The arrived bytes that lie together, at most `bytes`; empty if there are fewer than `element_bytes`.
  virtual std::span<const char> window(size_t bytes, size_t element_bytes) = 0;
  virtual void consume(size_t bytes) = 0;
  virtual void finish_read() = 0;

  // Makes what was written or consumed since the last publish visible to the peer.
  virtual void publish() = 0;
  // Wakes the peer if it sleeps. The caller has put a sequentially consistent fence between publish() and this.
  virtual void wake_peer() = 0;
  virtual void announce_sleep(bool asleep) = 0;

  // What a sleeping caller polls: a descriptor, and whether writability is wanted too.
  virtual int poll_fd() const = 0;
  virtual bool write_blocked() const { return false; }
  virtual bool polls_by_system_call() const { return false; }
  virtual size_t segment_bytes() const { return 64 << 10; }  // worth moving before another lane has its turn
  virtual void drain_bell() {}

  virtual void drop_descriptors() = 0;  // in a forked child: says nothing to the peer

  bool broken() const { return broken_; }  // the stream ended or failed; only TCP can

 protected:
  bool broken_ = false;
};

}  // namespace treering
