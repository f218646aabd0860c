#include "kernels.hpp"

namespace treering {

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

struct Variants {
  const Kernels* found[4] = {};
  Variants() {
    const Kernels** next = found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      *next++ = &kernels_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) *next++ = &kernels_avx2;
#endif
    *next = &kernels_baseline;
  }
};

}  // namespace

const Kernels* const* kernel_variants() {
  static const Variants variants;
  return variants.found;
}

const Kernels& kernels() {
  static const Kernels& best = *kernel_variants()[0];
  return best;
}

}  // namespace treering
