"""The two small layers that Megatron's local spec lacks without Apex or Transformer Engine.

On the CPU both have a hand-written backward pass: autograd's own walks over memory two to three times
as often (RMSNorm of [3072, 256]: 0.75 ms against 2.25 ms, forward and backward, one thread).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32 inside.

    Megatron's own torch norm refuses sequence parallelism: there, each rank sees a part of the tokens,
    so the weight is marked for the gradient all-reduce in `finalize_model_grads`.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        out: Tensor = _RMSNormOnCpu.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return out


class _RMSNormOnCpu(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x^2) + eps): y = x r w; dx = r (g w - x r^2 mean(g w x)); dw = sum(g x r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(_wide(x))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        r = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        # Rounded before the weight, as transformers does.
        normed: Tensor = (wide * r).to(x.dtype)
        return normed.mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        g, wide, w = (tensor.to(_wide(x)) for tensor in (grads[0], x, weight))
        size = x.shape[-1]
        gx = (g * wide).reshape(-1, size)
        flat_r = r.reshape(-1)
        dw = torch.mv(gx.t(), flat_r)
        mean = torch.mv(gx, w).mul_(flat_r).mul_(flat_r).div_(-size).view(r.shape)
        dx = torch.addcmul(g * w, wide, mean).mul_(r)
        return dx.to(x.dtype), dw.to(weight.dtype), None


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class ReplicatedLinear(torch.nn.Module):
    """x W^T without bias, the same on every tensor-parallel rank.

    With sequence parallelism each rank sees a part of the tokens, so the weight is marked for the
    gradient all-reduce in `finalize_model_grads`.
    """

    def __init__(self, config: TransformerConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class SwiGlu(torch.nn.Module):
    """silu(gate) * up, of [..., 2 * ffn] with the gate in the first half."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, gate_and_up: Tensor) -> Tensor:
        out: Tensor = _SwiGlu.apply(gate_and_up)  # type: ignore[no-untyped-call]
        return out

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing to save; Megatron's MLP asks each of its parts."""
        return {}


class _SwiGlu(torch.autograd.Function):
    """Writes the gradients of gate and up side by side, where autograd would concatenate copies."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        gate, up = gate_and_up.chunk(2, dim=-1)
        activated = F.silu(gate)
        if not ctx.needs_input_grad[0]:
            return activated.mul_(up)
        ctx.save_for_backward(gate_and_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        gate_and_up, activated = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        d_both = torch.empty_like(gate_and_up)
        d_gate, d_up = d_both.chunk(2, dim=-1)
        torch.mul(grads[0], activated, out=d_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=d_gate)
        return d_both
