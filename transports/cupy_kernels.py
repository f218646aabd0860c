"""Arithmetic on GPUs through CuPy, with the bits of the engine's kernels (transports/arithmetic.py is the reference).

f16 and bf16 are worked on in f32, with one rounding at the end. Products are not fused with sums: --fmad=false. Each
operation is compiled when it is first asked for; CuPy keeps what was compiled for the next process.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from transports.program import DTYPE_NAMES, ITEM_BYTES, OP_NAMES

__all__ = ["OPTIONS", "Kernels", "source"]

OPTIONS = ("--std=c++17", "--fmad=false")
_THREADS, _MOST_BLOCKS = 256, 4096
_BOOLEAN = {"sum": "or", "prod": "and", "min": "and", "max": "or"}
_TYPES = {  # name: (how an element is stored, what is reckoned with)
    "float16": ("F16", "float"), "bfloat16": ("Bf16", "float"), "float32": ("float", "float"),
    "float64": ("double", "double"), "int8": ("signed char", "unsigned"), "int16": ("short", "unsigned"),
    "int32": ("int", "unsigned"), "int64": ("long long", "unsigned long long"),
    "uint8": ("unsigned char", "unsigned"), "uint16": ("unsigned short", "unsigned"),
    "uint32": ("unsigned", "unsigned"), "uint64": ("unsigned long long", "unsigned long long"),
    "complex64": ("Complex<float>", ""), "complex128": ("Complex<double>", ""),
}  # fmt: skip
_WORDS = {
    "sum": "wide(a) + wide(b)", "prod": "wide(a) * wide(b)",
    "min": "a < b || a != a ? a : b", "max": "a > b || a != a ? a : b",  # a NaN on either side wins
    "and": "a & b", "or": "a | b", "xor": "a ^ b",
}  # fmt: skip

_PRELUDE = r"""
template <class To, class From> __device__ inline To bits(From from) {
  union { From from; To to; } both;
  both.from = from;
  return both.to;
}

struct Bf16 { unsigned short raw; };
__device__ inline float value(Bf16 s) { return bits<float>(unsigned(s.raw) << 16); }
__device__ inline void store(Bf16& out, float v) {
  unsigned u = bits<unsigned>(v);
  unsigned rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  unsigned quiet = (u >> 16) | 0x40;
  out.raw = (unsigned short)((u & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

struct F16 { unsigned short raw; };
__device__ inline float value(F16 s) {
  unsigned sign = unsigned(s.raw & 0x8000) << 16, rest = s.raw & 0x7fff;
  float magnitude = bits<float>(rest << 13) * bits<float>(0x77800000u);  // 2^112: from one exponent's bias to the other
  unsigned special = bits<unsigned>(magnitude) | 0x7f800000;  // infinity and NaN keep their mantissa
  return bits<float>((rest >= 0x7c00 ? special : bits<unsigned>(magnitude)) | sign);
}
__device__ inline void store(F16& out, float v) {
  unsigned u = bits<unsigned>(v), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff, h;
  if (a > 0x7f800000) h = 0x7e00 | ((a >> 13) & 0x3ff);
  else if (a >= 0x477ff000) h = 0x7c00;  // rounds to infinity
  else if (a < 0x38800000) h = bits<unsigned>(bits<float>(a) + 0.5f) - 0x3f000000;  // subnormal
  else h = (a + 0xc8000fff + ((a >> 13) & 1)) >> 13;
  out.raw = (unsigned short)(sign | h);
}

template <class T> struct Complex { T re, im; };
template <class T> __device__ inline Complex<T> value(Complex<T> s) { return s; }
template <class T> __device__ inline void store(Complex<T>& out, Complex<T> v) { out = v; }
template <class T> __device__ inline Complex<T> operator+(Complex<T> a, Complex<T> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class T> __device__ inline Complex<T> operator*(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <class T> __device__ inline T value(T s) { return s; }
template <class T, class V> __device__ inline void store(T& out, V v) { out = (T)v; }

template <class T> struct alignas(16) Pack { T of[16 / sizeof(T)]; };
"""

# Sixteen bytes at a time where the addresses allow it, and what is left one by one.
_KERNEL = r"""
typedef %(stored)s T;
__device__ inline T one(%(parameters)s) {
  %(body)s
}
extern "C" __global__ void kernel(T* out, %(pointers)s, unsigned long long n) {
  typedef unsigned long long Size;
  const Size each = 16 / sizeof(T);
  Size first = blockIdx.x * (Size)blockDim.x + threadIdx.x, step = (Size)gridDim.x * blockDim.x;
  Size packs = ((Size)out | %(addresses)s) %% 16 ? 0 : n / each;
  for (Size i = first; i < packs; i += step) {
    %(load)s
    Pack<T> z;
    for (int k = 0; k < each; k++) z.of[k] = one(%(packed)s);
    ((Pack<T>*)out)[i] = z;
  }
  for (Size i = packs * each + first; i < n; i += step) out[i] = one(%(single)s);
}
"""


def source(dtype: str, op: str) -> str:
    """CUDA C++ of `kernel`: (out, a, b, n) for an op of OPS, (out, a, by, n) for "divide"; n counts elements."""
    if dtype == "bool":
        dtype, op = "uint8", _BOOLEAN.get(op, op)
    stored, wide = _TYPES[dtype]
    declare = f"auto a = value(x); typedef {wide} W;" if wide else "auto a = value(x);"
    if op == "divide":
        words = {
            "pointers": "const T* a, long long by", "parameters": "T x, long long by", "addresses": "(Size)a",
            "load": "Pack<T> x = ((const Pack<T>*)a)[i];", "packed": "x.of[k], by", "single": "a[i], by",
            "body": f"auto a = value(x); T z; {_quotient(dtype)} return z;",
        }  # fmt: skip
    else:
        how = _WORDS[op]
        how = how.replace("wide", "(W)" if wide else "")
        words = {
            "pointers": "const T* a, const T* b", "parameters": "T x, T y", "addresses": "(Size)a | (Size)b",
            "load": "Pack<T> x = ((const Pack<T>*)a)[i], y = ((const Pack<T>*)b)[i];",
            "packed": "x.of[k], y.of[k]", "single": "a[i], b[i]",
            "body": f"{declare} auto b = value(y); T z; store(z, {how}); return z;",
        }  # fmt: skip
    return _PRELUDE + _KERNEL % {"stored": stored, **words}


def _quotient(dtype: str) -> str:
    if dtype.startswith("complex"):
        return "z.re = a.re / by; z.im = a.im / by;"
    if dtype == "uint64":
        return "z = a / (unsigned long long)by;"
    return "store(z, a / by);"


class Kernels:
    """The operations on addresses of the current GPU; they return before they have happened."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._compiled: dict[tuple[str, str], Any] = {}

    def combine(self, stream: Any, dtype: int, op: int, a: int, b: int, out: int, nbytes: int) -> None:
        """out = a op b; out may be one of them."""
        self._launch(stream, dtype, OP_NAMES[op], nbytes, out, np.uint64(a), np.uint64(b))

    def divide(self, stream: Any, dtype: int, a: int, out: int, nbytes: int, divisor: int) -> None:
        """out = a / divisor; out may be a."""
        self._launch(stream, dtype, "divide", nbytes, out, np.uint64(a), np.int64(divisor))

    def _launch(self, stream: Any, dtype: int, op: str, nbytes: int, out: int, *more: Any) -> None:
        name = DTYPE_NAMES[dtype]
        if (name, op) not in self._compiled:
            module = self._cupy.RawModule(code=source(name, op), options=OPTIONS)
            self._compiled[name, op] = module.get_function("kernel")
        count = nbytes // ITEM_BYTES[dtype]
        blocks = min(max(-(-nbytes // (16 * _THREADS)), 1), _MOST_BLOCKS)
        self._compiled[name, op](
            (blocks,), (_THREADS,), (np.uint64(out), *more, np.uint64(count)), stream=stream
        )  # fmt: skip
