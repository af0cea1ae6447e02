"""Tests of templates: the model's input, and the scored part of its answer."""

from collections.abc import Sequence
from typing import Any

import pytest

from gvpo.data import problems_from_records
from gvpo.errors import ConfigError
from gvpo.evaluation.benchmarks import BENCHMARKS, Benchmark
from gvpo.evaluation.jobs import prompts
from gvpo.evaluation.templates import EXAMPLES, TEMPLATES, answer_inside, find_template, inside_answer
from gvpo.rewards import RewardBatch, RewardPool, gsm8k
from gvpo.types import Problem
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer

MATH, MBPP, HUMANEVAL = (BENCHMARKS[name] for name in ("math500", "mbpp", "humaneval"))
OWN = Benchmark("own", "own.jsonl", (), None, problems_from_records, "exact_match", "own", "")
BOX = "\nReason step by step, and put the final answer in \\boxed{}."


def applied(name: str, benchmark: Benchmark = MATH, question: str = "1+1?") -> Any:
    return TEMPLATES[name].apply(benchmark, Problem(question, "a"))


def test_qwen_math_is_the_prompt_format_of_the_model():
    assert applied("qwen-math") == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_r1_ends_with_an_open_think_tag():
    text = applied("r1")
    assert text.startswith("A conversation between User and Assistant. The User asks a question")
    assert text.endswith("<answer> answer here </answer>.\nUser: 1+1?\nAssistant: <think>")
    assert "Python code block.\nAssistant" in applied("r1", MBPP)


def test_chat_and_plain_add_the_instruction_and_none_does_not():
    assert applied("plain") == f"1+1?{BOX}"
    assert applied("chat") == [{"role": "user", "content": f"1+1?{BOX}"}]
    assert applied("none") == "1+1?"
    assert applied("plain", OWN) == "1+1?"
    assert applied("chat", HUMANEVAL, "def f():\n")[0]["content"].endswith("code block.\ndef f():\n")
    assert applied("plain", HUMANEVAL, "def f():\n") == "def f():\n"


def test_few_shot_shows_worked_examples_and_stops_before_the_next():
    text = applied("few-shot")
    assert text.count("Problem:\n") == text.count("Solution:\n") == len(EXAMPLES["math"]) + 1
    assert text.endswith("Problem:\n1+1?\n\nSolution:\n")
    assert TEMPLATES["few-shot"].stops_for(MATH) == ("\nProblem:",)
    mine = find_template("few-shot", chat_template=False, examples=[("2+2?", "4")])
    assert mine.apply(OWN, Problem("3+3?", "a")) == "Problem:\n2+2?\n\nSolution:\n4\n\nProblem:\n3+3?\n\nSolution:\n"


def test_built_in_examples_are_correct():
    """Mathematical examples end in a box; programs pass the tests shown in their task."""
    assert all(solution.rstrip(".").endswith("}") and "\\boxed" in solution for _, solution in EXAMPLES["math"])
    for task, solution in EXAMPLES["code"]:
        space: dict[str, Any] = {}
        exec(solution.removeprefix("```python\n").removesuffix("```") + task.partition("pass:\n")[2], space)


def test_stops_depend_on_the_family_of_the_benchmark():
    assert "\ndef " in TEMPLATES["plain"].stops_for(HUMANEVAL)
    assert TEMPLATES["plain"].stops_for(MATH) == ()
    assert TEMPLATES["r1"].stops_for(MATH) == TEMPLATES["r1"].stops_for(MBPP) == ("</answer>",)
    assert TEMPLATES["chat"].stops_for(HUMANEVAL) == ()


@pytest.mark.parametrize(
    ("name", "benchmark"), [("qwen-math", MBPP), ("r1", HUMANEVAL), ("few-shot", HUMANEVAL), ("few-shot", OWN)]
)
def test_a_template_that_does_not_fit_raises(name: str, benchmark: Benchmark):
    with pytest.raises(ConfigError, match=f"'{name}' does not fit {benchmark.name}; use chat or plain"):
        applied(name, benchmark)


def test_only_the_chat_template_accepts_messages_and_keeps_them_unchanged():
    problem = Problem([{"role": "user", "content": "hi"}], "a")
    assert TEMPLATES["chat"].apply(OWN, problem) == problem.prompt
    with pytest.raises(ConfigError, match="use the template chat"):
        TEMPLATES["plain"].apply(OWN, problem)


def test_auto_is_chat_if_the_tokenizer_has_a_template():
    assert find_template("auto", chat_template=True).name == "chat"
    assert find_template("auto", chat_template=False).name == "plain"
    with pytest.raises(ConfigError, match="--examples are for the template few-shot, not plain"):
        find_template("plain", chat_template=True, examples=[])


def test_prompts_are_encoded_in_the_form_of_the_template():
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    problem = [Problem("1+1?", "a", {"answer": "2"})]
    (plain,) = prompts(MATH, problem, TEMPLATES["plain"], tokenizer)
    (chat,) = prompts(MATH, problem, TEMPLATES["chat"], tokenizer)
    assert tokenizer.decode(plain.prompt) == f"1+1?{BOX}"
    assert tokenizer.decode(chat.prompt) == f"<bos>[user]1+1?{BOX}\n[assistant]"
    assert plain.problem.columns == {"answer": "2"}


@pytest.mark.parametrize(
    ("text", "boxed", "inside"),
    [
        ("so</think> <answer> 7 </answer>", True, r"\boxed{7}"),
        ("<answer> 6 </answer><answer>7</answer>", True, r"\boxed{7}"),
        (r"<answer> it is \boxed{7} </answer>", True, r" it is \boxed{7} "),
        ("<answer> 7", True, r"\boxed{7}"),
        (r"no tag \boxed{7}", True, r"no tag \boxed{7}"),
        ("<answer>\nprint(7)\n</answer>", False, "\nprint(7)\n"),
    ],
)
def test_answer_in_a_tag(text: str, boxed: bool, inside: str):
    assert answer_inside(text, boxed=boxed) == inside


def test_a_reward_receives_only_the_tag_and_keeps_its_signature():
    judged = inside_answer(gsm8k, boxed=True)
    texts = ["<think>8</think><answer>7</answer> 9", "7 <answer>8</answer>"]
    with RewardPool({"gsm8k": judged}, workers=1) as pool:
        (verdicts,) = pool.score([RewardBatch("", texts, {"answer": "7"})])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]
    with RewardPool({"gsm8k": judged}, workers=1) as pool, pytest.raises(Exception, match="needs a column 'answer'"):
        pool.score([RewardBatch("", texts)])


def test_attributes_of_a_reward_are_kept(monkeypatch: pytest.MonkeyPatch):
    def reward(completions: Sequence[Any], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    reward.row_by_row = True  # type: ignore[attr-defined]
    assert getattr(inside_answer(reward, boxed=True), "row_by_row", False)
    assert TEMPLATES["r1"].judged_by(reward, MATH) is not reward
    assert TEMPLATES["plain"].judged_by(reward, MATH) is reward
