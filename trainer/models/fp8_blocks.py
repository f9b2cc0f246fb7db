"""FP8 weights with a scale for each block of 128 x 128, as Hugging Face checkpoints have them.

    w[r, c] ~ float32(q[r, c]) * scale[r // 128, c // 128],    q in e4m3, |q| <= 448

`quantise` takes scale = max |w| / 448 of each block (DeepSeek-V3's rule), so the largest number becomes 448.
Error: at most scale * 2^-4 * |q| of a normal number (half a step of 3 bits), scale * 2^-10 of a subnormal.

What survives FP8 -> bfloat16 -> FP8 to the bit: blocks that were quantised from bfloat16 by this rule, which is
how checkpoints come to be. Their largest number is bfloat16(448 * scale), exactly the one that the scale was
made of; and bfloat16's rounding, 2^-9, moves no number over half a step of e4m3. Scales of any other origin
keep every number, but may move by 2^-9 themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
FP8 = torch.float8_e4m3fn
LARGEST = 448.0


def scale_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Of the scales of a [rows, columns] weight; blocks at the edges may be smaller."""
    rows, columns = shape
    return -(-rows // BLOCK), -(-columns // BLOCK)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, columns] of any float dtype -> e4m3 of that shape, float32 scales. Raises ValueError for NaN.

    A block of zeros has scale 1.
    """
    wide = weight.to(torch.float32)
    blocks = _blocks(wide)
    largest = blocks.abs().amax(dim=(1, 3))
    if not bool(largest.isfinite().all()):
        raise ValueError("values that are not finite have no scale")
    # A block whose largest number is below float32's normal ones would divide by zero.
    tiny = torch.finfo(torch.float32).tiny
    scale = torch.where(largest == 0, 1.0, (largest / LARGEST).clamp(min=tiny))
    divided = (blocks / scale[:, None, :, None]).clamp_(-LARGEST, LARGEST).to(FP8)
    return _whole(divided, wide.shape), scale


def dequantise(quantised: Tensor, scale: Tensor) -> Tensor:
    """e4m3 [rows, columns] and its scales -> float32."""
    blocks = _blocks(quantised.to(torch.float32))
    return _whole(blocks.mul_(scale.to(torch.float32)[:, None, :, None]), quantised.shape)


def _blocks(x: Tensor) -> Tensor:
    """[rows, columns] -> [row blocks, 128, column blocks, 128], zeros beyond the edges; a copy."""
    rows, columns = scale_shape(tuple(x.shape))
    padded = x.new_zeros(rows * BLOCK, columns * BLOCK)
    padded[: x.shape[0], : x.shape[1]] = x
    return padded.view(rows, BLOCK, columns, BLOCK)


def _whole(blocks: Tensor, shape: torch.Size) -> Tensor:
    padded = blocks.view(blocks.shape[0] * BLOCK, -1)
    return padded[: shape[0], : shape[1]].contiguous()
