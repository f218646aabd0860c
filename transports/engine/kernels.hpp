// Element-wise combination of arrays: out = a op b. Compiled several times for different instruction sets
// (CMakeLists.txt); `kernels()` picks the best one this processor has, at run time.
#pragma once
#include <cstddef>
#include <cstdint>

namespace treering {

// The numbers are part of the wire format and are mirrored in transports/program.py.
enum class Dtype : uint8_t { f16, bf16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64, boolean, c64, c128, bytes };
constexpr int kDtypes = 16;
enum class Op : uint8_t { sum, prod, min, max, band, bor, bxor };
constexpr int kOps = 7;

inline constexpr uint8_t kElementBytes[kDtypes] = {2, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 8, 16, 1};

// Pointers need no alignment; `out` may be `a` or `b`. f16 and bf16 are computed in float32 and rounded once.
using Combine = void (*)(char* out, const char* a, const char* b, size_t elements);
// out = in / divisor; integers truncate toward zero.
using Divide = void (*)(char* out, const char* in, size_t elements, int64_t divisor);

struct Kernels {
  const char* name;
  Combine combine[kDtypes][kOps];  // null where the operation has no meaning for the type
  Divide divide[kDtypes];
};

const Kernels& kernels();                  // the best this processor has
const Kernels* const* kernel_variants();   // all that it can run, the best first, then null

}  // namespace treering
