// Messages between two ranks, matched by sender and tag, any number at the same time: what isend and irecv need.
//
// A mailbox has an engine to itself (its lanes, control connections and failures) and one thread, which moves whatever
// can move. A small message goes out at once and waits in memory at the receiver; a large one asks first, and its
// payload goes straight from the sender's array to the receiver's once a receive is posted:
//
//   small:  sender --- eager + payload --->                       receiver
//   large:  sender --- request --->  <--- clear ---  --- data + payload, in chunks ---> receiver
//
// Messages of one sender and tag are received in the order in which they were sent.
#pragma once
#include <condition_variable>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine.hpp"

namespace treering {

// One posted send or receive. The array belongs to the mailbox until it is done.
struct Letter {
  bool sends = false;
  int peer = -1;  // -1: receives from any rank
  int tag = 0;
  uint8_t dtype = 0;
  uint64_t count = 0, bytes = 0;
  char* data = nullptr;
  double timeout_s = 0;

  uint64_t id = 0;
  uint64_t moved = 0;
  double last_moved_at = 0;
  int source = -1;  // whom a receive has been matched with
  bool done = false;
  FailureKind result = FailureKind::none;
};

class Mailbox {
 public:
  explicit Mailbox(std::shared_ptr<Engine> engine);
  ~Mailbox() { close(); }
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // Any thread. The lane to the peer must be connected, unless the letter is a receive from any rank.
  std::shared_ptr<Letter> post(Letter letter);
  bool wait(const Letter& letter, double wait_s);
  void close();  // what is not done ends as closed; idempotent

 private:
  enum Type : uint8_t { eager = 1, request, clear, data };
  struct Outgoing {  // one frame
    Header header;
    std::shared_ptr<Letter> letter;  // null: clear
    const char* data = nullptr;
    uint64_t bytes = 0, done = 0;
    bool started = false, completes = false;
  };
  struct Arrived {  // what nobody has asked for yet
    Header header;
    std::vector<char> payload;
    bool complete = false;
    std::shared_ptr<Letter> taken_by;  // while its payload was still coming
  };
  struct Peer {
    Lane* lane = nullptr;
    std::deque<Outgoing> out;
    std::list<std::shared_ptr<Arrived>> arrived;
    std::map<uint64_t, std::shared_ptr<Letter>> asked, granted;  // large sends; large receives; by the sender's id
    bool inside = false;  // a frame is coming in
    Header header;
    char* target = nullptr;
    uint64_t done = 0;
    std::shared_ptr<Letter> letter;
    std::shared_ptr<Arrived> unexpected;
    double departed_at = 0;
  };

  void loop();
  bool pump_out(Peer& peer);
  bool pump_in(int index, Peer& peer);
  bool begin(int index, Peer& peer);
  void end(Peer& peer);
  void match(int index, Peer& peer, const std::shared_ptr<Letter>& letter, const std::shared_ptr<Arrived>& found);
  bool fits(int index, const Letter& letter, const Header& header);
  void grant(int index, Peer& peer, const std::shared_ptr<Letter>& letter, const Header& header);
  void push_data(Peer& peer, const std::shared_ptr<Letter>& letter);
  Header header_of(const Letter& letter, Type type, uint64_t payload) const;
  void finish(Letter& letter, FailureKind result);
  void fail_all(FailureKind kind);
  void look_around(double now);
  void fail(FailureKind kind, int culprit, const Letter& letter, const Header* theirs = nullptr, double waited_s = 0);

  std::shared_ptr<Engine> engine_;
  int wake_fd_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Peer> peers_;
  std::list<std::shared_ptr<Letter>> receives_;  // not matched yet, in order
  std::list<std::shared_ptr<Letter>> open_;      // not done
  uint64_t next_id_ = 1;
  bool closing_ = false;
  std::atomic<bool> asleep_{false};
  std::thread thread_;
};

}  // namespace treering
