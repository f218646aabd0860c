#include "mailbox.hpp"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <stdexcept>

#include "system.hpp"

namespace treering {
namespace {

constexpr uint64_t kEagerBytes = 32 << 10;
constexpr uint64_t kChunkBytes = 1 << 20;  // so that one large message does not keep the others waiting
constexpr double kYieldFor_s = 2e-4;
constexpr int kLookEvery_ms = 50;
constexpr double kLastBytes_s = 0.05;  // from a GOODBYE to the end of the lane

uint64_t total_bytes(const Header& h) { return uint64_t{h.call.algorithm} | uint64_t{h.call.extra} << 32; }

}  // namespace

Mailbox::Mailbox(std::shared_ptr<Engine> engine)
    : engine_(std::move(engine)), wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      peers_(static_cast<size_t>(engine_->size())) {
  if (wake_fd_ < 0) throw std::runtime_error("no descriptors left for a mailbox: raise the limit (ulimit -n)");
}

std::shared_ptr<Letter> Mailbox::post(Letter given) {
  auto letter = std::make_shared<Letter>(std::move(given));
  letter->last_moved_at = now_s();
  std::lock_guard lock(mutex_);
  if (closing_) {
    letter->done = true;
    letter->result = FailureKind::closed;
    return letter;
  }
  open_.push_back(letter);
  if (letter->sends) {
    letter->id = next_id_++;
    Peer& peer = peers_.at(static_cast<size_t>(letter->peer));
    bool small = letter->bytes <= kEagerBytes;
    Outgoing frame;
    frame.header = header_of(*letter, small ? eager : request, small ? letter->bytes : 0);
    frame.letter = letter;
    frame.data = letter->data;
    frame.bytes = small ? letter->bytes : 0;
    frame.completes = small;
    if (!small) peer.asked[letter->id] = letter;
    peer.out.push_back(std::move(frame));
  } else {
    bool found = false;
    for (size_t i = 0; i < peers_.size() && !found; i++) {
      if (letter->peer >= 0 && static_cast<size_t>(letter->peer) != i) continue;
      for (auto& arrived : peers_[i].arrived) {
        if (arrived->header.call.root != letter->tag || arrived->taken_by != nullptr) continue;
        auto taken = arrived;
        match(static_cast<int>(i), peers_[i], letter, taken);
        found = true;
        break;
      }
    }
    if (!found) receives_.push_back(letter);
  }
  if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
  if (asleep_.load(std::memory_order_seq_cst)) signal_fd(wake_fd_);
  return letter;
}

bool Mailbox::wait(const Letter& letter, double wait_s) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::duration<double>(wait_s), [&] { return letter.done; });
}

void Mailbox::close() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
    fail_all(FailureKind::closed);
    signal_fd(wake_fd_);
  }
  if (thread_.joinable()) thread_.join();
  if (wake_fd_ >= 0) ::close(wake_fd_);
  wake_fd_ = -1;
}

Header Mailbox::header_of(const Letter& letter, Type type, uint64_t payload) const {
  Header header;
  header.comm = engine_->comm();
  header.call.seq = letter.id;
  header.call.count = letter.count;
  header.call.algorithm = static_cast<uint32_t>(letter.bytes);
  header.call.extra = static_cast<uint32_t>(letter.bytes >> 32);
  header.call.root = letter.tag;
  header.call.collective = type;
  header.call.dtype = letter.dtype;
  header.call.point_to_point = 1;
  header.payload_bytes = payload;
  header.lane = kMessageLane;
  return header;
}

// ---------------------------------------------------------------------------------------------------- the thread

void Mailbox::loop() {
  uint32_t idle = 0;
  double idle_since = 0, looked_at = 0;
  bool armed = false;
  std::vector<Lane*> dirty;
  std::vector<pollfd> fds;
  std::unique_lock lock(mutex_);
  auto announce = [&](bool asleep) {
    armed = asleep;
    asleep_.store(asleep, std::memory_order_seq_cst);
    for (Peer& peer : peers_) {
      if (peer.lane != nullptr) peer.lane->announce_sleep(asleep);
    }
  };
  while (!closing_) {
    bool progress = false;
    dirty.clear();
    if (!engine_->failed()) {
      for (size_t i = 0; i < peers_.size(); i++) {
        Peer& peer = peers_[i];
        if (peer.lane == nullptr) {
          peer.lane = engine_->lane(static_cast<int>(i), kMessageLane);
          if (peer.lane == nullptr) continue;
          if (armed) peer.lane->announce_sleep(true);
        }
        bool moved = pump_out(peer);
        moved |= pump_in(static_cast<int>(i), peer);
        if (moved) {
          peer.lane->publish();
          dirty.push_back(peer.lane);
          progress = true;
        }
      }
    }
    if (!dirty.empty()) {
      std::atomic_thread_fence(std::memory_order_seq_cst);  // pairs with announce_sleep: one of us sees the other
      for (Lane* lane : dirty) lane->wake_peer();
    }
    if (progress) {
      if (armed) announce(false);
      idle = 0;
      lock.unlock();  // somebody may want to post
      lock.lock();
      continue;
    }
    double now = now_s();
    if (idle++ == 0) idle_since = now;
    if (engine_->failed()) {
      fail_all(engine_->failure().kind);
    } else if (now - looked_at > 0.02) {
      looked_at = now;
      look_around(now);
    }
    if (!open_.empty() && now - idle_since < kYieldFor_s) {
      lock.unlock();
      sched_yield();
      lock.lock();
      continue;
    }
    if (!armed) {  // one more pass after the peers can know that we sleep
      announce(true);
      continue;
    }
    fds = {{wake_fd_, POLLIN, 0}, {engine_->wake_fd(), POLLIN, 0}};
    std::vector<Lane*> lanes;
    for (Peer& peer : peers_) {
      if (peer.lane == nullptr || peer.lane->broken()) continue;
      short events = POLLIN;
      if (!peer.out.empty() && peer.lane->write_blocked()) events |= POLLOUT;
      fds.push_back({peer.lane->poll_fd(), events, 0});
      lanes.push_back(peer.lane);
    }
    int limit_ms = open_.empty() ? -1 : kLookEvery_ms;
    lock.unlock();
    ::poll(fds.data(), fds.size(), limit_ms);
    lock.lock();
    if (closing_) break;
    if (fds[0].revents != 0) clear_fd(wake_fd_);
    if (fds[1].revents != 0) clear_fd(engine_->wake_fd());
    bool rung = false;
    for (size_t i = 0; i < lanes.size(); i++) {
      if ((fds[i + 2].revents & POLLIN) != 0) lanes[i]->drain_bell();
      rung |= fds[i + 2].revents != 0;
    }
    if (rung || fds[0].revents != 0 || fds[1].revents != 0) idle = 0;
  }
  if (armed) announce(false);
}

bool Mailbox::pump_out(Peer& peer) {
  bool progress = false;
  size_t budget = peer.lane->segment_bytes() * 4;  // then another lane has its turn
  while (!peer.out.empty() && budget > 0) {
    Outgoing& frame = peer.out.front();
    if (!frame.started) {
      if (!peer.lane->start(frame.header)) break;
      frame.started = progress = true;
    }
    if (frame.done < frame.bytes) {
      size_t n = peer.lane->write(frame.data + frame.done, std::min<uint64_t>(frame.bytes - frame.done, budget));
      frame.done += n;
      budget -= std::min(budget, n);
      if (n > 0) {
        progress = true;
        if (frame.letter != nullptr) frame.letter->last_moved_at = now_s();
      }
      if (frame.done < frame.bytes) {
        if (n == 0) break;
        continue;
      }
    }
    if (!peer.lane->finish_write()) break;
    progress = true;
    auto letter = frame.letter;
    bool completes = frame.completes, payload = frame.header.call.collective == data;
    if (letter != nullptr) letter->moved += frame.bytes;
    peer.out.pop_front();
    if (completes) {
      finish(*letter, FailureKind::none);
    } else if (payload) {
      push_data(peer, letter);
    }
  }
  return progress;
}

void Mailbox::push_data(Peer& peer, const std::shared_ptr<Letter>& letter) {
  uint64_t bytes = std::min(kChunkBytes, letter->bytes - letter->moved);
  Outgoing frame;
  frame.header = header_of(*letter, data, bytes);
  frame.letter = letter;
  frame.data = letter->data + letter->moved;
  frame.bytes = bytes;
  frame.completes = letter->moved + bytes == letter->bytes;
  peer.out.push_back(std::move(frame));
}

bool Mailbox::pump_in(int index, Peer& peer) {
  bool progress = false;
  size_t budget = peer.lane->segment_bytes() * 4;
  while (budget > 0) {
    if (!peer.inside) {
      if (!peer.lane->next(peer.header)) break;
      progress = true;
      if (!begin(index, peer)) return progress;
    }
    uint64_t left = peer.header.payload_bytes - peer.done;
    if (left > 0) {
      size_t n = peer.lane->read(peer.target + peer.done, std::min<uint64_t>(left, budget));
      peer.done += n;
      budget -= std::min(budget, n);
      if (n == 0) break;
      progress = true;
      if (peer.letter != nullptr) peer.letter->last_moved_at = now_s();
      if (n < left) continue;
    }
    peer.lane->finish_read();
    end(peer);
  }
  return progress;
}

// A frame's header has come: finds where its payload goes. False when the engine has failed over it.
bool Mailbox::begin(int index, Peer& peer) {
  const Header& h = peer.header;
  peer.inside = true;
  peer.done = 0;
  peer.target = nullptr;
  peer.letter.reset();
  peer.unexpected.reset();
  bool known = h.magic == kMagic && h.comm == engine_->comm() && h.lane == kMessageLane;
  Type type = static_cast<Type>(h.call.collective);
  uint64_t most = type == eager ? kEagerBytes : type == data ? kChunkBytes : 0;
  if (!known || type < eager || type > data || h.payload_bytes > most) {
    fail(FailureKind::wire, index, Letter{}, &h);
    return false;
  }
  if (type == clear) {
    auto found = peer.asked.find(h.call.seq);
    if (found == peer.asked.end()) {
      fail(FailureKind::wire, index, Letter{}, &h);
      return false;
    }
    found->second->last_moved_at = now_s();
    push_data(peer, found->second);
    peer.asked.erase(found);
    return true;
  }
  if (type == data) {
    auto found = peer.granted.find(h.call.seq);
    if (found == peer.granted.end() || h.payload_bytes > found->second->bytes - found->second->moved) {
      fail(FailureKind::wire, index, Letter{}, &h);
      return false;
    }
    peer.letter = found->second;
    peer.target = peer.letter->data + peer.letter->moved;
    return true;
  }
  auto wanted = std::find_if(receives_.begin(), receives_.end(), [&](const auto& letter) {
    return letter->tag == h.call.root && (letter->peer < 0 || letter->peer == index);
  });
  if (wanted != receives_.end()) {
    auto letter = *wanted;
    receives_.erase(wanted);
    letter->source = index;
    if (!fits(index, *letter, h)) return false;
    if (type == request) {
      grant(index, peer, letter, h);
    } else {
      peer.letter = letter;
      peer.target = letter->data;
    }
    return true;
  }
  auto arrived = std::make_shared<Arrived>();
  arrived->header = h;
  arrived->complete = type == request;
  arrived->payload.resize(h.payload_bytes);
  peer.arrived.push_back(arrived);
  if (type == eager) peer.unexpected = arrived;
  peer.target = arrived->payload.data();
  return true;
}

// The payload of a frame is in.
void Mailbox::end(Peer& peer) {
  peer.inside = false;
  auto type = static_cast<Type>(peer.header.call.collective);
  if (peer.unexpected != nullptr) {
    auto arrived = peer.unexpected;
    peer.unexpected.reset();
    arrived->complete = true;
    if (auto letter = arrived->taken_by; letter != nullptr) {
      std::copy(arrived->payload.begin(), arrived->payload.end(), letter->data);
      finish(*letter, FailureKind::none);
    }
  } else if (auto letter = peer.letter; letter != nullptr) {
    peer.letter.reset();
    letter->moved += peer.header.payload_bytes;
    if (type == eager || letter->moved == letter->bytes) {
      peer.granted.erase(peer.header.call.seq);
      finish(*letter, FailureKind::none);
    }
  }
}

// A receive is posted for what has come already.
void Mailbox::match(int index, Peer& peer, const std::shared_ptr<Letter>& letter,
                    const std::shared_ptr<Arrived>& found) {
  letter->source = index;
  peer.arrived.remove(found);
  if (!fits(index, *letter, found->header)) return;
  if (found->header.call.collective == request) {
    grant(index, peer, letter, found->header);
  } else if (found->complete) {
    std::copy(found->payload.begin(), found->payload.end(), letter->data);
    finish(*letter, FailureKind::none);
  } else {
    found->taken_by = letter;
  }
}

void Mailbox::grant(int, Peer& peer, const std::shared_ptr<Letter>& letter, const Header& header) {
  peer.granted[header.call.seq] = letter;
  letter->last_moved_at = now_s();
  Outgoing frame;
  frame.header = header;
  frame.header.call.collective = clear;
  frame.header.payload_bytes = 0;
  peer.out.push_back(std::move(frame));
}

bool Mailbox::fits(int index, const Letter& letter, const Header& header) {
  if (total_bytes(header) == letter.bytes && header.call.dtype == letter.dtype) return true;
  fail(FailureKind::mismatch, index, letter, &header);
  return false;
}

// ---------------------------------------------------------------------------------------------------- failing

void Mailbox::fail(FailureKind kind, int culprit, const Letter& letter, const Header* theirs, double waited_s) {
  Failure failure;
  failure.kind = kind;
  failure.culprit = culprit;
  failure.detector = engine_->rank();
  failure.waited_s = waited_s;
  failure.mine = header_of(letter, eager, 0).call;
  if (theirs != nullptr) {
    failure.theirs = theirs->call;
    failure.mine.seq = theirs->call.seq;
  }
  engine_->fail(failure);
}

void Mailbox::finish(Letter& letter, FailureKind result) {
  letter.result = result;
  letter.done = true;
  open_.remove_if([](const auto& other) { return other->done; });
  changed_.notify_all();
}

void Mailbox::fail_all(FailureKind kind) {
  for (auto& letter : open_) {
    letter->result = kind;
    letter->done = true;
  }
  open_.clear();
  receives_.clear();
  for (Peer& peer : peers_) {
    peer.out.clear();
    peer.asked.clear();
    peer.granted.clear();
    peer.letter.reset();
  }
  changed_.notify_all();
}

// Deadlines, and peers that have gone while something is still expected of them.
void Mailbox::look_around(double now) {
  size_t gone = 0;
  for (size_t i = 0; i < peers_.size(); i++) {
    Peer& peer = peers_[i];
    bool over = engine_->departed(static_cast<int>(i)) || (peer.lane != nullptr && peer.lane->broken());
    if (over && peer.departed_at == 0) peer.departed_at = now;
    gone += over && now - peer.departed_at > kLastBytes_s;
  }
  for (auto& letter : open_) {
    int peer = letter->peer >= 0 ? letter->peer : letter->source;
    bool alone = peer < 0 && gone + 1 == peers_.size() && gone > 0;
    if (peer >= 0) {
      Peer& other = peers_[static_cast<size_t>(peer)];
      alone = other.departed_at > 0 && now - other.departed_at > kLastBytes_s && now - letter->last_moved_at > kLastBytes_s;
    }
    if (alone) {
      bool left = peer < 0 || engine_->departed(peer);
      return fail(left ? FailureKind::left : FailureKind::lost, peer, *letter);
    }
    if (now - letter->last_moved_at > letter->timeout_s) {
      return fail(FailureKind::deadline, peer, *letter, nullptr, now - letter->last_moved_at);
    }
  }
}

}  // namespace treering
