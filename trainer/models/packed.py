"""Packed variable-length sequences: one micro-batch is one row of all its tokens, without padding.

The row travels through Megatron's GPTModel as `packed_seq_params`. Megatron only asks it for its
`qkv_format`; attention reads the rest: where sequences begin (`cu_seqlens`), how they are grouped into
blocks, what they share, the rotary angles of each position, and, for sparse attention, the ids of this
micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlframe.prefixes import Forest
from trainer.models.blocks import Block, blocks_of
from trainer.models.context import ALONE, ContextRank
from trainer.models.runs import Paths, Runs
from trainer.models.shared_ids import SharedIds

if TYPE_CHECKING:
    from trainer.models.glm.indexer_loss import IndexerLoss

PADDING_TOKEN = 0


@dataclass(frozen=True, slots=True, eq=False)
class MtpStates:
    """Hidden states that logits are read from, on every tensor-parallel rank: K draft steps, T tokens."""

    drafts: Tensor  # [K, T, hidden]; entry [k - 1, i] predicts token i + k + 1
    targets: Tensor  # [T, hidden], after the model's last norm; no gradient


@dataclass(eq=False)
class PackedBatch:
    """One micro-batch of n sequences, T tokens in all.

    Example: rows [[5, 6, 7], [8, 9]] give token_ids [5, 6, 7, 8, 9], positions [0, 1, 2, 0, 1],
    cu_seqlens [0, 3, 5], max_length 3. A last sequence of padding tokens may follow, so that T is a
    multiple of the tensor-parallel size; `num_tokens` does not count it.

    With context parallelism a rank has T of the row's tokens (`rows` says which); `cu_seqlens`,
    `max_length` and `num_tokens` are of the whole row. Where sequences share what they begin with
    (`forest`), a sequence in the row is what a row adds, its positions go on from what it shares, and
    `max_length` counts that too.
    """

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, within each sequence
    cu_seqlens: Tensor  # [n + 1] int32
    max_length: int
    num_tokens: int
    output_positions: Tensor | None = (
        None  # [P] int64, indices into this rank's; None: every position
    )
    context: ContextRank = ALONE
    paths: Paths | None = None
    """What each sequence goes on from; None: nothing."""
    given_ids: Mapping[int, Tensor] = field(default_factory=dict)
    """Per layer (0-based) that owns an indexer: the ids to use instead of its choice, [T, k] int32, numbers
    of rows of the whole packed row, -1 where there is none. For replaying an engine's."""
    shared_ids: dict[int, SharedIds] = field(default_factory=dict, repr=False)
    """Per part of this rank's pipeline stage: the ids chosen in this micro-batch, while they are needed."""
    mtp: MtpStates | None = field(default=None, repr=False)
    """What the last forward pass in training drafted, for the loss; the last pipeline stage sets it."""
    indexer_weight: float = 0.0
    """What each token's divergence counts in the indexers' loss: coefficient / tokens of the global batch."""
    indexer_losses: dict[int, IndexerLoss] = field(default_factory=dict, repr=False)
    """Per layer that owns an indexer: its loss, from its forward pass on."""
    wants_hidden: bool = False
    """Whether a policy's last chunk returns what its output layer would read, [P, hidden], in place of logits."""
    qkv_format: str = "packed"
    """Not Megatron's `thd`, which would loop over the sequences in Python."""
    _rotations: dict[tuple[int, float, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False
    )

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[npt.NDArray[np.integer[Any]]],
        *,
        multiple_of: int = 1,
        output_positions: npt.NDArray[np.integer[Any]] | None = None,
        device: torch.device | str = "cpu",
        context: ContextRank = ALONE,
        forest: Forest | None = None,
    ) -> PackedBatch:
        """Pack token ids. No rows at all make one sequence of padding. `forest` is of these rows.

        `multiple_of`: the tensor-parallel size with sequence parallelism. `output_positions`: indices
        into the packed row where logits or values are wanted, all on this context-parallel rank; all
        positions if None.
        """
        pieces = list(rows) if forest is None else _own_pieces(rows, forest)
        lengths = [len(piece) for piece in pieces if len(piece)]
        num_tokens = sum(lengths)
        padding = packed_length(num_tokens, multiple_of * context.parts) - num_tokens
        ids = np.full(num_tokens + padding, PADDING_TOKEN, dtype=np.int64)
        if num_tokens:
            np.concatenate(pieces, out=ids[:num_tokens], casting="same_kind")
        if padding:
            lengths.append(padding)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        paths = Paths.plain(starts) if forest is None else Paths.of(forest, padding=padding)
        own = context.rows(len(ids))
        if output_positions is not None:
            output_positions = np.searchsorted(own, output_positions)
        return cls(
            token_ids=torch.from_numpy(ids[own]).to(device),
            positions=torch.from_numpy(paths.positions[own]).to(device),
            context=context,
            paths=None if forest is None else paths,
            cu_seqlens=torch.from_numpy(starts.astype(np.int32)).to(device),
            max_length=int(np.diff(paths.starts).max()),
            num_tokens=num_tokens,
            output_positions=(
                None
                if output_positions is None
                else torch.from_numpy(np.asarray(output_positions, dtype=np.int64)).to(device)
            ),
        )

    def give_ids(self, ids: Mapping[int, Sequence[npt.NDArray[np.integer[Any]]]]) -> None:
        """Sets `given_ids` from an engine's: per layer, and for each row that has tokens, [length, k]
        positions within the row, negative where there is none."""
        starts = self.cu_seqlens.cpu().numpy()
        total = int(starts[-1])
        given: dict[int, Tensor] = {}
        for layer, of_rows in ids.items():
            table = np.full((total, of_rows[0].shape[1]), -1, np.int32)
            for start, chosen in zip(starts, of_rows, strict=False):
                table[start : start + len(chosen)] = np.where(chosen < 0, -1, chosen + start)
            given[layer] = torch.from_numpy(table[self.context.rows(total)])
        self.given_ids = {layer: t.to(self.token_ids.device) for layer, t in given.items()}

    def asked(self, states: Tensor) -> Tensor:
        """[T, ...] -> [P, ...] at `output_positions`."""
        if self.output_positions is None:
            return states
        return states.index_select(0, self.output_positions)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """How attention without a varlen kernel lays the sequences out; made on first use."""
        starts = self.cu_seqlens.cpu().numpy().astype(np.int64)
        return blocks_of(starts[:-1], np.diff(starts), self.token_ids.device)

    @cached_property
    def runs(self) -> Runs | None:
        """This rank's queries and what they see; None: a sequence sees itself, and is all here."""
        if self.paths is None and self.context.size == 1:
            return None
        paths = self.paths or Paths.plain(self.cu_seqlens.cpu().numpy())
        return Runs.of(paths, self.context, self.token_ids.device)

    @cached_property
    def path_keys(self) -> Tensor | None:
        """[K'] the tokens of all paths, path by path, as positions in the whole row: where a query may look
        is one piece of this (`key_range`). None: the whole row is that already."""
        if self.paths is None:
            return None
        return torch.from_numpy(self.paths.keys).to(self.token_ids.device)

    @cached_property
    def key_range(self) -> tuple[Tensor, Tensor]:
        """[T], [T]: the first and the last of `path_keys` (of the whole row) that each token sees."""
        if self.paths is None:
            last = self.rows
        else:
            places = self.paths.places[self.context.rows(int(self.paths.ends[-1]))]
            last = torch.from_numpy(places).to(self.token_ids.device)
        return last - self.positions, last

    @cached_property
    def rows(self) -> Tensor:
        """[T] int64: which of the whole row's tokens this rank has, ascending."""
        total = len(self.token_ids) * self.context.size
        return torch.from_numpy(self.context.rows(total)).to(self.token_ids.device)

    @cached_property
    def order(self) -> Tensor | None:
        """Where each token of the whole row stands when context-parallel ranks' are put end to end."""
        if self.context.size == 1:
            return None
        order = self.context.order(len(self.token_ids) * self.context.size)
        return torch.from_numpy(order).to(self.token_ids.device)

    def angles(self, dim: int, theta: float) -> tuple[Tensor, Tensor]:
        """cos, sin, float32 [T, dim / 2], of the rotary embedding of pairs; made once for all layers."""
        key = (-dim, theta, torch.float32)
        if key not in self._rotations:
            self._rotations[key] = pair_angles(self.positions, dim, theta)
        return self._rotations[key]

    def rotation(self, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin [T, 1, head_dim] of the rotary embedding; made once for all layers.

        The two halves of the last dimension share their angles (transformers' `rotate_half`
        convention), and `sin` is negative in the first; angles are float32, as in transformers.
        """
        key = (head_dim, theta, dtype)
        if key not in self._rotations:
            self._rotations[key] = _rotation(self.positions, head_dim, theta, dtype)
        return self._rotations[key]


def _own_pieces(
    rows: Sequence[npt.NDArray[np.integer[Any]]], forest: Forest
) -> list[npt.NDArray[np.integer[Any]]]:
    """What each row adds, as they are laid out."""
    return [rows[row][shared:] for row, shared in zip(forest.order, forest.shared, strict=True)]


def packed_length(num_tokens: int, multiple_of: int) -> int:
    """Tokens of a packed row with its padding; a row of nothing is all padding."""
    return max(-(-num_tokens // multiple_of), 1) * multiple_of


def forward(model: torch.nn.Module, packed: PackedBatch) -> Tensor:
    """One forward pass of a `LanguageModel`, bare or wrapped (DDP).

    Policy: logits [P, vocabulary columns of this rank] (`LanguageModel.vocab_range`); critic: float32
    values [P]; P = `packed.output_positions`, else all T. On a pipeline stage that is not the last:
    hidden states [T, 1, hidden] (T / tensor with sequence parallelism), which
    `get_forward_backward_func` sends on. All pipeline stages get the same `packed`.
    """
    return model(  # type: ignore[no-any-return]
        input_ids=packed.token_ids.unsqueeze(0),
        position_ids=packed.positions.unsqueeze(0),
        attention_mask=None,
        packed_seq_params=packed,
    )


def pair_angles(positions: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos, sin [..., dim / 2] of p * theta^(-2i / dim), in float32, as in transformers."""
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=positions.device).float()
    frequencies = 1.0 / (theta ** (exponents / dim))
    angles = positions.unsqueeze(-1).float() * frequencies
    return angles.cos(), angles.sin()


def _rotation(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions.device).float()
    frequencies = 1.0 / (theta ** (exponents / head_dim))
    length = int(positions.max()) + 1
    table = torch.outer(torch.arange(length, device=positions.device).float(), frequencies)
    cos, sin = table.cos(), table.sin()
    cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return (
        cos.to(dtype)[positions].unsqueeze(1),
        sin.to(dtype)[positions].unsqueeze(1),
    )
