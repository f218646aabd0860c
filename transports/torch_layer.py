"""What torch.distributed's process groups do for a program (grouped.py): Gloo on the CPU, NCCL on a GPU.

Programs have addresses, torch has tensors: `tensor_at` makes the one of the other, without a copy.
"""

from __future__ import annotations

import ctypes
from datetime import timedelta
from functools import lru_cache
from time import monotonic
from typing import Any

from transports.base import CPU, Device
from transports.memory import HostMemory
from transports.program import DTYPE_NAMES, DTYPES, OP_NAMES

__all__ = ["TORCH_TYPES", "CudaLayer", "GlooLayer", "tensor_at"]

_TAG = 0
TORCH_TYPES = {
    number: {"bool": "uint8", "bytes": "uint8"}.get(name, name) for number, name in DTYPE_NAMES.items()
}  # fmt: skip
"""The names of torch's dtypes by the numbers of ours."""
_BOOL = DTYPES["bool"][0]


def tensor_at(torch: Any, device: Device, address: int, nbytes: int) -> Any:
    """The bytes at an address, as a tensor of uint8. It keeps nothing alive."""
    if device == CPU:
        return _cpu_tensor(torch, address, nbytes)
    return torch.as_tensor(_CudaBytes(address, nbytes), device=str(device))


@lru_cache(maxsize=4096)
def _cpu_tensor(torch: Any, address: int, nbytes: int) -> Any:
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer((ctypes.c_ubyte * nbytes).from_address(address), dtype=torch.uint8)


class _CudaBytes:
    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,), "typestr": "|u1", "data": (address, False), "strides": None, "version": 3,
        }  # fmt: skip


class GlooLayer(HostMemory):
    """The CPU's side: messages of a Gloo process group, and the host's arithmetic. `group` is None for one rank.

    timeout_s    how long one message may take; a wait that takes longer raises RuntimeError, as does a connection that
                 ends, and the process group is of no use then
    waits_for    the rank whose message was waited for last, and since when
    """

    def __init__(self, torch: Any, group: Any) -> None:
        super().__init__()
        self._torch, self.group = torch, group
        self.device = CPU
        self.timeout_s = 60.0
        self.waits_for, self.since = -1, 0.0
        self._works: list[tuple[int, Any]] = []  # of this group
        self._expected: list[tuple[int, Any]] = []  # of the next one
        self._staging: Any = None

    def begin(self) -> None:
        self.since = monotonic()
        self._works, self._expected = self._expected, []

    def expect(self, peer: int, address: int, nbytes: int) -> None:
        """A receive of the group that begins next."""
        self._expected.append((peer, self.group.recv([_cpu_tensor(self._torch, address, nbytes)], peer, _TAG)))

    def send(self, peer: int, address: int, nbytes: int) -> None:
        self.waits_for = peer
        self._works.append((peer, self.group.send([_cpu_tensor(self._torch, address, nbytes)], peer, _TAG)))

    def recv(self, peer: int, address: int, nbytes: int) -> None:
        self.waits_for = peer
        self._works.append((peer, self.group.recv([_cpu_tensor(self._torch, address, nbytes)], peer, _TAG)))

    def end(self) -> None:
        timeout = timedelta(seconds=self.timeout_s)
        for self.waits_for, work in self._works:  # noqa: B020 - whoever catches an error reads it
            work.wait(timeout)

    def staging(self, nbytes: int) -> int:
        if self._staging is None or self._staging.numel() < nbytes:
            self._staging = self._torch.empty(nbytes, dtype=self._torch.uint8)
        return int(self._staging.data_ptr())


class CudaLayer:
    """A GPU's side: groups of operations of an NCCL process group, and torch's kernels. All of it is on one stream, and
    the host waits for nothing of it. `group` is None for one rank."""

    def __init__(self, torch: Any, group: Any, device: Device) -> None:
        self._torch, self.group, self.device = torch, group, device
        self.stream = torch.cuda.Stream(device=str(device))
        self.timeout_s = 60.0
        self.waits_for, self.since = -1, 0.0
        self._staging: Any = None

    def begin(self) -> None:
        self.group._start_coalescing()

    def send(self, peer: int, address: int, nbytes: int) -> None:
        self.group.send([self._tensor(address, nbytes)], peer, _TAG)

    def recv(self, peer: int, address: int, nbytes: int) -> None:
        self.group.recv([self._tensor(address, nbytes)], peer, _TAG)

    def end(self) -> None:
        self.group._end_coalescing().wait()  # the stream waits, not the host

    def combine(self, dtype: int, op: int, a: int, b: int, out: int, nbytes: int) -> None:
        torch, name = self._torch, OP_NAMES[op]
        name = _OF_BOOLS.get(name, name) if dtype == _BOOL else name
        x, y, z = (self._tensor(address, nbytes) for address in (a, b, out))
        if TORCH_TYPES[dtype] in _UNSIGNED:
            self._combine_unsigned(name, _UNSIGNED[TORCH_TYPES[dtype]], x, y, z)
            return
        kind = getattr(torch, TORCH_TYPES[dtype])
        getattr(torch, _FUNCTIONS[name])(x.view(kind), y.view(kind), out=z.view(kind))

    def copy(self, a: int, out: int, nbytes: int) -> None:
        self._tensor(out, nbytes).copy_(self._tensor(a, nbytes))

    def divide(self, dtype: int, a: int, out: int, nbytes: int, divisor: int) -> None:
        torch = self._torch
        kind = getattr(torch, TORCH_TYPES[dtype])
        x, z = self._tensor(a, nbytes).view(kind), self._tensor(out, nbytes).view(kind)
        if kind.is_floating_point or kind.is_complex:
            torch.div(x, divisor, out=z)
        elif TORCH_TYPES[dtype] in _UNSIGNED:
            signed = getattr(torch, _UNSIGNED[TORCH_TYPES[dtype]])
            z.view(signed).copy_(_quotient(torch, x.view(signed), divisor))
        else:
            torch.div(x, divisor, rounding_mode="trunc", out=z)

    def staging(self, nbytes: int) -> int:
        if self._staging is None or self._staging.numel() < nbytes:
            self._staging = self._torch.empty(nbytes, dtype=self._torch.uint8, device=str(self.device))
        return int(self._staging.data_ptr())

    def _combine_unsigned(self, name: str, signed: str, x: Any, y: Any, z: Any) -> None:
        """torch has next to no arithmetic for these types, but that of signed ones has the same bits; to compare, both
        are moved by half the range."""
        torch, kind = self._torch, getattr(self._torch, signed)
        x, y, z = x.view(kind), y.view(kind), z.view(kind)
        if name not in ("min", "max"):
            getattr(torch, _FUNCTIONS[name])(x, y, out=z)
            return
        half = torch.iinfo(kind).min
        getattr(torch, _FUNCTIONS[name])(x ^ half, y ^ half, out=z)
        z ^= half

    def _tensor(self, address: int, nbytes: int) -> Any:
        return tensor_at(self._torch, self.device, address, nbytes)


def _quotient(torch: Any, x: Any, divisor: int) -> Any:
    """x / divisor of unsigned numbers in tensors of the signed type, as torch does not divide the former."""
    if x.dtype != torch.int64:
        bits = 8 * x.element_size()
        return torch.div(x.to(torch.int64) & ((1 << bits) - 1), divisor, rounding_mode="trunc").to(x.dtype)
    half = torch.div((x >> 1) & ((1 << 63) - 1), divisor, rounding_mode="trunc") * 2  # the quotient, or one less
    rest = x - half * divisor
    return half + (rest >= divisor)


_OF_BOOLS = {"sum": "or", "prod": "and", "min": "and", "max": "or"}
_FUNCTIONS = {
    "sum": "add", "prod": "mul", "min": "minimum", "max": "maximum", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor",
}  # fmt: skip
_UNSIGNED = {"uint16": "int16", "uint32": "int32", "uint64": "int64"}
