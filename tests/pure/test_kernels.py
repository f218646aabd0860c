"""out = a op b, for every dtype, op, number of elements, alignment and instruction set, beside exact arithmetic.

The references: Python integers for integers; for floats numpy in twice the precision, rounded once, which for one sum
or product of f16, bf16 and f32 is exact. f64 and complex are compared with numpy of the same type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from transports import arithmetic
from transports.engine import _engine
from transports.program import DTYPES, OPS

Array = npt.NDArray[Any]
Combine = Callable[[str, str, Array, Array], Array]

TYPES: dict[str, Any] = {name: ml_dtypes.bfloat16 if name == "bfloat16" else name for name in DTYPES if name != "bytes"}
INTEGERS = [name for name in TYPES if "int" in name]
REALS = ["float16", "bfloat16", "float32", "float64"]
COMPLEX = ["complex64", "complex128"]
ARITHMETIC = ["sum", "prod", "min", "max"]
MEANING = (
    [(name, op) for name in (*INTEGERS, "bool") for op in OPS]
    + [(name, op) for name in REALS for op in ARITHMETIC]
    + [(name, op) for name in COMPLEX for op in ("sum", "prod")]
)
NO_MEANING = [(name, op) for name in (*TYPES, "bytes") for op in OPS if (name, op) not in MEANING]


def portable(name: str, op: str, a: Array, b: Array) -> Array:
    raw = arithmetic.combine(DTYPES[name][0], OPS[op], a.view(np.uint8), b.view(np.uint8))
    return raw.view(a.dtype)


def native(variant: str) -> Combine:
    def combine(name: str, op: str, a: Array, b: Array) -> Array:
        out = np.empty_like(a)
        _engine.combine(
            DTYPES[name][0], OPS[op], out.ctypes.data, a.ctypes.data, b.ctypes.data, a.size, variant=variant
        )
        return out

    return combine


EXECUTORS = {"portable": portable, **{name: native(name) for name in _engine.kernel_variants()}}
every_executor = pytest.mark.parametrize("combine", EXECUTORS.values(), ids=EXECUTORS.keys())


def some(name: str, count: int, seed: int) -> Array:
    """Values of the whole range of the type, with many that are equal, so that min and max meet ties."""
    random = np.random.default_rng(seed)
    if name == "bool":
        return random.integers(0, 2, count).astype(bool)
    if name in INTEGERS:
        limits = np.iinfo(name)
        whole = random.integers(limits.min, limits.max, count, dtype=name, endpoint=True)
        return np.where(random.random(count) < 0.5, whole, random.integers(0, 4, count).astype(name))
    real = random.standard_normal(count) * 2.0 ** random.integers(-6, 6, count)
    if name in COMPLEX:
        return (real + 1j * random.standard_normal(count)).astype(name)
    return real.astype(TYPES[name])


def reference(name: str, op: str, a: Array, b: Array) -> Array:
    """Element by element, by other means than the code under test."""
    if name == "bool":
        of = {"sum": "or", "max": "or", "or": "or", "prod": "and", "min": "and", "and": "and", "xor": "xor"}[op]
        return getattr(np, f"logical_{of}")(a, b)
    if name in INTEGERS:
        bits = 8 * np.dtype(name).itemsize
        results = [PYTHON[op](int(x), int(y)) % (1 << bits) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        return np.array(results, f"uint{bits}").view(name)
    wide = {"float16": "float64", "bfloat16": "float64", "float32": "float64"}.get(name, name)
    numpy_function = {"sum": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum}[op]
    with np.errstate(all="ignore"):
        return numpy_function(a.astype(wide), b.astype(wide)).astype(a.dtype)


PYTHON: dict[str, Callable[[int, int], int]] = {
    "sum": lambda x, y: x + y, "prod": lambda x, y: x * y, "min": min, "max": max,
    "and": lambda x, y: x & y, "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y,
}  # fmt: skip


def assert_same(found: Array, wanted: Array) -> None:
    """Bit for bit, but that any NaN is as good as another and zeros have the sign they like."""
    if found.dtype.kind in "biu":
        assert np.array_equal(found, wanted)
        return
    if found.dtype.kind == "c":
        real = found.real.dtype
        found, wanted = found.view(real), wanted.view(real)
    equal = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    assert equal.all(), f"{found[~equal][:5]} instead of {wanted[~equal][:5]}"


# ---------------------------------------------------------------- every type and op


@every_executor
@pytest.mark.parametrize(("name", "op"), MEANING)
def test_each_element_is_the_combination_of_its_operands(combine: Combine, name: str, op: str) -> None:
    a, b = some(name, 1000, 1), some(name, 1000, 2)
    found, wanted = combine(name, op, a, b), reference(name, op, a, b)
    if name in COMPLEX and op == "prod":  # two products and a sum, which may be rounded together
        np.testing.assert_allclose(found, wanted, rtol=8 * np.finfo(name).eps, atol=0)
    else:
        assert_same(found, wanted)


@pytest.mark.parametrize("variant", _engine.kernel_variants())
@pytest.mark.parametrize(("name", "op"), MEANING)
def test_every_length_and_alignment_gives_the_same_and_touches_nothing_else(variant: str, name: str, op: str) -> None:
    a, b = some(name, 70, 3), some(name, 70, 4)
    whole = native(variant)(name, op, a, b).tobytes()
    item = a.itemsize
    for count in range(71):
        for shift in (0, 1, 7) if count % 8 == 3 else (count % item,):
            nbytes = count * item
            memory = [np.full(shift + nbytes + 64, 0xA5, np.uint8) for _ in range(3)]
            for place, values in zip(memory[:2], (a, b), strict=True):
                place[shift : shift + nbytes] = np.frombuffer(values.tobytes()[:nbytes], np.uint8)
            addresses = [place.ctypes.data + shift for place in memory]
            _engine.combine(DTYPES[name][0], OPS[op], addresses[2], addresses[0], addresses[1], count, variant=variant)
            out = memory[2]
            assert out[shift : shift + nbytes].tobytes() == whole[:nbytes]
            assert (out[:shift] == 0xA5).all()
            assert (out[shift + nbytes :] == 0xA5).all()


@pytest.mark.parametrize("variant", _engine.kernel_variants())
@pytest.mark.parametrize(("name", "op"), MEANING)
def test_the_result_may_replace_either_operand(variant: str, name: str, op: str) -> None:
    a, b = some(name, 333, 5), some(name, 333, 6)
    wanted = native(variant)(name, op, a, b).tobytes()
    for replaced in (0, 1):
        operands = [a.copy(), b.copy()]
        addresses = [operand.ctypes.data for operand in operands]
        _engine.combine(DTYPES[name][0], OPS[op], addresses[replaced], *addresses, a.size, variant=variant)
        assert operands[replaced].tobytes() == wanted
        assert operands[1 - replaced].tobytes() == (b, a)[replaced].tobytes()


@pytest.mark.parametrize("variant", _engine.kernel_variants())
@pytest.mark.parametrize(("name", "op"), NO_MEANING)
def test_what_has_no_meaning_is_refused(variant: str, name: str, op: str) -> None:
    with pytest.raises(ValueError, match="no meaning"):
        _engine.combine(DTYPES[name][0], OPS[op], 0, 0, 0, 0, variant=variant)


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no such variant"):
        _engine.combine(2, 0, 0, 0, 0, 0, variant="mmx")
    assert _engine.kernel_variants()[-1] == "baseline"


# ---------------------------------------------------------------- the narrow floats, exhaustively


def all_values(name: str) -> Array:
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(TYPES[name])


SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 1.5, 3.0, 2.0**-24, 2.0**-25, -(2.0**-24), 2.0**-14, 2.0**-15, 1023 * 2.0**-24,
    65504.0, -65504.0, 16.0, 2.0**-10, 2.0**-11, 3 * 2.0**-12, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip


@every_executor
@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_all_narrow_floats_with_special_ones_are_rounded_once_to_nearest_even(
    combine: Combine, name: str, op: str
) -> None:
    everything = all_values(name)
    with np.errstate(all="ignore"):
        others = np.array(SPECIAL).astype(TYPES[name])
    for other in others:
        b = np.full(everything.shape, other, everything.dtype)
        assert_same(combine(name, op, everything, b), reference(name, op, everything, b))
        assert_same(combine(name, op, b, everything), reference(name, op, b, everything))


@every_executor
@pytest.mark.parametrize("op", ["sum", "prod"])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_all_narrow_floats_with_random_ones(combine: Combine, name: str, op: str) -> None:
    everything = all_values(name)
    for seed in range(3):
        b = np.random.default_rng(seed).permutation(everything)
        assert_same(combine(name, op, everything, b), reference(name, op, everything, b))


@every_executor
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_narrow_float_times_one_keeps_its_bits(combine: Combine, name: str) -> None:
    everything = all_values(name)
    found = combine(name, "prod", everything, np.ones_like(everything))
    numbers = ~np.isnan(everything.astype(np.float32))
    assert np.array_equal(found.view(np.uint16)[numbers], everything.view(np.uint16)[numbers])
    assert np.isnan(found[~numbers].astype(np.float32)).all()


# ---------------------------------------------------------------- corners


@every_executor
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_nan_infinity_and_subnormals_of_wide_floats(combine: Combine, name: str) -> None:
    info = np.finfo(name)
    values = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, -info.max, info.tiny, info.smallest_subnormal, 1.0], name
    )
    a, b = np.repeat(values, len(values)), np.tile(values, len(values))
    for op in ARITHMETIC:
        with np.errstate(all="ignore"):
            wanted = {"sum": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum}[op](a, b)
        assert_same(combine(name, op, a, b), wanted)


@every_executor
@pytest.mark.parametrize("name", REALS)
def test_a_nan_on_either_side_wins_min_and_max(combine: Combine, name: str) -> None:
    numbers = some(name, 40, 7)
    nans = np.full(40, np.nan).astype(TYPES[name])
    for op in ("min", "max"):
        assert np.isnan(combine(name, op, numbers, nans)).all()
        assert np.isnan(combine(name, op, nans, numbers)).all()


@every_executor
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_wrap_around(combine: Combine, name: str) -> None:
    limits = np.iinfo(name)
    edge = np.array([limits.min, limits.max, limits.max, limits.min, 0, limits.max // 2 + 1] * 11, name)
    other = np.array([limits.min, limits.max, 1, limits.max, limits.max, 2] * 11, name)
    for op in OPS:
        assert_same(combine(name, op, edge, other), reference(name, op, edge, other))


# ---------------------------------------------------------------- division, which makes the mean


def divide(executor: str, name: str, a: Array, divisor: int) -> Array:
    if executor == "portable":
        return arithmetic.divide(DTYPES[name][0], a.view(np.uint8), divisor).view(a.dtype)
    out = np.empty_like(a)
    _engine.divide(DTYPES[name][0], out.ctypes.data, a.ctypes.data, a.size, divisor, variant=executor)
    return out


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 64, 300])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_divide_truncating_toward_zero(executor: str, divisor: int, name: str) -> None:
    limits = np.iinfo(name)
    a = np.concatenate([some(name, 200, 8), np.array([limits.min, limits.max, limits.min + 1], name)])
    wanted = [abs(int(x)) // divisor * (-1 if x < 0 else 1) for x in a.tolist()]
    assert divide(executor, name, a, divisor).tolist() == wanted


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 64, 300])
@pytest.mark.parametrize("name", [*REALS, *COMPLEX])
def test_floats_divide_and_are_rounded_once(executor: str, divisor: int, name: str) -> None:
    a = all_values(name) if name in ("float16", "bfloat16") else some(name, 500, 9)
    with np.errstate(all="ignore"):
        if name in COMPLEX:
            real = np.dtype(name).type(0).real.dtype
            wanted = (a.view(real) / real.type(divisor)).view(name)
        else:
            wanted = (a.astype(np.float64) / divisor).astype(a.dtype)
    assert_same(divide(executor, name, a, divisor), wanted)


def test_what_cannot_be_divided_is_refused() -> None:
    for name in ("bool", "bytes"):
        with pytest.raises(ValueError, match="no meaning"):
            _engine.divide(DTYPES[name][0], 0, 0, 0, 2)
    with pytest.raises(ValueError, match="divisor below 1"):
        _engine.divide(DTYPES["float32"][0], 0, 0, 0, 0)


# ---------------------------------------------------------------- all executors agree


@pytest.mark.parametrize(("name", "op"), MEANING)
def test_all_executors_give_the_same_bits(name: str, op: str) -> None:
    a, b = some(name, 777, 10), some(name, 777, 11)
    results = {executor: combine(name, op, a, b).tobytes() for executor, combine in EXECUTORS.items()}
    differing = [executor for executor in results if results[executor] != results["baseline"]]
    assert not differing, f"{differing} differ from baseline"


@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize("name", REALS)
def test_all_instruction_sets_agree_on_the_sign_of_zero(name: str, op: str) -> None:
    with np.errstate(all="ignore"):
        values = np.array(SPECIAL).astype(TYPES[name])
    values = values[~np.isnan(values.astype(np.float64))]
    a, b = np.repeat(values, len(values)), np.tile(values, len(values))
    results = {variant: native(variant)(name, op, a, b) for variant in _engine.kernel_variants()}
    for found in results.values():
        nan = np.isnan(found.astype(np.float64))
        assert found[~nan].tobytes() == results["baseline"][~nan].tobytes()
        assert nan.tobytes() == np.isnan(results["baseline"].astype(np.float64)).tobytes()
