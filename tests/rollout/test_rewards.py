"""A run's rewards: names with settings, requirements that are checked at the start, reward models and judges."""

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2ForSequenceClassification

from gvpo.cli.main import main
from gvpo.config import Given, TrainConfig, resolve
from gvpo.config.recipe import dump_config, flatten, restore_config
from gvpo.errors import ConfigError, GvpoWarning, RewardError
from gvpo.model.reward_model import RewardModel
from gvpo.rewards import math_answer
from gvpo.rewards.sandbox import isolation
from gvpo.rollout.rewards import reward_functions
from tests.fakes import byte_tokenizer
from tests.model.test_reward_model import save
from tests.rewards.judges.judge_server import says, serving
from tests.training.toy import lines, share, trainer

pytestmark = pytest.mark.filterwarnings("ignore:AutoTokenizer loads")  # as Qwen2Tokenizer; the file wins
NO_EVAL: dict[str, Any] = {"held": [], "eval_problems": 0}


def settings(**rewards: Any) -> TrainConfig:
    return TrainConfig(**flatten({"rewards": rewards}))


def test_options_make_rewards():
    config = settings(
        funcs=["length_penalty", "exact_match", "brief", "shape"],
        options={
            "length_penalty": {"limit": 10, "margin": 4},
            "brief": {"reward": "length_penalty", "limit": 4, "margin": 2},
            "shape": {"reward": "gvpo.rewards.verifiers.format:regex_format", "pattern": r"\d+"},
        },
    )
    functions = reward_functions(config, None)
    assert list(functions) == ["length_penalty", "exact_match", "brief", "shape"]
    assert functions["length_penalty"](completion_ids=[[0] * 8]) == [-0.5]
    assert functions["brief"](completion_ids=[[0] * 3]) == [-0.5]
    assert functions["shape"](completions=["12", "x"]) == [1.0, 0.0]
    assert restore_config(dump_config(config)) == config


def test_a_function_of_a_file_with_options_is_a_maker(tmp_path: Path):
    (tmp_path / "own.py").write_text("def times(by):\n    return lambda completions, **_: [by * len(completions)]\n")
    config = settings(funcs=[f"{tmp_path}/own.py:times"], options={"times": {"by": 3}})
    assert reward_functions(config, None)["times"](completions=["a"]) == [3]


@pytest.mark.parametrize(
    ("rewards", "error", "message"),
    [
        ({"funcs": ["length_penalty"]}, RewardError, "missing a required argument: 'limit'; it accepts limit, margin"),
        (
            {"funcs": ["length_penalty"], "options": {"length_penalty": {"limit": 4, "margin": 9}}},
            RewardError,
            "margin must be between 1 and limit",
        ),
        (
            {"funcs": ["exact_match"], "options": {"exact_match": {"case": False}}},
            RewardError,
            "the reward 'exact_match' accepts no options; those that do are code_reward, json_fields, judge",
        ),
        ({"funcs": ["judg"]}, RewardError, "there is no reward 'judg'; did you mean 'judge'"),
        ({"funcs": ["reward_modl"]}, RewardError, "did you mean 'reward_model'"),
        ({"funcs": ["reward_model"]}, RewardError, "missing a required argument: 'path'"),
        (
            {"funcs": ["reward_model"], "options": {"reward_model": {"path": "x", "pad": 1}}},
            RewardError,
            "got an unexpected keyword argument 'pad'",
        ),
        (
            {
                "funcs": ["judge"],
                "options": {"judge": {"reward": "gvpo.rewards.verifiers.exact:normal_space", "text": "a"}},
            },
            RewardError,
            "returned a str for its options; it must return a reward function",
        ),
    ],
)
def test_options_that_do_not_fit(rewards: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        reward_functions(settings(**rewards), None)


def test_options_without_a_reward_are_an_error():
    with pytest.raises(ConfigError, match=r"options\.judge does not belong to any of rewards\.funcs, which are gsm8k"):
        resolve(settings(funcs=["gsm8k"], options={"judge": {}}), Given(model=True))
    with pytest.raises(ConfigError, match=r"rewards\.options\.judge does not belong to any reward"):
        reward_functions(settings(options={"judge": {}}), share())


# requirements are checked at the start


def without_math(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "mpmath" else find(name))


def test_a_recipe_with_a_reward_whose_extra_is_missing_fails_before_its_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    without_math(monkeypatch)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1", "answer": "1"}) + "\n")
    (tmp_path / "config.json").write_text("{}")
    recipe = tmp_path / "recipe.toml"
    sections = {"rewards": "funcs = ['math_answer']", "data": f"train = '{rows}'", "model": f"path = '{tmp_path}'"}
    sections["objective"] = "reference = 'initial'"
    recipe.write_text("".join(f"[{name}]\n{line}\n" for name, line in sections.items()))
    monkeypatch.setattr("gvpo.training.warm_start.load_tokenizer", lambda path: None)
    assert main(["train", str(recipe), f"run.dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err == ("gvpo: error: the reward math_answer needs mpmath; pip install 'gvpo[math]'\n")
    assert not (tmp_path / "run").exists()


def test_code_that_cannot_be_isolated_is_rejected_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(isolation, "isolation_problem", lambda: "no namespaces")
    monkeypatch.delenv(isolation.ALLOW_VARIABLE, raising=False)
    with pytest.raises(RewardError, match=r"code cannot be isolated on this machine \(no namespaces\)"):
        trainer(tmp_path, rewards="code_tests")
    made = settings(funcs=["code_reward"], options={"code_reward": {"wall": 2}})
    with pytest.raises(RewardError, match="code cannot be isolated on this machine"):
        trainer(tmp_path, rewards=list(reward_functions(made, None).values()))


def test_supervised_training_without_evaluation_does_not_check_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    without_math(monkeypatch)
    rows = [{"prompt": "1", "completion": "1"}]
    trainer(tmp_path, rewards=math_answer, data=rows, objective="sft", steps=1, **NO_EVAL).train()
    assert (tmp_path / "summary.json").is_file()


# models and judges in a run


def test_a_run_with_a_reward_model_a_judge_and_a_penalty(tmp_path: Path):
    model = save(tmp_path / "reward")

    def judged(number: int, body: dict[str, Any]) -> Any:
        return says("no score") if number == 0 else says("Score: 5")

    with serving(judged) as server:
        options = {
            "reward_model": {"path": model, "form": "plain"},
            "judge": {"url": server.url, "model": "m", "attempts": 1, "cache": str(tmp_path / "cache")},
            "length_penalty": {"limit": 3, "margin": 2},
        }
        run = trainer(
            tmp_path / "run",
            rewards=["reward_model", "judge", "length_penalty"],
            reward_options=options,
            reward_weights=[0.1, 1.0, 0.5],
            steps=2,
            **NO_EVAL,
        )
        assert isinstance(run.rewards["reward_model"], RewardModel)
        run.train()
    first, last = lines(tmp_path / "run")
    assert first["reward/judge"] == last["reward/judge"] == 0.5
    assert first["rows/failed"] > 0  # one row had no score
    assert last["rows/failed"] == 0
    parts = 0.1 * last["reward/reward_model"] + last["reward/judge"] + 0.5 * last["reward/length_penalty"]
    assert last["reward/mean"] == pytest.approx(parts)
    assert -1 <= last["reward/length_penalty"] < 0


def test_a_loaded_classifier_and_the_path_of_one_are_rewards(tmp_path: Path):
    path = save(tmp_path / "helpful")
    model = Qwen2ForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    options = {"helpful": {"form": "plain"}, path: {"form": "plain"}}
    run = trainer(tmp_path / "run", rewards=[model, share(), path], reward_options=options, steps=2, **NO_EVAL)
    assert list(run.rewards) == ["helpful", "digits", path]
    run.train()
    for line in lines(tmp_path / "run"):
        assert line["reward/helpful"] == line[f"reward/{path}"]
        assert line["reward/mean"] == pytest.approx(line["reward/helpful"] * 2 + line["reward/digits"])
    again = trainer(tmp_path / "run", rewards=[model, share(), path], reward_options=options, steps=2, **NO_EVAL)
    again.train(resume=True)  # the weights have the same fingerprint


def test_each_classifier_needs_its_own_tokenizer(tmp_path: Path):
    path = save(tmp_path / "helpful", template=None)
    model = Qwen2ForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    words = byte_tokenizer()
    config = settings()
    found = reward_functions(config, [share(), model], [None, words])["helpful"]
    assert isinstance(found, RewardModel)
    assert found.tokenizer is words
    assert isinstance(alone := reward_functions(config, model, words)["helpful"], RewardModel)
    assert alone.tokenizer is words
    for given, message in (
        ([words], "has 1 values for 2 rewards; give one per reward, None"),
        ([words, None], "for the reward 'digits'; give a tokenizer for each reward that is a model"),
        ([None, path], "has a str for the reward 'helpful'; give a tokenizer"),
    ):
        with pytest.raises(ConfigError, match=message):
            reward_functions(config, [share(), model], given)  # type: ignore[arg-type]


def test_the_soft_overlong_penalty_counts_before_rewards_are_normalised(tmp_path: Path):
    """DAPO standardises the sum of accuracy and penalty within a group."""
    from gvpo import runfiles

    run = trainer(
        tmp_path,
        rewards=[share(), "length_penalty"],
        reward_options={"length_penalty": {"limit": 3, "margin": 2}},
        objective="dapo",
        steps=1,
        **NO_EVAL,
    )
    run.train()
    rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1))
    for group in {row.group for row in rows}:
        own = [row for row in rows if row.group == group]
        sums = [row.reward_parts["digits"] - min(max((len(row.tokens) - 1) / 2, 0), 1) for row in own]
        assert [row.reward for row in own] == pytest.approx(sums)
        mean = sum(sums) / len(sums)
        for row, total in zip(own, sums, strict=True):
            assert row.weight is not None
            assert (row.weight > 0) == (total > mean + 1e-9) or abs(total - mean) < 1e-9


def test_a_class_of_a_file_is_created_and_a_partial_function_has_the_name_of_its_function(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "import gvpo\n@gvpo.reward(stateful=True)\nclass Steps:\n    def __init__(self, by=1):\n        self.by = by\n"
        "    def __call__(self, completions, **_):\n        return [self.by] * len(completions)\n"
    )
    name = f"{tmp_path}/own.py:Steps"
    for by, options in ((1, {}), (2, {"Steps": {"by": 2}})):
        with pytest.warns(GvpoWarning, match="the reward 'Steps' keeps a state and has no state_dict"):
            made = reward_functions(settings(funcs=[name], options=options), None)
        assert made["Steps"](completions=["a"]) == [by]
    assert list(reward_functions(settings(), functools.partial(math_answer, parsed=True))) == ["math_answer"]
