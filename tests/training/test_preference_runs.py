"""DPO, EPA and GVPO on the same preferences, from rows to a run directory; resumed bit for bit."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gvpo import runfiles
from gvpo.errors import ConfigError, DataError, RunError
from gvpo.training import reference_scores
from gvpo.training.checkpoint.run_directory import RunDirectory
from gvpo.training.learner import Learner
from gvpo.training.signals import RunStopped
from gvpo.training.trainer import Trainer
from gvpo.training.warm_start import train_recipe
from gvpo.types import PreferencePair
from tests.training.toy import DIGITS, INIT, config, lines, model, noticed, same, tokenizer, trainer, weights

PAIRS = [{"prompt": one, "chosen": one, "rejected": str((int(one) + 1) % 10)} for one in DIGITS]
SCORED = [
    {"prompt": one, "completions": [one, str((int(one) + 1) % 10), str((int(one) + 2) % 10)], "scores": [2, 1, 0]}
    for one in DIGITS
]
WEAK: dict[str, Any] = {"objective": "epa", "weak_negatives": 2}


def preferring(run_dir: Path, rows: Any = PAIRS, *, held: Any = None, policy: Any = None, **settings: Any) -> Trainer:
    return Trainer(
        policy if policy is not None else model(),
        args=config(run_dir, **{"objective": "dpo", "reference": "auto", "beta": 0.5, **settings}),
        train_dataset=rows,
        eval_dataset=held,
        processing_class=tokenizer(),
    )


@pytest.mark.parametrize("settings", [{}, WEAK, {"objective": "gvpo"}], ids=["dpo", "epa", "gvpo"])
def test_each_learns_the_same_preferences_and_held_out_pairs_show_it(tmp_path: Path, settings: dict[str, Any]):
    rows = SCORED if settings.get("objective") == "gvpo" else PAIRS
    few = {"steps": 12, "prompts_per_step": 10, "learning_rate": 3e-3, "eval_every": 12}
    summary = preferring(tmp_path, rows, held=PAIRS, **few, **settings).train()
    first, *_, last = lines(tmp_path)
    assert first["eval/pair_accuracy"] == 0.5
    assert abs(first["eval/pair_margin"]) < 1e-6
    assert last["eval/pair_accuracy"] > 0.9
    assert last["eval/pair_margin"] > 0.1
    assert last["eval/chosen_logratio"] > last["eval/rejected_logratio"]
    assert summary["accuracy_before"] == 0.5
    assert summary["accuracy_after"] == summary["best_accuracy"] == last["eval/pair_accuracy"]


def test_a_step_of_dpo_starts_at_ln_2_and_logs_margins(tmp_path: Path):
    preferring(tmp_path, steps=2, prompts_per_step=10).train()
    first, second = lines(tmp_path)
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert {"dpo/accuracy", "dpo/margin", "dpo/chosen_logratio", "dpo/rejected_logratio"} < set(first)
    assert second["train/loss"] < first["train/loss"]
    assert (first["groups/total"], first["groups/skipped"], first["train/updates"]) == (10, 0, 1)
    assert "reward/mean" not in first


def test_rollouts_show_scores_implicit_rewards_and_where_weak_negatives_come_from(tmp_path: Path):
    preferring(tmp_path, SCORED, steps=1, prompts_per_step=2, **WEAK).train()
    rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1))
    assert len(rows) == 2 * (3 + 2)
    for group in {row.group for row in rows}:
        chosen, *strong, one, other = (row for row in rows if row.group == group)
        assert [row.reward for row in (chosen, *strong, one, other)] == [2, 1, 0, None, None]
        assert (chosen.weight or 0) > 0 > max(row.weight or 0 for row in (*strong, one, other))
        assert all("weak: an answer to row-" in row.source for row in (one, other))
        assert all(abs(row.implicit_reward or 0) < 1e-6 for row in (chosen, one))


# the reference's log-probs are computed once, stored, and read again


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    score = Learner.score

    def counting(self: Learner, groups: Any) -> Any:
        calls.append(len(groups))
        return score(self, groups)

    monkeypatch.setattr(Learner, "score", counting)
    return calls


def killed(*_: Any) -> Any:
    raise RuntimeError("killed")


def killed_at_3(append: Any) -> Any:
    def interrupted(run: Any, line: dict[str, Any]) -> None:
        if line["step"] == 3:
            killed()
        append(run, line)

    return interrupted


def test_the_reference_is_scored_once_for_all_epochs_and_no_copy_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reference_scores, "PART", 4)
    calls = counted(monkeypatch)
    preferring(tmp_path, **WEAK, epochs=3, prompts_per_step=5, checkpoint_every=2).train()
    assert calls == [4, 4, 2]
    assert sorted(path.name for path in (tmp_path / runfiles.REFERENCE).iterdir()) == [
        f"train-0000{part}.safetensors" for part in range(3)
    ]
    assert not list(tmp_path.glob("checkpoints/*/trainer/reference.safetensors"))
    stored = load_file(tmp_path / runfiles.REFERENCE / "train-00000.safetensors")["ref_logprobs"]
    assert stored.shape == (4 * (2 + 2) * 2,)  # 4 prompts, 2 answers and 2 weak ones, a digit and the end token each


def test_stored_log_probs_are_the_starting_policys(tmp_path: Path):
    """A run that refreshes its reference cannot store it; until the first refresh both runs are the same."""
    preferring(tmp_path / "stored", learning_rate=1e-2, **WEAK).train()
    preferring(tmp_path / "live", learning_rate=1e-2, reference="every:100", **WEAK).train()
    assert not (tmp_path / "live" / runfiles.REFERENCE).exists()
    for one, other in zip(lines(tmp_path / "stored"), lines(tmp_path / "live"), strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-5)
        assert one["epa/weak_logratio"] == pytest.approx(other["epa/weak_logratio"], abs=1e-4)


def test_scoring_that_was_killed_resumes_with_the_next_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reference_scores, "PART", 4)
    whole = preferring(tmp_path / "whole")
    whole.train()
    score = Learner.score

    def dies(self: Learner, groups: Any) -> Any:
        if len(list((tmp_path / "cut" / runfiles.REFERENCE).glob("*"))) == 2:
            raise RuntimeError("killed")
        return score(self, groups)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "score", dies)
        with pytest.raises(RuntimeError, match="killed"):
            preferring(tmp_path / "cut").train()
    calls = counted(monkeypatch)
    resumed = preferring(tmp_path / "cut")
    resumed.train(resume=True)
    assert calls == [2]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same(weights(resumed.model), weights(whole.model))


def test_scores_of_a_policy_that_was_trained_since_are_recomputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`model.path` may be a run that was trained between a stop before the first checkpoint and the resume."""
    file = tmp_path / "cut" / runfiles.REFERENCE / "train-00000.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", killed)
        with pytest.raises(RuntimeError, match="killed"):
            preferring(tmp_path / "cut", policy=model(seed=1)).train()
    of_the_old = load_file(file)["ref_logprobs"]
    calls = counted(monkeypatch)
    preferring(tmp_path / "cut").train(resume=True)
    preferring(tmp_path / "whole").train()
    assert calls == [10, 10]
    assert not torch.equal(load_file(file)["ref_logprobs"], of_the_old)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_a_run_with_a_checkpoint_keeps_the_scores_of_its_own_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = {"steps": 3, "checkpoint_every": 1}
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", killed_at_3(RunDirectory.append_metrics))
        with pytest.raises(RuntimeError, match="killed"):
            preferring(tmp_path / "cut", **given).train()
    calls = counted(monkeypatch)
    preferring(tmp_path / "cut", policy=model(seed=1), **given).train(resume=True)
    assert calls == []
    preferring(tmp_path / "whole", **given).train()
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


@pytest.mark.parametrize(
    "settings",
    [{}, {**WEAK, "chosen_by": "softmax"}, {**WEAK, "reference": "every:2"}, {"objective": "gvpo"}],
    ids=["dpo", "epa softmax", "epa every:2", "gvpo"],
)
def test_a_run_that_was_killed_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
):
    given = {"steps": 5, "prompts_per_step": 4, "checkpoint_every": 2, "eval_every": 1, **settings}
    whole = preferring(tmp_path / "whole", SCORED, held=PAIRS, **given)
    whole.train()
    append = RunDirectory.append_metrics

    def interrupted(run: Any, line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise RuntimeError("killed")
        append(run, line)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", interrupted)
        with pytest.raises(RuntimeError, match="killed"):
            preferring(tmp_path / "cut", SCORED, held=PAIRS, **given).train()
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut" / runfiles.REFERENCE).iterdir()}
    resumed = preferring(tmp_path / "cut", SCORED, held=PAIRS, **given)
    resumed.train(resume=True)
    assert {path: path.stat().st_mtime_ns for path in stored} == stored, "nothing is scored again"
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same(weights(resumed.model), weights(whole.model))


def test_damaged_or_foreign_scores_are_not_trained_on(tmp_path: Path):
    preferring(tmp_path, steps=2, checkpoint_every=1).train()
    path = tmp_path / runfiles.REFERENCE / "train-00000.safetensors"
    stored = load_file(path)
    save_file(stored, path, {"rows": "others"})
    with pytest.raises(RunError, match="contains log-probs of other rows"):
        preferring(tmp_path, steps=2, checkpoint_every=1).train(resume=True)
    path.write_bytes(b"torn")
    with pytest.raises(RunError, match=r"is corrupt .* remove it and use --resume"):
        preferring(tmp_path, steps=2, checkpoint_every=1).train(resume=True)
    path.unlink()
    preferring(tmp_path, steps=2, checkpoint_every=1).train(resume=True)
    assert torch.equal(load_file(path)["ref_logprobs"], stored["ref_logprobs"])


# accepted and rejected inputs


def test_pairs_objects_files_and_settings_give_the_same_run(tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    objects = [PreferencePair(row["prompt"], row["chosen"], row["rejected"]) for row in PAIRS]
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "rows": (PAIRS, {}),
        "objects": (objects, {}),
        "path": (file, {}),
        "settings": (None, {"groups_data": str(file)}),
    }
    ends = []
    for name, (rows, settings) in kinds.items():
        one = preferring(tmp_path / name, rows, **settings)
        one.train()
        ends.append((lines(tmp_path / name), weights(one.model)))
    assert all(end[0] == ends[0][0] and same(end[1], ends[0][1]) for end in ends)


def test_rows_whose_answers_are_the_same_are_skipped(tmp_path: Path):
    rows = [*PAIRS, {"prompt": "11", "chosen": "1", "rejected": "1"}]
    with noticed("1 of 11 rows"):
        preferring(tmp_path, rows, epochs=1, prompts_per_step=5).train()
    assert lines(tmp_path)[-1]["step"] == 2


def test_preferences_can_be_sampled_once_and_ranked_by_rewards(tmp_path: Path):
    once = {"objective": "dpo", "reference": "auto", "sample_groups": 10, "group_size": 8, "epochs": 2}
    made = trainer(tmp_path, **once, prompts_per_step=5, learning_rate=3e-3, eval_every=1)
    made.train()
    assert (tmp_path / runfiles.GROUPS).exists()
    assert lines(tmp_path)[1]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines(tmp_path)[-1]["dpo/margin"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "gvpo", "weak_negatives": 1}, "data.weak_negatives is for epa; gvpo has none"),
        ({"objective": "dpo", "weak_negatives": 1}, "data.weak_negatives is for epa; dpo has none"),
        ({"objective": "grpo", "chosen_by": "softmax"}, "data.chosen_by is for dpo and epa"),
        ({"objective": "dpo", "weak_weight": 0.5}, "objective.weak_weight is not a keyword of dpo"),
        ({"objective": "dpo", "kl_in_reward": 0.5}, "kl_in_reward changes rewards, but dpo has none"),
        ({"objective": "dpo", "reference": "previous"}, "offline training does not sample"),
        ({"objective": "dpo", "keep_share": 0.5}, "data.keep_share is for poft and sft"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        preferring(tmp_path / "run", **{"beta": None, **settings})
    assert not (tmp_path / "run").exists()


def test_live_samples_are_not_preferences(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"dpo learns from preferences, not from live samples: set data\.groups"):
        trainer(tmp_path, objective="dpo")


def test_bad_rows_are_found_before_there_is_a_run(tmp_path: Path):
    for rows, message in (
        ([*PAIRS, {"prompt": "1", "completion": "1", "label": True}], "row 11: it has one answer and a `label`"),
        ([PAIRS[0], {"chosen": "1", "rejected": "2"}], "row 2: .* there is no `prompt`"),
    ):
        with pytest.raises(DataError, match=message):
            preferring(tmp_path / "run", rows).train()
    assert not (tmp_path / "run").exists()


def test_a_recipe_trains_and_evaluates_from_files(tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    settings = config(
        tmp_path / "run",
        model_init=INIT,
        vocabulary=list(DIGITS),
        objective="epa",
        weak_negatives=1,
        weak_weight=0.5,
        reference="auto",
        groups_data=str(file),
        eval_groups=str(file),
        eval_problems=5,
    )
    summary = train_recipe(settings)
    assert summary["accuracy_before"] == 0.5
    assert (tmp_path / "run" / runfiles.REFERENCE / "held-out-00000.safetensors").exists()


def test_supervised_training_on_pairs_learns_the_chosen_answers(tmp_path: Path):
    settings = {"objective": "sft", "reference": "previous", "steps": 30, "prompts_per_step": 10}
    preferring(tmp_path, held=PAIRS, beta=None, **settings, learning_rate=1e-2).train()
    assert lines(tmp_path)[-1]["eval/pair_accuracy"] > 0.9


def test_scoring_that_stops_on_request_keeps_finished_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After Ctrl-C while the reference is scored, finished scores are kept, and the run resumes from there."""
    monkeypatch.setattr(reference_scores, "PART", 4)
    score = Learner.score

    def interrupting(self: Learner, groups: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return score(self, groups)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "score", interrupting)
        with pytest.raises(RunStopped, match="before the first step; 4 of 10 prompts are scored and kept"):
            preferring(tmp_path).train()
    calls = counted(monkeypatch)
    preferring(tmp_path).train(resume=True)
    assert calls == [4, 2]
    assert lines(tmp_path)[-1]["step"] == 3
