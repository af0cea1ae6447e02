"""`gvpo score`: each model's own tokens and template, only the response, resumed; then PoFT and filtering by the
scores."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo import runfiles
from gvpo.cli.main import main
from gvpo.config import Given, TrainConfig, resolve
from gvpo.data import load_records
from gvpo.errors import ConfigError, DataError, RunError
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.model.model import load_model, save_model
from gvpo.rollout.aligned_scores import ALIGNED, MODELS, aligned_scores, likeliest
from gvpo.training import score_answers
from gvpo.training.score_answers import score_file
from gvpo.training.trainer import Trainer
from gvpo.training.warm_start import train_recipe
from gvpo.types import Problem
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer, tiny_model
from tests.training.toy import DIGITS, INIT, config, lines, model, tokenizer

ROWS = [{"prompt": one, "completion": one * (1 + int(one) % 3), "topic": "x"} for one in DIGITS]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a byte model with a chat template, one without, and one with digits for tokens."""
    root = tmp_path_factory.mktemp("models")
    save_model(tiny_model("llama"), byte_tokenizer(CHAT_TEMPLATE), root / "chat")
    save_model(tiny_model("llama", seed=1), byte_tokenizer(), root / "plain")
    save_model(model(architecture="llama"), tokenizer(), root / "digits")
    return [str(root / name) for name in ("chat", "plain", "digits")]


def write(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(data: Path, **given: Any) -> TrainConfig:
    return TrainConfig(objective="sft", train_data=str(data), **given)


def mean_by_hand(path: str, own: Any, prompt: str, answer: str) -> float:
    """Compute the mean from all logits of one forward, over the answer's tokens and the end token."""
    policy = load_model(path)
    before, after = own(prompt, add_special_tokens=False).input_ids, own(answer, add_special_tokens=False).input_ids
    ids = torch.tensor([[*before, *after, own.eos_token_id]])
    with torch.no_grad():
        logprobs = policy(input_ids=ids).logits.log_softmax(-1)[0, len(before) - 1 : -1]
    return float(logprobs[torch.arange(len(after) + 1), ids[0, len(before) :]].double().mean())


def test_each_model_scores_only_the_answer_with_its_own_tokens_and_template(tmp_path: Path, models: list[str]):
    data = write(tmp_path / "rows.jsonl", ROWS[:3])
    out = score_file(models, settings(data), tmp_path / "scored.jsonl")
    chat, plain, digits = byte_tokenizer(CHAT_TEMPLATE), byte_tokenizer(), tokenizer()
    for row, scored in zip(ROWS, load_records(out), strict=False):
        assert {name: scored[name] for name in row} == row
        assert scored[MODELS] == models
        written = f"<bos>[user]{row['prompt']}\n[assistant]"
        expected = [
            mean_by_hand(models[0], chat, written, row["completion"]),
            mean_by_hand(models[1], plain, row["prompt"], row["completion"]),
            mean_by_hand(models[2], digits, row["prompt"], row["completion"]),
        ]
        assert scored[ALIGNED] == pytest.approx(expected, abs=1e-5)
    assert not (tmp_path / "scored.jsonl.partial").exists()


def test_pairs_are_scored_by_their_chosen_answer_and_scores_are_added_to(tmp_path: Path, models: list[str]):
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "0"} for row in ROWS]
    score_file(models[2:], settings(write(tmp_path / "rows.jsonl", ROWS)), tmp_path / "one.jsonl")
    score_file(models[2:], settings(write(tmp_path / "pairs.jsonl", pairs)), tmp_path / "two.jsonl")
    one, two = load_records(tmp_path / "one.jsonl"), load_records(tmp_path / "two.jsonl")
    assert [row[ALIGNED] for row in one] == [row[ALIGNED] for row in two]
    assert two[0]["rejected"] == "0"
    more = load_records(score_file(models[1:2], settings(tmp_path / "one.jsonl"), tmp_path / "three.jsonl"))
    assert [row[ALIGNED][:1] for row in more] == [row[ALIGNED] for row in one]
    assert more[0][MODELS] == [models[2], models[1]]


def test_a_scoring_that_was_killed_resumes_where_it_stopped(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(score_answers, "BATCH", 4)
    data = write(tmp_path / "rows.jsonl", ROWS)
    whole = score_file(models[1:], settings(data), tmp_path / "whole.jsonl")
    scored: list[int] = []
    score = score_answers.score

    def counting(policy: Any, groups: Any, **given: Any) -> Any:
        if len(scored) == 4:
            raise RuntimeError("killed")
        scored.append(len(groups))
        return score(policy, groups, **given)

    with monkeypatch.context() as patch:
        patch.setattr(score_answers, "score", counting)
        with pytest.raises(RuntimeError, match="killed"):
            score_file(models[1:], settings(data), tmp_path / "cut.jsonl")
    partial = tmp_path / "cut.jsonl.partial"
    partial.write_text(partial.read_text()[:-20])  # the machine crashed in the middle of a line
    scored.clear()
    monkeypatch.setattr(score_answers, "score", counting)
    out = score_file(models[1:], settings(data), tmp_path / "cut.jsonl")
    assert scored == [4, 4, 2]
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_an_unfinished_scoring_of_something_else_is_left_unchanged(tmp_path: Path, models: list[str]):
    data = write(tmp_path / "rows.jsonl", ROWS)
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text(json.dumps({"models": ["other"]}) + "\n")
    with pytest.raises(RunError, match=r'created with models=\["other"\], not .*; use the same settings, or remove it'):
        score_file(models[2:], settings(data), tmp_path / "out.jsonl")
    assert partial.exists()


def test_scores_of_another_precision_are_not_mixed_in(tmp_path: Path):
    path = tmp_path / "out.jsonl.partial"
    score_answers.Partial(path, ["one"], ROWS, TrainConfig(compute_dtype="float32")).add(0, [-1.0])
    assert score_answers.Partial(path, ["one"], ROWS, TrainConfig(compute_dtype="float32")).done(0) == 1
    with pytest.raises(RunError, match='was created with dtype="float32", not "bfloat16"'):
        score_answers.Partial(path, ["one"], ROWS, TrainConfig(compute_dtype="bfloat16"))


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (ROWS, ["--out", "there.jsonl"], "there.jsonl already exists"),
        (ROWS, ["--out", "out.csv"], "is not a .jsonl file"),
        ([{"prompt": "1"}], [], "there is no `completion` text"),
        ([{"prompt": "1", "completion": "1" * 99}], [], "answers have more than 64 tokens with their prompts"),
        (ROWS, ["nowhere/model"], "nowhere/model"),
    ],
)
def test_the_command_reports_an_error_in_one_line(
    tmp_path: Path,
    models: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: Any,
    arguments: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "there.jsonl").touch()
    out = [] if "--out" in arguments else ["--out", "out.jsonl"]
    assert main(["score", models[2], *arguments, "--data", "rows.jsonl", *out]) == 2
    (line,) = capsys.readouterr().err.splitlines()  # without progress: the error is found before the first score
    assert message in line
    assert not list(tmp_path.glob("*.partial"))


def test_the_command_scores_and_a_run_means_its_latest_checkpoint(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
):
    data = write(tmp_path / "rows.jsonl", ROWS)
    shutil.copytree(models[2], tmp_path / "run" / "checkpoints" / "step-000003")
    arguments = ["--data", str(data), "--out", str(tmp_path / "out.jsonl"), "data.chat=plain"]
    assert main(["score", str(tmp_path / "run"), *arguments]) == 0
    assert f"wrote {tmp_path / 'out.jsonl'}" in capsys.readouterr().out
    (named,) = load_records(tmp_path / "out.jsonl")[0][MODELS]
    assert named.endswith("step-000003")


# training on the scores


def scored(values: Any, rows: Any = ROWS) -> list[dict[str, Any]]:
    return [{**row, ALIGNED: [float(value), float(value)]} for row, value in zip(rows, values, strict=True)]


def tuned(run_dir: Path, rows: Any, **given: Any) -> Trainer:
    own = {"reference": "previous", "prompts_per_step": 10, "learning_rate": 1e-2, **given}
    return Trainer(model(), args=config(run_dir, **own), train_dataset=rows, processing_class=tokenizer())


def test_poft_learns_and_pushes_less_where_it_is_better_than_the_aligned_models(tmp_path: Path):
    tuned(tmp_path, scored([-1.0] * 10), objective="poft", steps=25).train()
    first, *_, last = lines(tmp_path)
    assert last["poft/tau"] < 0.5 < 0.7 < first["poft/tau"]
    assert last["poft/mean_logprob"] > -1.0 > first["poft/mean_logprob"]


def test_under_adam_a_constant_tau_cancels_and_equal_rates_are_matched(tmp_path: Path):
    """tau scales a row's gradient; if it is the same in all rows, AdamW's step does not depend on it."""
    far = tuned(tmp_path / "far", scored([50.0] * 10), objective="poft", steps=3, max_grad_norm=1e9)  # tau is 1
    by_row = tuned(tmp_path / "sft", ROWS, objective="sft", reduction="sequence_mean", steps=3, max_grad_norm=1e9)
    far.train()
    by_row.train()
    for one, other in zip(far.model.parameters(), by_row.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("objective", ["sft", "poft"])
def test_the_most_likely_rows_are_kept(tmp_path: Path, objective: str):
    rows = scored([-1, -9, -2, -9, -3, -9, -9, -9, -9, -9])
    tuned(tmp_path, rows, objective=objective, keep_share=0.25, epochs=1, prompts_per_step=1).train()
    assert lines(tmp_path)[-1]["step"] == 3

    seen = [
        row.prompt
        for step in runfiles.rollout_steps(tmp_path)
        for row in runfiles.read_rollouts(runfiles.rollout_path(tmp_path, step))
    ]
    assert sorted(seen) == ["0", "2", "4"]


def test_a_share_is_rounded_up_and_the_order_of_the_data_stays():
    written = [(Problem("p", str(i), {ALIGNED: [value]}), "") for i, value in enumerate([-3.0, -1.0, -2.0, -1.0])]
    assert [problem.id for problem, _ in likeliest(written, 0.3)] == ["1", "3"]
    assert [problem.id for problem, _ in likeliest(written, 0.6)] == ["1", "2", "3"]
    assert len(likeliest([(Problem("p", "a"), "")], 1.0)) == 1


@pytest.mark.parametrize("value", [None, [], "x", ["a"], [float("nan")], [None]])
def test_error_for_invalid_scores_says_what_to_do(value: Any):
    with pytest.raises(DataError, match=r"problem 'a'.* score the data first: gvpo score MODEL"):
        aligned_scores(Problem("p", "a", {} if value is None else {ALIGNED: value}))


def test_poft_without_scores_and_filtering_for_others_are_rejected(tmp_path: Path):
    with pytest.raises(DataError, match="score the data first"):
        tuned(tmp_path, ROWS, objective="poft").train()
    with pytest.raises(ConfigError, match=r"data\.keep_share is for poft and sft"):
        resolve(config(keep_share=0.5), Given(model=True))
    with pytest.raises(ConfigError, match="poft learns from answers, not from groups"):
        resolve(config(objective="poft", groups_data="x.jsonl"), Given(model=True))


def test_a_resumed_run_rejects_other_scores(tmp_path: Path):
    given = {"objective": "poft", "steps": 2, "checkpoint_every": 1}
    tuned(tmp_path, scored([-1.0] * 10), **given).train()
    with pytest.raises(RunError, match="another set of training data"):
        tuned(tmp_path, scored([-2.0] * 10), **given).train(resume=True)


def test_dpo_continues_from_poft(tmp_path: Path):
    """Score, train with PoFT, and train the result with DPO, with only files in between."""
    save_model(model(seed=1, architecture="llama"), fresh_tokenizer(list(DIGITS)), tmp_path / "aligned")
    pairs = [{"prompt": one, "chosen": one, "rejected": str((int(one) + 1) % 10)} for one in DIGITS]
    data = write(tmp_path / "pairs.jsonl", pairs)
    made = score_file([str(tmp_path / "aligned")], settings(data), tmp_path / "scored.jsonl")
    fresh = {"model_init": {**INIT, "architecture": "llama"}, "vocabulary": list(DIGITS), "train_data": str(made)}
    first = train_recipe(config(tmp_path / "poft", objective="poft", reference="previous", **fresh))
    assert first["model"].startswith(str(tmp_path / "poft"))
    second = {"model_path": str(tmp_path / "poft"), "groups_data": str(made), "eval_groups": str(data)}
    summary = train_recipe(config(tmp_path / "dpo", objective="dpo", **second))
    assert summary["accuracy_before"] == 0.5
    assert summary["accuracy_after"] > 0.5
