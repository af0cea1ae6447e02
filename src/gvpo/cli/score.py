"""`gvpo score MODEL... --data FILE --out FILE`: compute the likelihood of each written answer under other models."""

import argparse
from pathlib import Path

READS = {
    "model.compute_dtype": "",
    "data.chat": "",
    "data.system_prompt": "",
    "train.tokens_per_microbatch": "8192; not auto",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    from gvpo.cli.options import add_settings

    parser.add_argument("models", nargs="+", metavar="MODEL", help="Model directory, run directory or Hub model ID")
    add_settings(parser, READS)
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="Rows with `prompt` and `completion`, or `prompt`, `chosen` and `rejected`",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE.jsonl", help="New file: the rows with aligned_mean_logprobs"
    )


def run(options: argparse.Namespace) -> int:
    """Score the answers, and print the output file. The same command resumes after an interruption."""
    from gvpo.cli.options import given_settings
    from gvpo.config import TrainConfig
    from gvpo.data import require_file
    from gvpo.model_directories import require_model

    config = TrainConfig(objective="sft", train_data=options.data, **given_settings(options))
    require_file(options.data)
    for model in options.models:
        require_model(model)
    from gvpo.training.score_answers import score_file

    print(f"wrote {score_file(options.models, config, options.out)}")
    return 0
