"""JSON whose every value knows its line, so that whoever reads a file can say where it is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn, cast

__all__ = ["FileError", "Value", "parse"]

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_DEEPEST = 100


class FileError(ValueError):
    """What is wrong in a file; the message begins with the file and the line."""


class Value:
    """A JSON value: `content` is a dict or list of Values, a text, a number, a bool or None."""

    def __init__(self, content: Any, where: str) -> None:
        self.content = content
        self.where = where

    def fail(self, expected: str) -> NoReturn:
        """Raises ValueError: the file, the line, what was expected there, and what stands there."""
        raise FileError(f"{self.where}: expected {expected}, not {json.dumps(self.plain())[:60]}")

    def items(self, expected: str, keys: tuple[str, ...] = (), needed: tuple[str, ...] = ()) -> dict[str, Value]:
        """The members of an object that has no other keys than these, where any are given. Raises ValueError."""
        content = self.content
        if not isinstance(content, dict):
            self.fail(expected)
        members = cast("dict[str, Value]", content)
        for key, value in members.items():
            if keys and key not in keys:
                raise FileError(f"{value.where}: unknown key {key!r}: expected one of {', '.join(keys)}")
        for key in needed:
            if key not in members:
                raise FileError(f"{self.where}: the key {key!r} is missing")
        return members

    def list(self, expected: str) -> list[Value]:
        """The elements of an array. Raises ValueError."""
        content = self.content
        if not isinstance(content, list):
            self.fail(expected)
        return cast("list[Value]", content)

    def text(self, expected: str) -> str:
        """A text. Raises ValueError."""
        if not isinstance(self.content, str):
            self.fail(expected)
        return self.content

    def plain(self) -> Any:
        """The value as the json module gives it."""
        content = self.content
        if isinstance(content, dict):
            return {key: value.plain() for key, value in cast("dict[str, Value]", content).items()}
        if isinstance(content, list):
            return [value.plain() for value in cast("list[Value]", content)]
        return content


def parse(text: str, name: str) -> Value:
    """The JSON in a text; `name` is what errors call it. Raises ValueError with the line."""
    try:
        json.loads(text)  # the reader below relies on sound JSON
    except json.JSONDecodeError as error:
        raise FileError(f"{name}:{error.lineno}: this is not JSON: {error.msg}") from None
    except RecursionError:
        raise FileError(f"{name}: nested too deeply") from None
    return _Reader(text, name).value(0)


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self._text, self._name = text, name
        self._at = 0
        self._line, self._counted = 1, 0  # lines are counted up to here

    def value(self, depth: int) -> Value:
        self._skip()
        where = self._where()
        if depth > _DEEPEST:
            raise FileError(f"{where}: nested too deeply")
        opening = self._text[self._at]
        if opening == "{":
            return Value(self._members(depth), where)
        if opening == "[":
            return Value(list(self._elements(depth)), where)
        content, self._at = _DECODER.raw_decode(self._text, self._at)
        return Value(content, where)

    def _members(self, depth: int) -> dict[str, Value]:
        members: dict[str, Value] = {}
        while self._next("}"):
            self._skip()
            where = self._where()
            key, self._at = _DECODER.raw_decode(self._text, self._at)
            if key in members:
                raise FileError(f"{where}: the key {key!r} stands twice")
            self._skip()
            self._at += 1  # the colon
            members[key] = self.value(depth + 1)
        return members

    def _elements(self, depth: int) -> Iterator[Value]:
        while self._next("]"):
            yield self.value(depth + 1)

    def _next(self, closing: str) -> bool:
        """Steps over what opens, parts or closes; whether there is another member."""
        self._skip()
        if self._text[self._at] in "{[,":
            opened = self._text[self._at] != ","
            self._at += 1
            self._skip()
            if not (opened and self._text[self._at] == closing):
                return True
        self._at += 1
        return False

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _where(self) -> str:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return f"{self._name}:{self._line}"
