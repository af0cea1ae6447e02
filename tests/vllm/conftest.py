"""These tests run real vLLM. `make test-vllm` runs them in an environment of its own; others do not collect them."""

import importlib.util

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
