"""`gvpo merge RUN_OR_CHECKPOINT OUT`: merge a trained LoRA adapter into its base model."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "adapter", metavar="ADAPTER", help="Run, checkpoint of a run, or any directory with a LoRA adapter"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="New directory for the merged model")
    parser.add_argument(
        "--base", metavar="MODEL", help="Directory or Hub model ID of the base (default: the adapter's own)"
    )


def run(options: argparse.Namespace) -> int:
    """Merge, compare, and print the location of the model."""
    from gvpo.model_directories import checkpoint_in, require_adapter, require_model

    checkpoint = checkpoint_in(options.adapter)
    require_adapter(checkpoint)
    if options.base is not None:
        require_model(options.base)
    from gvpo.model.merge import merge_adapter

    print(f"merged {checkpoint} into {merge_adapter(checkpoint, options.out, base=options.base)}")
    return 0
