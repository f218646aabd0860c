#include "kernels.hpp"

namespace treering {

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels& best = [] () -> const Kernels& {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      return kernels_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return kernels_avx2;
    return kernels_baseline;
  }();
  return best;
#else
  return kernels_baseline;
#endif
}

}  // namespace treering
