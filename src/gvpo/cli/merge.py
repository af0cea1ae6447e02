"""`gvpo merge RUN_OR_CHECKPOINT OUT`: a trained LoRA adapter and its base become one model."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("adapter", help="a run, one of its checkpoints, or any directory with a LoRA adapter")
    parser.add_argument("out", type=Path, help="new directory for the merged model")
    parser.add_argument("--base", metavar="MODEL", help="directory or hub id (default: what the adapter names)")


def run(options: argparse.Namespace) -> int:
    """Merge, compare, say where the model is."""
    from gvpo.model.merge import merge_adapter
    from gvpo.training.checkpoint.publish import checkpoint_in

    checkpoint = checkpoint_in(options.adapter)
    print(f"merged {checkpoint} into {merge_adapter(checkpoint, options.out, base=options.base)}")
    return 0
