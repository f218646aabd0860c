// A lane on one non-blocking TCP socket. Small messages go out with their header in one system call, and come in through
// a staging buffer that may hold several; the bulk of a large one is received where it belongs.
#pragma once
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "lane.hpp"

namespace treering {

class TcpLane final : public Lane {
 public:
  explicit TcpLane(int fd) : fd_(fd), staging_(new char[kStagingBytes]) {}
  ~TcpLane() override {
    ::shutdown(fd_, SHUT_WR);
    ::close(fd_);
  }
  TcpLane(const TcpLane&) = delete;
  TcpLane& operator=(const TcpLane&) = delete;

  bool start(const Header& header) override {
    header_ = header;
    header_sent_ = 0;
    return true;
  }
  size_t write(const char* data, size_t bytes) override {
    if (bytes == 0) return 0;
    return send_some(data, std::min(bytes, kCallBytes));
  }
  bool finish_write() override {
    if (header_sent_ < sizeof(Header)) send_some(nullptr, 0);
    return header_sent_ == sizeof(Header);
  }
  bool next(Header& header) override {
    if (staged() < sizeof(Header)) fill(kStagingBytes);
    if (staged() < sizeof(Header)) return false;
    std::memcpy(&header, staging_.get() + begin_, sizeof(Header));
    begin_ += sizeof(Header);
    left_ = header.payload_bytes;
    return true;
  }
  size_t read(char* data, size_t bytes) override {
    bytes = std::min(bytes, left_);
    size_t done = std::min(bytes, staged());
    std::memcpy(data, staging_.get() + begin_, done);
    begin_ += done;
    left_ -= done;
    if (done < bytes && bytes - done < kStagingBytes / 4) {  // read ahead: the next header may come along
      fill(kStagingBytes);
      size_t more = std::min(bytes - done, staged());
      std::memcpy(data + done, staging_.get() + begin_, more);
      begin_ += more;
      left_ -= more;
      return done + more;
    }
    if (done < bytes) {
      ssize_t n = ::recv(fd_, data + done, std::min(bytes - done, kCallBytes), MSG_DONTWAIT);
      if (n > 0) {
        done += static_cast<size_t>(n);
        left_ -= static_cast<size_t>(n);
      } else {
        note(n);
      }
    }
    return done;
  }
  std::span<const char> window(size_t bytes, size_t element_bytes) override {
    bytes = std::min(bytes, left_);
    if (staged() < std::max(element_bytes, std::min(bytes, kStagingBytes / 4))) fill(kStagingBytes);
    size_t here = std::min(bytes, staged());
    return {staging_.get() + begin_, here - here % element_bytes};
  }
  void consume(size_t bytes) override {
    begin_ += bytes;
    left_ -= bytes;
  }
  void finish_read() override {}
  void publish() override {}
  void wake_peer() override {}
  void announce_sleep(bool) override {}
  int poll_fd() const override { return fd_; }
  bool write_blocked() const override { return write_blocked_; }
  bool polls_by_system_call() const override { return true; }
  size_t segment_bytes() const override { return kCallBytes; }
  void drop_descriptors() override { ::close(fd_); }

 private:
  static constexpr size_t kStagingBytes = 256 << 10;
  static constexpr size_t kCallBytes = 256 << 10;  // so that one lane does not keep the loop from the others

  size_t staged() const { return end_ - begin_; }
  void fill(size_t up_to) {
    if (begin_ == end_) {
      begin_ = end_ = 0;
    } else if (begin_ > 0 && end_ > up_to / 2) {
      std::memmove(staging_.get(), staging_.get() + begin_, staged());
      end_ -= begin_;
      begin_ = 0;
    }
    if (end_ == up_to) return;
    ssize_t n = ::recv(fd_, staging_.get() + end_, up_to - end_, MSG_DONTWAIT);
    if (n > 0) {
      end_ += static_cast<size_t>(n);
    } else {
      note(n);
    }
  }
  void note(ssize_t n) {
    if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) broken_ = true;
  }
  size_t send_some(const char* data, size_t bytes) {
    iovec parts[2] = {{reinterpret_cast<char*>(&header_) + header_sent_, sizeof(Header) - header_sent_},
                      {const_cast<char*>(data), bytes}};
    msghdr message{};
    message.msg_iov = parts[0].iov_len > 0 ? parts : parts + 1;
    message.msg_iovlen = parts[0].iov_len > 0 ? 2 : 1;
    ssize_t n = ::sendmsg(fd_, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    write_blocked_ = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    if (n < 0) {
      note(n);
      return 0;
    }
    size_t sent = static_cast<size_t>(n);
    size_t of_header = std::min(sent, sizeof(Header) - header_sent_);
    header_sent_ += of_header;
    write_blocked_ = sent < of_header + bytes;
    return sent - of_header;
  }

  int fd_;
  bool write_blocked_ = false;
  Header header_;
  size_t header_sent_ = 0;
  std::unique_ptr<char[]> staging_;
  size_t begin_ = 0, end_ = 0;
  size_t left_ = 0;  // payload bytes of the message being received that were not consumed yet
};

}  // namespace treering
