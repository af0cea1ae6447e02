"""What a run does, as far as memory and time ask: groups, lengths, precision; and how its tokens are laid out."""

from dataclasses import dataclass

from gvpo.errors import ConfigError


@dataclass(frozen=True)
class Workload:
    """A run's sizes. Every completion is taken to be as long as it may be, so estimates are upper ones.

    Args:
        prompts_per_step: groups a rollout.
        group_size: completions a prompt, k.
        prompt_tokens: tokens of the longest prompt, P.
        completion_tokens: tokens of a completion at most, C.
        groups_per_update: the optimizer batch; 0 is the whole rollout.
        tokens_per_microbatch: tokens a forward of the update.
        tokens_per_batch: tokens held in the sampler's cache.
        reference: a frozen copy of the policy is kept ("initial" or "every:N").
        half: compute is bfloat16 by autocast; weights, gradients and optimizer stay float32.
        checkpointing: activations are computed again in the backward.

    Raises:
        ConfigError: a size is below 1.
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

    def __post_init__(self) -> None:
        for name in ("prompts_per_step", "group_size", "prompt_tokens", "completion_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name.replace('_', '-')} is {getattr(self, name)}; give at least 1")

    @property
    def groups(self) -> int:
        """Groups of an optimizer batch."""
        return min(self.groups_per_update or self.prompts_per_step, self.prompts_per_step)

    @property
    def rows(self) -> int:
        """Completions of a rollout."""
        return self.prompts_per_step * self.group_size

    @property
    def width(self) -> int:
        """Tokens of a prompt with its completion."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def rows_at_once(self) -> int:
        """Completions in the sampler's cache at once: whole groups, as long as one fits."""
        group = self.group_size * self.width
        if group > self.tokens_per_batch:
            return max(1, self.tokens_per_batch // self.width)
        return self.group_size * min(self.prompts_per_step, self.tokens_per_batch // group)


@dataclass(frozen=True)
class Rectangle:
    """A micro-batch: lanes x length tokens, of which `scored` are predicted."""

    lanes: int
    length: int
    scored: int

    @property
    def tokens(self) -> int:
        """Tokens of the forward."""
        return self.lanes * self.length


def rectangles(workload: Workload, *, shared: bool) -> list[Rectangle]:
    """Return the micro-batches of an optimizer batch, as `gvpo.update.layouts.packed` cuts groups of equal lengths."""
    answer = max(0, workload.completion_tokens - 1)  # the last token is only a target
    pieces = [rows for rows, count in _pieces(workload, answer, shared=shared) for _ in range(count)]
    made = []
    while pieces:
        taken, pieces = _fill(pieces, workload, answer, shared=shared)
        lengths = [workload.prompt_tokens + rows * answer for rows in taken]
        lanes, length = (1, sum(lengths)) if shared else (len(lengths), lengths[0])
        made.append(Rectangle(lanes, length, sum(taken) * workload.completion_tokens))
    return made


def _pieces(workload: Workload, answer: int, *, shared: bool) -> list[tuple[int, int]]:
    """(completions a piece, pieces): a prompt with as many completions as fit the budget, and what is left of it."""
    room = (workload.tokens_per_microbatch - workload.prompt_tokens) // answer if answer else workload.group_size
    rows = min(workload.group_size, max(1, room)) if shared else 1
    full, left = divmod(workload.group_size, rows)
    return [(rows, full * workload.groups), *([(left, workload.groups)] if left else [])]


def _fill(pieces: list[int], workload: Workload, answer: int, *, shared: bool) -> tuple[list[int], list[int]]:
    """The pieces of a micro-batch, the longest first and then each that still fits; and what is left."""
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
