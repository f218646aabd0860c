// A lane in shared memory: one ring of bytes in each direction, in a memfd that only the two ranks map.
//
//   segment:  [side 0: Cursors][side 1: Cursors][ring 0 -> 1][ring 1 -> 0]
//
// Each side writes only its own Cursors: how far it has produced and consumed. A message is its header, its payload and
// padding to 64 bytes, so headers are aligned and no element straddles the end of the ring. Payloads in registered
// memory stay where they are: `direct_*` count their bytes instead, and the receiver reads the sender's memory.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "lane.hpp"

namespace treering {

struct alignas(64) Cursors {
  // Pairs with the acquire loads of the other side: bytes are written before `produced` says so, and read before
  // `consumed` says so.
  alignas(64) std::atomic<uint64_t> produced;
  std::atomic<uint64_t> direct_offered;
  alignas(64) std::atomic<uint64_t> consumed;
  std::atomic<uint64_t> direct_consumed;
  alignas(64) std::atomic<uint32_t> asleep;  // pairs with the fence before wake_peer()
};

class ShmLane final : public Lane {
 public:
  // Maps `memfd` (not kept). `side` is 0 on the rank that made it. Keeps the two bells (eventfds).
  // `find_region` gives the address of a peer's registered region, or null when it has not been announced yet.
  ShmLane(int memfd, size_t ring_bytes, int side, int my_bell, int their_bell,
          std::function<const char*(uint32_t, uint64_t)> find_region)
      : capacity_(ring_bytes), my_bell_(my_bell), their_bell_(their_bell), find_region_(std::move(find_region)) {
    mapped_bytes_ = segment_bytes(ring_bytes);
    void* base = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (base == MAP_FAILED) throw std::runtime_error("cannot map a shared-memory lane");
    base_ = static_cast<char*>(base);
    mine_ = reinterpret_cast<Cursors*>(base_) + side;
    theirs_ = reinterpret_cast<Cursors*>(base_) + (1 - side);
    char* rings = base_ + 2 * sizeof(Cursors);
    out_ = rings + (side == 0 ? 0 : capacity_);
    in_ = rings + (side == 0 ? capacity_ : 0);
  }
  ~ShmLane() override {
    munmap(base_, mapped_bytes_);
    ::close(my_bell_);
    ::close(their_bell_);
  }
  ShmLane(const ShmLane&) = delete;
  ShmLane& operator=(const ShmLane&) = delete;

  static size_t segment_bytes(size_t ring_bytes) { return 2 * sizeof(Cursors) + 2 * ring_bytes; }

  bool start(const Header& header) override {
    if (room() < sizeof(Header)) return false;
    std::memcpy(out_ + (head_ & (capacity_ - 1)), &header, sizeof(Header));  // aligned: never wraps
    head_ += sizeof(Header);
    return true;
  }
  size_t write(const char* data, size_t bytes) override {
    size_t taken = std::min(bytes, room());
    size_t at = head_ & (capacity_ - 1);
    size_t first = std::min(taken, capacity_ - at);
    std::memcpy(out_ + at, data, first);
    if (first < taken) std::memcpy(out_, data + first, taken - first);
    head_ += taken;
    return taken;
  }
  bool finish_write() override {
    head_ = round_up(head_);
    return true;
  }
  // A direct message: says that its first `bytes` may be read; true if that is news.
  bool offer(size_t bytes) {
    if (mine_->direct_offered.load(std::memory_order_relaxed) == direct_sent_ + bytes) return false;
    mine_->direct_offered.store(direct_sent_ + bytes, std::memory_order_release);
    return true;
  }
  // How many bytes of the direct message the peer has read.
  size_t taken() const {
    return static_cast<size_t>(theirs_->direct_consumed.load(std::memory_order_acquire) - direct_sent_);
  }
  void finish_offer(size_t bytes) { direct_sent_ += bytes; }

  bool next(Header& header) override {
    if (arrived(sizeof(Header)) < sizeof(Header)) return false;
    std::memcpy(&header, in_ + (tail_ & (capacity_ - 1)), sizeof(Header));
    direct_ = nullptr;
    if (header.direct != 0) {
      uint64_t offset = header.direct & ((uint64_t{1} << kOffsetBits) - 1);
      const char* region = find_region_(static_cast<uint32_t>(header.direct >> kOffsetBits), offset + header.payload_bytes);
      if (region == nullptr) return false;  // its announcement is still on the control connection
      direct_ = region + offset;
      direct_begin_ = direct_done_;
    }
    tail_ += sizeof(Header);
    return true;
  }
  size_t read(char* data, size_t bytes) override {
    size_t done = 0;
    while (done < bytes) {
      auto part = window(bytes - done, 1);
      if (part.empty()) break;
      std::memcpy(data + done, part.data(), part.size());
      consume(part.size());
      done += part.size();
    }
    return done;
  }
  std::span<const char> window(size_t bytes, size_t element_bytes) override {
    if (direct_ != nullptr) {
      uint64_t offered = theirs_->direct_offered.load(std::memory_order_acquire);
      size_t here = static_cast<size_t>(std::min<uint64_t>(bytes, offered - direct_done_));
      return {direct_ + (direct_done_ - direct_begin_), here - here % element_bytes};
    }
    size_t at = tail_ & (capacity_ - 1);
    size_t here = std::min({bytes, arrived(element_bytes), capacity_ - at});
    return {in_ + at, here - here % element_bytes};
  }
  void consume(size_t bytes) override { (direct_ != nullptr ? direct_done_ : tail_) += bytes; }
  void finish_read() override { tail_ = round_up(tail_); }

  void publish() override {
    if (head_ != mine_->produced.load(std::memory_order_relaxed)) {
      mine_->produced.store(head_, std::memory_order_release);
    }
    if (tail_ != mine_->consumed.load(std::memory_order_relaxed)) {
      mine_->consumed.store(tail_, std::memory_order_release);
    }
    if (direct_done_ != mine_->direct_consumed.load(std::memory_order_relaxed)) {
      mine_->direct_consumed.store(direct_done_, std::memory_order_release);
    }
  }
  void wake_peer() override {
    if (theirs_->asleep.load(std::memory_order_relaxed) != 0) ring(their_bell_);
  }
  void announce_sleep(bool asleep) override {
    mine_->asleep.store(asleep ? 1 : 0, std::memory_order_seq_cst);
  }
  int poll_fd() const override { return my_bell_; }
  void drop_descriptors() override {
    ::close(my_bell_);
    ::close(their_bell_);
  }
  void drain_bell() override {
    uint64_t count;
    [[maybe_unused]] auto n = ::read(my_bell_, &count, sizeof count);
  }

 private:
  static uint64_t round_up(uint64_t n) { return (n + 63) & ~uint64_t{63}; }
  static void ring(int bell) {
    uint64_t one = 1;
    [[maybe_unused]] auto n = ::write(bell, &one, sizeof one);
  }
  // Padding may run up to 63 bytes ahead of the peer's cursor, hence the signed difference.
  size_t room() {
    auto left = [&] { return static_cast<int64_t>(capacity_) - static_cast<int64_t>(head_ - peer_consumed_); };
    if (left() < static_cast<int64_t>(capacity_ / 2)) {
      peer_consumed_ = theirs_->consumed.load(std::memory_order_acquire);
    }
    return static_cast<size_t>(std::max<int64_t>(left(), 0));
  }
  size_t arrived(size_t wanted) {
    if (peer_produced_ - tail_ < wanted) peer_produced_ = theirs_->produced.load(std::memory_order_acquire);
    return static_cast<size_t>(peer_produced_ - tail_);
  }

  size_t capacity_;  // a power of two
  size_t mapped_bytes_ = 0;
  int my_bell_, their_bell_;
  std::function<const char*(uint32_t, uint64_t)> find_region_;
  char* base_ = nullptr;
  char *out_ = nullptr, *in_ = nullptr;
  Cursors *mine_ = nullptr, *theirs_ = nullptr;
  uint64_t head_ = 0, tail_ = 0;                         // ours, perhaps not yet published
  uint64_t peer_consumed_ = 0, peer_produced_ = 0;       // theirs, as last seen
  uint64_t direct_sent_ = 0, direct_done_ = 0, direct_begin_ = 0;
  const char* direct_ = nullptr;                         // the direct payload being received
};

}  // namespace treering
