// Connections between engines: lanes and registered memory as they come, the control connections and their thread, and
// how a failure gets around.
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <stdexcept>

#include "engine.hpp"
#include "system.hpp"

namespace treering {
namespace {

constexpr size_t kDirectBytes = 32 << 10;  // from here on, registered memory is read in place

}  // namespace

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
  wake();  // a mailbox may wait for whoever connects
}

Lane* Engine::lane(int peer, int lane) {
  std::lock_guard lock(mutex_);
  return links_.at(static_cast<size_t>(peer))->lanes[lane].get();
}

bool Engine::has_lane(int peer, int lane) {
  std::lock_guard lock(mutex_);
  Link& link = *links_.at(static_cast<size_t>(peer));
  return link.control >= 0 && link.lanes[lane] != nullptr;
}

const char* Engine::peer_region(int peer, uint32_t id, uint64_t up_to) {
  std::lock_guard lock(mutex_);
  auto& regions = links_[static_cast<size_t>(peer)]->regions;
  auto found = regions.find(id);
  return found == regions.end() || up_to > found->second.bytes ? nullptr : found->second.base;
}

uint32_t Engine::add_region(char* base, uint64_t bytes, int fd) {
  std::lock_guard lock(mutex_);
  if (closed_ || next_region_ >> (64 - kOffsetBits) != 0 || bytes >> kOffsetBits != 0) {
    ::close(fd);  // its memory is like any other
    return 0;
  }
  regions_[base] = OwnRegion{next_region_, bytes, fd, std::vector<bool>(static_cast<size_t>(size_))};
  return next_region_++;
}

void Engine::drop_region(uint32_t id) {
  std::lock_guard lock(mutex_);
  auto found = std::find_if(regions_.begin(), regions_.end(), [id](const auto& r) { return r.second.id == id; });
  if (found == regions_.end()) return;
  for (int peer = 0; peer < size_; peer++) {
    if (!found->second.announced[static_cast<size_t>(peer)]) continue;
    Frame frame;
    frame.type = FrameType::region_drop;
    frame.id = id;
    send_frame(peer, frame);
  }
  ::close(found->second.fd);
  regions_.erase(found);
}

// Where `data` lies in registered memory, as a header says it; 0 if the payload should travel in the lane.
// The first use of a region with a peer passes its descriptor over the control connection.
uint64_t Engine::direct_for(const Step& step, const char* data, const Lane& lane) {
  if (step.bytes < kDirectBytes || dynamic_cast<const ShmLane*>(&lane) == nullptr) return 0;
  std::lock_guard lock(mutex_);
  auto after = regions_.upper_bound(data);
  if (after == regions_.begin()) return 0;
  auto& [base, region] = *std::prev(after);
  auto offset = static_cast<uint64_t>(data - base);
  if (offset + step.bytes > region.bytes) return 0;
  auto announced = region.announced[static_cast<size_t>(step.peer)];
  if (!announced) {
    Frame frame;
    frame.type = FrameType::region;
    frame.id = region.id;
    frame.bytes = region.bytes;
    send_frame(step.peer, frame, region.fd);
    announced = true;
  }
  return (uint64_t{region.id} << kOffsetBits) | offset;
}

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
  if (forked_) return failure_;
  std::lock_guard lock(mutex_);
  return failure_;
}

void Engine::connecting(int peer) {
  std::lock_guard lock(mutex_);
  blames_ = peer;
  reason_ = peer < 0 ? Reason::unknown : Reason::silent;
  blamed_seq_ = 0;
}

void Engine::wake() {
  signal_fd(wake_fd_);
  changed_.notify_all();
}

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
      failure.mine = history_[begun_.load(std::memory_order_acquire) % kHistory];
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
      answer.blames = blames_;
      answer.reason = reason_;
      answer.blamed_seq = blamed_seq_;
      // Not there yet; but who waits for somebody itself, in an earlier call or for a connection, is not to blame.
      answer.inside = blames_ >= 0 ? 1 : 0;
      if (asked.point_to_point == 0 && asked.seq <= begun) {
        if (begun - asked.seq < kHistory / 2) {  // older entries may be overwritten while we look
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
      }
      send_frame(peer, answer);
      break;
    }
    case FrameType::state:
      link.state = frame;
      link.answered_at = now_s();
      break;
    case FrameType::region: {
      if (link.passed_fds.empty()) break;
      int fd = link.passed_fds.front();
      link.passed_fds.pop_front();
      void* base = mmap(nullptr, frame.bytes, PROT_READ, MAP_SHARED, fd, 0);
      ::close(fd);
      if (base == MAP_FAILED) break;
      if (!link.regions.try_emplace(frame.id, PeerRegion{static_cast<char*>(base), frame.bytes}).second) {
        munmap(base, frame.bytes);  // no honest peer announces a region twice
      }
      wake();
      break;
    }
    case FrameType::region_drop:
      // After a failure a call here may still be reading what the peer has given up; it stays until the end then.
      if (auto found = link.regions.find(frame.id); found != link.regions.end() && !failed_.load()) {
        munmap(found->second.base, found->second.bytes);
        link.regions.erase(found);
      }
      break;
  }
}

}  // namespace treering
