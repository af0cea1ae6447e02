"""`gvpo doctor`: its findings, its remedies, and the lines of a plan."""

import json
import re

import pytest

from gvpo.cli import doctor
from gvpo.cli.doctor import BROKEN, MISSING, OK, Requirement, at_least, check_core, check_extra
from gvpo.cli.main import main
from tests.test_public_api import modules_after

QWEN = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    return str(tmp_path)


def test_a_working_installation_is_shown_with_versions_and_devices(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (torch,) = [line for line in lines if line.startswith("torch ")]
    assert torch.split()[:3] == ["torch", "ok", doctor.installed("torch")]
    assert any(line.startswith("device") and "CPU" in line for line in lines)
    assert all(any(line.startswith(f"extra {extra}") for line in lines) for extra in ("dev", "lora", "math"))


def test_a_broken_core_is_reported_with_a_remedy_and_exit_code_2(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "declared", lambda: iter([Requirement("no-such-thing", "1.0", "")]))
    assert main(["doctor"]) == 2
    out = capsys.readouterr().out
    assert "not installed" in out
    assert "pip install --upgrade 'no-such-thing>=1.0'" in out


def test_core_requirements():
    assert check_core(Requirement("numpy", "1.0", "")).state == OK
    old = check_core(Requirement("numpy", "99.0", ""))
    assert (old.state, old.remedy) == (BROKEN, "pip install --upgrade 'numpy>=99.0'")
    assert "too old" in old.found


def test_a_core_package_that_does_not_import_is_broken(monkeypatch):
    monkeypatch.setattr(doctor, "why_not_imported", lambda name: "ImportError: libfoo.so")
    found = check_core(Requirement("numpy", "1.0", ""))
    assert found.state == BROKEN
    assert found.found.endswith("libfoo.so")


def test_extras():
    assert check_extra("dev", [Requirement("pytest", "8.0", "dev")]).state == OK
    assert check_extra("tensorboard", [Requirement("pyyaml", "", "tensorboard")]).state == OK  # imported as yaml
    lacking = check_extra("math", [Requirement("pytest", "8.0", "math"), Requirement("no-such-thing", "", "math")])
    assert (lacking.state, lacking.found, lacking.remedy) == (
        MISSING,
        "without no-such-thing",
        "pip install 'gvpo[math]'",
    )


def test_requirements_are_read_from_the_metadata(monkeypatch):
    texts = ["torch>=2.8", "rich", 'pytest-xdist>=3.6; extra == "dev"', "peft[all]>=0.1 ; extra == 'lora'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: texts)
    assert list(doctor.declared()) == [
        Requirement("torch", "2.8", ""),
        Requirement("rich", "", ""),
        Requirement("pytest-xdist", "3.6", "dev"),
        Requirement("peft", "0.1", "lora"),
    ]


@pytest.mark.parametrize(
    ("version", "minimum", "enough"),
    [
        ("2.13.0+cpu", "2.8", True),
        ("2.7.1", "2.8", False),
        ("13", "13", True),
        ("1.0rc1", "1.0", True),
        ("", "0", True),
    ],
)
def test_versions_are_compared_by_numbers(version, minimum, enough):
    assert at_least(version, minimum) is enough


def plan(capsys, *words):
    assert main(["doctor", "--plan", *words]) == 0
    return capsys.readouterr().out


def test_a_model_that_fits(model, capsys):
    out = plan(capsys, model, "--gpu", "h100", "sampling.max_tokens=1024")
    assert "494.03M parameters" in out  # Qwen2.5-0.5B's own count
    assert "\nfits: " in out
    for line in (
        "sampling.max_tokens 1024",
        "objective.reference initial its copy fits",
        "model.gradient_checkpointing false not needed",
    ):
        assert line in " ".join(out.split())


def test_gradient_checkpointing_can_be_requested_or_reported_as_needed(model, capsys):
    asked = plan(capsys, model, "--gpu", "h100", "model.gradient_checkpointing=true")
    assert "model.gradient_checkpointing true as requested" in " ".join(asked.split())
    sizes = ("sampling.max_tokens=4096", "train.tokens_per_microbatch=8192", "objective.reference=previous")
    needed = plan(capsys, model, "--gpu", "h100", "--memory", "14", *sizes)
    assert "model.gradient_checkpointing true activations do not fit" in " ".join(needed.split())


def test_a_model_that_does_not_fit_comes_with_the_number_of_devices(model, capsys):
    out = plan(capsys, model, "--gpu", "t4", "--memory", "6", "model.compute_dtype=float32")
    assert "does not fit" in out
    assert re.search(r"it would fit if sharded over \d+", out)
    assert "Settings" not in out


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["train.groups_per_update=4"], "objective.reference previous no copy is kept"),
        (["train.passes=2"], "objective.reference previous no copy is kept"),
        (["train.passes=2", "objective.reference=initial"], "objective.reference initial its copy fits"),
        (["lora.rank=8"], "objective.reference initial the model without the adapter; no copy is kept"),
    ],
)
def test_the_reference_is_that_of_a_run(model, capsys, settings, line):
    assert line in " ".join(plan(capsys, model, "--gpu", "h100", *settings).split())


@pytest.mark.parametrize(
    ("settings", "line", "there"),
    [
        ([], "sampler's copy", False),
        (["sampling.dtype=bfloat16"], "sampler's copy", True),
        (["rollout.asynchronous=true"], "sampler's copy", True),
        (["rollout.asynchronous=true", "rollout.max_staleness=0"], "sampler's copy", False),
        (["sampling.engine=vllm"], "vLLM takes 24.0 GiB in addition to the plan", True),
        (["sampling.engine=vllm", "sampling.engine_options={gpu_memory_utilization=0.5}"], "takes 40.0 GiB", True),
        (["sampling.engine=vllm", "sampling.engine_sleep=true"], "frees most of it during updates", True),
        (["sampling.engine=server"], "no phase for sampling", True),
    ],
)
def test_the_memory_of_an_engine_is_planned_or_named(model, capsys, settings, line, there):
    assert (line in " ".join(plan(capsys, model, "--gpu", "h100", *settings).split())) is there


def test_an_adapter_needs_less_memory_and_disk(model, capsys):
    sizes = ["--gpu", "h100", "train.tokens_per_microbatch=1024", "sampling.tokens_per_batch=2048"]
    full, adapted = (plan(capsys, model, *sizes, *words) for words in ([], ["lora.rank=8"]))
    for pattern in (r"fits: ([\d.]+) GiB", r"disk +([\d.]+) GiB"):
        most, least = (float(re.search(pattern, out)[1]) for out in (full, adapted))
        assert least < most / 2


@pytest.mark.parametrize(("faster", "half"), [(2.0, True), (1.0, False)])
def test_the_plan_for_a_cpu_uses_the_dtype_of_a_run(model, capsys, monkeypatch, faster, half):
    monkeypatch.setattr("gvpo.update.precision._times_faster", lambda weight: faster)
    assert ("weights in bfloat16" in plan(capsys, model, "--gpu", "cpu")) is half
    explicit = plan(capsys, model, "--gpu", "cpu", "model.compute_dtype=float32")
    assert "weights in bfloat16" not in explicit


def test_the_plan_for_this_machine(model, capsys):
    assert "CPU with" in plan(capsys, model, "--gpu", "cpu", "train.prompts_per_step=2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "h100"], "--gpu is for --plan; add --plan MODEL"),
        (["sampling.group_size=4"], "sampling.group_size=4 is for --plan; add --plan MODEL"),
        (["--plan", "{model}", "run.seed=1"], "gvpo doctor does not read run.seed; it reads model.compute_dtype"),
        (["--plan", "{model}", "--gpu", "h10"], "the GPU 'h10' is not in the table; did you mean 'h100'?"),
        (["--plan", "{model}", "--gpu", "h100", "--gpus", "0"], "--gpus is 0; give at least 1"),
        (["--plan", "{model}", "--gpu", "cpu", "--gpus", "2"], "--gpus needs --gpu"),
        (["--plan", "{model}", "--gpu", "h100", "--prompt-tokens", "-1"], "prompt-tokens is -1; give at least 1"),
        (["--plan", "{model}/.."], "has no config.json, so it is not a model"),
    ],
)
def test_error_about_an_invalid_plan_is_one_line(words, message, model, capsys):
    assert main(["doctor", *[word.format(model=model) for word in words]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_local_plan_loads_neither_torch_nor_transformers(model):
    code = f"from gvpo.cli.main import main\nassert main(['doctor', '--plan', {model!r}, '--gpu', 'h100']) == 0"
    assert not modules_after(code) & {"torch", "transformers"}
