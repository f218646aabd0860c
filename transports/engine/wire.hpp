// What crosses between ranks: the header in front of every message, and the frames of the control connection.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace treering {

constexpr uint32_t kMagic = 0x314e5254;  // "TRN1", little endian

// One call of a collective, as every rank must make it. Compared byte for byte, so it has no padding.
struct Call {
  uint64_t seq = 0;        // number of the call on this communicator, from 1; of the message for send/recv
  uint64_t count = 0;      // elements of the whole array
  uint32_t algorithm = 0;  // CRC-32 of its name
  int32_t root = -1;
  uint8_t collective = 0, dtype = 0, op = 0, point_to_point = 0;
  uint32_t extra = 0;  // CRC-32 of what else must agree: uneven sizes, the shapes of a list
};
static_assert(sizeof(Call) == 32 && std::has_unique_object_representations_v<Call>);

// In front of the payload of every message. The bytes before `step` must equal what the receiver expects.
struct Header {
  uint32_t magic = kMagic;
  uint32_t comm = 0;
  Call call;
  uint64_t payload_bytes = 0;
  uint16_t lane = 0;
  uint16_t epoch = 0;
  uint32_t step = 0;  // the sender's step, for messages to people
  // Not 0: the payload is not in the lane but in registered memory of the sender, which the receiver maps:
  // region << kOffsetBits | offset in bytes.
  uint64_t direct = 0;
};
static_assert(sizeof(Header) == 64 && offsetof(Header, step) == 52);
constexpr size_t kComparedBytes = offsetof(Header, step);
constexpr int kOffsetBits = 40;

enum class FailureKind : int32_t { none, lost, left, deadline, mismatch, wire, interrupted, closed, forked, connect };
enum class Reason : int32_t { unknown, not_called, silent };

// Why a communicator failed: the first cause, the same on every rank that hears of it.
struct Failure {
  FailureKind kind = FailureKind::none;
  int32_t culprit = -1;   // the rank to look at
  int32_t detector = -1;  // the rank that noticed
  Reason reason = Reason::unknown;
  Call mine;    // the detector's call
  Call theirs;  // mismatch: the culprit's call; deadline: seq is the culprit's last call
  uint32_t step = 0;
  uint32_t reserved = 0;
  double waited_s = 0;
};

enum class FrameType : uint32_t { goodbye = 1, revoke, query, state, region, region_drop };

// On the control connection, fixed in size so that no length is ever trusted.
struct Frame {
  uint32_t magic = kMagic;
  FrameType type = FrameType::goodbye;
  uint32_t comm = 0;
  uint32_t id = 0;       // region
  uint64_t bytes = 0;    // region
  uint64_t last_seq = 0; // state: the last call begun here
  int32_t inside = 0;    // state: 1 in the call asked for, 2 past it
  int32_t blames = -1;   // state: whom this rank waits for in the end, and why
  Reason reason = Reason::unknown;
  uint32_t reserved = 0;
  uint64_t blamed_seq = 0;
  Call call;             // query
  Failure failure;       // revoke
};
static_assert(std::is_trivially_copyable_v<Frame>);

}  // namespace treering
