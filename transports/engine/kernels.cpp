// Compiled once per instruction set; KERNELS_VARIANT names the table it defines. Uses no inline function of the standard
// library: the linker might keep the copy that was compiled for a newer processor.
#include "kernels.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace treering {
namespace {

// An unaligned load or store of one element; compilers vectorise loops over it.
template <class T>
inline T load(const char* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof(T));
  return value;
}
template <class T>
inline void store(char* p, T value) {
  __builtin_memcpy(p, &value, sizeof(T));
}

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

struct Bf16 {
  using Stored = uint16_t;
  using Value = float;
  static float value(uint16_t s) { return bits<float>(static_cast<uint32_t>(s) << 16); }
  static uint16_t stored(float v) {
    uint32_t u = bits<uint32_t>(v);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
    uint32_t quiet = (u >> 16) | 0x40;
    return static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
};

struct F16 {
  using Stored = uint16_t;
  using Value = float;
#if defined(__F16C__)
  static float value(uint16_t s) { return _cvtsh_ss(s); }
  static uint16_t stored(float v) { return static_cast<uint16_t>(_cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT)); }
#else
  static float value(uint16_t s) {
    uint32_t sign = static_cast<uint32_t>(s & 0x8000) << 16, rest = s & 0x7fff;
    // 2^112 moves the exponent from f16's bias to f32's; subnormals come out right by the same product.
    float magnitude = bits<float>(rest << 13) * 0x1p112f;
    uint32_t special = bits<uint32_t>(magnitude) | 0x7f800000;  // infinity and NaN keep their mantissa
    return bits<float>((rest >= 0x7c00 ? special : bits<uint32_t>(magnitude)) | sign);
  }
  static uint16_t stored(float v) {
    uint32_t u = bits<uint32_t>(v), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | ((a >> 13) & 0x3ff));
    if (a >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
    if (a < 0x38800000) {  // subnormal in f16: adding 0.5 rounds at 2^-24, to nearest, ties to even
      return static_cast<uint16_t>(sign | (bits<uint32_t>(bits<float>(a) + 0.5f) - 0x3f000000));
    }
    return static_cast<uint16_t>(sign | ((a + 0xc8000fff + ((a >> 13) & 1)) >> 13));
  }
#endif
};

template <class T>
struct Plain {
  using Stored = T;
  using Value = T;
  static T value(T s) { return s; }
  static T stored(T v) { return v; }
};

// Integers add and multiply as unsigned numbers of at least 32 bits: they wrap, and nothing is undefined.
template <class T>
struct Wide { using Type = T; };
template <> struct Wide<int8_t> { using Type = uint32_t; };
template <> struct Wide<uint8_t> { using Type = uint32_t; };
template <> struct Wide<int16_t> { using Type = uint32_t; };
template <> struct Wide<uint16_t> { using Type = uint32_t; };
template <> struct Wide<int32_t> { using Type = uint32_t; };
template <> struct Wide<int64_t> { using Type = uint64_t; };

struct Sum {
  template <class T> static T of(T a, T b) {
    using W = typename Wide<T>::Type;
    return static_cast<T>(static_cast<W>(a) + static_cast<W>(b));
  }
};
struct Prod {
  template <class T> static T of(T a, T b) {
    using W = typename Wide<T>::Type;
    return static_cast<T>(static_cast<W>(a) * static_cast<W>(b));
  }
};
struct Min {  // a NaN on either side wins, as in numpy
  template <class T> static T of(T a, T b) { return a < b || a != a ? a : b; }
};
struct Max {
  template <class T> static T of(T a, T b) { return a > b || a != a ? a : b; }
};
struct And { template <class T> static T of(T a, T b) { return static_cast<T>(a & b); } };
struct Or { template <class T> static T of(T a, T b) { return static_cast<T>(a | b); } };
struct Xor { template <class T> static T of(T a, T b) { return static_cast<T>(a ^ b); } };

template <class Format, class Operation>
void combine(char* out, const char* a, const char* b, size_t n) {
  using S = typename Format::Stored;
#pragma GCC ivdep
  for (size_t i = 0; i < n; i++) {
    auto left = Format::value(load<S>(a + i * sizeof(S)));
    auto right = Format::value(load<S>(b + i * sizeof(S)));
    store<S>(out + i * sizeof(S), Format::stored(Operation::of(left, right)));
  }
}

#if defined(__AVX512F__)
inline __m512 widen(const char* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline void narrow(char* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline __m512 apply(Sum, __m512 a, __m512 b) { return _mm512_add_ps(a, b); }
inline __m512 apply(Prod, __m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
inline __m512 apply(Min, __m512 a, __m512 b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_NGE_UQ) & _mm512_cmp_ps_mask(b, b, _CMP_ORD_Q), b, a);
}
inline __m512 apply(Max, __m512 a, __m512 b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ) & _mm512_cmp_ps_mask(b, b, _CMP_ORD_Q), b, a);
}
constexpr size_t kHalves = 16;
#elif defined(__F16C__) && defined(__AVX__)
inline __m256 widen(const char* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void narrow(char* p, __m256 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256 choose(__m256 a, __m256 b, __m256 a_wins) {
  return _mm256_blendv_ps(b, a, _mm256_and_ps(a_wins, _mm256_cmp_ps(b, b, _CMP_ORD_Q)));
}
inline __m256 apply(Sum, __m256 a, __m256 b) { return _mm256_add_ps(a, b); }
inline __m256 apply(Prod, __m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
inline __m256 apply(Min, __m256 a, __m256 b) { return choose(a, b, _mm256_cmp_ps(a, b, _CMP_NGE_UQ)); }
inline __m256 apply(Max, __m256 a, __m256 b) { return choose(a, b, _mm256_cmp_ps(a, b, _CMP_NLE_UQ)); }
constexpr size_t kHalves = 8;
#endif

// f16 by the conversion instructions, which compilers do not use in the loop above.
template <class Operation>
void combine_f16(char* out, const char* a, const char* b, size_t n) {
  size_t i = 0;
#if defined(__AVX512F__) || (defined(__F16C__) && defined(__AVX__))
  for (; i + kHalves <= n; i += kHalves) {
    narrow(out + 2 * i, apply(Operation{}, widen(a + 2 * i), widen(b + 2 * i)));
  }
#endif
  combine<F16, Operation>(out + 2 * i, a + 2 * i, b + 2 * i, n - i);
}

// A product rounded by itself: GCC 12 joins the two below to a fused instruction even under -ffp-contract=off.
template <class Real>
inline Real rounded(Real product) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_assoc_barrier)
  return __builtin_assoc_barrier(product);
#endif
#endif
  return product;
}

template <class Real>
void complex_prod(char* out, const char* a, const char* b, size_t n) {
#pragma GCC ivdep
  for (size_t i = 0; i < n; i++) {
    size_t at = i * 2 * sizeof(Real);
    Real ar = load<Real>(a + at), ai = load<Real>(a + at + sizeof(Real));
    Real br = load<Real>(b + at), bi = load<Real>(b + at + sizeof(Real));
    store<Real>(out + at, rounded(ar * br) - rounded(ai * bi));
    store<Real>(out + at + sizeof(Real), rounded(ar * bi) + rounded(ai * br));
  }
}
template <class Real>
void complex_sum(char* out, const char* a, const char* b, size_t n) {
  combine<Plain<Real>, Sum>(out, a, b, 2 * n);
}

template <class Format>
void divide(char* out, const char* in, size_t n, int64_t divisor) {
  using S = typename Format::Stored;
  auto by = static_cast<typename Format::Value>(divisor);
#pragma GCC ivdep
  for (size_t i = 0; i < n; i++) {
    store<S>(out + i * sizeof(S), Format::stored(static_cast<typename Format::Value>(
                                      Format::value(load<S>(in + i * sizeof(S))) / by)));
  }
}
// Small integer types hold fewer values than there may be ranks, so they divide in 64 bits.
template <class T>
void divide_integer(char* out, const char* in, size_t n, int64_t divisor) {
  for (size_t i = 0; i < n; i++) {
    T value = load<T>(in + i * sizeof(T));
    T result = static_cast<T>(static_cast<T>(-1) < static_cast<T>(0)
                                  ? static_cast<T>(static_cast<int64_t>(value) / divisor)
                                  : static_cast<T>(static_cast<uint64_t>(value) / static_cast<uint64_t>(divisor)));
    store<T>(out + i * sizeof(T), result);
  }
}
template <class Real>
void divide_complex(char* out, const char* in, size_t n, int64_t divisor) {
  divide<Plain<Real>>(out, in, 2 * n, divisor);
}

#define ARITHMETIC(F) combine<F, Sum>, combine<F, Prod>, combine<F, Min>, combine<F, Max>
#define FLOATING(F) {ARITHMETIC(F), nullptr, nullptr, nullptr}
#define INTEGER(T) \
  {ARITHMETIC(Plain<T>), combine<Plain<T>, And>, combine<Plain<T>, Or>, combine<Plain<T>, Xor>}

}  // namespace

extern const Kernels KERNELS_VARIANT;
const Kernels KERNELS_VARIANT = {
    KERNELS_NAME,
    {
        {combine_f16<Sum>, combine_f16<Prod>, combine_f16<Min>, combine_f16<Max>, nullptr, nullptr, nullptr},
        FLOATING(Bf16),
        FLOATING(Plain<float>),
        FLOATING(Plain<double>),
        INTEGER(int8_t),
        INTEGER(int16_t),
        INTEGER(int32_t),
        INTEGER(int64_t),
        INTEGER(uint8_t),
        INTEGER(uint16_t),
        INTEGER(uint32_t),
        INTEGER(uint64_t),
        // bool, one byte that is 0 or 1: sum and max are or, prod and min are and
        {combine<Plain<uint8_t>, Or>, combine<Plain<uint8_t>, And>, combine<Plain<uint8_t>, And>,
         combine<Plain<uint8_t>, Or>, combine<Plain<uint8_t>, And>, combine<Plain<uint8_t>, Or>,
         combine<Plain<uint8_t>, Xor>},
        {complex_sum<float>, complex_prod<float>, nullptr, nullptr, nullptr, nullptr, nullptr},
        {complex_sum<double>, complex_prod<double>, nullptr, nullptr, nullptr, nullptr, nullptr},
        {nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr},
    },
    {divide<F16>, divide<Bf16>, divide<Plain<float>>, divide<Plain<double>>, divide_integer<int8_t>,
     divide_integer<int16_t>, divide_integer<int32_t>, divide_integer<int64_t>, divide_integer<uint8_t>,
     divide_integer<uint16_t>, divide_integer<uint32_t>, divide_integer<uint64_t>, nullptr, divide_complex<float>,
     divide_complex<double>, nullptr},
};

}  // namespace treering
