"""The path from the user's data to problems with encoded prompts."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from gvpo.config import TrainConfig
from gvpo.data import TASKS
from gvpo.errors import ConfigError, DataError
from gvpo.model.chat.tools import tool_schemas
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.rollout.problems import demonstrations, encode, find_task, held_out_problems, training_problems
from gvpo.types import Problem
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer, tiny_model, turn_tokenizer
from tests.training.toy import ROWS, config

EXPECTED = [Problem(digit, f"row-{n}", {"digit": digit}) for n, digit in enumerate("0123456789", start=1)]


def as_file(directory: Path) -> Path:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("kind", ["rows", "iterator", "datasets", "path", "text path", "problems"])
def test_every_kind_of_dataset_gives_the_same_problems(tmp_path: Path, kind: str):
    given: Any = {
        "rows": lambda: ROWS,
        "iterator": lambda: iter(ROWS),
        "datasets": lambda: datasets.Dataset.from_list(ROWS),
        "path": lambda: as_file(tmp_path),
        "text path": lambda: str(as_file(tmp_path)),
        "problems": lambda: EXPECTED,
    }[kind]()
    assert training_problems(config(), given) == EXPECTED


def test_the_settings_file_is_read_and_a_passed_dataset_overrides_it(tmp_path: Path):
    settings = config(train_data=str(as_file(tmp_path)), train_problems=3)
    assert training_problems(settings, None) == EXPECTED[:3]
    assert training_problems(settings, ROWS[5:6]) == [Problem("5", "row-1", {"digit": "5"})]


def test_a_task_gives_training_and_held_out_problems_that_do_not_overlap():
    settings = config(task="addition", task_options={"digits": 2}, train_problems=50, eval_problems=20, seed=3)
    train, held = training_problems(settings, None), held_out_problems(settings, None)
    assert train == TASKS["addition"].problems("train", 50, 3, digits=2)
    assert held == TASKS["addition"].problems("eval", 20, 3, digits=2)
    assert not {problem.id for problem in train} & {problem.id for problem in held}


def test_held_out_problems_follow_the_settings(tmp_path: Path):
    assert held_out_problems(config(eval_data=str(as_file(tmp_path)), eval_problems=2), None) == EXPECTED[:2]
    assert held_out_problems(config(eval_problems=0), ROWS) == []
    assert held_out_problems(config(train_data=str(as_file(tmp_path))), None) == []


def test_a_file_with_a_task_is_in_the_tasks_form(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) + "\n" for n in (7, 8, 9)))
    settings = config(task="gsm8k", task_options={"instruction": "!"}, train_data=str(path), eval_data=str(path))
    limited = settings.replace(train_problems=2, eval_problems=1)
    train, held = training_problems(limited, None), held_out_problems(limited, None)
    assert [(problem.prompt, problem.columns["answer"]) for problem in train] == [("7?!", "7"), ("8?!", "8")]
    assert [problem.id for problem in held] == ["gsm8k/eval/1"]
    assert training_problems(settings, ROWS[:1])[0].prompt == "0"  # a passed dataset is used whole


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: training_problems(config(), None), ConfigError, "set data.train or data.task"),
        (lambda: training_problems(config(task="addition", train_data="x.jsonl"), None), ConfigError, "not both"),
        (
            lambda: training_problems(config(task="adition"), None),
            ConfigError,
            "'adition' does not exist; choose one of add",
        ),
        (lambda: training_problems(config(), [{"question": "1"}]), DataError, "rename 'question' to `prompt`"),
        (lambda: training_problems(config(), "no/such.jsonl"), DataError, "there is no file"),
        (lambda: training_problems(config(task="addition", task_options={"digit": 2}), None), ConfigError, "digits"),
        (lambda: demonstrations(config(), byte_tokenizer(), ROWS), DataError, "row 1: there is no `completion`"),
        (lambda: demonstrations(config(), byte_tokenizer(), None), ConfigError, "supervised training needs answers"),
        (
            lambda: encode(config(), byte_tokenizer(), [Problem([{"role": "user", "content": "x"}], "p7")]),
            DataError,
            "problem 'p7': the prompt needs a chat template",
        ),
    ],
)
def test_unusable_data_is_an_error(call: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()


def test_prompts_are_encoded_according_to_the_settings():
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    (item,) = encode(config(system_prompt="Be brief."), tokenizer, [Problem("2+2?", "a")])
    assert tokenizer.decode(item.prompt) == "<bos>[system]Be brief.\n[user]2+2?\n[assistant]"
    (item,) = encode(config(chat="plain"), tokenizer, [Problem("2+2?", "a")])
    assert tokenizer.decode(item.prompt) == "2+2?"


def test_find_task():
    assert find_task(config()) is None
    assert find_task(config(task="addition")) is TASKS["addition"]


def test_written_answers_end_with_the_end_of_sequence():
    tokenizer = byte_tokenizer()
    rows = [{"prompt": "2+2=", "completion": "4"}]
    ((item, answer),) = demonstrations(config(), tokenizer, rows)
    assert (item.problem.prompt, tokenizer.decode(answer.tokens), answer.source) == ("2+2=", "4<eos>", "demonstration")


def test_written_answers_end_as_the_template_ends_a_turn_unless_prompts_are_plain():
    tokenizer = turn_tokenizer()
    rows = [{"prompt": "2+2=", "completion": text} for text in ("4", "4<turn>", "4<eos>")]
    answers = [tokenizer.decode(answer.tokens) for _, answer in demonstrations(config(), tokenizer, rows)]
    assert answers == ["4<turn>", "4<turn>", "4<eos>"]
    ((_, plain),) = demonstrations(config(chat="plain"), tokenizer, rows[:1])
    assert tokenizer.decode(plain.tokens) == "4<eos>"


def test_a_tasks_demonstrations_use_its_options_and_the_warm_starts():
    settings = config(
        task="addition",
        task_options={"digits": 2},
        warm_start_options={"forget_carry": 1.0},
        warm_start_demonstrations=4,
    )
    written = demonstrations(settings, byte_tokenizer(), None)
    expected = TASKS["addition"].demonstrations
    assert expected is not None
    assert [(item.problem, answer.text) for item, answer in written] == expected(4, 0, digits=2, forget_carry=1.0)


def test_a_demonstration_can_be_a_dialogue_of_which_only_the_policys_turns_are_trained_on():
    tokenizer = fresh_tokenizer([*"0123456789", *"+-*?;=.|!"])
    settings = config(task="calculator", warm_start_options={"mistakes": 0.0}, warm_start_demonstrations=3)
    model = tiny_model()
    stops = tokenizer.convert_tokens_to_ids([";", "."])
    model.generation_config.eos_token_id = stops  # as in a model that is trained with sampling.stop_token_ids
    for item, answer in demonstrations(settings, tokenizer, None, model):
        own = [token for token, scored in zip(answer.tokens, answer.mask, strict=True) if scored]
        heard = [token for token, scored in zip(answer.tokens, answer.mask, strict=True) if not scored]
        assert tokenizer.decode(answer.tokens) == answer.text, "its turns end with tokens that end no dialogue"
        assert tokenizer.decode(own).count(";") == 2
        assert tokenizer.decode(own).endswith(f"={item.problem.columns['answer']}.")
        assert tokenizer.decode(heard).count("|") == 2


def add(a: int, b: int) -> int:
    """
    Return the sum of two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


def test_prompts_contain_the_tools_of_the_environment_and_those_of_the_row():
    template = "{% for tool in tools or [] %}<{{ tool.function.name }}>{% endfor %}" + CHAT_TEMPLATE
    own = {"type": "function", "function": {"name": "look"}}
    problems = [Problem("a", "1"), Problem("a", "2", {"tools": [own]})]
    described = tool_schemas([add])
    found = encode(TrainConfig(), byte_tokenizer(template), problems, described)
    texts = [byte_tokenizer().decode(list(item.prompt)) for item in found]
    assert [text.startswith(start) for text, start in zip(texts, ("<add><bos>", "<add><look><bos>"), strict=True)] == [
        True,
        True,
    ]
    assert described[0]["function"]["parameters"]["required"] == ["a", "b"]
    with pytest.raises(DataError, match="'1': the environment has tools, which the chat template does not describe"):
        encode(TrainConfig(), byte_tokenizer(CHAT_TEMPLATE), problems[:1], described)


def test_a_tool_that_cannot_be_described_is_named():
    def bare(a):
        """Return something."""

    with pytest.raises(ConfigError, match="the tool 'bare' cannot be described to the policy"):
        tool_schemas([bare])
