"""Whether a teacher reads the student's token ids as the student means them: token by token.

A teacher is given ids, never text, so merges and normalizers do not matter; which text each id stands for
does. Names of tokenizers and sizes of vocabularies prove nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rlframe.errors import UserError

SHOWN = 3


def read_vocabulary(directory: Path, *, where: str) -> dict[int, str]:
    """Token by id, added and special ones included, of a Hugging Face `tokenizer.json`."""
    file = directory / "tokenizer.json"
    try:
        described = json.loads(file.read_text())
        tokens = described["model"]["vocab"]
        if isinstance(tokens, dict):
            vocabulary = {int(number): token for token, number in tokens.items()}
        else:  # Unigram: [token, score] in the order of ids
            vocabulary = {number: entry[0] for number, entry in enumerate(tokens)}
        for added in described.get("added_tokens", []):
            vocabulary[int(added["id"])] = added["content"]
    except FileNotFoundError:
        raise UserError(
            f"{where}: '{directory}' has no tokenizer.json, so nobody can tell whether its token ids are "
            "the student's; copy the tokenizer there"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{where}: '{file}' is broken: {error!r}") from None
    return vocabulary


def differences(student: Mapping[int, str], teacher: Mapping[int, str]) -> list[str]:
    """Ids that mean something else, or nothing, to the teacher, in the order of ids. Tokens that only the
    teacher has do no harm."""
    return [
        f"id {number} is {token!r} to the student, {_shown(teacher.get(number))} to the teacher"
        for number, token in sorted(student.items())
        if teacher.get(number) != token
    ]


def check_vocabulary(student: Mapping[int, str], teacher: Mapping[int, str], *, where: str) -> None:
    """UserError that names the first tokens that differ."""
    found = differences(student, teacher)
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"{where}: its vocabulary is not the student's: {'; '.join(found[:SHOWN])}{more}. A teacher "
            "scores the student's own token ids, so they must mean the same to both"
        )


def _shown(token: str | None) -> str:
    return "unknown" if token is None else repr(token)
