"""`gvpo decode MODEL --prompt TEXT sampling.ban=...`: sample completions under an exclusion, with their weights."""

import argparse
import json
import math
from collections.abc import Mapping
from typing import Any

from gvpo.errors import ConfigError

READS = {
    "run.seed": "",
    "data.chat": "",
    "sampling.group_size": "4",
    "sampling.max_tokens": "128",
    "sampling.temperature": "1; 0 is greedy",
    "sampling.top_p": "",
    "sampling.top_k": "",
    "sampling.allow": "",
    "sampling.ban": "",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    from gvpo.cli.options import add_settings

    parser.add_argument("model", metavar="MODEL", help="Model directory, run directory or Hub model ID")
    add_settings(parser, READS)
    parser.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="Prompt; may be repeated")
    parser.add_argument("--json", action="store_true", help="Print one JSON object per completion")


def run(options: argparse.Namespace) -> int:
    """Sample and print completions."""
    from gvpo.cli.options import given_settings
    from gvpo.model_directories import require_model

    given = given_settings(options)
    if not given.get("sampling_allow") and not given.get("sampling_ban"):
        raise ConfigError("nothing is excluded; set sampling.allow or sampling.ban")
    return _decode(options, given, require_model(options.model))


def _decode(options: argparse.Namespace, given: Mapping[str, Any], path: str) -> int:
    from gvpo.model import encode_prompt, load_model, load_tokenizer
    from gvpo.sampling import Request, SamplingParams
    from gvpo.sampling.exclusion import parse_exclusion
    from gvpo.sampling.transformers import TransformersSampler
    from gvpo.update.distributed import ranks

    params = SamplingParams(
        group_size=given.get("group_size", 4),
        max_tokens=given.get("max_tokens", 128),
        temperature=given.get("temperature", 1.0),
        top_p=given.get("top_p", 1.0),
        top_k=given.get("top_k", 0),
        exclusion=parse_exclusion(given.get("sampling_allow", []), given.get("sampling_ban", [])),
    )
    model, tokenizer = load_model(path, device=ranks.device()), load_tokenizer(path)
    requests = [
        Request(f"prompt-{place}", tuple(encode_prompt(tokenizer, prompt, chat=given.get("chat", "auto"))))
        for place, prompt in enumerate(options.prompt)
    ]
    sampler = TransformersSampler(model, tokenizer)
    sampler.check(requests, params)
    groups = sampler.sample(requests, params, seed=given.get("seed", 0), step=0)
    for prompt, rows in zip(options.prompt, groups, strict=True):
        texts, sums = [row.text or "" for row in rows], [row.extras["log_allowed"] for row in rows]
        (_print_json if options.json else _print)(prompt, texts, sums)
    return 0


def _print(prompt: str, texts: list[str], sums: list[float]) -> None:
    """Print a table of a prompt's completions, with their effective number."""
    from gvpo.sampling.exclusion import effective_size, log_acceptance, sequence_weights

    weights = sequence_weights(sums)
    print(f"{_quoted(prompt)}\nlog P(allowed)  weight  completion")
    for text, total, weight in zip(texts, sums, weights.tolist(), strict=True):
        print(f"{total:14.3f}  {weight:6.3f}  {_quoted(text)}")
    print(
        f"P(allowed) is about {math.exp(log_acceptance(sums)):.3g}; the {len(texts)} completions are worth "
        f"{effective_size(weights):.1f} of equal weight\n"
    )


def _print_json(prompt: str, texts: list[str], sums: list[float]) -> None:
    """Print one JSON object per completion; -inf, which JSON does not have, becomes null."""
    from gvpo.sampling.exclusion import sequence_weights

    for text, total, weight in zip(texts, sums, sequence_weights(sums).tolist(), strict=True):
        log_allowed = total if math.isfinite(total) else None
        row = {"prompt": prompt, "completion": text, "log_allowed": log_allowed, "weight": weight}
        print(json.dumps(row, ensure_ascii=False))


def _quoted(text: str) -> str:
    """Return a text on one line."""
    return json.dumps(text, ensure_ascii=False)
