"""Sizes of a run that determine memory and time (groups, lengths, precision), and the shapes of its micro-batches."""

from dataclasses import dataclass

from gvpo.errors import ConfigError


@dataclass(frozen=True)
class Workload:
    """A run's sizes. Every completion is assumed to have the maximum length, so estimates are upper bounds.

    Args:
        prompts_per_step: Number of groups per rollout.
        group_size: Number of completions per prompt, k.
        prompt_tokens: Number of tokens in the longest prompt, P.
        completion_tokens: Maximum number of tokens per completion, C.
        groups_per_update: Number of groups in an optimizer batch; 0 for the whole rollout.
        tokens_per_microbatch: Number of tokens per forward of the update.
        tokens_per_batch: Number of tokens in the sampler's cache.
        reference: Whether a frozen copy of the policy is kept ("initial" or "every:N").
        half: Whether autocast computes in bfloat16; weights, gradients and optimizer state stay float32.
        checkpointing: Whether activations are recomputed in the backward.
        passes: Number of passes over each rollout.
        reuse: Number of steps that train on each group.
        lora_rank: Rank of an adapter on frozen weights; 0 if all weights are trained.
        narrow_base: Whether the frozen weights are stored in bfloat16.
        copy_width: Number of bytes per weight of the sampler's own copy of the policy; 0 if it samples from the policy.
        copies_base: Whether that copy also contains the frozen weights under an adapter, because its dtype is another.
        samples: Whether transformers samples on this device, so that its cache takes memory there.

    Raises:
        ConfigError: If a size is below 1.
    """

    prompts_per_step: int = 16
    group_size: int = 8
    prompt_tokens: int = 256
    completion_tokens: int = 512
    groups_per_update: int = 0
    tokens_per_microbatch: int = 8192
    tokens_per_batch: int = 65_536
    reference: bool = True
    half: bool = True
    checkpointing: bool = False
    passes: int = 1
    reuse: int = 1
    lora_rank: int = 0
    narrow_base: bool = False
    copy_width: int = 0
    copies_base: bool = False
    samples: bool = True

    def __post_init__(self) -> None:
        for name in ("prompts_per_step", "group_size", "prompt_tokens", "completion_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name.replace('_', '-')} is {getattr(self, name)}; give at least 1")

    @property
    def groups(self) -> int:
        """Number of groups in an optimizer batch."""
        return min(self.groups_per_update or self.prompts_per_step, self.prompts_per_step)

    @property
    def rows(self) -> int:
        """Number of completions in a rollout."""
        return self.prompts_per_step * self.group_size

    @property
    def sampled_prompts(self) -> int:
        """Number of prompts per step whose completions are sampled, on average."""
        return -(-self.prompts_per_step // self.reuse)

    @property
    def width(self) -> int:
        """Number of tokens in a prompt with its completion."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def rows_at_once(self) -> int:
        """Number of completions in the sampler's cache at any time: whole groups if at least one fits."""
        group = self.group_size * self.width
        if group > self.tokens_per_batch:
            return max(1, self.tokens_per_batch // self.width)
        return self.group_size * min(self.prompts_per_step, self.tokens_per_batch // group)


@dataclass(frozen=True)
class Rectangle:
    """A micro-batch of lanes x length tokens, of which `scored` are predicted.

    Args:
        lanes: Number of rows of the forward.
        length: Tokens per row.
        scored: Number of predicted tokens.
        pairs: Number of pairs of a query and a key that attention computes, in each layer.
    """

    lanes: int
    length: int
    scored: int
    pairs: int

    @property
    def tokens(self) -> int:
        """Number of tokens in the forward."""
        return self.lanes * self.length


def rectangles(workload: Workload, *, shared: bool) -> list[Rectangle]:
    """Return the micro-batches into which `gvpo.update.layouts.packed` splits groups of equal lengths."""
    answer = max(0, workload.completion_tokens - 1)  # the last token is only a target
    pieces = [rows for rows, count in _pieces(workload, answer, shared=shared) for _ in range(count)]
    made = []
    while pieces:
        taken, pieces = _fill(pieces, workload, answer, shared=shared)
        lengths = [workload.prompt_tokens + rows * answer for rows in taken]
        lanes, length = (1, sum(lengths)) if shared else (len(lengths), lengths[0])
        pairs = sum(_pairs(workload.prompt_tokens, answer, rows) for rows in taken) if shared else lanes * length**2
        made.append(Rectangle(lanes, length, sum(taken) * workload.completion_tokens, pairs))
    return made


def _pairs(prompt: int, answer: int, rows: int) -> int:
    """Return the pairs of a group: each token with itself and those before it, siblings not with each other."""
    return _triangle(prompt) + rows * (_triangle(answer) + answer * prompt)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def _pieces(workload: Workload, answer: int, *, shared: bool) -> list[tuple[int, int]]:
    """Return (completions per piece, pieces): prompts with as many completions as fit, and the remainders."""
    room = (workload.tokens_per_microbatch - workload.prompt_tokens) // answer if answer else workload.group_size
    rows = min(workload.group_size, max(1, room)) if shared else 1
    full, left = divmod(workload.group_size, rows)
    return [(rows, full * workload.groups), *([(left, workload.groups)] if left else [])]


def _fill(pieces: list[int], workload: Workload, answer: int, *, shared: bool) -> tuple[list[int], list[int]]:
    """Return the pieces of a micro-batch (the longest first, then each that still fits) and the remaining pieces."""
    room, taken, rest = workload.tokens_per_microbatch, pieces[:1], list[int]()
    room -= workload.prompt_tokens + pieces[0] * answer
    for rows in pieces[1:]:
        length = workload.prompt_tokens + rows * answer
        if length <= room:
            taken.append(rows)
            room -= length
        else:
            rest.append(rows)
    return taken, rest
