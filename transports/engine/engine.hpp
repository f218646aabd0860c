// The engine of one communicator on one rank: runs programs over lanes to peers, and keeps watch over the peers.
//
// Threads: a caller's thread runs blocking calls; the progress thread (made at the first asynchronous call) runs the
// others, in order; the control thread sleeps on the control connections and answers peers at any time, so that a rank
// which computes is not mistaken for one that is dead. run_mutex_: who runs a program. mutex_: everything else shared.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "program.hpp"
#include "shm_lane.hpp"
#include "tcp_lane.hpp"
#include "trace.hpp"
#include "wire.hpp"

namespace treering {

constexpr int kLanes = 32;        // per peer
constexpr int kMessageLane = 31;  // send and recv

// Registered memory. [Note: regions] A number is never used for a second region: what a peer's message means must not
// depend on how far the control connection, which announces and drops regions, is behind the lanes.
struct PeerRegion {
  char* base;
  uint64_t bytes;
};
struct OwnRegion {
  uint32_t id;
  uint64_t bytes;
  int fd;
  std::vector<bool> announced;  // to each peer
};

struct Link {  // to one peer
  int control = -1;
  std::unique_ptr<Lane> lanes[kLanes];
  std::atomic<bool> departed{false};      // said GOODBYE
  std::map<uint32_t, PeerRegion> regions;  // of the peer, mapped here; by id
  std::string partial;                    // bytes of an unfinished frame
  std::deque<int> passed_fds;
  Frame state;                            // its last answer to a query
  double asked_at = 0, answered_at = 0;
  uint64_t messages_sent = 0, messages_received = 0;
};

struct Job {
  std::shared_ptr<Program> program;
  std::vector<char*> buffers;
  double timeout_s = 0;
  bool done = false;
  FailureKind result = FailureKind::none;
  uint32_t step = 0;
  uint64_t seq = 0;
};

class Engine {
 public:
  Engine(int rank, int size, uint32_t comm, uint16_t epoch, int spins);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Take over the descriptors. Any thread.
  void attach_control(int peer, int fd);
  void attach_lane(int peer, int lane, std::unique_ptr<Lane> made);
  bool has_lane(int peer, int lane);
  Lane* lane(int peer, int lane);  // null before it is connected; lives until close()
  const char* peer_region(int peer, uint32_t id, uint64_t up_to);

  uint32_t add_region(char* base, uint64_t bytes, int fd);
  void drop_region(uint32_t id);

  // Runs the program on this thread, after all that was started before. `interrupted` is called now and then and may
  // end the call by returning true. Returns `none`, or the kind of the failure that broke the communicator.
  FailureKind run(const std::shared_ptr<Program>& program, const std::vector<char*>& buffers, double timeout_s,
                  const std::function<bool()>& interrupted);
  std::shared_ptr<Job> start(std::shared_ptr<Program> program, std::vector<char*> buffers, double timeout_s);
  // Waits until the job is done, at most `wait_s`; true when it is.
  bool wait(Job& job, double wait_s);

  void fail(Failure failure);  // from outside: the first cause wins, and every connected peer is told
  Failure failure();
  bool departed(int peer) const { return links_.at(static_cast<size_t>(peer))->departed.load(); }
  void connecting(int peer);  // tells those who ask whom this rank waits for before it can begin a call; -1: nobody
  uint32_t failed_step() const { return failed_step_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  uint32_t comm() const { return comm_; }
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  int wake_fd() const { return wake_fd_; }  // for a mailbox, which sleeps in place of a caller
  uint64_t seq() const { return begun_.load(std::memory_order_relaxed); }
  void close();   // GOODBYE to all; idempotent
  void forked();  // in a child process: drops the descriptors without a word

  // From now on every call is noted, until the trace is taken: the calls that ended well since then. Any thread, but
  // they wait for a call in progress.
  void start_trace();
  Trace stop_trace();

  // Payload so far, for tests and reports.
  uint64_t bytes_sent() const { return bytes_sent_.load(std::memory_order_relaxed); }
  uint64_t bytes_direct() const { return bytes_direct_.load(std::memory_order_relaxed); }
  std::vector<uint64_t> bytes_to() const { return {bytes_to_.begin(), bytes_to_.end()}; }  // both, by rank

 private:
  FailureKind execute(Program& program, const std::vector<char*>& buffers, double timeout_s,
                      const std::function<bool()>* interrupted);
  bool bind(Program& program);
  bool advance(Program& program, Step& step, uint32_t index, Lane* lane);
  bool check(const Header& header, const Step& step);
  uint64_t direct_for(const Step& step, const char* data, const Lane& lane);

  // Waiting. [Note: waiting] Poll a little, then let others run, then sleep until a peer rings.
  struct Wait {
    double timeout_s, idle_since = 0, last_query = 0, last_look = 0, ended_at = 0;
    uint32_t idle = 0;
    bool armed = false;
    bool background;  // on the progress thread
    const std::function<bool()>* interrupted;
  };
  bool idle(Program& program, Wait& wait);
  bool look_around(Program& program, Wait& wait, double now);
  void sleep(Program& program);
  void announce_sleep(Program& program, bool asleep);
  std::vector<Step*> stuck(Program& program);
  void query(Program& program, Wait& wait, double now);
  void judge_deadline(Program& program, double waited_s);

  void control_loop();
  void read_control(int peer);
  void handle(int peer, const Frame& frame);
  void send_frame(int peer, const Frame& frame, int pass_fd = -1);  // mutex_ held
  void fail_locked(Failure failure, int but_not_to);
  void progress_loop();
  void wake();

  const int rank_, size_;
  const uint32_t comm_;
  const uint16_t epoch_;
  const int spins_;

  std::mutex run_mutex_;
  Call call_;  // of the run in progress
  const std::vector<char*>* buffers_ = nullptr;
  std::vector<Lane*> dirty_;
  std::unique_ptr<Trace> trace_;  // while somebody traces
  TracedCall* traced_ = nullptr;  // the run in progress, if it is traced
  std::atomic<uint32_t> failed_step_{0};
  std::atomic<uint64_t> bytes_sent_{0}, bytes_direct_{0};  // written by whoever runs a program
  std::vector<std::atomic<uint64_t>> bytes_to_;            // as these

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Link>> links_;
  std::map<const char*, OwnRegion> regions_;  // by their first byte
  uint32_t next_region_ = 1;  // 0 means "not registered"
  Failure failure_;
  std::atomic<bool> failed_{false};  // pairs with failure_ under mutex_
  std::atomic<uint64_t> begun_{0}, ended_{0};
  static constexpr size_t kHistory = 256;
  Call history_[kHistory];
  int blames_ = -1;
  Reason reason_ = Reason::unknown;
  uint64_t blamed_seq_ = 0;
  std::deque<std::shared_ptr<Job>> jobs_;
  std::atomic<size_t> jobs_pending_{0};

  std::atomic<bool> closing_{false};
  bool closed_ = false, forked_ = false;
  int wake_fd_ = -1, epoll_fd_ = -1, control_wake_fd_ = -1;
  std::thread control_thread_, progress_thread_;
};

}  // namespace treering
