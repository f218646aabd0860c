"""The clusters that a command line means: one, or one for each number of ranks, from a template.

A template has `{n}` for the number of ranks, and may multiply and divide: "hosts({n}/8, 8)" is hosts(8, 8) for 64.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from topology import Cluster, load

MOST_RANKS = 1 << 20


def make(given: str, ranks: Sequence[int]) -> list[Cluster]:
    """`given` as `topology.load` takes it; with `ranks` it is a template, and there is a cluster for each of them.

    Raises ValueError that says what is wrong, also with a file that cannot be read.
    """
    if not ranks:
        if "{n}" in given:
            raise ValueError(f"{given} has {{n}} for the number of ranks: add --ranks 8,64,512")
        return [_load(given)]
    if "{n}" not in given:
        raise ValueError(f"{given} does not say where the number of ranks goes: write {{n}}, as in hosts({{n}}/8, 8)")
    return [_filled(given, number) for number in ranks]


def _filled(template: str, ranks: int) -> Cluster:
    if not 1 <= ranks <= MOST_RANKS:
        raise ValueError(f"{ranks} is not a number of ranks from 1 to {MOST_RANKS:,}")
    text = fill(template, ranks)
    cluster = _load(text)
    if cluster.size != ranks:
        raise ValueError(f"{template} with {ranks} for {{n}} is {text}, which has {cluster.size} ranks")
    return cluster


def _load(given: str) -> Cluster:
    try:
        return load(given)
    except OSError as error:
        raise ValueError(f"{given} is no preset, such as hosts(4, 8), and no file: {error.strerror}") from None


def fill(template: str, ranks: int) -> str:
    """The template with its number, products and quotients worked out. Raises ValueError where one is not whole."""
    text = template.replace("{n}", str(ranks))
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return ast.unparse(_Arithmetic(template, ranks).visit(tree))
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{template!r} is not a preset: expected something like hosts({{n}}/8, 8)") from None


class _Arithmetic(ast.NodeTransformer):
    """Replaces products and quotients of whole numbers by what they are, and leaves the rest alone."""

    def __init__(self, template: str, ranks: int) -> None:
        self.where = f"{template} with {ranks} for {{n}}"

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        node = ast.BinOp(self.visit(node.left), node.op, self.visit(node.right))
        left, right = _whole(node.left), _whole(node.right)
        if left is None or right is None:
            raise ValueError(f"{self.where}: {ast.unparse(node)} is not one of two whole numbers, at most 2^31")
        if isinstance(node.op, ast.Mult):
            return ast.Constant(left * right)
        if not isinstance(node.op, ast.Div):
            raise ValueError(f"{self.where}: {ast.unparse(node)}: only * and / are worked out")
        if right == 0 or left % right:
            raise ValueError(f"{self.where}: {left} / {right} is not a whole number")
        return ast.Constant(left // right)


def _whole(node: ast.expr) -> int | None:
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) <= 1 << 31:
        return node.value
    return None
