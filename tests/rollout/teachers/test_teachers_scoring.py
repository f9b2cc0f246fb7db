"""Answers that a broken teacher could give, each refused; answers as SGLang gives them, read."""

import base64

import numpy as np
import pytest

from rlframe.errors import InfraFault
from rlframe.teaching import ScoreRequest
from rollout.teachers.scoring import (
    Nonsense,
    completions_body,
    read_completions,
    read_sglang,
    sglang_body,
)

VOCAB = 20
IDS = np.array([4, 5, 6, 7, 19], np.int32)


def request(top_k=0, begin=2):
    return ScoreRequest("x", "t", IDS, begin=begin, top_k=top_k)


def encoded(array):
    return base64.b64encode(array.tobytes()).decode()


def answer(**meta):
    """SGLang's, of `request()`: positions 1 to 4, the first without a logprob."""
    return [
        {
            "output_ids": [],
            "meta_info": {
                "finish_reason": {"type": "length", "length": 0},
                "weight_version": "3",
                "input_token_logprobs": [
                    [None, 5, None],
                    [-1, 6, None],
                    [-2, 7, None],
                    [-3, 0, None],
                ],
                **meta,
            },
        }
    ]


def tops(ids, logprobs, shape=(3, 2), nulls=1):
    return {
        "input_top_logprobs_idx_flat_b64": encoded(np.array(ids, np.int32)),
        "input_top_logprobs_val_flat_b64": encoded(np.array(logprobs, np.float32)),
        "input_top_logprobs_shape": list(shape),
        "input_top_logprobs_null_prefix": nulls,
    }


def read(given, asked=None):
    (scores,) = read_sglang(given, [asked or request()], version="3", vocab_size=VOCAB)
    return scores


def test_an_answer_is_read_into_place():
    scores = read(answer())  # the vocabulary's last id comes back as 0
    assert scores.logprobs.tolist() == [0, 0, -1, -2, -3]
    assert scores.top_ids is None
    given = answer(**tops([[1, 2], [3, 4], [5, 6]], [[-1, -2], [-1, -3], [0.0005, -9]]))
    scores = read(given, request(top_k=2))
    assert scores.top_ids.tolist() == [[0, 0], [0, 0], [1, 2], [3, 4], [5, 6]]
    assert scores.top_logprobs[4].tolist() == [0, -9]  # round-off above 0 is cut


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "not about as many"),
        ([], "not about as many"),
        (answer() * 2, "not about as many"),
        ([{}], "not understood"),
        (answer(weight_version="2"), "weights 2 answered, not 3"),
        (answer(input_token_logprobs=None), "not understood"),
        (answer(input_token_logprobs=[[None, 5, None], [-1, 6, None]]), "2 positions for 4"),
        (
            answer(input_token_logprobs=[[None, 5, 0], [-1, 6, 0], [None, 7, 0], [-3, 19, 0]]),
            "null, as broken weights give",
        ),
        (
            answer(input_token_logprobs=[[None, 5, 0], [-1, 6, 0], [-1, 8, 0], [-3, 19, 0]]),
            "about token 8 where trace x has 7",
        ),
        (
            answer(
                input_token_logprobs=[[None, 5, 0], [float("nan"), 6, 0], [-1, 7, 0], [-3, 19, 0]]
            ),
            "not finite",
        ),
        (
            answer(input_token_logprobs=[[None, 5, 0], [0.2, 6, 0], [-1, 7, 0], [-3, 19, 0]]),
            "is 0.2, above 0",
        ),
    ],
)
def test_nonsense_is_refused(given, said):
    with pytest.raises(Nonsense, match=said):
        read(given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        tops([[1, 2]] * 2, [[-1, -2]] * 2, shape=(2, 2)),
        tops([[1, 2]] * 2, [[-1, -2]] * 3),
        tops([[1, VOCAB]] * 3, [[-1, -2]] * 3),
        tops([[1, 2]] * 3, [[float("inf"), -2]] * 3),
        tops([[1, 2]] * 3, [[0.5, -2]] * 3),
        tops([[1, 2]] * 3, [[-1, -2]] * 3, nulls=0),
    ],
)
def test_nonsense_among_the_likeliest_is_refused(given):
    with pytest.raises(Nonsense):
        read(answer(**given), request(top_k=2))


def test_an_aborted_call_is_a_failure_but_no_nonsense():
    with pytest.raises(InfraFault, match="out of memory") as error:
        read(answer(finish_reason={"type": "abort", "message": "out of memory"}))
    assert not isinstance(error.value, Nonsense)


def test_the_body_asks_from_the_token_before_the_first_wanted():
    body = sglang_body([request(), request(begin=1)])
    assert body["logprob_start_len"] == [1, 0]
    assert "top_logprobs_num" not in body
    assert sglang_body([request(top_k=4)])["top_logprobs_num"] == 4


@pytest.mark.parametrize("sampled", [[], [-7.0]])
def test_an_openai_server_is_read_by_position(sampled):
    assert completions_body([request()], "m")["echo"] is True
    choices = [
        {"index": 1, "logprobs": {"token_logprobs": [None, -1, -2, -3, -5, *sampled]}},
        {"index": 0, "logprobs": {"token_logprobs": [None, -1, -2, -3, -4, *sampled]}},
    ]
    scored = read_completions({"choices": choices}, [request(), request()])
    assert [s.logprobs.tolist() for s in scored] == [[0, 0, -2, -3, -4], [0, 0, -2, -3, -5]]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"choices": []},
        {"choices": [{"index": 0, "logprobs": None}]},
        {"choices": [{"index": 0, "logprobs": {"token_logprobs": [None, -1]}}]},
        {"choices": [{"index": 0, "logprobs": {"token_logprobs": [None, -1, None, -2, -3]}}]},
        {"choices": [{"index": 0, "logprobs": {"token_logprobs": [None, -1, 3.0, -2, -3]}}]},
    ],
)
def test_nonsense_of_an_openai_server_is_refused(given):
    with pytest.raises(Nonsense):
        read_completions(given, [request()])
