"""Megatron-core on a machine without a GPU, and without Transformer Engine.

megatron-core 0.16.1 trains on the CPU with gloo once a handful of places that take CUDA for granted
are told otherwise. `install("cpu")` does that, once a process, before anything is built; on CUDA it
mends only what takes Transformer Engine for granted. Every patch is one small function below: its docstring names the place that it works
around, and `tests/trainer/test_trainer_platform.py` runs Megatron without it and expects the failure,
so a patch that upstream no longer needs fails a test.

No patch costs anything in forward or backward: names are replaced where they are looked up, and no
torch function mode is ever active. Whatever can be set by a Megatron option is set by that option
(`trainer/models/transformer.py`), not here.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Patch = Callable[[], None]

MODULES_WITH_LITERAL_CUDA = (
    "pipeline_parallel.schedules",
    "optimizer.clip_grads",
    "optimizer.optimizer",
    "utils",
)

_installed = False


def install(device: str, *, without: Collection[str] = ()) -> None:
    """Make Megatron-core run on `device`: `cpu`, or any CUDA device, with fewer patches.

    Call it before a model or an optimizer is built; calling it again does nothing. `without` leaves
    patches out by their names: only the tests of this module want that.
    """
    global _installed
    if _installed:
        return
    for patch in PATCHES if torch.device(device).type == "cpu" else WITHOUT_TRANSFORMER_ENGINE:
        if patch.__name__ not in without:
            patch()
    _installed = True


def current_device_is_the_cpu() -> None:
    """`torch.cuda.current_device()` as the `device=` of new tensors.

    All over megatron-core: `tensor_parallel/mappings.py` and `layers.py` (buffers of collectives),
    `pipeline_parallel/p2p_communication.py`, `distributed/param_and_grad_buffer.py`.
    """
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu  # type: ignore[assignment, return-value]


def synchronize_has_nothing_to_wait_for() -> None:
    """`torch.cuda.synchronize()` after pipeline stages have exchanged shapes and activations.

    `pipeline_parallel/p2p_communication.py`: `_communicate_shapes` and `_communicate`.
    """
    torch.cuda.synchronize = lambda device=None: None


def literal_cuda_devices_are_the_cpu() -> None:
    """The literal `device='cuda'` of small tensors made in every step.

    `pipeline_parallel/schedules.py` (token counter), `optimizer/clip_grads.py` (norms),
    `optimizer/optimizer.py` (bfloat16's overflow flag), `utils.py` (norms without Apex).
    These modules get a `torch` whose factories read `cuda` as `cpu`; nobody else's torch changes.
    """
    for name in MODULES_WITH_LITERAL_CUDA:
        module = importlib.import_module(f"megatron.core.{name}")
        vars(module)["torch"] = _TorchOnCpu()


class _TorchOnCpu(types.ModuleType):
    """torch, but `tensor(..., device="cuda")` and `zeros(..., device="cuda")` make CPU tensors."""

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def tensor(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(*args, **kwargs | {"device": _cpu_for(device)})

    @staticmethod
    def zeros(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(*args, **kwargs | {"device": _cpu_for(device)})


def _cpu_for(device: Any) -> Any:
    return "cpu" if device == "cuda" else device


def moving_to_cuda_keeps_the_cpu() -> None:
    """`tensor.cuda()` on weights that should stay where they are.

    `models/common/language_module/language_module.py`: tied embeddings over pipeline stages.
    """

    def cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self

    torch.Tensor.cuda = cuda  # type: ignore[method-assign, assignment]


def rng_tracker_uses_the_cpu_generator() -> None:
    """The random states of tensor parallelism are states of CUDA generators.

    `tensor_parallel/random.py`: `CudaRNGStatesTracker.add` and `.fork` (forked around every forward
    with sequence parallelism), and the pair of functions that activation recomputation uses.
    """
    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = _get_cpu_rng_state
    random._set_cuda_rng_state = _set_cpu_rng_state

    class CpuRNGStatesTracker(random.CudaRNGStatesTracker):  # type: ignore[misc]
        def add(self, name: str, seed: int) -> None:
            assert name not in self.states_, name
            self._is_initialized = True
            self.seeds_.add(seed)
            self.states_[name] = torch.Generator().manual_seed(seed).get_state()

        @contextmanager
        def fork(self, name: str = random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
            outer = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer)

    random.CudaRNGStatesTracker = CpuRNGStatesTracker


def _get_cpu_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_cpu_rng_state(new_state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.set_rng_state(new_state)


def clipping_takes_cpu_gradients() -> None:
    """`optimizer/clip_grads.py` asserts that every gradient is a `torch.cuda.FloatTensor`.

    `optimizer/optimizer.py` imports the function by name, so it is replaced in both.
    """
    for name in ("optimizer.clip_grads", "optimizer.optimizer"):
        module = importlib.import_module(f"megatron.core.{name}")
        vars(module)["clip_grad_by_total_norm_fp32"] = _clip_grad_by_total_norm_fp32


def _clip_grad_by_total_norm_fp32(
    parameters: Iterable[torch.Tensor] | torch.Tensor,
    max_norm: float,
    total_norm: float,
    use_decoupled_grad: bool = False,
) -> None:
    """Scale float32 gradients in place so that their norm, given as `total_norm`, is at most `max_norm`."""
    assert not use_decoupled_grad, "precision-aware optimizers need Transformer Engine"
    params = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    grads = [p.grad.detach() for p in params if p.grad is not None]
    assert all(g.dtype == torch.float32 for g in grads)
    scale = max_norm / (total_norm + 1.0e-6)
    if scale < 1.0 and grads:
        torch._foreach_mul_(grads, scale)


def optimizers_know_cpu_tensors() -> None:
    """Optimizers sort parameters by `param.type()`, with names that begin with `torch.cuda.`.

    `optimizer/optimizer.py` and `optimizer/distrib_optimizer.py`, in the constructors only: the names
    are changed while one runs, and restored.
    """
    for module_name, class_name in (
        ("optimizer.optimizer", "Float16OptimizerWithFloat16Params"),
        ("optimizer.distrib_optimizer", "DistributedOptimizer"),
    ):
        module = importlib.import_module(f"megatron.core.{module_name}")
        optimizer_class = getattr(module, class_name)
        optimizer_class.__init__ = _with_cuda_type_names(optimizer_class.__init__)


def _with_cuda_type_names(build: Callable[..., None]) -> Callable[..., None]:
    def build_with_cuda_type_names(*args: Any, **kwargs: Any) -> None:
        plain = torch.Tensor.type

        def type_(self: torch.Tensor, *type_args: Any, **type_kwargs: Any) -> Any:
            result = plain(self, *type_args, **type_kwargs)
            return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

        torch.Tensor.type = type_  # type: ignore[method-assign, assignment]
        try:
            build(*args, **kwargs)
        finally:
            torch.Tensor.type = plain  # type: ignore[method-assign]

    return build_with_cuda_type_names


def expert_dispatch_needs_no_stream() -> None:
    """A CUDA stream that carries token counts to the host, where the collectives want them as numbers.

    `transformer/moe/token_dispatcher.py`: `MoEAlltoAllTokenDispatcher.__init__` makes the stream, and
    `_maybe_dtoh_and_synchronize` copies on it.
    """
    dispatcher: Any = importlib.import_module("megatron.core.transformer.moe.token_dispatcher")
    all_to_all = dispatcher.MoEAlltoAllTokenDispatcher
    all_to_all.cuda_dtoh_stream = "none on a CPU"
    all_to_all._maybe_dtoh_and_synchronize = _counts_as_numbers


def _counts_as_numbers(
    self: Any, point: str, tokens_per_expert: torch.Tensor | None = None
) -> torch.Tensor | None:
    if point == self.cuda_dtoh_point:
        for name in ("input_splits", "output_splits"):
            splits = vars(self)[name]
            vars(self)[name] = splits.tolist() if isinstance(splits, torch.Tensor) else splits
    return tokens_per_expert


def router_has_no_fused_product() -> None:
    """The router's product asks for a function of Transformer Engine that is only imported with it.

    `transformer/moe/moe_utils.py`: `RouterGatingLinearFunction` reads `te_general_gemm`, unbound without
    Transformer Engine; None makes it take torch's product.
    """
    moe_utils: Any = importlib.import_module("megatron.core.transformer.moe.moe_utils")
    if not moe_utils.HAVE_TE:
        moe_utils.te_general_gemm = None


def recomputed_outputs_have_no_fp8() -> None:
    """Recomputing a norm (`recompute_modules: [layernorm]`) asks Transformer Engine whether FP8 is on.

    `tensor_parallel/random.py`: `CheckpointWithoutOutput.__init__` takes `fp8=False` for a yes.
    """
    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    if random.HAVE_TE:
        return
    build = random.CheckpointWithoutOutput.__init__

    def build_without_fp8(self: Any, fp8: bool | None = None) -> None:
        build(self, fp8=fp8 or None)

    random.CheckpointWithoutOutput.__init__ = build_without_fp8


WITHOUT_TRANSFORMER_ENGINE: tuple[Patch, ...] = (
    router_has_no_fused_product,
    recomputed_outputs_have_no_fp8,
)
PATCHES: tuple[Patch, ...] = (
    current_device_is_the_cpu,
    synchronize_has_nothing_to_wait_for,
    literal_cuda_devices_are_the_cpu,
    moving_to_cuda_keeps_the_cpu,
    rng_tracker_uses_the_cpu_generator,
    clipping_takes_cpu_gradients,
    optimizers_know_cpu_tensors,
    expert_dispatch_needs_no_stream,
    *WITHOUT_TRANSFORMER_ENGINE,
)
