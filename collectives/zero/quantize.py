# pyright: basic, reportMissingImports=false
"""Numbers as blocks of small integers, with one scale a block.

    x, n numbers  ->  ceil(n / block) scales, float32 | n integers of 8 or 4 bits, two of the latter in a byte

The scale is the greatest magnitude of the block over 127 (8 bits) or 7 (4 bits), and an integer the nearest to x over
the scale, halves to even: so a number is off by at most half a scale. A block with an infinity or NaN comes back as NaN
throughout, so that whoever looks for overflow finds it; one without a magnitude above 2e-36 comes back as zeros. Each
step is one IEEE operation on each number, so the bits are the same on every rank, and every time. (Dettmers et al.,
"8-bit Optimizers via Block-wise Quantization", ICLR 2022, section 2; here blocks are linear.)
"""

from __future__ import annotations

import math

import torch

__all__ = ["BITS", "Quantizer"]

BITS = {8: 127, 4: 7}
"""The widths of integers there are, and the greatest integer of each."""
_SCALE_BYTES = 4
_TINY = torch.finfo(torch.float32).tiny
_CACHED = 1 << 16  # numbers that are worked on at a time


class Quantizer:
    """`bits` is 8 or 4, `block` how many numbers share a scale, an even number. Raises ValueError for others."""

    def __init__(self, bits: int, block: int) -> None:
        if bits not in BITS or block < 2 or block % 2:
            raise ValueError(f"blocks of {block} integers of {bits} bits: the bits are 8 or 4, and a block is even")
        self.bits, self.block, self._most = bits, block, BITS[bits]
        self._at_a_time = max(_CACHED // block, 1) * block

    def nbytes(self, numel: int) -> int:
        """What so many numbers take."""
        return _SCALE_BYTES * self._blocks(numel) + (numel * self.bits + 7) // 8

    def encode(self, x: torch.Tensor, out: torch.Tensor, rest: torch.Tensor | None = None) -> None:
        """Puts a 1-D tensor of floating point into `out`, uint8 of `nbytes(x.numel())`.

        A `rest`, of as many numbers, is added to it first, and becomes what of the sum `decode` will not give back;
        zeros in blocks with infinities or NaN.
        """
        scales_end = _SCALE_BYTES * self._blocks(x.numel())
        scales, codes = out[:scales_end].view(-1, _SCALE_BYTES), out[scales_end:]
        for begin in range(0, x.numel(), self._at_a_time):
            part = x[begin : begin + self._at_a_time]
            first = begin // self.block
            numbers = _in_blocks(part, self.block)
            if rest is not None:
                numbers.view(-1)[: part.numel()].add_(rest[begin : begin + part.numel()])
            scale, integers = self._integers(numbers)
            if rest is not None:
                numbers.sub_(integers * scale).nan_to_num_(0.0, 0.0, 0.0)
                rest[begin : begin + part.numel()].copy_(numbers.view(-1)[: part.numel()])
            integers = integers.view(-1)
            scales[first : first + scale.numel()].copy_(scale.view(torch.uint8))
            if self.bits == 4:
                pairs = integers.add_(8).view(torch.int16)  # of two bytes below 16
                integers = pairs.bitwise_or_(pairs >> 4).to(torch.uint8)
            packed = integers.view(torch.uint8)[: (part.numel() * self.bits + 7) // 8]
            codes[begin * self.bits // 8 :][: packed.numel()].copy_(packed)

    def decode(self, data: torch.Tensor, out: torch.Tensor, *, add: bool = False) -> None:
        """The numbers in `data`, as `encode` left them, into `out`, 1-D, or onto what is there."""
        numel = out.numel()
        scales_end = _SCALE_BYTES * self._blocks(numel)
        scales, codes = data[:scales_end].clone().view(-1, _SCALE_BYTES).view(torch.float32), data[scales_end:]
        for begin in range(0, numel, self._at_a_time):
            part = out[begin : begin + self._at_a_time]
            first, count = begin // self.block, self._blocks(part.numel())
            packed = codes[begin * self.bits // 8 :][: (part.numel() * self.bits + 7) // 8]
            if self.bits == 4:
                pairs = packed.to(torch.int16)
                packed = (pairs << 4).bitwise_or_(pairs).bitwise_and_(0x0F0F).view(torch.int8).sub_(8)
            numbers = _in_blocks(packed.view(torch.int8)[: part.numel()], self.block)
            numbers.mul_(scales[first : first + count])
            flat = numbers.view(-1)[: part.numel()]
            part.add_(flat) if add else part.copy_(flat)

    def _blocks(self, numel: int) -> int:
        return -(-numel // self.block)

    def _integers(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The scale of each block, which is a row, and its integers, int8."""
        scale = numbers.abs().amax(1, keepdim=True).div_(self._most)
        finite = torch.isfinite(scale)
        nothing = ~finite | (scale < _TINY)  # what is tiny becomes zero; what is not finite has a scale of NaN
        integers = numbers.div(scale.masked_fill(nothing, math.inf)).round_().to(torch.int8)
        return scale.masked_fill_(~finite, math.nan), integers


def _in_blocks(x: torch.Tensor, block: int) -> torch.Tensor:
    """A copy of these numbers, as float32, one block a row; the last is filled up with zeros."""
    count = -(-x.numel() // block)
    numbers = torch.empty(count * block, device=x.device)
    numbers[: x.numel()].copy_(x)
    numbers[x.numel() :].zero_()
    return numbers.view(count, block)
