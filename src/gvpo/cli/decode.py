"""`gvpo decode MODEL --prompt TEXT --allow ... --ban ...`: completions under an exclusion, with their weights."""

import argparse
import json
import math

from gvpo.errors import ConfigError

ITEMS = "names of characters (Hangul, digits, '[a-z]'), text:STRING, regex:PATTERN or token:ID; may be repeated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("model", help="directory or hub id of a causal language model")
    parser.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="may be repeated")
    parser.add_argument("--allow", action="append", default=[], metavar="ITEM", help=f"only these: {ITEMS}")
    parser.add_argument("--ban", action="append", default=[], metavar="ITEM", help="none of these; as --allow")
    parser.add_argument("--n", type=int, default=4, metavar="N", help="completions a prompt (default 4)")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="tokens a completion (default 128)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (default 1)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="after the exclusion (default 1: off)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="after the exclusion (default 0: off)")
    parser.add_argument("--chat", choices=("auto", "chat", "plain"), default="auto", help="use the chat template")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object a completion")


def run(options: argparse.Namespace) -> int:
    """Sample and print."""
    from gvpo.model import encode_prompt, load_model, load_tokenizer
    from gvpo.sampling import Request, SamplingParams
    from gvpo.sampling.exclusion import parse_exclusion
    from gvpo.sampling.transformers import TransformersSampler
    from gvpo.update.distributed import ranks

    exclusion = parse_exclusion(options.allow, options.ban)
    if not exclusion:
        raise ConfigError("nothing is excluded; say what with --allow or --ban")
    params = SamplingParams(
        group_size=options.n,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        exclusion=exclusion,
    )
    model, tokenizer = load_model(options.model, device=ranks.device()), load_tokenizer(options.model)
    requests = [
        Request(f"prompt-{place}", tuple(encode_prompt(tokenizer, prompt, chat=options.chat)))
        for place, prompt in enumerate(options.prompt)
    ]
    sampler = TransformersSampler(model, tokenizer)
    sampler.check(requests, params)
    groups = sampler.sample(requests, params, seed=options.seed, step=0)
    for prompt, rows in zip(options.prompt, groups, strict=True):
        texts, sums = [row.text or "" for row in rows], [row.extras["log_allowed"] for row in rows]
        (_print_json if options.json else _print)(prompt, texts, sums)
    return 0


def _print(prompt: str, texts: list[str], sums: list[float]) -> None:
    """A table of a prompt's completions, and what they say together."""
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
    """-inf, which JSON does not have, becomes null."""
    from gvpo.sampling.exclusion import sequence_weights

    for text, total, weight in zip(texts, sums, sequence_weights(sums).tolist(), strict=True):
        log_allowed = total if math.isfinite(total) else None
        row = {"prompt": prompt, "completion": text, "log_allowed": log_allowed, "weight": weight}
        print(json.dumps(row, ensure_ascii=False))


def _quoted(text: str) -> str:
    """On one line."""
    return json.dumps(text, ensure_ascii=False)
