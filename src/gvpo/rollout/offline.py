"""Offline training: groups from a file, a dataset or one sampling, without a sampler in the loop.

data.groups, rows ──logged_groups──▶ OfflineSource
data.sample_groups ──once, by the starting policy──▶ <run>/groups.jsonl ──▶ SampledOnceSource
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gvpo.config import TrainConfig
from gvpo.data import numbered
from gvpo.data.given_rows import Rows, read_rows
from gvpo.errors import DataError
from gvpo.model.known_tokens import missing_tokens, refuse_missing
from gvpo.model.model import vocabulary_size
from gvpo.rollout.lengths import fitting_groups
from gvpo.rollout.logged_groups import LoggedGroup, logged_groups
from gvpo.rollout.preferences import comparisons
from gvpo.rollout.usable import is_usable
from gvpo.types import Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Records = Sequence[Mapping[str, Any]]


def offline_groups(
    config: TrainConfig,
    tokenizer: "PreTrainedTokenizerBase",
    model: "PreTrainedModel",
    records: Records,
    *,
    source: str,
) -> list[LoggedGroup]:
    """Return rows as groups that the policy can be trained on.

    Args:
        config: Settings that encode prompts.
        tokenizer: Tokenizer of the policy.
        model: Policy; answers that do not fit into its context are treated as `data.overlong_answers` says.
        records: Rows.
        source: Source of completions whose row does not name one.

    Raises:
        DataError: If a row is not a group or does not fit, or no group can be trained on.
    """
    groups = known_groups(config, tokenizer, model, records, source=source)
    if not any(sum(map(is_usable, logged.group.completions)) > 1 for logged in groups):
        raise DataError("no group can be trained on: none has two completions with a reward; fill in `rewards`")
    return groups


def known_groups(
    config: TrainConfig,
    tokenizer: "PreTrainedTokenizerBase",
    model: "PreTrainedModel",
    records: Records,
    *,
    source: str,
    rewarded: bool = True,
) -> list[LoggedGroup]:
    """Return rows as groups of tokens that the policy knows and that fit into its context; see `offline_groups`.

    Args:
        config: Settings that encode prompts.
        tokenizer: Tokenizer of the policy.
        model: Policy.
        records: Rows.
        source: Source of completions whose row does not name one.
        rewarded: Whether `rewards` are required.

    Raises:
        DataError: If a row is not a group or does not fit.
    """
    groups = logged_groups(config, tokenizer, records, source=source, model=model, rewarded=rewarded)
    _require_known(groups, model)
    return fitting_groups(config, model, tokenizer, groups, at_least=2 if rewarded else 1)


def check_temperature(config: TrainConfig, groups: Sequence[LoggedGroup]) -> None:
    """Raise DataError if the temperature is not 1 and some answers are not known to be sampled.

    Log-probs are computed from softmax(logits / temperature). For rows with a sampler's recorded log-probs this is the
    policy that sampled them; for rows of text it would be a different loss.

    Raises:
        DataError: If a row has no recorded log-probs; the message names the first one.
    """
    unknown = (
        number
        for number, logged in enumerate(groups, start=1)
        if any(row.sampler_logprobs is None for row in logged.group.completions)
    )
    first = next(unknown, None) if config.temperature != 1 else None
    if first is not None:
        raise DataError(
            f"row {first} has no `sampler_logprobs` to show that it was sampled, and sampling.temperature="
            f"{config.temperature:g} would divide the logits that are trained; set sampling.temperature=1"
        )


def require_logprobs(groups: Sequence[LoggedGroup], objective: str) -> None:
    """Raise DataError if a completion that is trained on has no recorded log-probs, which ratios are relative to.

    Args:
        groups: Rows, in order.
        objective: Name of the objective.

    Raises:
        DataError: The message contains the number of the first such row, and says what to do.
    """
    for number, logged in enumerate(groups, start=1):
        if any(row.sampler_logprobs is None for row in logged.group.completions if is_usable(row)):
            raise DataError(
                f"row {number} has no `sampler_logprobs`, but {objective} compares the policy with the one that "
                "sampled the completions; add them to the rows (`gvpo docs offline`), or choose an objective without "
                "ratios, such as gvpo"
            )


def held_out_groups(
    config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel", rows: Rows | None
) -> list[Group]:
    """Return the held-out groups, at most `data.eval_problems`, from the rows or else from the settings' file.

    Raises:
        DataError: As for `offline_groups`, or if no group has two answers to compare.
    """
    if rows is None and config.eval_groups is not None and config.eval_problems > 0:
        rows = read_rows(config, config.eval_groups, held_out=True)
    if rows is None or config.eval_problems == 0:
        return []
    groups = offline_groups(config, tokenizer, model, rows.items, source=rows.name)
    return [logged.group for logged in comparisons(groups, scores_differ=True)][: config.eval_problems]


def _require_known(groups: Sequence[LoggedGroup], model: "PreTrainedModel") -> None:
    """Raise DataError if a row has tokens that the model does not know."""
    vocabulary, missing = vocabulary_size(model), missing_tokens(model)
    for number, logged in enumerate(groups, start=1):
        rows = logged.group.completions
        largest = max(max(logged.group.prompt), *(max(row.tokens) for row in rows))
        if largest >= vocabulary:
            raise DataError(
                f"row {number}: token id {largest} but the model's vocabulary is {vocabulary}; "
                "log text, or use the model that the ids belong to"
            )
        numbered(number, refuse_missing, missing, [logged.group])
