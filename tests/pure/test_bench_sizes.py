"""Sizes on the bench's command line mean what nccl-tests means by them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.sizes import parse_size, spell, steps


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("16", 16),
        ("1K", 1024),
        ("4m", 4 << 20),
        ("1G", 1 << 30),
        ("1.5K", 1536),
        (" 64M ", 64 << 20),
    ],
)
def test_sizes_are_binary_multiples(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "K", "1Q", "-1", "1KB", "nan", "inf", "1e30", "0x10"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size; write bytes, or a number with K, M or G"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_spelling_is_the_inverse_of_parsing(size_bytes: int) -> None:
    assert parse_size(spell(size_bytes)) == size_bytes


def test_a_factor_above_one_wins_over_a_step() -> None:
    assert list(steps(16, 64 << 20, 1 << 20, 4)) == [16 * 4**i for i in range(12)]
    assert list(steps(1 << 20, 4 << 20, 1 << 20, 1)) == [i << 20 for i in (1, 2, 3, 4)]


def test_the_largest_size_is_not_passed() -> None:
    assert list(steps(16, 100, 0, 2)) == [16, 32, 64]
    assert list(steps(10, 35, 10, 1)) == [10, 20, 30]


@pytest.mark.parametrize(("step_bytes", "factor"), [(0, 1), (0, 2)])
def test_stepping_ends_even_where_it_would_stand_still(step_bytes: int, factor: int) -> None:
    assert list(steps(0, 100, step_bytes, factor)) == [0]
