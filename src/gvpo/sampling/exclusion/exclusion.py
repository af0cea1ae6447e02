"""Distribution-preserving exclusion: sample from P restricted to the allowed tokens, and record their probability.

    Q_t(v) = P_t(v) / P_t(A_t)  for v in A_t, else 0            which is softmax of the logits with -inf outside A_t

Q_t is the distribution over A_t nearest to P_t: it minimizes KL(Q || P_t), and the minimum is -log P_t(A_t) (arXiv
2503.18050). Sampling token by token from Q_t differs from sampling from P given that the whole text is good. The weight
w(y) = prod_t P_t(A_t)  of a sequence corrects the difference: E_Q[w f] = E_P[f; good], so E_Q[w] = P(good).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gvpo.errors import ConfigError
from gvpo.sampling.exclusion.characters import CharacterSet
from gvpo.sampling.exclusion.regexes import RegexRule
from gvpo.sampling.exclusion.rules import AllowedStrings, BannedStrings, CharacterRule, Mask, Rule, TokenRule
from gvpo.sampling.exclusion.spec import Exclusion
from gvpo.sampling.exclusion.vocabulary import Vocabulary

State = tuple[Any, ...] | None
"""State of an unfinished completion, with one entry per rule; None once the completion has ended."""


class CompiledExclusion:
    """An exclusion for the tokens of one model. If it turns out to allow no token, `exclude` handles the case.

    Args:
        exclusion: Restriction of the completion. Token ids outside the model's vocabulary have no effect.
        vocabulary: Vocabulary of the model, with its stop tokens.

    Raises:
        ConfigError: If a regular expression is invalid, or the library for regular expressions is not installed.
    """

    def __init__(self, exclusion: Exclusion, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._rules = _rules(exclusion, vocabulary)
        self._stops = [stop for stop in vocabulary.stops if stop not in exclusion.ban_tokens]
        self._everything = np.ones(vocabulary.size, dtype=bool)

    @property
    def start(self) -> State:
        """State before the first token."""
        return tuple(rule.start for rule in self._rules)

    def advance(self, state: State, token: int) -> State:
        """Return the state after an allowed token. A stop token ends the completion."""
        if state is None or token in self.vocabulary.stops:
            return None
        return tuple(rule.advance(part, token) for rule, part in zip(self._rules, state, strict=True))

    def allowed(self, state: State) -> Mask:
        """Return [V] the allowed next tokens: all after the end, and none if no allowed text can follow."""
        if state is None:
            return self._everything
        parts = list(zip(self._rules, state, strict=True))
        allowed = self._everything.copy()
        for rule, part in parts:
            allowed &= rule.allowed(part)
        allowed[list(self.vocabulary.stops)] = False
        allowed[self._stops] = all(rule.may_end(part) for rule, part in parts)
        return allowed

    def after(self, tokens: Sequence[int]) -> State:
        """Return the state after some tokens, all of them allowed."""
        state = self.start
        for token in tokens:
            state = self.advance(state, token)
        return state


@dataclass(frozen=True)
class Excluded:
    """Logits to sample the next tokens from.

    Args:
        scores: [B, V] the given scores, with -inf for tokens that are not allowed.
        log_allowed: [B] log P_t(A_t) in nats, in float32 or better; -inf if no token was allowed.
    """

    scores: Tensor
    log_allowed: Tensor


def exclude(
    scores: Tensor, states: Sequence[State], exclusion: CompiledExclusion, *, temperature: float = 1.0
) -> Excluded:
    """Restrict the next token of each row to the allowed ones. Call it before top-k, top-p and similar filters.

    If no token is allowed (or only tokens whose score is already -inf), no allowed text can follow. A stop token then
    ends the row, and its sequence has weight 0, since log P(A) = -inf.

    Args:
        scores: [B, V] logits.
        states: States of the B rows.
        exclusion: Compiled exclusion.
        temperature: Sampling temperature, for log P_t(A_t); 0 (greedy) counts as 1.

    Raises:
        ConfigError: If no token is allowed and the model has no stop token to end the row with, or if the vocabulary
            does not have V tokens.
    """
    if scores.shape[-1] != exclusion.vocabulary.size:
        raise ConfigError(
            f"the exclusion is for {exclusion.vocabulary.size} tokens and the model has {scores.shape[-1]}; "
            "compile it with the size of the model's logits"
        )
    masks = np.stack([exclusion.allowed(state) for state in states])
    allowed = torch.from_numpy(masks).to(scores.device) & (scores > -torch.inf)
    log_allowed = log_probability(scores, allowed, temperature=temperature)
    masked = scores.masked_fill(~allowed, -torch.inf)
    stuck = ~allowed.any(-1)
    if bool(stuck.any()):
        masked[stuck] = _only_stops(masked[stuck], exclusion.vocabulary)
    return Excluded(masked, log_allowed)


def log_probability(scores: Tensor, allowed: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return log P(A) under softmax(scores / temperature).

    Args:
        scores: [..., V] logits.
        allowed: [..., V] bool, A.
        temperature: Sampling temperature; 0 (greedy) counts as 1.

    Returns:
        [...] nats, at most 0, in float32 or better; -inf if A is empty.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) / (temperature or 1.0)
    inside = wide.masked_fill(~allowed, -torch.inf).logsumexp(-1)
    return (inside - wide.logsumexp(-1)).clamp(max=0.0)  # only rounding makes it positive


def sequence_weights(log_allowed: Tensor | Sequence[float], group: Tensor | None = None) -> Tensor:
    """Return weights under which sequences sampled with exclusion represent P given that the whole text is allowed.

        w_i = n exp(s_i) / sum_j exp(s_j),   s_i = sum_t log P_t(A_t),   over the n sequences of a group

    Args:
        log_allowed: [B] sums over each sequence's tokens, in nats.
        group: [B] prompt of each sequence; None if all have the same prompt.

    Returns:
        [B] float64, with mean 1 in each group; all 0 in a group whose sequences are all at -inf.
    """
    sums = torch.as_tensor(log_allowed, dtype=torch.float64)
    group = torch.zeros(len(sums), dtype=torch.long) if group is None else group
    weights = torch.zeros_like(sums)
    for name in set(group.tolist()):
        members = group == name
        part = sums[members]
        if bool((part > -torch.inf).any()):
            weights[members] = part.softmax(0) * len(part)
    return weights


def effective_size(weights: Tensor) -> float:
    """Return the effective number of sequences, (sum w)^2 / sum w^2, or 0 if all weights are 0."""
    squares = float(weights.double().square().sum())
    return float(weights.double().sum()) ** 2 / squares if squares else 0.0


def log_acceptance(log_allowed: Tensor | Sequence[float]) -> float:
    """Estimate log P(the whole text is allowed): the log of the mean of exp(s) over sequences of one prompt, in nats.

    The mean is an unbiased estimate of P(good). If completions were truncated, it estimates P(can still become good).
    """
    sums = torch.as_tensor(log_allowed, dtype=torch.float64)
    return float(sums.logsumexp(0)) - math.log(len(sums))


def _only_stops(scores: Tensor, vocabulary: Vocabulary) -> Tensor:
    if not vocabulary.stops:
        raise ConfigError(
            "no token is allowed any more and the model has no stop token to end the completion with; set one with "
            "stop_token_ids, or allow more"
        )
    ended = torch.full_like(scores, -torch.inf)
    ended[:, list(vocabulary.stops)] = 0.0
    return ended


def _rules(exclusion: Exclusion, vocabulary: Vocabulary) -> list[Rule]:
    """Convert an exclusion to rules. Control tokens write no text, so only `allow_...` text rules exclude them."""
    rules: list[Rule] = []
    if exclusion.allow_tokens or exclusion.ban_tokens:
        rules.append(TokenRule(vocabulary, exclusion.allow_tokens, exclusion.ban_tokens))
    if exclusion.allow_characters or exclusion.ban_characters:
        characters = CharacterSet(exclusion.allow_characters, exclusion.ban_characters)
        rules.append(CharacterRule(vocabulary, characters, textless=not exclusion.allow_characters))
    if exclusion.allow_strings:
        rules.append(AllowedStrings(vocabulary, exclusion.allow_strings))
    if exclusion.ban_strings:
        rules.append(BannedStrings(vocabulary, exclusion.ban_strings))
    if exclusion.allow_regex or exclusion.ban_regex:
        rules.append(RegexRule(vocabulary, exclusion.allow_regex, exclusion.ban_regex))
    return rules
