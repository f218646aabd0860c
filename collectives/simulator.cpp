// Runs all ranks' steps of a plan in virtual time. simulate.py says what the model is; this file is the event loop.
//
// A matched send and receive are one node, as in the proof; a local step is a node of its own. A node is moved segment by
// segment: a segment may start when its lane has come to it, when the steps that the send depends on have finished those
// bytes, and when the first link of its path is free. It has ended when it has arrived and the receiving step may use it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace treering {
namespace {

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
constexpr size_t kHugePageBytes = 2 << 20;

// Memory in huge pages where it is large: the tables of a million ranks' steps would otherwise spend their time in page
// faults.
template <typename T>
struct HugePages {
  using value_type = T;
  HugePages() = default;
  template <typename U>
  HugePages(const HugePages<U>&) {}
  T* allocate(size_t n) {
    size_t bytes = n * sizeof(T);
    if (bytes < kHugePageBytes) return static_cast<T*>(::operator new(bytes, std::align_val_t{alignof(T)}));
    void* p = std::aligned_alloc(kHugePageBytes, (bytes + kHugePageBytes - 1) & ~(kHugePageBytes - 1));
    if (p == nullptr) throw std::bad_alloc();
    ::madvise(p, bytes, MADV_HUGEPAGE);
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t n) {
    if (n * sizeof(T) < kHugePageBytes) {
      ::operator delete(p, std::align_val_t{alignof(T)});
    } else {
      std::free(p);
    }
  }
  bool operator==(const HugePages&) const { return true; }
};
template <typename T>
using Table = std::vector<T, HugePages<T>>;

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename T>
auto to_numpy(std::vector<T> values) {
  auto* kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(kept->data(), {kept->size()}, owner);
}

// The codes of sheet.py.
enum Kind : uint8_t { kSend, kRecv, kRecvReduce, kCopy, kReduce };

// A monotone priority queue of (time, id): what is pushed is never earlier than what was popped last. Equal times come out
// in the order in which they were pushed. After Ahuja, Mehlhorn, Orlin and Tarjan, Faster algorithms for the shortest
// path problem (JACM 37(2), 1990).
class RadixHeap {
 public:
  bool empty() const { return size_ == 0; }
  void push(double time, uint32_t id) {
    uint64_t key = std::bit_cast<uint64_t>(time);
    buckets_[bucket(key)].push_back({key, id});
    size_++;
  }
  std::pair<double, uint32_t> pop() {
    if (at_ == buckets_[0].size()) refill();
    size_--;
    auto [key, id] = buckets_[0][at_++];
    return {std::bit_cast<double>(key), id};
  }

 private:
  struct Entry {
    uint64_t key;
    uint32_t id;
  };
  size_t bucket(uint64_t key) const { return static_cast<size_t>(64 - std::countl_zero(key ^ last_)); }
  void refill() {
    buckets_[0].clear();
    at_ = 0;
    size_t b = 1;
    while (buckets_[b].empty()) b++;
    last_ = std::min_element(buckets_[b].begin(), buckets_[b].end(), [](auto& x, auto& y) { return x.key < y.key; })->key;
    for (const Entry& entry : buckets_[b]) buckets_[bucket(entry.key)].push_back(entry);
    buckets_[b].clear();
  }
  std::vector<Entry> buckets_[65];
  size_t at_ = 0, size_ = 0;
  uint64_t last_ = 0;
};

// What waits for a node is another node in one of two roles: its sender, to give the next segment, or its receiver, to take
// it. Roles are numbered 2 n and 2 n + 1.
struct Node {
  uint32_t giver;            // step that sends, or the local step
  uint32_t taker = kNone;    // step that receives
  uint32_t next = kNone;     // the following transfer on the lane
  uint32_t pair = kNone;     // which two ranks: the path
  uint32_t sent = 0;         // segments that have started
  uint32_t taken = 0;        // segments that have an end
  uint32_t finish = 0;       // where its segments' end times begin
  uint32_t waiters = kNone;  // the role that began last to wait for this node
  uint32_t wait_next[2] = {kNone, kNone};  // for each role, what waits for the same node (a sender: for the same link)
  bool first = false;        // on its lane
  bool open = false;         // all before it on the lane has been taken
  bool waiting = false;      // its receiver, for another node
};

class Simulator {
 public:
  Simulator(int64_t size, Array<int64_t> offsets, Array<uint8_t> kind, Array<uint8_t> lane, Array<int32_t> other,
            Array<int32_t> chunk, Array<int32_t> count)
      : size_(size),
        offsets_(offsets.data(), offsets.data() + offsets.size()),
        arrays_{kind, lane, other, chunk, count},
        steps_(kind.size()),
        kind_(kind.data()),
        lane_(lane.data()),
        other_(other.data()),
        chunk_(chunk.data()),
        count_(count.data()) {
    if (steps_ >= kNone) throw nb::value_error("too many steps for the simulator");
    nb::gil_scoped_release release;
    match();
    find_dependencies();
  }

  auto sources() const { return to_numpy(sources_); }
  auto targets() const { return to_numpy(targets_); }
  size_t transfers() const { return transfers_; }

  // Times in seconds. Paths: of pair i, links route_links[route_offsets[i] .. route_offsets[i+1]].
  double run(Array<int64_t> route_offsets, Array<int32_t> route_links, Array<double> latency_s,
             Array<double> seconds_per_byte, double combine_seconds_per_byte, Array<double> overhead_s,
             double chunk_bytes,
             double segment_bytes, bool one_port, bool trace) {
    if (route_offsets.size() != sources_.size() + 1 || overhead_s.size() != sources_.size()) {
      throw nb::value_error("one route and overhead per pair of ranks is needed");
    }
    nb::gil_scoped_release release;
    routes_.assign(route_offsets.data(), route_offsets.data() + route_offsets.size());
    links_.assign(route_links.data(), route_links.data() + route_links.size());
    seconds_per_byte_.assign(seconds_per_byte.data(), seconds_per_byte.data() + seconds_per_byte.size());
    path_latency_.assign(sources_.size(), 0.0);
    for (size_t i = 0; i < sources_.size(); i++) {
      for (int64_t l = routes_[i]; l < routes_[i + 1]; l++) path_latency_[i] += latency_s.data()[links_[l]];
    }
    combine_ = combine_seconds_per_byte;
    overhead_.assign(overhead_s.data(), overhead_s.data() + overhead_s.size());
    chunk_bytes_ = chunk_bytes;
    segment_bytes_ = segment_bytes;
    one_port_ = one_port;
    tracing_ = trace;
    link_bytes_.assign(seconds_per_byte_.size(), 0.0);
    link_free_.assign(seconds_per_byte_.size(), 0.0);
    link_queue_.assign(seconds_per_byte_.size(), {kNone, kNone});
    processor_free_.assign(static_cast<size_t>(size_), 0.0);
    sender_free_.assign(static_cast<size_t>(size_), 0.0);
    trace_.clear();
    uint64_t segments = 0;
    for (Node& node : nodes_) {
      node.sent = node.taken = 0;
      node.waiters = kNone;
      node.open = node.first;
      node.waiting = false;
      node.finish = static_cast<uint32_t>(segments);
      segments += segments_of(node.giver);
      if (segments >= kNone) throw std::length_error("too many segments: make them larger");
    }
    finish_.assign(segments, 0.0);
    floor_.assign(nodes_.size(), 0.0);
    end_ = 0;
    done_ = 0;
    for (uint32_t n = 0; n < nodes_.size(); n++) {
      if (nodes_[n].first) give(n, 0.0);
    }
    uint32_t links = static_cast<uint32_t>(link_free_.size());
    while (!events_.empty()) {
      auto [now, id] = events_.pop();
      if (id < links) {
        serve(id, now);
      } else {
        arrive(id - links, now);
      }
      for (size_t i = 0; i < woken_.size(); i++) {
        uint32_t n = woken_[i] / 2;
        if (woken_[i] % 2 == 0) {
          give(n, std::max(floor_[n], now));
        } else {
          nodes_[n].waiting = false;
          take(n);
        }
      }
      woken_.clear();
    }
    if (done_ != nodes_.size()) throw std::logic_error("the simulated plan came to a halt; is it proved?");
    return end_;
  }

  auto link_bytes() const { return to_numpy(link_bytes_); }
  // Of every segment that moved: step that gave, step that took (or -1), begin and end.
  auto trace_steps() const {
    std::vector<int64_t> flat;
    for (const Moved& m : trace_) {
      flat.push_back(m.giver);
      flat.push_back(m.taker == kNone ? int64_t{-1} : int64_t{m.taker});
    }
    return to_numpy(std::move(flat));
  }
  auto trace_times() const {
    std::vector<double> flat;
    for (const Moved& m : trace_) {
      flat.push_back(m.begin);
      flat.push_back(m.end);
    }
    return to_numpy(std::move(flat));
  }

 private:
  struct Moved {
    uint32_t giver, taker;
    double begin, end;
  };
  struct Range {
    int64_t first, count;
  };

  // ------------------------------------------------------------------------------------------------ the graph

  // Joins sends with receives: the i-th send from one rank to another on a lane with the i-th receive.
  void match() {
    size_t steps = steps_, lanes = 1;
    node_.assign(steps, kNone);
    std::vector<int64_t> begins(static_cast<size_t>(size_) + 1, 0);  // of the sends to each rank
    for (size_t s = 0; s < steps; s++) {
      lanes = std::max<size_t>(lanes, lane_[s] + size_t{1});
      if (kind_[s] == kSend) begins[static_cast<size_t>(other_[s]) + 1]++;
    }
    for (size_t r = 0; r < static_cast<size_t>(size_); r++) begins[r + 1] += begins[r];
    Table<uint32_t> sends(static_cast<size_t>(begins.back()));
    std::vector<int64_t> place(begins.begin(), begins.end() - 1);
    transfers_ = sends.size();
    size_t locals = 0;
    for (size_t s = 0; s < steps; s++) {
      if (kind_[s] == kSend) sends[static_cast<size_t>(place[static_cast<size_t>(other_[s])]++)] = static_cast<uint32_t>(s);
      if (kind_[s] >= kCopy) locals++;
    }
    nodes_.reserve(transfers_ + locals);
    for (uint32_t s = 0; s < steps; s++) {
      if (kind_[s] == kRecv || kind_[s] == kRecvReduce) continue;
      node_[s] = static_cast<uint32_t>(nodes_.size());
      nodes_.push_back({.giver = s, .first = kind_[s] >= kCopy});
    }
    // The sends to one rank are in the order of their senders. For each sender and lane, `cursor` is the next candidate.
    std::vector<int64_t> cursor(static_cast<size_t>(size_) * lanes), known(static_cast<size_t>(size_), -1);
    std::vector<uint32_t> last(static_cast<size_t>(size_) * lanes), pair(static_cast<size_t>(size_));
    int64_t source = 0;  // of the send that is looked at
    for (int64_t rank = 0; rank < size_; rank++) {
      source = 0;
      for (int64_t i = begins[static_cast<size_t>(rank)]; i < begins[static_cast<size_t>(rank) + 1]; i++) {
        while (offsets_[static_cast<size_t>(source) + 1] <= static_cast<int64_t>(sends[static_cast<size_t>(i)])) source++;
        auto from = static_cast<size_t>(source);
        if (known[from] == rank) continue;
        known[from] = rank;
        pair[from] = static_cast<uint32_t>(sources_.size());
        sources_.push_back(source);
        targets_.push_back(rank);
        for (size_t l = 0; l < lanes; l++) {
          cursor[from * lanes + l] = i;
          last[from * lanes + l] = kNone;
        }
      }
      for (int64_t s = offsets_[static_cast<size_t>(rank)]; s < offsets_[static_cast<size_t>(rank) + 1]; s++) {
        auto step = static_cast<size_t>(s);
        if (kind_[step] != kRecv && kind_[step] != kRecvReduce) continue;
        auto from = static_cast<size_t>(other_[step]);
        size_t queue = from * lanes + lane_[step];
        int64_t end = begins[static_cast<size_t>(rank) + 1];
        int64_t& at = cursor[queue];
        if (known[from] != rank) throw std::invalid_argument("a receive has no send");
        while (at < end && lane_[sends[static_cast<size_t>(at)]] != lane_[step]) at++;
        if (at == end || sends[static_cast<size_t>(at)] >= offsets_[from + 1]) throw std::invalid_argument("a receive has no send");
        uint32_t n = node_[sends[static_cast<size_t>(at++)]];
        node_[step] = n;
        Node& node = nodes_[n];
        node.taker = static_cast<uint32_t>(s);
        node.pair = pair[from];
        node.first = last[queue] == kNone;
        if (!node.first) nodes_[last[queue]].next = n;
        last[queue] = n;
      }
    }
    for (const Node& node : nodes_) {
      if (node.taker == kNone && kind_[node.giver] == kSend) throw std::invalid_argument("a send has no receive");
    }
  }

  Range target(uint32_t s) const { return {chunk_[s], count_[s]}; }
  Range source(uint32_t s) const { return {kind_[s] >= kCopy ? other_[s] : chunk_[s], count_[s]}; }

  // For every step the earlier steps of its rank that write what it touches, or read what it writes. Where steps name
  // many chunks at once, the chunks between two borders of such stretches are looked at as one.
  void find_dependencies() {
    begin_.assign(steps_ + 1, 0);
    int64_t chunks = 0;
    for (uint32_t s = 0; s < steps_; s++) {
      chunks = std::max({chunks, target(s).first + count_[s], source(s).first + count_[s]});
    }
    std::vector<uint32_t> writer(static_cast<size_t>(chunks), kNone), readers(static_cast<size_t>(chunks), kNone);
    std::vector<std::pair<uint32_t, uint32_t>> lists;  // reader, the next of the chunk's readers
    std::vector<uint32_t> touched;
    std::vector<int64_t> borders;
    for (size_t rank = 0; rank < static_cast<size_t>(size_); rank++) {
      auto first = static_cast<uint32_t>(offsets_[rank]), last = static_cast<uint32_t>(offsets_[rank + 1]);
      find_borders(first, last, borders);
      auto place = [&](int64_t chunk) {
        if (borders.empty()) return static_cast<size_t>(chunk);
        return static_cast<size_t>(std::lower_bound(borders.begin(), borders.end(), chunk) - borders.begin());
      };
      for (uint32_t s = first; s < last; s++) {
        size_t mine = dependencies_.size();
        auto depend = [&](uint32_t on) {
          if (on == kNone || on == s) return;
          for (size_t i = dependencies_.size(); i > mine && dependencies_.size() - i < 8;) {
            if (dependencies_[--i] == on) return;
          }
          dependencies_.push_back(on);
        };
        auto touch = [&](size_t c) {
          if (writer[c] == kNone && readers[c] == kNone) touched.push_back(static_cast<uint32_t>(c));
        };
        if (kind_[s] == kSend || kind_[s] >= kCopy) {
          Range read = source(s);
          for (size_t c = place(read.first), end = place(read.first + read.count); c < end; c++) {
            depend(writer[c]);
            touch(c);
            lists.emplace_back(s, readers[c]);
            readers[c] = static_cast<uint32_t>(lists.size() - 1);
          }
        }
        if (kind_[s] != kSend) {
          Range written = target(s);
          for (size_t c = place(written.first), end = place(written.first + written.count); c < end; c++) {
            touch(c);
            if (readers[c] == kNone) depend(writer[c]);
            for (uint32_t r = readers[c]; r != kNone; r = lists[r].second) depend(lists[r].first);
            readers[c] = kNone;
            writer[c] = s;
          }
        }
        begin_[s + 1] = static_cast<uint32_t>(dependencies_.size());
      }
      for (uint32_t c : touched) writer[c] = readers[c] = kNone;
      touched.clear();
      lists.clear();
    }
  }

  // Where the stretches of chunks that steps name begin and end, in order; nothing where all are of one chunk.
  void find_borders(uint32_t first, uint32_t last, std::vector<int64_t>& borders) const {
    borders.clear();
    if (std::all_of(count_ + first, count_ + last, [](int32_t count) { return count == 1; })) return;
    for (uint32_t s = first; s < last; s++) {
      for (Range range : {target(s), source(s)}) {
        borders.push_back(range.first);
        borders.push_back(range.first + range.count);
      }
    }
    std::sort(borders.begin(), borders.end());
    borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  }

  // ------------------------------------------------------------------------------------------------ virtual time

  double bytes_of(uint32_t s) const { return chunk_bytes_ * count_[s]; }
  uint32_t segments_of(uint32_t s) const {
    return static_cast<uint32_t>(std::max(1.0, std::ceil(bytes_of(s) / segment_bytes_ - 1e-9)));
  }

  // Which of an earlier step's segments must have finished before segment `at` of a step may start; -1 for none.
  int64_t needed(uint32_t s, uint32_t at, uint32_t on) const {
    int64_t most = -1;
    auto look = [&](Range mine, Range theirs) {
      double begin = static_cast<double>(mine.first) * chunk_bytes_ + at * segment_bytes_;
      double end = std::min(begin + segment_bytes_, static_cast<double>(mine.first + mine.count) * chunk_bytes_);
      double from = static_cast<double>(theirs.first) * chunk_bytes_;
      double to = static_cast<double>(theirs.first + theirs.count) * chunk_bytes_;
      bool same = mine.first < theirs.first + theirs.count && theirs.first < mine.first + mine.count;
      if (!same || (chunk_bytes_ > 0 && (begin >= to || end <= from))) return;
      double upto = std::min(end, to) - from;
      most = std::max(most, static_cast<int64_t>(std::max(0.0, std::ceil(upto / segment_bytes_ - 1e-9) - 1)));
    };
    bool two = kind_[s] >= kCopy, their_two = kind_[on] >= kCopy;
    look(target(s), target(on));
    if (two) look(source(s), target(on));
    if (their_two) look(target(s), source(on));
    return most;
  }

  // The time at which all that `step` depends on for its segment `at` has finished, `floor` at least; a negative time when
  // that is not known yet, and then the role waits for the node it depends on.
  double ready(uint32_t step, uint32_t at, double floor, uint32_t role) {
    for (uint32_t d = begin_[step]; d < begin_[step + 1]; d++) {
      uint32_t on = dependencies_[d];
      int64_t segment = needed(step, at, on);
      if (segment < 0) continue;
      Node& other = nodes_[node_[on]];
      if (other.taken <= segment) {
        nodes_[role / 2].wait_next[role % 2] = other.waiters;
        other.waiters = role;
        return -1;
      }
      floor = std::max(floor, finish_[other.finish + static_cast<size_t>(segment)]);
    }
    return floor;
  }

  // The sender's part: an event when the next segment may start, not before `floor`.
  void give(uint32_t n, double floor) {
    floor_[n] = floor;
    double start = ready(nodes_[n].giver, nodes_[n].sent, floor, 2 * n);
    if (start >= 0) events_.push(start, n + static_cast<uint32_t>(link_free_.size()));
  }

  void arrive(uint32_t n, double now) {
    Node& node = nodes_[n];
    if (node.taker == kNone) {  // a local step
      size_t rank = rank_of(node.giver);
      double begin = std::max(now, processor_free_[rank]);
      double end = begin + segment_bytes(node, node.sent) * combine_;
      processor_free_[rank] = end;
      if (tracing_) trace_.push_back({node.giver, node.taker, begin, end});
      finish_[node.finish + node.sent++] = end;
      node.taken++;
      ended(n, end);
      if (node.sent < segments_of(node.giver)) give(n, now);
      return;
    }
    auto link = static_cast<uint32_t>(links_[routes_[node.pair]]);
    auto& queue = link_queue_[link];
    if (queue.first == kNone && link_free_[link] <= now) {
      start(n, now);
      return;
    }
    if (queue.first == kNone) {
      queue.first = n;
      events_.push(std::max(now, link_free_[link]), link);
    } else {
      nodes_[queue.second].wait_next[0] = n;
    }
    queue.second = n;
    node.wait_next[0] = kNone;
  }

  void serve(uint32_t link, double now) {
    if (link_free_[link] > now) {  // another path crosses this link, and has taken it in the meantime
      events_.push(link_free_[link], link);
      return;
    }
    auto& queue = link_queue_[link];
    uint32_t n = queue.first;
    queue.first = nodes_[n].wait_next[0];
    start(n, now);
    if (queue.first != kNone) events_.push(std::max(now, link_free_[link]), link);
  }

  double segment_bytes(const Node& node, uint32_t at) const {
    return std::max(0.0, std::min(segment_bytes_, bytes_of(node.giver) - at * segment_bytes_));
  }

  void start(uint32_t n, double now) {
    Node& node = nodes_[n];
    double bytes = segment_bytes(node, node.sent), latency = path_latency_[node.pair];
    double held = one_port_ ? latency : 0.0;
    int64_t first = routes_[node.pair], last = routes_[node.pair + 1] - 1;
    auto giver = static_cast<size_t>(sources_[node.pair]);
    double begin = now;
    double overhead = node.sent == 0 ? overhead_[node.pair] : 0.0;
    if (overhead > 0) {
      begin = sender_free_[giver] = std::max(now, sender_free_[giver]) + overhead;
    }
    double through = begin;
    for (int64_t i = first; i <= last; i++) {
      auto link = static_cast<size_t>(links_[static_cast<size_t>(i)]);
      begin = std::max(begin, link_free_[link]);
      double busy = bytes * seconds_per_byte_[link];
      link_free_[link] = begin + busy + (i == first || i == last ? held : 0.0);
      link_bytes_[link] += bytes;
      through = std::max(through, begin + busy);
    }
    if (tracing_) trace_.push_back({node.giver, node.taker, now, through + latency});
    finish_[node.finish + node.sent++] = through + latency;
    take(n);
    // The sender goes on when the slowest link has let the segment through.
    if (node.sent < segments_of(node.giver)) {
      give(n, through);
    } else if (node.next != kNone) {
      give(node.next, through);
    }
  }

  // The receiver's part: what has been sent is taken in order, when it has arrived and when the step may use it.
  void take(uint32_t n) {
    Node& node = nodes_[n];
    if (!node.open || node.waiting) return;
    while (node.taken < node.sent) {
      double& finish = finish_[node.finish + node.taken];
      double end = ready(node.taker, node.taken, finish, 2 * n + 1);
      if (end < 0) {
        node.waiting = true;
        return;
      }
      double work = (node.taken == 0 ? overhead_[node.pair] : 0.0) +
                    (kind_[node.taker] == kRecvReduce ? segment_bytes(node, node.taken) * combine_ : 0.0);
      auto taker = static_cast<size_t>(targets_[node.pair]);
      if (work > 0) end = processor_free_[taker] = std::max(end, processor_free_[taker]) + work;
      finish = end;
      node.taken++;
      ended(n, end);
    }
    if (node.taken == segments_of(node.giver) && node.next != kNone) {
      nodes_[node.next].open = true;
      woken_.push_back(2 * node.next + 1);
    }
  }

  // A segment of a node has an end: who waited for it goes on, in the order of the plan for those that wait alike.
  void ended(uint32_t n, double end) {
    Node& node = nodes_[n];
    end_ = std::max(end_, end);
    if (node.taken == segments_of(node.giver)) done_++;
    size_t begin = woken_.size();
    for (uint32_t role = node.waiters; role != kNone; role = nodes_[role / 2].wait_next[role % 2]) woken_.push_back(role);
    std::reverse(woken_.begin() + static_cast<std::ptrdiff_t>(begin), woken_.end());
    node.waiters = kNone;
  }

  size_t rank_of(uint32_t s) const {
    return static_cast<size_t>(std::upper_bound(offsets_.begin(), offsets_.end(), static_cast<int64_t>(s)) - offsets_.begin() - 1);
  }

  int64_t size_;
  std::vector<int64_t> offsets_;
  std::tuple<Array<uint8_t>, Array<uint8_t>, Array<int32_t>, Array<int32_t>, Array<int32_t>> arrays_;  // owners
  size_t steps_;
  const uint8_t *kind_, *lane_;
  const int32_t *other_, *chunk_, *count_;

  Table<Node> nodes_;
  Table<uint32_t> node_;                  // of each step
  Table<uint32_t> begin_, dependencies_;  // of each step
  std::vector<int64_t> sources_, targets_;      // of each pair of ranks that talk
  size_t transfers_ = 0;

  std::vector<int64_t> routes_;
  std::vector<int32_t> links_;
  std::vector<double> path_latency_, overhead_, seconds_per_byte_;  // by pair, by pair, by link
  double combine_ = 0, chunk_bytes_ = 0, segment_bytes_ = 0;
  bool one_port_ = false, tracing_ = false;

  RadixHeap events_;  // links to serve, and nodes (numbered after the links) whose next segment may start
  Table<double> finish_;
  Table<double> floor_;
  std::vector<double> link_free_, link_bytes_, processor_free_, sender_free_;  // by link; by rank
  std::vector<uint32_t> woken_;  // roles that may be able to go on
  std::vector<std::pair<uint32_t, uint32_t>> link_queue_;  // first and last node that wait to enter a link
  std::vector<Moved> trace_;
  double end_ = 0;
  size_t done_ = 0;
};

}  // namespace
}  // namespace treering

NB_MODULE(_simulator, m) {
  using treering::Simulator;
  nb::class_<Simulator>(m, "Simulator")
      .def(nb::init<int64_t, treering::Array<int64_t>, treering::Array<uint8_t>, treering::Array<uint8_t>,
                    treering::Array<int32_t>, treering::Array<int32_t>, treering::Array<int32_t>>(),
           "size"_a, "offsets"_a, "kind"_a, "lane"_a, "other"_a, "chunk"_a, "count"_a)
      .def_prop_ro("sources", &Simulator::sources, nb::rv_policy::automatic)
      .def_prop_ro("targets", &Simulator::targets, nb::rv_policy::automatic)
      .def_prop_ro("transfers", &Simulator::transfers)
      .def("run", &Simulator::run, "route_offsets"_a, "route_links"_a, "latency_s"_a, "seconds_per_byte"_a,
           "combine_seconds_per_byte"_a, "overhead_s"_a, "chunk_bytes"_a, "segment_bytes"_a, "one_port"_a, "trace"_a)
      .def_prop_ro("link_bytes", &Simulator::link_bytes, nb::rv_policy::automatic)
      .def_prop_ro("trace_steps", &Simulator::trace_steps, nb::rv_policy::automatic)
      .def_prop_ro("trace_times", &Simulator::trace_times, nb::rv_policy::automatic);
}
