# pyright: basic, reportMissingImports=false
"""Numbers as blocks of small integers, with one scale a block.

    x, n numbers  ->  ceil(n / block) scales, float32 | n integers of 8 or 4 bits, two of the latter in a byte

The scale is the greatest magnitude of the block over 127 (8 bits) or 7 (4 bits), and an integer the nearest to x over
the scale, halves to even: so a number is off by at most half a scale. A block with an infinity or NaN comes back as NaN
throughout, so that whoever looks for overflow finds it. Each step is one IEEE operation on each number, so the bits are
the same on every rank, and every time. (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022,
section 2; here blocks are linear.)
"""

from __future__ import annotations

import torch

__all__ = ["BITS", "Quantizer"]

BITS = {8: 127, 4: 7}
"""The widths of integers there are, and the greatest integer of each."""
_SCALE_BYTES = 4
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

    def encode(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Puts a 1-D tensor of floating point into `out`, uint8 of `nbytes(x.numel())`."""
        scales_end = _SCALE_BYTES * self._blocks(x.numel())
        scales, codes = out[:scales_end], out[scales_end:]
        for begin in range(0, x.numel(), self._at_a_time):
            part = x[begin : begin + self._at_a_time]
            first = begin // self.block
            scale, integers = self._integers(part)
            scales[_SCALE_BYTES * first : _SCALE_BYTES * (first + scale.numel())].copy_(scale.view(torch.uint8))
            if self.bits == 8:
                codes[begin : begin + part.numel()].copy_(integers[: part.numel()].view(torch.uint8))
            else:
                pairs = integers.add_(8).view(torch.uint8).view(-1, 2)
                packed = pairs[:, 0] | (pairs[:, 1] << 4)
                codes[begin // 2 : (begin + part.numel() + 1) // 2].copy_(packed[: (part.numel() + 1) // 2])

    def decode(self, data: torch.Tensor, out: torch.Tensor, *, add: bool = False) -> None:
        """The numbers in `data`, as `encode` left them, into `out`, 1-D, or onto what is there."""
        numel = out.numel()
        scales_end = _SCALE_BYTES * self._blocks(numel)
        scales, codes = data[:scales_end].clone().view(torch.float32), data[scales_end:]  # the clone is aligned
        for begin in range(0, numel, self._at_a_time):
            part = out[begin : begin + self._at_a_time]
            first, count = begin // self.block, self._blocks(part.numel())
            numbers = torch.zeros(count * self.block, device=out.device)
            if self.bits == 8:
                numbers[: part.numel()].copy_(codes[begin : begin + part.numel()].view(torch.int8))
            else:
                packed = codes[begin // 2 : (begin + part.numel() + 1) // 2]
                pairs = numbers.view(-1, 2)[: packed.numel()]
                pairs[:, 0].copy_(packed & 15).sub_(8)
                pairs[:, 1].copy_(packed >> 4).sub_(8)
            numbers.view(count, self.block).mul_(scales[first : first + count, None])
            part.add_(numbers[: part.numel()]) if add else part.copy_(numbers[: part.numel()])

    def _blocks(self, numel: int) -> int:
        return -(-numel // self.block)

    def _integers(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The scales of the blocks, and int8 of whole blocks."""
        count = self._blocks(x.numel())
        numbers = torch.zeros(count * self.block, device=x.device)
        numbers[: x.numel()].copy_(x)
        numbers = numbers.view(count, self.block)
        scale = numbers.abs().amax(1, keepdim=True).div_(self._most)
        integers = numbers.div_(scale).round_().nan_to_num_(0.0).clamp_(-self._most, self._most)  # 0 / 0 is 0
        return scale.view(-1), integers.to(torch.int8).view(-1)
