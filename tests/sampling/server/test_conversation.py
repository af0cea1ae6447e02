"""Conversations with servers: each turn is a request with everything so far."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo import notices
from gvpo.errors import EngineError
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.conversation import Restarting, conversing, turn_id
from gvpo.sampling.seeds import row_seed
from tests.sampling.server.fake_vllm import GENERATE, FakeVllm, serving, table_token
from tests.sampling.server.helpers import EOS, REQUESTS, opened

PARAMS = SamplingParams(group_size=2, max_tokens=40)
ROWS = [(request, row) for request in REQUESTS for row in range(PARAMS.group_size)]


def turn_tokens(text: list[int], request: Request, row: int, turn: int, limit: int) -> list[int]:
    """Return the tokens that the table of a fake server gives for a turn."""
    seed, tokens = row_seed(3, 5, turn_id(request, row, turn), 0), [-1]
    while tokens[-1] != EOS and len(tokens) <= limit:
        tokens.append(table_token(seed, len(tokens) - 1, text, 0.0))
    return tokens[1:]


def test_three_turns_have_the_tokens_that_their_seeds_fix() -> None:
    """Rows have limits of their own, hear tokens of their own, and leave; the first attempt of a second turn fails."""
    fake, failed = FakeVllm(), []

    def hook(fake: FakeVllm, path: str, body: dict[str, Any]) -> Any:
        if path == GENERATE and len(body.get("token_ids", [])) > 6 and len(failed) < 1:
            failed.append(body["request_id"])
            return 503, {"error": "busy"}, {}
        return None

    fake.hook = hook
    texts = {number: list(request.prompt) for number, (request, _) in enumerate(ROWS)}
    with serving(fake), opened(fake) as sampler:
        speaker = conversing(sampler)
        assert type(speaker) is Restarting
        assert speaker.batches(REQUESTS, PARAMS) == [[0, 1, 2]]
        conversation = speaker.converse(REQUESTS, PARAMS, seed=3, step=5)
        for turn in range(3):
            limits = {number: 1 + (number + turn) % 5 for number in texts}
            spoken = conversation.speak(limits)
            for number, limit in limits.items():
                assert spoken[number].tokens == turn_tokens(texts[number], *ROWS[number], turn, limit)
                assert spoken[number].finish_reason == ("stop" if spoken[number].tokens[-1] == EOS else "length")
            heard = {number: [100 + number] * (turn + 1) for number in list(texts)[turn:]}
            texts = {number: [*texts[number], *spoken[number].tokens, *tokens] for number, tokens in heard.items()}
            conversation.hear(heard)
    assert len(failed) == 1
    asked = [body["sampling_params"]["max_tokens"] for body in fake.generated()]
    assert max(asked) == 5


def test_a_turn_has_the_deadline_of_a_completion() -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, deadline=0.3) as sampler:
        conversation = conversing(sampler).converse(REQUESTS[:1], PARAMS, seed=3, step=5)
        conversation.speak({0: 3, 1: 3})
        conversation.hear({0: [100], 1: [101]})
        fake.stalled.set()
        with pytest.raises(EngineError, match=r"a row of 'a/[01]/1' was not finished in 0\.3 s"):
            conversation.speak({0: 3, 1: 3})


@pytest.mark.parametrize("in_flight", [False, True])
def test_each_turn_has_the_version_of_its_weights(tmp_path: Path, in_flight: bool) -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, transfer_dir=tmp_path, in_flight_updates=in_flight) as sampler:
        conversation = conversing(sampler).converse(REQUESTS, PARAMS, seed=3, step=5)
        for version in (1, 4):
            sampler.update([("bias", torch.tensor(float(version)))], version)
            assert {row.version for row in conversation.speak(dict.fromkeys(range(6), 3)).values()} == {version}
            conversation.hear({row: [100] for row in range(6)})


def test_turns_that_fit_the_context_give_no_warning() -> None:
    """The limit of a turn counts, and not that of the episode, which its prompt is a part of."""
    fake, said = FakeVllm(), []
    fake.context = 12
    with serving(fake), notices.handled(lambda message, _: said.append(message)), opened(fake) as sampler:
        sampler.check([Request("a", (5,) * 8, max_tokens=4)], dataclasses.replace(PARAMS, max_tokens=12))
        assert not said
        sampler.check([Request("a", (5,) * 8, max_tokens=5)], dataclasses.replace(PARAMS, max_tokens=12))
    assert len(said) == 1
