"""Clusters as JSON files and as texts.

A file holds one of three kinds of object; each may have a "name" and "devices" (see Device):

    {"preset": "hosts", "arguments": {"hosts": 4, "ranks": 8, "network_bandwidth_bytes_per_s": "25 GB/s"}}

    {"groups": [[0, 1], [2, 3]],
     "levels": [{"name": "host", "latency_s": "10 us", "bandwidth_bytes_per_s": "200 Mbit/s"}],
     "latency_s": "500 ns", "bandwidth_bytes_per_s": "10 GB/s"}

    {"ranks": ["gpu0", "gpu1"],
     "links": [{"from": "gpu0", "to": "switch", "latency_s": "1 us", "bandwidth_bytes_per_s": "25 GB/s"},
               {"from": "gpu1", "to": "switch", "latency_s": "1 us", "bandwidth_bytes_per_s": "25 GB/s"}]}

The first has the arguments of a preset, the second those of `tree`, the third those of `graph`. Times and bandwidths
are numbers of seconds and bytes per second, or texts with a unit.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from topology import jsonlines
from topology.cluster import Cluster, Device, Groups
from topology.graphs import Wire, graph
from topology.jsonlines import FileError, Value
from topology.presets import PRESETS, Level
from topology.units import parse_bytes_per_s, parse_s, spell_bytes_per_s, spell_s

__all__ = ["from_json", "parse_preset", "to_json"]

_COMMON = ("name", "devices")


def from_json(text: str, name: str) -> Cluster:
    """The cluster in a text; `name` is the file's. Raises ValueError: file, line, what was expected, what is there."""
    root = jsonlines.parse(text, name)
    kinds = {"preset": _preset, "links": _graph, "groups": _tree}
    content = root.items("a cluster") if isinstance(root.content, dict) else {}
    make = next((kinds[key] for key in kinds if key in content), None)
    if make is None:
        root.fail("a cluster: an object with 'preset', with 'groups', or with 'ranks' and 'links'")
    cluster = make(root)
    if not set(_COMMON) & content.keys():
        return cluster
    called = content["name"].text("a name") if "name" in content else cluster.name
    devices = content["devices"].list("a list of devices") if "devices" in content else []
    return cluster.described(called, [_device(device, cluster.size) for device in devices])


def to_json(spec: Mapping[str, Any]) -> str:
    """What `from_json` reads: one link, level or host to a line, with units where they are exact."""
    return _write(_spell("", spec), 0) + "\n"


def parse_preset(text: str) -> Cluster:
    """The cluster that a text such as `hosts(4, 8, network_bandwidth_bytes_per_s="25 GB/s")` calls for.

    Only literals are read, nothing is run. Raises ValueError for anything else.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        call = None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise ValueError(f"{text!r} is not a preset: expected something like hosts(4, 8)")
    name = call.func.id
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: expected one of {', '.join(sorted(PRESETS))}")
    try:
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        json.dumps([positional, named])
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(f"{text!r}: the arguments of a preset are numbers, texts and lists of them") from None
    parameters = list(inspect.signature(PRESETS[name]).parameters)
    if len(positional) > len(parameters):
        raise ValueError(f"{text!r}: {name} has the arguments {', '.join(parameters)}")
    twice = set(parameters[: len(positional)]) & named.keys()
    if twice:
        raise ValueError(f"{text!r}: {min(twice)} is given twice")
    arguments = dict(zip(parameters, positional, strict=False)) | named
    return from_json(json.dumps({"preset": name, "arguments": arguments}), repr(text))


def _preset(root: Value) -> Cluster:
    members = root.items("a cluster", ("preset", "arguments", *_COMMON), ("preset", "arguments"))
    name = members["preset"].text("the name of a preset")
    if name not in PRESETS:
        members["preset"].fail(f"one of {', '.join(sorted(PRESETS))}")
    parameters = inspect.signature(PRESETS[name]).parameters
    needed = tuple(key for key, value in parameters.items() if value.default is inspect.Parameter.empty)
    given = members["arguments"].items(f"the arguments of {name}", tuple(parameters), needed)
    arguments = {key: _argument(key, value) for key, value in given.items()}
    places = {f"{key}=": value.where for key, value in given.items()}
    if "sites" in given:
        places |= {f"site {place} is": site.where for place, site in enumerate(given["sites"].list("a list of sites"))}
    return _placed(lambda: PRESETS[name](**arguments), places, members["arguments"].where)


def _tree(root: Value) -> Cluster:
    parameters = tuple(inspect.signature(PRESETS["tree"]).parameters)
    members = root.items("a cluster", (*parameters, *_COMMON), ("groups", "levels"))
    arguments = {key: _argument(key, value) for key, value in members.items() if key not in _COMMON}
    levels = zip(arguments["levels"], members["levels"].list(""), strict=True)
    places = {f"level {level.name!r}": value.where for level, value in levels}
    places |= {key: value.where for key, value in members.items()}
    return _placed(lambda: PRESETS["tree"](**arguments), places, root.where)


def _graph(root: Value) -> Cluster:
    keys = ("ranks", "links", "groups", "levels", "combine_bytes_per_s")
    members = root.items("a cluster", (*keys, *_COMMON), ("ranks", "links"))
    ranks = [value.text("the name of a vertex") for value in members["ranks"].list("the names of vertices, by rank")]
    lines = members["links"].list("a list of links")
    wires = [_wire(value) for value in lines]
    options: dict[str, Any] = {}
    if "groups" in members:
        options["groups"] = _groups(members["groups"])
    if "levels" in members:
        options["levels"] = [v.text("the name of a level") for v in members["levels"].list("the names of levels")]
    if "combine_bytes_per_s" in members:
        options["combine_bytes_per_s"] = _argument("combine_bytes_per_s", members["combine_bytes_per_s"])
    places: dict[str, str] = {}
    for wire, line in zip(wires, lines, strict=True):  # of two that clash the second is wrong
        places[f"from {wire.source} to {wire.target} "] = line.where
        places[f"from {wire.target} to {wire.source} "] = line.where
    places |= {"path from": members["ranks"].where, "vertex": members["ranks"].where}
    places |= {key: value.where for key, value in members.items()}
    return _placed(lambda: graph(ranks, wires, **options), places, root.where)


def _placed(make: Callable[[], Cluster], places: Mapping[str, str], otherwise: str) -> Cluster:
    """What `make` returns. Its errors are raised with the line of that in `places` which they speak of."""
    try:
        return make()
    except ValueError as error:
        spoken = str(error)
        found = [(re.search(rf"(^|\W){re.escape(what)}", spoken), line) for what, line in places.items()]
        where = min(((match.start(), line) for match, line in found if match), default=(0, otherwise))[1]
        raise FileError(f"{where}: {spoken}") from None


def _wire(value: Value) -> Wire:
    keys = ("from", "to", "latency_s", "bandwidth_bytes_per_s")
    members = value.items("a link", (*keys, "one_way", "kind"), keys)
    one_way = members["one_way"].content if "one_way" in members else False
    if not isinstance(one_way, bool):
        members["one_way"].fail("true or false")
    return Wire(
        members["from"].text("the name of a vertex"),
        members["to"].text("the name of a vertex"),
        _argument("latency_s", members["latency_s"]),
        _argument("bandwidth_bytes_per_s", members["bandwidth_bytes_per_s"]),
        one_way,
        members["kind"].text("what the link is made of") if "kind" in members else "",
    )


def _argument(name: str, value: Value) -> Any:
    """The value of an argument, with its units; numbers stay as they are when they are of another kind."""
    if name == "groups" and isinstance(value.content, list):
        return _groups(value)
    if name == "levels":
        return [_level(level) for level in value.list("a list of levels, outermost first")]
    if _unit(name) is not None:
        if isinstance(value.content, list):
            return [_argument(name, element) for element in value.list("")]
        try:
            return cast("Callable[[object], float]", _unit(name))(value.content)
        except ValueError as error:
            raise FileError(f"{value.where}: {name}: {error}") from None
    plain = value.plain()
    if name == "sites":
        sites = [site.plain() for site in value.list("a list of [hosts, ranks of each host]")]
        return [tuple(cast("list[int]", site)) if isinstance(site, list) else site for site in sites]
    if name == "placement":
        return value.text("'contiguous' or 'round_robin'")
    if not isinstance(plain, int) or isinstance(plain, bool):
        value.fail(f"a whole number for {name}")
    return plain


def _device(value: Value, ranks: int) -> Device:
    members = value.items("a device", Device._fields, ("name", "about"))
    near = members["near"].list("how it is connected to each rank") if "near" in members else []
    if len(near) not in (0, ranks):
        members["near"].fail(f"{ranks} texts, one for each rank")
    words = tuple(word.text("how it is connected to a rank") for word in near)
    return Device(members["name"].text("a name"), members["about"].text("a text"), words)


def _level(value: Value) -> Level:
    keys = ("name", "latency_s", "bandwidth_bytes_per_s")
    members = value.items("a level", Level._fields, keys)
    numbers = {key: _argument(key, member) for key, member in members.items() if key != "name"}
    return Level(members["name"].text("the name of a level"), **numbers)


def _groups(value: Value, seen: set[int] | None = None) -> Groups:
    seen = set() if seen is None else seen
    members: list[int | Groups] = []
    for member in value.list("groups: lists of ranks, or of such lists"):
        if isinstance(member.content, list):
            members.append(_groups(member, seen))
            continue
        rank = member.content
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
            member.fail("a rank or a list of ranks")
        if rank in seen:
            raise FileError(f"{member.where}: rank {rank} stands twice in the groups")
        seen.add(rank)
        members.append(rank)
    return tuple(members)


def _unit(name: str) -> Callable[[object], float] | None:
    return parse_bytes_per_s if name.endswith("_bytes_per_s") else parse_s if name.endswith("_s") else None


def _spell(name: str, value: Any) -> Any:
    """A spec with the units that people read."""
    if isinstance(value, Mapping):
        return {key: _spell(key, member) for key, member in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_spell(name, member) for member in cast("list[Any]", value)]
    if isinstance(value, (int, float)) and _unit(name) is not None:
        return spell_bytes_per_s(value) if name.endswith("_bytes_per_s") else spell_s(value)
    return value


def _write(value: Any, depth: int) -> str:
    """JSON with what fits on a line on one line; a link is always on one."""
    line = json.dumps(value, ensure_ascii=False)
    fits = len(line) + 2 * depth <= (110 if isinstance(value, list) else 160)
    if (depth and fits) or not isinstance(value, (dict, list)) or not value:
        return line
    inner = "  " * (depth + 1)
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_write(member, depth + 1)}" for key, member in items]
    else:
        parts = [_write(member, depth + 1) for member in cast("list[Any]", value)]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(parts) + f"\n{'  ' * depth}{closing}"
