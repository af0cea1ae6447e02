"""Distribution-preserving exclusion: draw from P restricted to what is allowed, and know how much that was.

    Q_t(v) = P_t(v) / P_t(A_t)  for v in A_t, else 0            which is softmax of the logits with -inf outside A_t

Q_t is the distribution over A_t that is nearest to P_t: it minimises KL(Q || P_t), and the minimum is -log P_t(A_t)
(arXiv 2503.18050). Drawing token by token from Q_t is not drawing from P given that the whole text is good; what
corrects it is the weight  w(y) = prod_t P_t(A_t)  of a sequence: E_Q[w f] = E_P[f; good], so E_Q[w] = P(good).
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
"""A completion on its way: what each rule remembers of it; None once it has ended."""


class CompiledExclusion:
    """An exclusion for the tokens of one model. It may turn out to allow nothing, which `exclude` then handles.

    Args:
        exclusion: what is allowed; token ids that the model does not have change nothing.
        vocabulary: of the model, with its stop tokens.

    Raises:
        ConfigError: a regular expression that cannot be read, or no library to read it.
    """

    def __init__(self, exclusion: Exclusion, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._rules = _rules(exclusion, vocabulary)
        self._stops = [stop for stop in vocabulary.stops if stop not in exclusion.ban_tokens]
        self._everything = np.ones(vocabulary.size, dtype=bool)

    @property
    def start(self) -> State:
        """The state before the first token."""
        return tuple(rule.start for rule in self._rules)

    def advance(self, state: State, token: int) -> State:
        """The state after a token that was allowed; a stop token ends the completion."""
        if state is None or token in self.vocabulary.stops:
            return None
        return tuple(rule.advance(part, token) for rule, part in zip(self._rules, state, strict=True))

    def allowed(self, state: State) -> Mask:
        """[V] the tokens that may come next: everything after the end, and nothing where there is no good way on."""
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
        """The state after some tokens, all of them allowed."""
        state = self.start
        for token in tokens:
            state = self.advance(state, token)
        return state


@dataclass(frozen=True)
class Excluded:
    """Logits to draw the next tokens from.

    Args:
        scores: [B, V] as they were, with -inf at what is not allowed.
        log_allowed: [B] log P_t(A_t) in nats, float32 or better; -inf where nothing was allowed.
    """

    scores: Tensor
    log_allowed: Tensor


def exclude(
    scores: Tensor, states: Sequence[State], exclusion: CompiledExclusion, *, temperature: float = 1.0
) -> Excluded:
    """Restrict the next token of each row to what is allowed. Comes before top-k, top-p and the like.

    Where nothing is allowed (or only tokens that are -inf already) there is no good way on: the row is ended by a stop
    token, and with log P(A) = -inf its sequence has weight 0.

    Args:
        scores: [B, V] logits.
        states: of the B rows.
        exclusion: what is allowed.
        temperature: that the tokens will be drawn with, for log P_t(A_t); 0 (greedy) counts as 1.

    Raises:
        ConfigError: nothing is allowed and the model has no stop token to end the row with; or the vocabulary is not
            as large as V.
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
    """Log P(A) under softmax(scores / temperature).

    Args:
        scores: [..., V] logits.
        allowed: [..., V] bool, A.
        temperature: 0 (greedy) counts as 1.

    Returns:
        [...] nats, at most 0, in float32 or better; -inf where A is empty.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) / (temperature or 1.0)
    inside = wide.masked_fill(~allowed, -torch.inf).logsumexp(-1)
    return (inside - wide.logsumexp(-1)).clamp(max=0.0)  # rounding alone puts it above


def sequence_weights(log_allowed: Tensor | Sequence[float], group: Tensor | None = None) -> Tensor:
    """Weights under which sequences drawn with exclusion stand for P given that the whole text is allowed.

        w_i = n exp(s_i) / sum_j exp(s_j),   s_i = sum_t log P_t(A_t),   over the n sequences of a group

    Args:
        log_allowed: [B] sums over each sequence's tokens, in nats.
        group: [B] the prompt of each; None: all have the same.

    Returns:
        [B] float64, with mean 1 in each group; all 0 in a group of which every sequence is at -inf.
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
    """How many sequences of equal weight these are worth: (sum w)^2 / sum w^2; 0 where all are 0."""
    squares = float(weights.double().square().sum())
    return float(weights.double().sum()) ** 2 / squares if squares else 0.0


def log_acceptance(log_allowed: Tensor | Sequence[float]) -> float:
    """Estimate of log P(the whole text is allowed): log of the mean of exp(s) over sequences of one prompt, in nats.

    The mean is unbiased for P(good); for completions that were cut off at a length, for P(it can still become good).
    """
    sums = torch.as_tensor(log_allowed, dtype=torch.float64)
    return float(sums.logsumexp(0)) - math.log(len(sums))


def _only_stops(scores: Tensor, vocabulary: Vocabulary) -> Tensor:
    if not vocabulary.stops:
        raise ConfigError(
            "no token is allowed any more and the model has no stop token to end the completion with; name one with "
            "stop_token_ids, or allow more"
        )
    ended = torch.full_like(scores, -torch.inf)
    ended[:, list(vocabulary.stops)] = 0.0
    return ended


def _rules(exclusion: Exclusion, vocabulary: Vocabulary) -> list[Rule]:
    """What an exclusion asks for, as rules; control tokens write no text, so only `allow_...` of text bars them."""
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
