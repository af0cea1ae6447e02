"""Episodes of a policy with an environment that fails: they end as they should, and no other row changes."""

import dataclasses
from functools import partial

from gvpo.config import TrainConfig
from gvpo.environments import EnvironmentSpec
from gvpo.model.endings import ending
from gvpo.rollout.episodes.setup import open_episodes
from gvpo.rollout.problems import encode
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import Problem
from tests.environments.faulty import Trouble
from tests.training import toy

FIRST = "2345678"
"""First digits of turns that make the environment fail."""
SETTINGS = {
    "environment_between": "{observation}",
    "environment_max_turns": 3,
    "environment_turn_tokens": 6,
    "environment_observation_tokens": 8,
    "environment_timeout": 0.8,
    "stop_token_ids": [3, 4],
    "max_tokens": 48,
    "group_size": 8,
}


def episodes(make):
    """Return 64 episodes with an environment."""
    model, tokenizer = toy.model(), toy.tokenizer()
    config = TrainConfig(**SETTINGS)
    problems = [Problem(digit, digit) for digit in toy.DIGITS[:8]]
    encoded = encode(config, tokenizer, problems)
    requests = [Request(p.id, e.prompt, problem=p) for p, e in zip(problems, encoded, strict=True)]
    params = SamplingParams(group_size=8, max_tokens=48, stop_token_ids=(3, 4))
    sampler, spec = TransformersSampler(model, tokenizer), EnvironmentSpec("trouble", make)
    with open_episodes(config, spec, sampler, tokenizer, ending(tokenizer, model), context=None) as opened:
        return [row for group in opened.sample(requests, params, seed=0, step=1) for row in group]


def untimed(row):
    return dataclasses.replace(row, turns=[dataclasses.replace(turn, seconds=0.0) for turn in row.turns])


def test_failures_end_as_they_should_and_no_other_row_changes():
    rows, calm = episodes(Trouble), episodes(partial(Trouble, harmless=True))
    asked = [[turn.text[:1] for turn in row.turns if turn.outcome != "none"] for row in rows]
    others = [place for place, firsts in enumerate(asked) if not {*firsts} & {*FIRST}]
    assert 8 < len(others) < 56
    for place in others:
        assert untimed(rows[place]) == untimed(calm[place])
    found = {(turn.text[:1], turn.outcome) for row in rows for turn in row.turns}
    assert {("2", "timeout"), ("3", "died"), ("4", "error"), ("5", "error"), ("6", "ok"), ("7", "ok")} <= found
    for row in rows:
        failures = [turn for turn in row.turns if turn.outcome in ("timeout", "died", "lost")]
        assert len(failures) <= 2
        assert (row.finish_reason == "environment") == (len(failures) == 2) == (row.turns[-1].outcome == "lost")
        assert len(row.tokens) == len(row.mask) == row.turns[-1].end
