"""Tests of a job from problems to a result, with samplers that return prepared answers."""

from pathlib import Path

import pytest

from gvpo.evaluation.benchmarks import BENCHMARKS
from gvpo.evaluation.jobs import Job, Judges, PoolOptions, prompts, result, run_job
from gvpo.evaluation.results import Result
from gvpo.evaluation.templates import TEMPLATES
from gvpo.rollout.group_file import GroupFile
from gvpo.sampling import SamplingParams
from gvpo.types import Problem
from tests.fakes import byte_tokenizer
from tests.rollout.scripted import Scripted

GSM8K = BENCHMARKS["gsm8k"]
PROBLEMS = [Problem("1+1?", "a", {"answer": "2"}), Problem("1+2?", "b", {"answer": "3"})]


def job(path: Path, template: str, samples: int = 2) -> Job:
    items = prompts(GSM8K, PROBLEMS, TEMPLATES[template], byte_tokenizer())
    file = GroupFile(path / f"{template}.jsonl")
    file.begin({}, resume=True)
    return Job("m", GSM8K, items, SamplingParams(group_size=samples), file, {}, TEMPLATES[template])


def run(one: Job, sampler: Scripted) -> Result:
    with Judges(PoolOptions(workers=1)) as judges:
        return run_job(one, lambda: sampler, judges.of(one))


def test_text_after_the_answer_of_a_base_model_is_not_scored(tmp_path: Path):
    says = {("a", 0): "\\boxed{2}\n\nProblem:\nx\n\nSolution:\n\\boxed{9}...", ("a", 1): "\\boxed{9}"}
    found = run(job(tmp_path, "few-shot"), Scripted(lambda name, row: says.get((name, row), "\\boxed{3}")))
    assert found.scores == [0.5, 1.0]
    assert found.truncated == 0.0
    assert found.failed == 0
    plain = run(job(tmp_path, "plain"), Scripted(lambda name, row: says.get((name, row), "\\boxed{3}")))
    assert plain.scores == [0.0, 1.0]
    assert plain.truncated == 0.25


def test_the_tagged_answer_is_scored_and_votes(tmp_path: Path):
    says = ["2</think> <answer>2</answer>", "<answer>9</answer> 2", "so <answer> 2 </answer>"]
    found = run(job(tmp_path, "r1", samples=3), Scripted(lambda name, row: says[row]))
    assert found.scores == pytest.approx([2 / 3, 0.0])
    assert found.majority_at(3) == [1.0, 0.0]


def test_a_new_question_after_the_tagged_answer_is_ignored(tmp_path: Path):
    says = {"a": "<answer> 2 </answer>\nUser: 4+4?\nAssistant: <think> <answer> 8 </answer>", "b": "<answer> 8"}
    found = run(job(tmp_path, "r1", samples=1), Scripted(lambda name, row: says[name]))
    assert found.scores == [1.0, 0.0]


def test_a_half_finished_job_has_a_result(tmp_path: Path):
    one = job(tmp_path, "plain")
    run(one, Scripted(lambda name, row: "\\boxed{2}"))
    lines = one.file.path.read_text().splitlines(keepends=True)
    one.file.path.write_text(lines[1])
    assert [problem.id for problem in result(one).problems] == ["b"]


def test_jobs_with_the_same_reward_share_a_pool(tmp_path: Path):
    with Judges(PoolOptions(workers=1)) as judges:
        plain, few, tagged = (judges.of(job(tmp_path, name)) for name in ("plain", "few-shot", "r1"))
    assert plain is few
    assert plain is not tagged
