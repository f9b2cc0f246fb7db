"""`rlframe plan`: what a model costs, before anything is started or downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlframe.config.check_model import model_shape
from rlframe.config.schema import LayoutConfig, RunConfig
from rlframe.errors import UserError
from rlframe.model_costs.layouts import layout_problem
from rlframe.model_costs.plan import DRAFT_STEPS, Plan, make_plan
from rlframe.model_costs.training_memory import RankMemory
from rlframe.model_shapes.family import ModelShape, read_shape

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
WIDTH = 110
GIB = 1 << 30


def run_plan(
    config: RunConfig,
    *,
    contexts: str | None,
    averaged: bool,
    json_file: str | None,
    plot: str | None,
    count: bool = False,
    console: Console | None = None,
) -> int:
    """Prints the plan; writes it as JSON and as a picture where that is asked for."""
    described = {"vocab_size": config.model.tokenizer_vocab_size} | model_shape(config.model)
    shape = read_shape(described)
    layout = config.trainer.policy.layout
    problem = layout_problem(shape, layout)
    if problem:
        raise UserError(problem)
    plan = make_plan(
        shape,
        layout=layout,
        tokens=config.trainer.max_tokens_per_micro_batch,
        dtype_bytes=DTYPE_BYTES[config.model.dtype],
        contexts=_given(contexts, shape.max_positions) if contexts else None,
        averaged=averaged,
    )
    out = console or Console(highlight=False, width=WIDTH)
    for section in (_parameters, _operations, _sharing, _cache, _training):
        for part in section(plan):
            out.print(part)
    if count:
        for line in _counted(shape, plan.by_context[-1].context):
            out.print(line)
    if json_file is not None:
        Path(json_file).write_text(json.dumps(asdict(plan), indent=2) + "\n")
        out.print(f"wrote {json_file}")
    if plot is not None:
        from rlframe.model_costs.plot import plot_plan

        plot_plan(plan, Path(plot))
        out.print(f"wrote {plot}")
    return 0


def _given(contexts: str, max_positions: int) -> tuple[int, ...]:
    read = read_contexts(contexts)
    if max(read) > max_positions:
        raise UserError(
            f"--contexts: {max(read):,} tokens are more than the model's max_position_embeddings="
            f"{max_positions:,}"
        )
    return read


def read_contexts(text: str) -> tuple[int, ...]:
    """`4K,128K,1M,5000` -> token counts. Raises UserError."""
    return tuple(_context(word) for word in text.split(","))


def _context(word: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20}
    number, unit = (word[:-1], word[-1:].upper()) if word[-1:].upper() in units else (word, "")
    if not number.strip().isdecimal() or not int(number):
        raise UserError(f"--contexts: '{word}' is no number of tokens; write 4096, 128K or 1M")
    return int(number) * units.get(unit, 1)


def _parameters(plan: Plan) -> Iterator[Any]:
    yield (
        f"[bold]parameters[/]  {_short(plan.parameters)} ({plan.parameters:,}), "
        f"{_short(plan.active)} ({plan.active:,}) of them multiply each token"
    )
    table = _table("part", "parameters", "active")
    for part, (stored, used) in plan.parts.items():
        table.add_row(part, _short(stored), _short(used) if used else "")
    if plan.mtp_parameters:
        table.add_row("MTP layer", _short(plan.mtp_parameters), "(drafting only)")
    yield table


def _operations(plan: Plan) -> Iterator[Any]:
    mean = "a mean token of a prompt" if plan.averaged else "the token at the end"
    yield f"\n[bold]operations[/]  GFLOP of the forward pass of {mean} of that many tokens"
    if plan.schedule is None:
        table = _table("tokens", "linear", "core attention", "total")
        for at in plan.by_context:
            flops = at.flops
            table.add_row(_tokens(at.context), *map(_giga, (flops.linear, flops.core, flops.total)))
        yield table
        return
    full, layers = plan.schedule.full, plan.schedule.layers
    yield f"  {full} of {layers} layers own an indexer" + (
        f"; beside it the same with {layers} indexers" if full < layers else ""
    )
    names = ["tokens", "linear", "core", "(expanded)", "indexer", "total"]
    if full < layers:
        names += [f"linear, {layers}", f"indexer, {layers}", f"total, {layers}"]
    table = _table(*names)
    for at in plan.by_context:
        flops, every = at.flops, at.every_layer
        numbers = [flops.linear, flops.core, at.expanded_core, flops.indexer, flops.total]
        numbers += [every.linear, every.indexer, every.total] if every else []
        table.add_row(_tokens(at.context), *map(_giga, numbers))
    yield table


def _sharing(plan: Plan) -> Iterator[Any]:
    if not plan.by_context[-1].ratios:
        return
    countings = plan.by_context[-1].ratios
    yield "\n[bold]what sharing saves[/]  every-layer indexers over this schedule, under each counting"
    drafts = plan.by_context[-1].drafting is not None
    table = _table("tokens", *(c.name for c in countings), *(["drafting"] if drafts else []))
    for at in plan.by_context:
        cells = [f"{c.ratio:.2f}x" for c in at.ratios]
        if at.drafting is not None:
            cells.append(f"{at.drafting.indexer_every_step / at.drafting.indexer_once:.2f}x")
        table.add_row(_tokens(at.context), *cells)
    yield table
    for counting in countings:
        yield f"  {counting.name}: {counting.counts}"
    yield "  C is what is computed; a figure of A or D leaves something out and should say so"
    if drafts:
        yield f"  drafting: {DRAFT_STEPS} MTP steps, an indexer in each step over one in the first"


def _cache(plan: Plan) -> Iterator[Any]:
    sparse = plan.schedule is not None
    yield "\n[bold]KV cache[/]  bytes a token, as SGLang keeps it on a GPU" + (
        "; index keys in FP8, on layers with an indexer" if sparse else ""
    )
    longest = max(at.context for at in plan.by_context)
    names = ["KV dtype", "latent rows" if sparse else "keys and values"]
    names += ["index keys"] if sparse else []
    names += ["total", f"{_tokens(longest)} tokens"]
    names += ["every layer indexed"] if plan.kv_every_layer else []
    table = _table(*names)
    for index, kv in enumerate(plan.kv):
        cells = [kv.dtype, f"{kv.rows:,}"] + ([f"{kv.index_keys:,}"] if sparse else [])
        cells += [f"{kv.total:,}", _gib(kv.total * longest)]
        if plan.kv_every_layer:
            cells.append(f"{plan.kv_every_layer[index].total:,}")
        table.add_row(*cells)
    yield table


def _counted(shape: ModelShape, context: int) -> Iterator[Any]:
    from rlframe.launch.count import counted_beside_formula

    yield (
        f"\n[bold]counted[/]  on the real modules, on the meta device, at {context:,} tokens "
        "(a minute or two)"
    )
    table = _table("part", "formula", "counted", "counted / formula")
    for name, formula, counted in counted_beside_formula(shape, context=context):
        table.add_row(name, f"{formula:,.0f}", f"{counted:,.0f}", f"{counted / formula:.4f}")
    yield table


def _training(plan: Plan) -> Iterator[Any]:
    yield (
        f"\n[bold]training memory[/]  GiB of the fullest rank: micro-batches of {plan.tokens:,} tokens, "
        f"{8 * plan.dtype_bytes}-bit weights, Adam"
    )
    names = (
        "ranks",
        "each",
        "recompute",
        "weights",
        "gradients",
        "Adam",
        "activations",
        "sum",
        "layout",
    )
    table = _table(*names)
    for recompute, memory in plan.memory.items():
        table.add_row(*_layout_cells(plan.layout, recompute, memory, each=""))
    for gib, found in plan.fitting.items():
        if found is None:
            table.add_row("-", f"{gib} GiB", *["-"] * 6, "4,096 ranks do not hold it")
        elif found.layout != plan.layout:
            table.add_row(*_layout_cells(found.layout, "full", found.fullest, each=f"{gib} GiB"))
    yield table
    yield (
        "  the first two rows: trainer.policy.layout as configured; the others: the fewest ranks "
        "(powers\n  of two) of that memory that hold the model, with 6 GiB of each left free"
    )


def _layout_cells(
    layout: LayoutConfig, recompute: str, memory: RankMemory, *, each: str
) -> Sequence[str]:
    sizes = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total)
    numbers = (f"{size / GIB:,.{1 if size > 10 * GIB else 3}f}" for size in sizes)
    return (f"{layout.world_size}", each, recompute, *numbers, _words(layout))


def _words(layout: LayoutConfig) -> str:
    named = ("data", "tensor", "pipeline", "context", "expert", "virtual_pipeline")
    sizes = asdict(layout)
    return " ".join(f"{name}={sizes[name]}" for name in named if sizes[name] > 1) or "one rank"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    words = ("part", "KV dtype", "layout", "recompute")
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right")
    return table


def _short(count: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return str(count)


def _tokens(count: int) -> str:
    return f"{count:,}"


def _giga(operations: float) -> str:
    size = operations / 1e9
    return f"{size:,.1f}" if size >= 1 else f"{size:.3g}"


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):,.1f} MiB"
