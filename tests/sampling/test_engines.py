"""Tests of engines by name, stop texts, and fingerprints of weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gvpo.errors import ConfigError
from gvpo.evaluation.templates import STOPS_OF_A_FUNCTION
from gvpo.model.model import save_model
from gvpo.model.weight_files import weights_fingerprint
from gvpo.sampling import Request, SamplingParams, StreamingSampler, UpdatableSampler
from gvpo.sampling.engines import ENGINES, EngineOptions, open_engine
from gvpo.sampling.stops import StopTexts
from gvpo.sampling.transformers import TransformersSampler
from tests.rollout.scripted import Scripted
from tests.training.toy import model, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:AutoTokenizer loads")


def test_the_transformers_engine_is_its_sampler(tmp_path: Path):
    save_model(model(), tokenizer(), tmp_path)
    opened = open_engine("transformers", str(tmp_path), tokenizer(), EngineOptions("float32", tokens_per_batch=50))
    own = TransformersSampler(model(), tokenizer())
    request, params = [Request("a", (3,))], SamplingParams(group_size=2, max_tokens=3)
    assert isinstance(opened, TransformersSampler)
    assert opened.tokens_per_batch == 50
    assert opened.sample(request, params, seed=0, step=0) == own.sample(request, params, seed=0, step=0)
    half = open_engine("transformers", str(tmp_path), tokenizer(), EngineOptions("bfloat16"))
    assert isinstance(half, TransformersSampler)
    assert half.model.dtype == torch.bfloat16


def test_the_error_for_an_unknown_engine_names_the_nearest():
    with pytest.raises(ConfigError, match="there is no engine 'transformer'; did you mean 'transformers'"):
        open_engine("transformer", "", tokenizer())
    assert "transformers" in ENGINES


ECHO = '''
from gvpo.types import Completion

class Echo:
    """Answers with the prompt; its weights are a version number."""

    def __init__(self):
        self.version = 0

    def sample(self, requests, params, *, seed, step):
        return [[self.row(request)] * params.group_size for request in requests]

    def stream(self, requests, params, *, seed, step):
        for place in reversed(range(len(requests))):
            yield place, [self.row(requests[place])] * params.group_size

    def update(self, weights, version):
        self.version = version

    def row(self, request):
        tokens = list(request.prompt)
        return Completion(tokens, sampler_logprobs=[0.0] * len(tokens), text="", version=self.version)

def open_sampler(model, tokenizer, options):
    return Echo()
'''


def test_a_custom_engine_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "echo_engine.py").write_text(ECHO)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "echo", "echo_engine:open_sampler")
    sampler = open_engine("echo", "", tokenizer())
    requests, params = [Request("a", (1, 2)), Request("b", (3,))], SamplingParams(group_size=2)
    assert [len(rows) for rows in sampler.sample(requests, params, seed=0, step=1)] == [2, 2]
    assert isinstance(sampler, StreamingSampler)
    assert [(place, rows[0].tokens) for place, rows in sampler.stream(requests, params, seed=0, step=1)] == [
        (1, [3]),
        (0, [1, 2]),
    ]
    assert isinstance(sampler, UpdatableSampler)
    sampler.update([], version=7)
    assert sampler.sample(requests, params, seed=0, step=1)[0][0].version == 7
    with pytest.raises(ConfigError, match="did you mean 'echo'"):
        open_engine("ech", "", tokenizer())


def test_the_transformers_sampler_streams_and_claims_no_weights_of_its_own():
    own = TransformersSampler(model(), tokenizer())
    assert isinstance(own, StreamingSampler)
    assert not isinstance(own, UpdatableSampler)


def test_the_table_of_engines_loads_no_torch():
    code = "import sys, gvpo.sampling.engines as e; e.check_engine('transformers'); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_fingerprints_distinguish_weights(tmp_path: Path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        save_model(model(seed), tokenizer(), tmp_path / name)
    one, same, other = (weights_fingerprint(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one == same != other
    assert weights_fingerprint("owner/name") == ""


def test_a_text_ends_before_the_first_stop_and_has_stopped():
    says = {0: "4\n\nProblem: 5", 1: "4", 2: "4\nclass A\nProblem:..."}
    sampler = StopTexts(Scripted(lambda name, row: says[row]), ["\nProblem:", "\nclass "])
    (rows,) = sampler.sample([Request("a", (1,))], SamplingParams(group_size=3), seed=0, step=0)
    assert [row.text for row in rows] == ["4\n", "4", "4"]
    assert [row.finish_reason for row in rows] == ["stop", "stop", "stop"]
    assert [len(row.tokens) for row in rows] == [len(text) for text in says.values()]
    sampler.check([], SamplingParams())  # the scripted one has nothing to check


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("    return 1\n\ndef g():\n    pass", "    return 1\n"),
        ("    return 1\n```\nThat is it.\n# more", "    return 1"),
        (
            "```python\nimport re\n\ndef f():\n    return 1\n```\n",
            "```python\nimport re\n\ndef f():\n    return 1\n```\n",
        ),
        ("    return 1", "    return 1"),
    ],
)
def test_a_whole_function_in_a_fence_is_not_truncated(text: str, kept: str):
    sampler = StopTexts(Scripted(lambda name, row: text), STOPS_OF_A_FUNCTION, before_fence=True)
    ((row,),) = sampler.sample([Request("a", (1,))], SamplingParams(group_size=1), seed=0, step=0)
    assert row.text == kept
