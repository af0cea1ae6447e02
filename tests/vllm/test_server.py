"""The engine `server` with a real vLLM server: weights, versions, adapters, and a server that is killed."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo.errors import EngineError
from gvpo.model import lora
from gvpo.model.model import save_model
from gvpo.runfiles import read_rollouts, rollout_path
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.engines import EngineOptions
from gvpo.sampling.server.sampler import ServerSampler, open_for_training
from tests.training.toy import ROWS, lines, model, tokenizer, trainer
from tests.vllm.compare import ENDLESS, MARKS, OPTIONS, assert_greedy, logprobs, own, rows, shift, tokens
from tests.vllm.servers import Server
from tests.vllm.test_training import check, gvpo

pytestmark = MARKS
WIDE = {"architecture": "llama", "hidden_size": 64, "max_position_embeddings": 256, "tie_word_embeddings": True}
"""Settings of the toy model. vLLM would load another tokenizer with a Qwen2, and the first call to a server compares
tokenizers."""
DRAWN = SamplingParams(group_size=4, max_tokens=24)
REQUESTS = [Request(f"p{number}", (3 + number % 10, 3 + number // 10, 4 + number % 7)) for number in range(32)]


def policy(seed: int = 0) -> Any:
    """Return a toy model whose heads vLLM supports, with weights so large that its greedy outputs vary."""
    found = model(seed, **WIDE)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12.0)
    return found.eval()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    save_model(model(**WIDE), tokenizer(), place / "model")
    arguments = ("--enable-lora", "--max-lora-rank", "8", "--max-cpu-loras", "4")
    with Server(place / "model", place / "log.txt", *arguments) as started:
        started.model = place / "model"  # type: ignore[attr-defined]
        yield started


def options(server: Server, deadline: float = 120.0, **settings: Any) -> EngineOptions:
    return EngineOptions(dtype="float32", server_urls=[server.url], server_deadline=deadline, **settings)


@pytest.fixture
def sampler(server: Server) -> Iterator[ServerSampler]:
    opened = open_for_training(policy(), tokenizer(), ENDLESS, options(server))
    yield opened
    opened.close()


def test_after_each_update_the_greedy_outputs_are_those_of_the_model(sampler: ServerSampler):
    trained = policy()
    origin = {name: value.clone() for name, value in trained.state_dict().items()}
    before: list[list[int]] = []
    greedy = SamplingParams(group_size=1, max_tokens=64, temperature=0.0)
    for version in range(5):
        shift(trained, origin, version, scale=0.3)
        sampler.update(trained.state_dict().items(), version)
        found = rows(sampler, REQUESTS, greedy)
        assert_greedy(trained, REQUESTS, found, rows(own(trained, tokenizer()), REQUESTS, greedy))
        assert {row.version for row in found} == {version}
        assert sum(one != other for one, other in zip(tokens(found), before, strict=False)) >= 16 * (version > 0)
        before = tokens(found)


def test_rows_are_those_of_the_engine_in_the_process(sampler: ServerSampler):
    from gvpo.sampling.vllm.engine import open_for_training as open_in_process

    trained = policy(seed=3)
    inside = open_in_process(trained, tokenizer(), ENDLESS, OPTIONS)
    for each in (inside, sampler):
        each.update(trained.state_dict().items(), 4)
    found = rows(sampler, REQUESTS, DRAWN)
    assert tokens(found) == tokens(rows(inside, REQUESTS, DRAWN))
    for request, row in zip(REQUESTS, found[:: DRAWN.group_size], strict=True):
        wanted = logprobs(trained, request, row, 1.0)
        torch.testing.assert_close(torch.tensor(row.sampler_logprobs), wanted, atol=1e-4, rtol=0)
    inside.close()


def test_incomplete_weights_are_refused(sampler: ServerSampler):
    with pytest.raises(EngineError, match=r"lm_head\.weight"):
        sampler.update(policy().named_parameters(), 1)


def test_a_killed_server_gets_the_weights_before_it_is_used_again(server: Server):
    trained = policy(seed=5)
    opened = open_for_training(trained, tokenizer(), ENDLESS, options(server, deadline=400.0))
    opened.update(trained.state_dict().items(), 7)
    before = rows(opened, REQUESTS, DRAWN)
    server.kill()
    restart = threading.Timer(3.0, server.start)
    restart.start()
    assert tokens(rows(opened, REQUESTS, DRAWN)) == tokens(before)
    assert {row.version for row in rows(opened, REQUESTS, DRAWN)} == {7}
    opened.close()


def test_unfinished_rows_continue_with_new_weights(server: Server):
    trained = policy(seed=6)
    opened = open_for_training(trained, tokenizer(), ENDLESS, options(server, in_flight_updates=True))
    opened.update(trained.state_dict().items(), 0)
    long = SamplingParams(group_size=8, max_tokens=240)
    drawn: list[Any] = []
    for attempt in range(1, 6):
        thread = threading.Thread(target=lambda: drawn.extend(rows(opened, REQUESTS[:4], long)))
        thread.start()
        while thread.is_alive():
            threading.Event().wait(0.3)
            opened.update(trained.state_dict().items(), attempt)
        thread.join()
        if any(row.versions is not None for row in drawn):
            break
    mixed = [row for row in drawn if row.versions is not None]
    assert mixed
    assert all(list(row.versions) == sorted(row.versions) and row.version == row.versions[0] for row in mixed)
    assert all(len(row.tokens) == 240 for row in drawn)
    opened.close()


def test_adapters_are_served_without_merging(server: Server, tmp_path: Path):
    from peft import LoraConfig

    base = policy(seed=7)
    origin = open_for_training(base, tokenizer(), ENDLESS, options(server))
    origin.update(base.state_dict().items(), 0)  # the server's base becomes this model
    origin.close()
    lora.add_adapter(base, LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False))
    base.eval()
    opened = open_for_training(base, tokenizer(), ENDLESS, options(server))
    greedy = SamplingParams(group_size=1, max_tokens=32, temperature=0.0)
    for version in range(1, 4):
        with torch.no_grad():
            for _, parameter in lora.trainable(base):
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
        lora.save_adapter(base, tmp_path / str(version))
        opened.update_adapter(tmp_path / str(version), version)
        found = rows(opened, REQUESTS, greedy)
        assert_greedy(base, REQUESTS, found, rows(own(base, tokenizer()), REQUESTS, greedy))
        assert {row.version for row in found} == {version}
    opened.close()


def test_a_run_trains(server: Server, tmp_path: Path):
    settings = {"sampling_engine": "server", "sampling_server_urls": [server.url], "rollouts_every": 1}
    run = trainer(tmp_path, policy=model(**WIDE), steps=6, prompts_per_step=10, group_size=8, **settings)
    run.train()
    check(tmp_path, 6)
    assert lines(tmp_path)[-1]["sampler/mismatch"] < 1e-5


def test_an_asynchronous_run_trains(server: Server, tmp_path: Path):
    settings = {"sampling_engine": "server", "sampling_server_urls": [server.url], "rollouts_every": 1}
    asynchronous = {"rollout_asynchronous": True, "rollout_max_staleness": 2}
    run = trainer(
        tmp_path, policy=model(**WIDE), steps=6, prompts_per_step=10, group_size=8, **settings, **asynchronous
    )
    run.train()
    ages = [step - 1 - row.version for step in range(1, 7) for row in read_rollouts(rollout_path(tmp_path, step))]
    assert min(ages) >= 0
    assert max(ages) <= 2


def test_the_command_line_trains(server: Server, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "judge.py").write_text(
        "def short(completions, **_):\n    return [-float(len(t)) for t in completions]\n"
    )
    told = gvpo(
        *["train", str(recipe(tmp_path, server)), f"run.dir={tmp_path / 'run'}", "sampling.engine=server"],
        f"sampling.server_urls={server.url}",
    )
    assert "run" in told
    found = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert max(line.get("sampler/mismatch", 0.0) for line in found) < 1e-5


def recipe(place: Path, server: Server) -> Path:
    """Write a recipe for the model that the server was started with."""
    file = place / "recipe.toml"
    file.write_text(
        f'model.path = "{server.model}"\n'  # type: ignore[attr-defined]
        'data.train = "{recipe}/rows.jsonl"\nrewards.funcs = ["{recipe}/judge.py:short"]\nrewards.workers = 1\n'
        "sampling.max_tokens = 8\ntrain.steps = 2\ntrain.prompts_per_step = 4\ncheckpoint.verify = false\n"
    )
    return file
