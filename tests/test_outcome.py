"""The rules about the outcome of a run, from made-up metrics lines and from tiny runs."""

import json
from pathlib import Path

import pytest

from gvpo.outcome import ENDS, HOLD, RULES, OutcomeWatch, findings, training_reward
from tests.training.toy import trainer

GOOD = {
    "groups/total": 8,
    "groups/dead": 2,
    "groups/skipped": 0,
    "reward/mean": 0.5,
    "reward/std": 0.4,
    "rows/failed": 0.0,
    "rows/paid_worst": 0.0,
    "rows/truncated": 0.1,
    "length/mean": 30.0,
    "length/max": 64,
    "kl/reference": 0.5,
    "entropy": 0.7,
    "train/updates": 1,
    "train/skipped_updates": 0,
    "train/lr": 1e-5,
    "train/grad_norm": 0.3,
    "seconds/sampling": 1.0,
}
DEAD = {"groups/dead": 8, "reward/std": 0.0, "reward/mean": 0.0}
"""Metrics of a step whose groups have equal rewards."""


def run(count, *changes, before=None):
    """Return the lines of a run; each change is (steps, values), and a value may be a function of the step."""
    lines = [{"step": 0, **before}] if before else []
    for step in range(1, count + 1):
        line = {"step": step, **GOOD}
        for steps, values in changes:
            if step in steps:
                line |= {key: value(step) if callable(value) else value for key, value in values.items()}
        lines.append(line)
    return lines


ALL = range(1000)
EVALUATED = {"eval/accuracy": 0.5}

QUIET = {
    "no lines": [],
    "only an evaluation": [{"step": 0, **EVALUATED}],
    "a healthy run": run(30, before=EVALUATED),
    "a run without rewards": [
        {"step": step, "groups/total": 4, "groups/dead": 0, "train/lr": 1e-5} for step in range(9)
    ],
    "a rising reward": run(40, (ALL, {"reward/mean": lambda step: step / 40})),
    "some dead steps": run(20, (range(3, 7), DEAD)),
    "a few failed rewards": run(20, (ALL, {"rows/failed": 0.1})),
    "logged rows that were cut": [
        {key: value for key, value in line.items() if key != "seconds/sampling"}
        for line in run(9, (ALL, {"rows/truncated": 1.0}))
    ],
    "half of the groups left out because they are dead": run(
        20, (ALL, {"groups/dead": 4, "groups/skipped": 4, "groups/dropped": 4})
    ),
    "one skipped update": run(20, ([4], {"train/updates": 0, "train/skipped_updates": 1})),
    "a schedule that ends at 0": run(20, ([20], {"train/lr": 0.0})),
    "a reference that follows the policy": run(40, (ALL, {"kl/reference": 0.0})),
    "a solved task of short answers": run(40, (ALL, {"length/mean": 2.0, "kl/reference": 3.0, "reward/mean": 0.99})),
    "an engine in bfloat16": run(30, (ALL, {"sampler/kl": lambda step: 1e-3 if step == 1 else 0.013})),
    "the trainer's own model": run(30, (ALL, {"sampler/mismatch": 2e-7, "sampler/kl": lambda step: 1e-14 * step})),
    "a few steps of an engine with other weights": run(
        30, (ALL, {"sampler/kl": 1e-3}), (range(29, 31), {"sampler/kl": 1})
    ),
    "an engine whose mismatch grows a little": run(
        30, (ALL, {"sampler/mismatch": 0.03, "sampler/kl": lambda step: 4e-4 + 1e-4 * step})
    ),
    "held-out accuracy that varies": run(20, ([20], {"eval/accuracy": 0.45}), before=EVALUATED),
}

LOUD = {
    "zeros": (run(30, (ALL, DEAD)), "nothing was learned: all 240 groups had equal rewards (every reward was 0);"),
    "ones": (run(2, (ALL, {**DEAD, "reward/mean": 1.0})), "all 16 groups had equal rewards (every reward was 1);"),
    "zeros of cut completions": (run(5, (ALL, {**DEAD, "rows/truncated": 1.0})), "so raise sampling.max_tokens"),
    "zeros of equal completions": (run(5, (ALL, {**DEAD, "entropy": 1e-4})), "so raise sampling.temperature"),
    "rewards of prompts": (
        run(5, (ALL, {"groups/dead": 8})),
        "all 40 groups had equal rewards (mean 0.5; they differ only between prompts)",
    ),
    "rewards of dead and skipped groups": (
        run(5, (ALL, {**DEAD, "groups/dead": 5, "groups/skipped": 3})),
        "nothing was learned: all 25 groups",
    ),
    "dead late": (
        run(60, (range(21, 61), {**DEAD, "reward/mean": 0.98})),
        "all groups had equal rewards from step 21 on (every reward was 0.98), so the last 40 steps taught nothing",
    ),
    "mostly dead": (run(20, (ALL, {"groups/dead": 7.5})), "little was learned: 150 of 160 groups had equal rewards"),
    "half without a reward": (run(20, (ALL, {"rows/failed": 0.5})), "50% of the completions had no reward"),
    "skipped groups": (run(20, (ALL, {"groups/skipped": 4})), "80 of 160 groups were skipped"),
    "failing environments": (
        run(20, (ALL, {"env/errors": 0.4, "env/timeouts": 0.1, "env/died": 0.0})),
        "50% of the turns failed in the environment",
    ),
    "blamed rows": (run(20, (ALL, {"rows/paid_worst": 0.5})), "50% of the completions got the worst reward"),
    "all cut": (
        run(20, (ALL, {"rows/truncated": 1.0})),
        "100% of the completions were cut at the maximum length of 64",
    ),
    "skipped updates": (
        run(20, (range(0, 21, 2), {"train/updates": 0, "train/skipped_updates": 1, "train/lr": None})),
        "10 of 20 updates were skipped",
    ),
    "no learning rate": (run(9, (ALL, {"train/lr": 0.0})), "nothing was learned: the learning rate was 0 in all 9"),
    "no gradient": (run(9, (ALL, {"train/grad_norm": 0.0})), "nothing was learned: the gradient was 0 in all 9 steps"),
    "a tiny learning rate": (
        run(40, (ALL, {"kl/reference": 1e-5, "reward/mean": lambda step: 0.5 + step % 2 / 10})),
        "little was learned: after 40 steps the policy is only 1e-05 nats from its reference",
    ),
    "far away": (run(20, (ALL, {"kl/reference": 150.0})), "the policy is 5.0 nats per token from its reference"),
    "wrong weights": (
        run(5, (ALL, {"sampler/mismatch": 7.6, "sampler/kl": 7.0})),
        "the engine samples from another policy than the trainer's (KL 7 nats per token); check its weights",
    ),
    "weights that were wrong in the rows of age 0": (
        run(40, ([1, 2], {"sampler/mismatch": 0.5, "sampler/kl": 0.4})),
        "the engine samples from another policy than the trainer's (KL 0.4 nats per token)",
    ),
    "weights that never change": (
        run(30, (ALL, {"sampler/mismatch": 0.03, "sampler/kl": lambda step: 1e-6 * step**2.5})),
        "the KL from the engine to the trainer grew from 1e-06 to 0.004 nats per token; check that all",
    ),
    "one matrix that never changes": (
        run(16, (ALL, {"sampler/kl": lambda step: 1e-13 if step == 1 else 1e-4})),
        "the KL from the engine to the trainer grew from 1e-13 to 0.0001 nats per token; check that all",
    ),
    "short answers": (run(20, (range(10, 21), {"length/mean": 2.0})), "completions became 15 times shorter (30 to 2"),
    "accuracy fell": (run(20, ([20], {"eval/accuracy": 0.2}), before=EVALUATED), "accuracy fell from 0.50 to 0.20"),
    "no accuracy": (
        run(2, ([2], {"eval/accuracy": 0.0}), before={"eval/accuracy": 0.0}),
        "no held-out answer was right",
    ),
    "all solved": (
        run(2, ([2], {"eval/accuracy": 1.0}), before={"eval/accuracy": 1.0}),
        "all held-out answers were right",
    ),
    "a falling reward": (
        run(40, (ALL, {"reward/mean": lambda step: 0.8 - 0.6 * (step > 20) + step % 2 / 100})),
        "the training reward fell from 0.805 to 0.205 (first and last 10 steps)",
    ),
    "overlap": (run(2, before={**EVALUATED, "eval/overlap": 0.25}), "25% of the held-out prompts are training prompts"),
    "all log-probs fall": (run(9, (ALL, {"offpolicy/logratio_best": -3.0})), "the best answers become less likely"),
}


TWO = ("zeros of cut completions", "rewards of dead and skipped groups")
"""Cases with a second sentence, about the truncation or the skipped groups."""


@pytest.mark.parametrize("name", QUIET)
def test_nothing_to_say(name):
    assert findings(QUIET[name]) == []


@pytest.mark.parametrize("name", LOUD)
def test_one_sentence_says_what_happened(name):
    lines, text = LOUD[name]
    found = findings(lines)
    assert text in found[0]
    assert "\n" not in found[0]
    assert len(found) == (2 if name in TWO else 1)


def test_each_rule_has_a_case():
    said = [text for lines, _ in LOUD.values() for text in findings(lines)]
    for rule in RULES:
        assert any(rule.find(lines) in said for lines, _ in LOUD.values() if rule.find(lines)), rule.name


def test_a_warning_comes_once_after_it_lasted_for_some_steps():
    watch = OutcomeWatch()
    lines = run(20, (range(8, 21), DEAD), before=EVALUATED)
    told = {line["step"]: watch.note(line) for line in lines}
    assert [step for step, texts in told.items() if texts] == [7 + HOLD]
    (text,) = told[7 + HOLD]
    assert text.startswith("steps 8 to 12: nothing was learned: all 40 groups had equal rewards (every reward was 0);")


def test_a_resumed_run_says_the_same():
    lines = run(20, (ALL, DEAD))
    whole, resumed = OutcomeWatch(), OutcomeWatch()
    told = [whole.note(line) for line in lines]
    again = [resumed.note(json.loads(json.dumps(line))) for line in lines]
    assert told == again
    assert sum(map(len, told)) == 1


def test_a_short_problem_is_not_a_warning():
    watch = OutcomeWatch()
    assert not any(watch.note(line) for line in run(20, (range(3, 3 + HOLD - 1), DEAD)))


def test_the_training_reward_compares_the_first_steps_with_the_last():
    lines = run(40, (ALL, {"reward/mean": float}), before=EVALUATED)
    assert training_reward(lines) == {"reward_first": 5.5, "reward_last": 35.5, "reward_steps": ENDS}
    assert training_reward(lines[:4]) == {"reward_first": 1.0, "reward_last": 3.0, "reward_steps": 1}
    assert training_reward([{"step": 1}, {"step": 2, "reward/mean": None}]) == {}


def zero(completions, **_):
    return [0.0] * len(completions)


def test_a_run_without_a_signal_says_so_in_its_summary_and_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    summary = trainer(tmp_path / "run", rewards=zero, steps=6, held=None).train()
    assert summary["warnings"][0].startswith(
        "nothing was learned: all 24 groups had equal rewards (every reward was 0)"
    )
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"] == summary["warnings"]
    assert (summary["reward_first"], summary["reward_last"], summary["reward_steps"]) == (0.0, 0.0, 3)
    shown = capsys.readouterr().err
    assert shown.count("steps 1 to 5: nothing was learned: all 20 groups") == 1
    assert f"gvpo: warning: {summary['warnings'][0]}" in shown
    assert "nothing was learned" in (tmp_path / "run" / "report.html").read_text()


def test_a_completion_of_one_token_is_not_called_cut():
    assert findings(run(20, (ALL, {"rows/truncated": 1.0, "length/max": 1}))) == []
    assert findings(run(20, (ALL, {"rows/truncated": 1.0, "length/max": 2}))) != []
