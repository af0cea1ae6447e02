"""Print how far an engine's log-probs are from the trainer's in float32, for weights that differ in known ways.

`python benchmarks/mismatch_levels.py MODEL` samples completions from a changed copy of a model, and prints the metrics
`sampler/mismatch`, `sampler/mismatch_max` and `sampler/kl` that a run would report. The thresholds of the warnings in
`gvpo.outcome` lie between the levels of rounding and those of wrong weights.
"""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import measure
import torch
from torch import Tensor

from gvpo.model.model import load_model
from gvpo.model.tokenizer import load_tokenizer
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.copied import CopiedSampler
from gvpo.types import Group
from gvpo.update.group_backward import score

BITS = (5, 4, 3, 2, 1)
STEPS = (1e-5, 1e-4, 3e-4, 1e-3)


def rounded(tensor: Tensor, bits: int) -> Tensor:
    """Return a tensor rounded to some bits of mantissa; bfloat16 has 7, the 8-bit format e4m3 has 3."""
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


def changes(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the kinds of changed weights by name."""
    yield "the trainer's weights", {}
    yield from ((f"{bits} bits", {name: rounded(w, bits) for name, w in weights.items()}) for bits in BITS)
    generator = torch.Generator().manual_seed(0)
    for step in STEPS:
        signs = {name: torch.randn(w.shape, generator=generator).sign() for name, w in weights.items()}
        yield f"one random step of {step:g}", {name: w + step * signs[name] for name, w in weights.items()}
    query = next(name for name in weights if "q_proj" in name)
    yield "rows of one matrix exchanged", {query: weights[query].roll(len(weights[query]) // 4, 0)}


def metrics(sampler: CopiedSampler, model: Any, requests: list[Request], params: SamplingParams) -> list[str]:
    """Return the three metrics of completions of a sampler, and the number of tokens."""
    rows = sampler.sample(requests, params, seed=0, step=1)
    groups = [Group(request.prompt, group, id=request.id) for request, group in zip(requests, rows, strict=True)]
    recorded = torch.cat(
        [torch.as_tensor(row.sampler_logprobs, dtype=torch.float64) for group in rows for row in group]
    )
    gap = torch.cat([each.logprobs.double() for each in score(model, groups)]) - recorded
    values = (gap.abs().mean(), gap.abs().max(), (gap.clamp(max=20).expm1() - gap).mean())
    return [*(f"{float(value):.1e}" for value in values), str(len(gap))]


def main() -> None:
    """Print the table of a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Directory of a causal language model")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, model = load_tokenizer(given.model), load_model(given.model).eval()
    texts = [f"Question: What is {103 + 37 * i} + {511 + 29 * i}?\nAnswer:" for i in range(given.prompts)]
    requests = [Request(text, tuple(tokenizer(text).input_ids)) for text in texts]
    params = SamplingParams(group_size=4, max_tokens=given.tokens)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    lines = [["bfloat16", *metrics(CopiedSampler(model, tokenizer, dtype=torch.bfloat16), model, requests, params)]]
    for name, changed in changes(weights):
        sampler = CopiedSampler(model, tokenizer)
        sampler.update({**model.state_dict(), **tied(model, changed)}.items(), 1)
        lines.append([name, *metrics(sampler, model, requests, params)])
    print(measure.table(["engine", "mismatch", "largest", "KL", "tokens"], lines))


def tied(model: Any, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return changed weights under all names that they have in the state dict."""
    places = {value.data_ptr(): changed[name] for name, value in model.named_parameters() if name in changed}
    return {name: places[value.data_ptr()] for name, value in model.state_dict().items() if value.data_ptr() in places}


if __name__ == "__main__":
    main()
