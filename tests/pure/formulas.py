"""Reads the `rounds` and `sent` lines of an algorithm's docstring: the numbers that proofs must find."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from collectives.plan import Algorithm, Hosts

LINE = re.compile(r"^ *(rounds|sent)(:| <=) (.+)$", re.MULTILINE)
NODES = (
    *(
        ast.Expression,
        ast.BinOp,
        ast.Add,
        ast.Sub,
        ast.Mult,
        ast.Div,
        ast.Mod,
        ast.Pow,
        ast.IfExp,
        ast.Compare,
    ),
    *(ast.Eq, ast.Gt, ast.Call, ast.Name, ast.Load, ast.Constant),
)


@dataclass(frozen=True)
class Formula:
    """`quantity` of a proof is equal to the expression, or at most that."""

    quantity: str
    exact: bool
    source: str
    value: Callable[[dict[str, object]], Fraction]

    def holds(self, found: Fraction, names: dict[str, object]) -> bool:
        return found == self.value(names) if self.exact else found <= self.value(names)


def formulas(algorithm: Algorithm) -> list[Formula]:
    """All formula lines in the docstring."""
    lines = LINE.findall(algorithm.generate.__doc__ or "")
    return [Formula(quantity, relation == ":", source, _compile(source)) for quantity, relation, source in lines]


def names(size: int, hosts: Hosts) -> dict[str, object]:
    """n ranks, L = ceil(log2 n), H hosts, the smallest of C ranks, the largest of W; S, the least sum of three sides,
    each less one, of a box of n."""
    sizes = [len(host) for host in hosts]
    values = {
        "S": _least_sides(size),
        "n": size,
        "L": _ceil_log2(size),
        "H": len(hosts),
        "C": min(sizes),
        "W": max(sizes),
    }
    functions = {"min": min, "max": max, "ceil": math.ceil, "log2": _ceil_log2}
    return {**{name: Fraction(value) for name, value in values.items()}, **functions}


def _compile(source: str) -> Callable[[dict[str, object]], Fraction]:
    tree = ast.parse(source, mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            raise ValueError(f"{source!r} is not a formula: {ast.dump(node)}")
    code = compile(tree, source, "eval")
    return lambda values: Fraction(eval(code, {"__builtins__": {}}, values))


@lru_cache(maxsize=256)
def _least_sides(size: int) -> int:
    sides = range(1, size + 1)
    return min(a + b + size // (a * b) for a in sides for b in sides if size % (a * b) == 0) - 3


def _ceil_log2(value: int | Fraction) -> int:
    return (math.ceil(value) - 1).bit_length()
