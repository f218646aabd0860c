"""The table is nccl-tests' column for column: the expected lines are made with its own C format strings."""

from __future__ import annotations

import math

import pytest

from bench.table import (
    Compared,
    Measured,
    Row,
    average_busbw,
    compare_footer,
    compare_header,
    compare_line,
    footer,
    header,
    line,
    shrink,
)

# Formats of nccl-tests' src/util.cu. Python's % takes them as they are.
HEADER = "# %10s  %12s  %8s  %6s  %6s  %7s  %6s  %6s  %6s  %7s  %6s  %6s  %6s"
ROW = "%12li  %12li  %8s  %6s  %6s"
HALF = "  %7s  %6s  %6s  %6g"
UNCHECKED = "  %7s  %6s  %6s     N/A"  # nccl-tests has one blank less, which puts its columns out of line


def row(**changes: object) -> Row:
    half = Measured(11.04, 0.0007, 0.0013, 0)
    return Row(8, 2, "float32", "sum", -1, half, half, "ring", 20)._replace(**changes)


def test_header_has_the_three_lines_of_nccl_tests() -> None:
    lone, groups, names, units = header(with_algorithm=False).split("\n")
    assert lone == "#"
    half = ("time", "algbw", "busbw", "#wrong")
    assert names == HEADER % ("size", "count", "type", "redop", "root", *half, *half)
    half = ("(us)", "(GB/s)", "(GB/s)", "")
    expected = HEADER % ("(B)", "(elements)", "", "", "", *half, *half)
    assert units == expected.rstrip()
    left = "# %10s  %12s  %8s  %6s  %6s           out-of-place                       in-place          "
    assert groups == (left % ("", "", "", "", "")).rstrip()


def test_row_has_the_columns_of_nccl_tests() -> None:
    half = HALF % ("11.04", "0.00", "0.00", 0)
    assert line(row(), with_algorithm=False) == ROW % (8, 2, "float", "sum", "-1") + half + half


def test_row_of_large_numbers_keeps_its_columns() -> None:
    half = Measured(1234567.891, 1234.5678, 98765.4321, 1234567)
    text = line(row(size_bytes=1 << 34, elems=1 << 32, dtype="bfloat16", out_of_place=half), False)
    expected = ROW % (1 << 34, 1 << 32, "bfloat16", "sum", "-1") + HALF % (
        "1234568",
        "1234.6",
        " 98765",
        1234567,
    )
    assert text == expected + HALF % ("11.04", "0.00", "0.00", 0)


def test_unchecked_and_missing_halves_say_so() -> None:
    unchecked = Measured(11.04, 0.0, 0.0, None)
    text = line(row(out_of_place=unchecked, in_place=None), False)
    missing = UNCHECKED % ("N/A", "N/A", "N/A")
    assert text == ROW % (8, 2, "float", "sum", "-1") + UNCHECKED % ("11.04", "0.00", "0.00") + missing


def test_several_algorithms_get_a_last_column() -> None:
    assert header(with_algorithm=True).split("\n")[2].endswith("#wrong  algorithm")
    assert line(row(), with_algorithm=True) == line(row(), with_algorithm=False) + "  ring"


def test_types_and_ops_have_nccl_tests_names() -> None:
    assert line(row(dtype="float16", op="mean"), False).split()[2:4] == ["half", "avg"]
    assert line(row(dtype="int64", op="xor"), False).split()[2:4] == ["int64", "xor"]


@pytest.mark.parametrize(
    ("value", "width", "text"),
    [
        (0.0, 7, "   0.00"),
        (9.994, 7, "   9.99"),
        (9999.12, 7, "9999.12"),
        (12345.67, 7, "12345.7"),
        (123456.7, 7, " 123457"),
        (1234567.8, 7, "1234568"),
        (123456789.0, 7, "1.2e+08"),
        (999.12, 6, "999.12"),
        (1234.56, 6, "1234.6"),
        (123456.0, 6, "123456"),
        (12345678.0, 6, " 1e+07"),
    ],
)
def test_numbers_shrink_to_their_column(value: float, width: int, text: str) -> None:
    assert shrink(value, width) == text


def test_footer_counts_what_is_wrong_and_averages_the_bandwidth() -> None:
    rows = [row(), row(in_place=Measured(1.0, 2.0, 5.0, 3))]
    assert footer(rows).split("\n") == [
        "# Out of bounds values : 3 FAILED",
        f"# Avg bus bandwidth    : {(3 * 0.0013 + 5.0) / 4:g}",
        "#",
    ]
    assert footer([row()]).startswith("# Out of bounds values : 0 OK\n")


def test_average_leaves_out_what_was_not_measured() -> None:
    assert average_busbw([row(in_place=None)]) == 0.0013
    assert average_busbw([]) == 0.0


def test_footer_has_a_line_for_each_of_several_algorithms() -> None:
    text = footer([row(), row(algorithm="direct")])
    assert "#   ring               : 0.0013" in text
    assert "#   direct             : 0.0013" in text


def test_the_price_of_reproducible_calls_is_how_many_times_longer_they_take() -> None:
    rows = [
        Compared(16, "auto", 2.0, {"gloo": 200.0}, plain_us=1.0),
        Compared(64, "auto", 10.0, {"gloo": 40.0}, plain_us=20.0),
    ]
    names = compare_header(["gloo"], False, with_price=True).split("\n")[1]
    assert names.split() == ["#", "size", "ours", "plain", "gloo", "price", "gloo"]
    assert compare_line(rows[0], False).split() == ["16", "2.00", "1.00", "200.00", "2.00", "100.00"]
    assert len(compare_line(rows[0], False)) == len(names)
    footer = compare_footer(rows).split("\n")[0]
    assert footer == "# price of reproducible : 1.00 geometric mean, 2.00 at most (at 16 B)"


def test_comparison_gives_times_and_how_many_times_faster() -> None:
    rows = [
        Compared(16, "auto", 2.0, {"gloo": 200.0, "mpich": 1.0}),
        Compared(64, "auto", 10.0, {"gloo": 40.0, "mpich": 90.0}),
    ]
    assert compare_header(["gloo", "mpich"], False).split("\n")[1].split() == [
        "#", "size", "ours", "gloo", "mpich", "gloo", "mpich"
    ]  # fmt: skip
    assert compare_line(rows[0], False).split() == ["16", "2.00", "200.00", "1.00", "100.00", "0.50"]
    assert len(compare_line(rows[0], False)) == len(compare_header(["gloo", "mpich"], False).split("\n")[1])
    first, second, _ = compare_footer(rows).split("\n")
    assert first == f"# x faster than gloo    : {math.sqrt(100 * 4):.2f} geometric mean, 4.00 at least (at 64 B)"
    assert second == f"# x faster than mpich   : {math.sqrt(0.5 * 9):.2f} geometric mean, 0.50 at least (at 16 B)"
