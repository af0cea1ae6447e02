"""`gvpo score MODEL... --data FILE --out FILE`: how likely each written answer is under other models."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="directory or hub id of a causal language model")
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="rows with prompt and completion, or prompt, chosen and rejected"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE.jsonl", help="new file: the rows with aligned_mean_logprobs"
    )
    parser.add_argument("--chat", choices=("auto", "chat", "plain"), default="auto", help="as data.chat (default auto)")
    parser.add_argument("--system-prompt", metavar="TEXT", help="as data.system_prompt")
    parser.add_argument("--compute-dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--tokens-per-microbatch", type=int, default=8192, metavar="N", help="tokens a forward")


def run(options: argparse.Namespace) -> int:
    """Score, and say where the rows are. Started again, it goes on where it stopped."""
    from gvpo.config import TrainConfig
    from gvpo.training.score_answers import score_file

    config = TrainConfig(
        objective="sft",
        train_data=options.data,
        chat=options.chat,
        system_prompt=options.system_prompt,
        compute_dtype=options.compute_dtype,
        tokens_per_microbatch=options.tokens_per_microbatch,
    )
    print(f"wrote {score_file(options.models, config, options.out)}")
    return 0
