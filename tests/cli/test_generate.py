"""`gvpo generate`: groups that training accepts unchanged, answers to learn from, and errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo.cli.generate import _disappointments
from gvpo.cli.main import main
from gvpo.config import TrainConfig
from gvpo.model.model import save_model
from gvpo.rollout.logged_groups import logged_groups
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.trainer import Trainer
from tests.training.toy import ROWS, model, tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:AutoTokenizer loads"),
    pytest.mark.filterwarnings("ignore:logged groups are finite"),
]
REWARD = """
def digits(completions, digit, **_):
    return [text.count(one) / 3 for text, one in zip(completions, digit, strict=True)]


def short(completions, **_):
    return [-float(len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("generate")
    save_model(model(), tokenizer(), directory / "start")
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (directory / "judge.py").write_text(REWARD)
    return directory


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


GIVEN = ["generate", "start", "--prompts", "prompts.jsonl", "sampling.max_tokens=3", "rewards.workers=1"]
JUDGED = [*GIVEN, "rewards.funcs=judge.py:digits"]


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def small(run: str, **settings: Any) -> TrainConfig:
    sizes = {"prompts_per_step": 5, "steps": 2, "max_tokens": 3, "checkpoint_verify": False, "learning_rate": 1e-3}
    return TrainConfig(run_dir=Path(run), **{**sizes, **settings})


def test_training_accepts_the_groups_unchanged(capsys: pytest.CaptureFixture[str]):
    assert main([*JUDGED, "sampling.group_size=6", "--out", "groups.jsonl"]) == 0
    found = rows("groups.jsonl")
    assert [row["digit"] for row in found] == [row["digit"] for row in ROWS]
    assert all(len(row["completions"]) == len(row["rewards"]) == len(row["sampler_logprobs"]) == 6 for row in found)
    told = capsys.readouterr().out
    assert told.startswith("groups.jsonl: 10 groups, mean reward 0.")
    assert "groups with unequal rewards" in told
    trainer = Trainer("start", args=small("offline", groups_data="groups.jsonl"), processing_class=tokenizer())
    result = trainer.train()
    assert result["steps"] == 2
    line = json.loads(Path("offline/metrics.jsonl").read_text().splitlines()[0])
    assert line["offpolicy/logratio_mean"] == pytest.approx(0, abs=1e-4)  # the policy has not changed since it sampled
    assert line["reward/mean"] > 0


def test_it_samples_like_a_run(place: Path):
    """The completions are those of the sampler for these ids, for any size of the parts."""
    assert main([*JUDGED, "sampling.group_size=3", "--out", "parts.jsonl", "--save-every", "1", "run.seed=5"]) == 0
    assert main([*JUDGED, "sampling.group_size=3", "--out", "once.jsonl", "run.seed=5"]) == 0
    assert [row["texts"] for row in rows("parts.jsonl")] == [row["texts"] for row in rows("once.jsonl")]


def test_correct_answers_and_the_best_are_rows_for_sft(capsys: pytest.CaptureFixture[str]):
    words = [*JUDGED, "sampling.group_size=16", "--out", "many.jsonl"]
    assert main([*words, "--select", "right", "--above", "0.3", "--selected", "right.jsonl"]) == 0
    assert "rows of" in capsys.readouterr().out
    right = rows("right.jsonl")
    assert right
    assert all(row["reward"] > 0.3 and row["completion"].count(row["digit"]) for row in right)
    assert len({(row["prompt"], row["completion"]) for row in right}) == len(right)
    with pytest.MonkeyPatch.context() as patch:  # all groups exist, so no model is loaded
        patch.setattr(TransformersSampler, "__init__", pytest.fail)
        assert main([*words, "--resume", "--select", "best", "--selected", "best.jsonl"]) == 0
        several = ["--select", "right", "--above", "-1", "--most", "3", "--selected", "several.jsonl"]
        assert main([*words, "--resume", *several]) == 0
    best = rows("best.jsonl")
    groups = {row["id"]: row for row in rows("many.jsonl")}
    for row in best:
        group = groups[row["id"]]
        whole = [
            r
            for r, why, text in zip(group["rewards"], group["finish_reasons"], group["texts"], strict=True)
            if why == "stop" and text
        ]
        assert row["reward"] == max(whole)
    assert len(rows("several.jsonl")) > len({row["prompt"] for row in rows("several.jsonl")})
    for file in ("best", "several"):
        settings = {"objective": "sft", "train_data": f"{file}.jsonl", "prompts_per_step": len(rows(f"{file}.jsonl"))}
        sft = Trainer("start", args=small(f"sft-{file}", **settings), processing_class=tokenizer())
        assert sft.train()["steps"] == 2


def test_mixed_groups_can_be_trained_on():
    words = [
        *JUDGED,
        "sampling.group_size=8",
        "--out",
        "all.jsonl",
        "--select",
        "mixed",
        "--above",
        "0",
        "--selected",
        "mixed.jsonl",
    ]
    assert main(words) == 0
    mixed = rows("mixed.jsonl")
    assert 0 < len(mixed) <= 10
    assert all(min(row["rewards"]) == 0 < max(row["rewards"]) for row in mixed)
    args = small("mixed", groups_data="mixed.jsonl", prompts_per_step=len(mixed))
    assert Trainer("start", args=args, processing_class=tokenizer()).train()["steps"] == 2


def test_several_rewards_are_weighted(capsys: pytest.CaptureFixture[str]):
    words = [
        *GIVEN,
        'rewards.funcs=["judge.py:digits", "judge.py:short"]',
        "rewards.weights=[1, 0.5]",
        "sampling.group_size=2",
    ]
    assert main([*words, "--limit", "3", "--out", "weighed.jsonl"]) == 0
    found = rows("weighed.jsonl")
    assert len(found) == 3
    for row in found:
        for reward, parts in zip(row["rewards"], row["reward_parts"], strict=True):
            assert reward == pytest.approx(parts["digits"] + 0.5 * parts["short"])


def test_options_of_rewards_are_part_of_the_settings(capsys: pytest.CaptureFixture[str]):
    named = [*GIVEN, "rewards.funcs=length_penalty", "sampling.group_size=2", "--limit", "2", "--out", "brief.jsonl"]
    options = ["rewards.options.length_penalty.limit=1", "rewards.options.length_penalty.margin=1"]
    assert main([*named, *options]) == 0
    assert all(reward == -1 for row in rows("brief.jsonl") for reward in row["rewards"])
    assert main([*named, *options[1:], "rewards.options.length_penalty.limit=2", "--resume"]) == 2
    assert "was created with reward_options=" in capsys.readouterr().err


def test_it_stops_and_resumes(capsys: pytest.CaptureFixture[str]):
    words = [*JUDGED, "sampling.group_size=2", "--out", "broken.jsonl", "--save-every", "4"]
    stream = TransformersSampler.stream
    calls: list[int] = []

    def stops(self: TransformersSampler, requests: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return stream(self, requests, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersSampler, "stream", stops)
        assert main(words) == 130
    assert "resume with: gvpo generate" in capsys.readouterr().err
    assert len(rows("broken.jsonl")) == 4
    assert main([*words, "--resume", "sampling.temperature=0.5"]) == 2
    assert "was created with temperature=1.0, not 0.5" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert main([*JUDGED, "sampling.group_size=2", "--out", "unbroken.jsonl"]) == 0
    told = ("id", "completions", "texts", "rewards", "finish_reasons")  # log-probs differ by rounding between batches
    broken, unbroken = (
        [{name: row[name] for name in told} for row in rows(f"{name}.jsonl")] for name in ("broken", "unbroken")
    )
    assert broken == unbroken


def test_a_task_has_its_own_reward_and_problems(place: Path, capsys: pytest.CaptureFixture[str]):
    from tests.fakes import byte_tokenizer, tiny_model

    save_model(tiny_model(), byte_tokenizer(), place / "bytes")
    questions = [{"question": f"{n}+1?", "answer": f"#### {n + 1}"} for n in range(3)]
    (place / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    common = [
        "generate",
        "bytes",
        "sampling.group_size=2",
        "sampling.max_tokens=4",
        "rewards.workers=1",
        "sampling.top_p=0.9",
    ]
    assert main([*common, "--prompts", "gsm8k.jsonl", "data.task=gsm8k", "--out", "task.jsonl"]) == 0
    assert "top_p=0.9 never samples some tokens" in capsys.readouterr().err
    assert [set(parts) for row in rows("task.jsonl") for parts in row["reward_parts"]] == [{"gsm8k"}] * 6
    assert main([*common, "data.task=addition", "--limit", "2", "--out", "made.jsonl"]) == 0
    assert len(rows("made.jsonl")) == 2


def test_temperature_0_samples_the_most_likely_tokens_once(place: Path):
    words = [
        "generate",
        "start",
        "--prompts",
        "prompts.jsonl",
        "rewards.funcs=judge.py:digits",
        "sampling.temperature=0",
    ]
    assert main([*words, "sampling.max_tokens=1", "--out", "greedy.jsonl"]) == 0
    policy, reader = model(), tokenizer()
    for row, problem in zip(rows("greedy.jsonl"), ROWS, strict=True):
        prompt = torch.tensor([reader.encode(problem["prompt"])])
        assert row["completions"] == [[int(policy(prompt).logits[0, -1].argmax())]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "start", "--out", "x.jsonl"], "there are no prompts: pass --prompts FILE, or set data.task"),
        ([*GIVEN, "--out", "x.jsonl"], "there is no reward: set rewards.funcs, or data.task"),
        ([*JUDGED, "--out", "x.parquet"], "x.parquet has to be JSON lines"),
        ([*JUDGED, "--out", "x.jsonl", "--select", "best"], "--select and --selected are used together"),
        (
            [*JUDGED, "--out", "x.jsonl", "--select", "best", "--selected", "y.csv"],
            "--selected y.csv must be JSON lines",
        ),
        (
            [*JUDGED, "--out", "x.jsonl", "--select", "best", "--selected", "x.jsonl"],
            "--selected would overwrite --out",
        ),
        (
            [*JUDGED, "--out", "x.jsonl", "--select", "best", "--selected", "start/config.json/y.jsonl"],
            "start/config.json is not a directory; name another place",
        ),
        ([*JUDGED, "--out", "x.jsonl", "rewards.weights=a"], "rewards.weights.0='a': Input should be a valid number"),
        ([*JUDGED, "--out", "x.jsonl", "rewards.weights=[1,2]"], "has 2 values for 1 rewards"),
        ([*JUDGED, "--out", "x.jsonl", "train.steps=2"], "gvpo generate does not read train.steps; it reads run.seed"),
        ([*JUDGED, "--out", "x.jsonl", "start"], "'start' is not a setting; write section.key=value"),
        ([*GIVEN[:3], "none.jsonl", "--out", "x.jsonl", *JUDGED[4:]], "there is no file none.jsonl"),
        ([*GIVEN, "--out", "x.jsonl", "rewards.funcs=digitz"], "there is no reward 'digitz'"),
        (
            [*JUDGED, "--out", "x.jsonl", "sampling.group_size=0"],
            "sampling.group_size=0: Input should be greater than or equal to 1",
        ),
        (
            [*JUDGED, "--out", "x.jsonl", "sampling.group_size=2", "sampling.temperature=0"],
            "sampling.group_size=2: all greedy answers are the same",
        ),
        ([*JUDGED, "--out", "x.jsonl", "sampling.temperature=-1"], "temperature=-1.0: use 0 (greedy) or more"),
        ([*JUDGED, "--out", "x.jsonl", "rewards.options.limit=1"], "rewards.options.limit=1: write a table"),
        ([*JUDGED, "--out", "x.jsonl", "rewards.options.digit.x=1"], "does not belong to any reward"),
        ([*JUDGED, "--out", "x.jsonl", "data.task=adition"], "choose one of"),
        ([*GIVEN, "--out", "x.jsonl", "rewards.funcs=exact_match"], "needs a column 'answer'"),
    ],
)
def test_error_about_impossible_arguments_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith("gvpo: warning: AutoTokenizer loads") for line in warnings)
    assert error.startswith("gvpo: error: ")
    assert message in error
    assert not Path("x.jsonl").exists()


def test_an_exclusion_is_respected_and_is_part_of_the_settings(capsys: pytest.CaptureFixture[str]):
    asked = [*JUDGED, "sampling.group_size=4", 'sampling.ban=["text:1", "text:2"]', "--out", "without.jsonl"]
    assert main(asked) == 0
    drawn = "".join(text for row in rows("without.jsonl") for text in row["texts"])
    assert drawn
    assert not set(drawn) & {"1", "2"}
    assert "an exclusion" in capsys.readouterr().err
    assert main([*asked, "--resume"]) == 0
    assert main([*JUDGED, "sampling.group_size=4", "sampling.ban=text:1", "--out", "without.jsonl", "--resume"]) == 2
    assert "exclusion" in capsys.readouterr().err


def test_log_allowed_is_stored_with_an_exclusion_and_ignored_by_training():
    assert main([*JUDGED, "sampling.group_size=4", "sampling.ban=text:1", "--out", "excluded.jsonl"]) == 0
    found = rows("excluded.jsonl")
    sums = [value for row in found for value in row["log_allowed"]]
    assert all(len(row["log_allowed"]) == len(row["completions"]) for row in found)
    assert all(value < 0 for value in sums)
    assert main([*JUDGED, "sampling.group_size=4", "--out", "free.jsonl"]) == 0
    assert not any("log_allowed" in row for row in rows("free.jsonl"))
    logged = logged_groups(small("ignored"), tokenizer(), found, source="file")
    assert not any("log_allowed" in one.problem.columns for one in logged)


def test_useless_groups_are_a_warning_at_the_end():
    equal = [{"rewards": [0.0, 0.0], "finish_reasons": ["length", "length"]}] * 3
    found = list(_disappointments(equal))
    assert found[0].startswith("all 3 groups have equal rewards")
    assert found[1].startswith("100% of the completions were cut before they ended")
    assert list(_disappointments([*equal, {"rewards": [0.0, 1.0], "finish_reasons": ["stop", "stop"]}])) == []
    assert list(_disappointments([{"rewards": [0.0], "finish_reasons": ["stop"]}])) == []


GAME = """
class Guess:
    def reset(self, *, digit, **_):
        self.digit = int(digit)

    def step(self, text):
        guess = int(text[:1] or "0")
        return ("1" if guess > self.digit else "0", float(guess == self.digit), guess == self.digit)


def add(a: int, b: int) -> int:
    '''Add two numbers.

    Args:
        a: The first.
        b: The second.
    '''
    return a + b
"""


def test_with_an_environment_it_samples_episodes_and_shows_the_best(place: Path, capsys: pytest.CaptureFixture[str]):
    (place / "game.py").write_text(GAME)
    turns = ["environment.between={observation}", "environment.max_turns=3", "sampling.stop_token_ids=[3, 4, 5]"]
    words = [
        "generate",
        "start",
        "--prompts",
        "prompts.jsonl",
        "--out",
        "games.jsonl",
        "sampling.max_tokens=12",
        *turns,
    ]
    assert main([*words, "environment.name=game.py:Guess"]) == 0
    out = capsys.readouterr().out
    found = rows("games.jsonl")
    rewards = [reward for row in found for reward in row["rewards"]]
    assert set(rewards) == {0.0, 1.0}
    assert all(
        len(mask) == len(own) for row in found for mask, own in zip(row["masks"], row["completions"], strict=True)
    )
    assert {len(turns) for row in found for turns in row["episode_turns"]} > {1}
    assert "): reward 1, " in out
    assert all(len(line) <= 80 for line in out.splitlines()[-4:])
    assert main([*words, "environment.name=game.py:Guess", "--resume", "environment.timeout=3"]) == 0
    assert main([*words, "environment.name=game.py:Guess", "--resume", "environment.turn_rewards=last"]) == 2
    assert main([*words, 'environment.tools=["game.py:add"]']) == 2
    assert "the environment's turns have no rewards: set rewards.funcs" in capsys.readouterr().err


GUESS = """
class Guess:
    def reset(self, *, digit, seed, **_):
        self.digit = int(digit)
        return str(seed % 10)

    def step(self, text):
        return ("1" if int(text[:1] or 0) > self.digit else "0", float(text[:1] == str(self.digit)), False)
"""
EPISODES = [
    "environment.name=guess.py:Guess",
    "environment.between='{observation}'",
    "environment.max_turns=3",
    "environment.turn_tokens=4",
    "environment.workers=1",
    "sampling.stop_token_ids=[3, 4, 5]",
    "sampling.group_size=4",
]


def test_episodes_are_written_with_their_turns_and_trained_on_as_they_were(place: Path):
    (place / "guess.py").write_text(GUESS)
    words = ["generate", "start", "--prompts", "prompts.jsonl", "--limit", "4", "sampling.max_tokens=16"]
    assert main([*words, *EPISODES, "--out", "episodes.jsonl"]) == 0
    written = rows("episodes.jsonl")
    assert len(written) == 4
    for row in written:
        assert row["prompt"] == tokenizer()(row["prompt_text"]).input_ids
        assert row["prompt_text"][:1] == row["digit"]
        assert [turns[-1]["stop"] for turns in row["episode_turns"]] == [len(each) for each in row["completions"]]
        assert all(set(parts) == {"environment"} for parts in row["reward_parts"])
    assert any(len(turns) > 1 for row in written for turns in row["episode_turns"])
    logged = logged_groups(small("unused", stop_token_ids=[3, 4, 5]), tokenizer(), written, source="file")
    assert [[list(row.tokens) for row in each.group.completions] for each in logged] == [
        row["completions"] for row in written
    ]
    assert main([*words, *EPISODES, "--out", "episodes.jsonl", "--resume"]) == 0
    assert main([*words, *EPISODES, "environment.workers=2", "--out", "episodes.jsonl", "--resume"]) == 0
    assert main([*words, *EPISODES, "environment.max_turns=2", "--out", "episodes.jsonl", "--resume"]) == 2
