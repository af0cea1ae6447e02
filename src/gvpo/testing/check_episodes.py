"""`check_episodes`: verify the tokens, the masks and the log-probs of every episode that a run has stored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from gvpo.config import TrainConfig
from gvpo.config.recipe import restore_config
from gvpo.environments import EnvironmentSpec
from gvpo.errors import ConfigError, GvpoError
from gvpo.model.endings import Ending
from gvpo.model.model import load_model
from gvpo.model.tokenizer import load_tokenizer
from gvpo.model.turns import TurnTemplate
from gvpo.rollout.episodes.setup import turn_template
from gvpo.rollout.problems import answer_ending
from gvpo.rollout.usable import is_overlong
from gvpo.runfiles import (
    CHECKPOINTS,
    CONFIG,
    HELD_OUT,
    ROLLOUTS,
    RolloutRow,
    read_rollouts,
    rollout_path,
    rollout_steps,
)
from gvpo.sampling.texts import completion_texts
from gvpo.types import Completion, EpisodeTurn, FloatSequence, Group, stored_turn
from gvpo.update.group_backward import score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Broken = Iterator[tuple[bool, str]]
"""Pairs of whether something is wrong and what it is."""


class EpisodeMismatch(GvpoError, AssertionError):
    """An episode of a run is not what was sampled and heard; the message names the file, the row and the difference."""


@dataclass(frozen=True)
class EpisodeCheck:
    """Counts of what was verified.

    Args:
        rows: Rows that are episodes.
        turns: Their turns.
        own: Tokens of the policy.
        heard: Tokens of the environment.
        scored: Tokens of the policy whose log-probs were computed again.
        largest: Largest difference to the log-probs that the sampler recorded, in nats.
    """

    rows: int
    turns: int
    own: int
    heard: int
    scored: int
    largest: float


def check_episodes(
    run: str | Path,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    start: "PreTrainedModel | None" = None,
    environment: EnvironmentSpec | None = None,
    tolerance: float = 1e-4,
) -> EpisodeCheck:
    """Verify every row of every rollout file and every file of held-out answers of a run.

    The turns of a row are all of it: the policy's own tokens, which have mask 1 and read as the text that the
    environment got, and the tokens of what it heard, which have mask 0 and are those that the template writes. The
    log-probs of own tokens are computed again, one row at a time, for the rows that the starting model or the policy of
    a checkpoint sampled from all tokens.

    Args:
        run: Directory of the run.
        tokenizer: Tokenizer of the policy; by default that of a checkpoint.
        start: Starting model of the run; None does not score its rows again.
        environment: Environment of the run, if it says messages with the role `tool`.
        tolerance: Largest difference of a log-prob, in nats.

    Raises:
        EpisodeMismatch: If something is wrong; the message names the first such row.
        ConfigError: If there is neither a tokenizer nor a checkpoint, or the run has no episodes.
    """
    path = Path(run)
    config = restore_config((path / CONFIG).read_text(encoding="utf-8"))
    files = [rollout_path(path, step, kind) for kind in (ROLLOUTS, HELD_OUT) for step in rollout_steps(path, kind)]
    rows = [(f"{file.parent.name}/{file.name}, row {row.group}/{row.row}", row) for file in files for row in _of(file)]
    if not rows:
        raise ConfigError(f"{path} has no rows with turns; check a run with an environment")
    checkpoints = {int(each.name.removeprefix("step-")): each for each in (path / CHECKPOINTS).glob("step-*")}
    if tokenizer is None and not checkpoints:
        raise ConfigError(f"{path} has no checkpoint whose tokenizer could be used; pass one")
    words = tokenizer if tokenizer is not None else load_tokenizer(str(next(iter(checkpoints.values()))))
    model = start if start is not None else load_model(next(iter(checkpoints.values()))) if checkpoints else None
    ending = answer_ending(config, words, model)
    checker = _Checker(config, turn_template(config, words, ending, environment), ending)
    for name, row in rows:
        checker.check(name, row)
    scored, largest = checker.score_again(rows, start, checkpoints, tolerance)
    return EpisodeCheck(
        len(rows),
        sum(len(row.turns) for _, row in rows),
        sum(turn["stop"] - turn["start"] for _, row in rows for turn in row.turns),
        sum(turn["end"] - turn["stop"] for _, row in rows for turn in row.turns),
        scored,
        largest,
    )


def _of(file: Path) -> list[RolloutRow]:
    return [row for row in read_rollouts(file) if row.turns]


@dataclass(frozen=True)
class _Checker:
    config: TrainConfig
    template: TurnTemplate
    ending: Ending

    def check(self, name: str, row: RolloutRow) -> None:
        """Verify what does not need a model."""
        turns = [stored_turn(turn) for turn in row.turns]
        for is_wrong, what in chain(self._spans(row, turns), self._tokens(row, turns), self._end(row, turns)):
            if is_wrong:
                raise EpisodeMismatch(f"{name}: {what}")

    def _spans(self, row: RolloutRow, turns: Sequence[EpisodeTurn]) -> Broken:
        """Yield whether the turns are not all of the row, or the mask is not 1 on the policy's tokens only."""
        inside = all(turn.start <= turn.stop <= turn.end for turn in turns)
        joined = all(one.end == other.start for one, other in pairwise(turns))
        whole = turns[0].start == 0 and turns[-1].stop == turns[-1].end == len(row.tokens)
        yield (
            not (inside and joined and whole),
            "its turns are not one after the other, from its first token to its last",
        )
        own = [
            float(turn.start <= place < turn.stop) for turn in turns for place in range(turn.start, turn.end)
        ]  # the turns are all of the row
        hidden = self.config.overlong_completions == "mask" and is_overlong(_completion(row))
        mask = [1.0] * len(row.tokens) if row.mask is None else _floats(row.mask)
        yield mask != own and not (hidden and not any(mask)), f"its mask is {mask}, not {own}"
        recorded = own if row.sampler_logprobs is None else _floats(row.sampler_logprobs)
        heard = [value for value, is_own in zip(recorded, own, strict=True) if not is_own]
        yield any(heard), "the sampler has log-probs of tokens that the environment said"

    def _tokens(self, row: RolloutRow, turns: Sequence[EpisodeTurn]) -> Broken:
        """Yield whether texts or the tokens of the environment differ from what was said."""
        own = [list(row.tokens[turn.start : turn.stop]) for turn in turns]
        texts = completion_texts(self.template.tokenizer, self.ending, own)
        for number, (turn, said, text) in enumerate(zip(turns, own, texts, strict=True)):
            yield turn.text != text, f"the text of turn {number} is {turn.text!r}, and its tokens read {text!r}"
            if turn.end == turn.stop:
                continue
            heard, expected = list(row.tokens[turn.stop : turn.end]), self.template.between(turn.heard)
            yield heard != expected, f"the tokens after turn {number} are {heard}, and its messages are {expected}"
            yield (
                not self.template.follows(said[-1], turn.heard),
                f"turn {number} ends with {said[-1]}, which does not end a turn",
            )

    def _end(self, row: RolloutRow, turns: Sequence[EpisodeTurn]) -> Broken:
        """Yield whether the row exceeds a limit, or its finish reason says something else than its turns."""
        c, last = self.config, turns[-1]
        longest = max(turn.stop - turn.start for turn in turns)
        yield len(row.tokens) > c.max_tokens, f"it has {len(row.tokens)} tokens, more than sampling.max_tokens"
        yield longest > (c.environment_turn_tokens or c.max_tokens), f"a turn has {longest} tokens, more than its limit"
        yield len(turns) > c.environment_max_turns, f"it has {len(turns)} turns, more than environment.max_turns"
        at_limit = len(turns) == c.environment_max_turns
        yield row.finish_reason == "turns" and not at_limit, f"it ended at the limit of turns after {len(turns)}"
        cut = last.outcome == "none"
        yield (
            cut != (row.finish_reason in ("length", "abort")),
            f"it ended by {row.finish_reason!r} after {last.outcome!r}",
        )
        empty = not row.tokens and (row.reward is not None or row.weight is not None)
        yield empty and bool(row.reward_parts.get("environment")), "it has no tokens, and a reward"
        yield not row.tokens and row.weight is not None, "it has no tokens, and was trained on"
        yield (
            any(turn.outcome in ("lost", "none") for turn in turns[:-1]),
            "it continued after its environment was lost",
        )

    def score_again(
        self,
        rows: Sequence[tuple[str, RolloutRow]],
        start: "PreTrainedModel | None",
        checkpoints: Mapping[int, Path],
        tolerance: float,
    ) -> tuple[int, float]:
        """Compute log-probs of own tokens again; return the number of tokens and the largest difference."""
        c = self.config
        if c.top_k > 0 or c.top_p < 1 or c.sampling_allow or c.sampling_ban:
            return 0, 0.0
        versions = sorted(checkpoints.keys() | ({0} if start is not None else set()))
        count, largest = 0, 0.0
        for version in versions:
            model = start if version == 0 and start is not None else load_model(checkpoints[version])
            assert model is not None
            for name, row in rows:
                if row.version != version or row.token_versions or row.source == "greedy" or not row.sampler_logprobs:
                    continue
                gaps = self._gaps(model, row)
                count, largest = count + len(gaps), max(largest, *gaps)
                if max(gaps) > tolerance:
                    raise EpisodeMismatch(
                        f"{name}: log-probs of the policy's tokens differ by up to {max(gaps):.2g} from those that the "
                        f"sampler recorded; {tolerance:g} is allowed"
                    )
        return count, largest

    def _gaps(self, model: "PreTrainedModel", row: RolloutRow) -> list[float]:
        """Return the difference of each own token's log-prob from the recorded one."""
        group = Group(row.prompt_tokens, [Completion(list(row.tokens))])
        (scored,) = score(model, [group], prefix_sharing="off", temperature=self.config.temperature)
        recorded = row.sampler_logprobs or ()
        return [
            abs(float(scored.logprobs[place]) - recorded[place])
            for turn in row.turns
            for place in range(turn["start"], turn["stop"])
        ]


def _floats(values: FloatSequence) -> list[float]:
    return [float(values[place]) for place in range(len(values))]


def _completion(row: RolloutRow) -> Completion:
    return Completion(list(row.tokens), finish_reason=row.finish_reason)
