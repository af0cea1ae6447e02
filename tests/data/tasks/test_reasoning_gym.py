"""Data sets of reasoning-gym as a task: sound ones are repeated, pay their own answer, and pay no constant answer."""

import itertools
import json

import pytest

from gvpo.data import TASKS
from gvpo.errors import ConfigError
from gvpo.rewards import REWARDS
from gvpo.rewards.verifiers import reasoning_gym as verifier

pytest.importorskip("reasoning_gym")
TASK = TASKS["reasoning_gym"]
SLOW = {"futoshiki", "knight_swap", "intermediate_integration", "countdown", "quantum_lock", "sokoban", "zebra_puzzles"}
OPEN = {"rubiks_cube", "rush_hour"}
"""Data sets whose questions have many right answers, and that give none."""
CONSTANTS = ["", "0", "1", "2", "yes", "no", "Yes", "No", "True", "False", "None", "A", "[]"]
SMALL = {"name": "chain_sum", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def sound():
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - set(verifier.UNSOUND))


def paid(problem, text):
    """Return the reward of a completion."""
    columns = {name: [problem.columns[name]] for name in ("dataset", "item", "options")}
    (reward,) = REWARDS[TASK.reward](completions=[text], **columns)
    return reward


def test_the_sound_data_sets_are_those_of_this_version():
    assert len(sound()) == 91
    assert set(sound()) >= {"chain_sum", "basic_arithmetic", "gcd", "spell_backward", "number_sequence", "mini_sudoku"}


def check_sound(name, count):
    problems = TASK.problems("train", count, 1, name=name)
    verifier._item.cache_clear()
    verifier._open.cache_clear()
    assert problems == TASK.problems("train", count, 1, name=name)
    assert len(problems) == count
    for problem in problems:
        assert json.loads(json.dumps(problem.columns)) == problem.columns
        if name not in OPEN:
            assert paid(problem, f"It is <answer>{problem.columns['answer']}</answer>.") == 1.0
    for constant in CONSTANTS:
        assert sum(paid(problem, constant) for problem in problems) < 0.5 * count + 1.5, constant


@pytest.mark.parametrize("name", ["chain_sum", "gcd", "letter_counting", "mini_sudoku", "rush_hour", "rearc"])
def test_a_sound_data_set(name):
    check_sound(name, 8)


@pytest.mark.slow
def test_all_sound_data_sets():
    for name in sound():
        check_sound(name, 3 if name in SLOW else 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(verifier.UNSOUND) - {"composite"}))
def test_an_unsound_data_set_deserves_it(name):
    """A data set that a new version repairs fails here."""
    import reasoning_gym

    sizes = {"size": 100, "seed": 1}
    first, again = (reasoning_gym.create_dataset(name, **sizes) for _ in range(2))
    items = list(first)
    repeated = all(a["question"] == b["question"] for a, b in zip(items, again, strict=True))
    own = all(first.score_answer(str(item["answer"]), item) == 1.0 for item in items)
    guesses = [*CONSTANTS, *{str(item["answer"]) for item in reasoning_gym.create_dataset(name, size=5, seed=2)}]
    best = max(sum(first.score_answer(guess, item) for item in items) for guess in guesses)
    assert not repeated or not own or best >= 45


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs a data set; set data\.task_options\.name"),
        ({"name": "chain_sums"}, "no data set 'chain_sums'; did you mean 'chain_sum'"),
        ({"name": "coin_flip"}, "'coin_flip' of reasoning-gym cannot be trained on: a constant answer gets all"),
        ({"name": "list_functions"}, "it is not the same when it is made again"),
        ({"name": "graph_color"}, "its own answers get no reward"),
        ({"name": "composite"}, "it needs other data sets"),
        (
            {"name": "chain_sum", "terms": 3},
            "settings of the data set 'chain_sum' do not fit: .*; it accepts min_terms",
        ),
        ({"name": "chain_sum", "min_terms": 0}, "settings of the data set 'chain_sum' do not fit: min_terms"),
        ({"name": "chain_sum", "levels": [3]}, "needs levels as a list of settings"),
        ({"name": "chain_sum", "levels": []}, "needs levels as a list of settings"),
    ],
)
def test_what_cannot_be_trained_on(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        TASK.problems("train", 1, 0, **options)
    assert "\n" not in str(error.value)


def test_no_question_is_in_both_splits():
    def questions(split, seed):
        return {problem.prompt for problem in TASK.problems(split, 400, seed, **SMALL)}

    for train_seed, eval_seed in itertools.product(range(2), repeat=2):
        train, held_out = questions("train", train_seed), questions("eval", eval_seed)
        assert train
        assert held_out
        assert not train & held_out


def test_seeds_give_other_questions():
    first, other = (TASK.problems("train", 50, seed, name="chain_sum") for seed in (0, 1))
    assert not {problem.id for problem in first} & {problem.id for problem in other}


def test_levels_take_turns():
    levels = [{"min_terms": 2, "max_terms": 2}, {"min_terms": 4, "max_terms": 4}]
    problems = TASK.problems("train", 60, 0, name="chain_sum", levels=levels)
    terms = {(each.columns["level"], json.loads(each.columns["options"])["min_terms"]) for each in problems}
    assert terms == {(1, 2), (2, 4)}
    assert 20 <= sum(problem.columns["level"] == 1 for problem in problems) <= 40


def test_demonstrations_are_right():
    for problem, text in TASK.demonstrations(20, 0, **SMALL):
        assert paid(problem, text) == 1.0
    (_, text), *_ = TASK.demonstrations(1, 0, **SMALL, answer_form="{answer}")
    assert text.lstrip("-").isdigit()
    with pytest.raises(ConfigError, match="answer_form with"):
        TASK.demonstrations(1, 0, **SMALL, answer_form="x")


def test_demonstrations_can_begin_with_a_mistake():
    shown = TASK.demonstrations(40, 0, **SMALL, mistakes=0.5)
    dialogues = [(problem, text) for problem, text in shown if not isinstance(text, str)]
    assert 10 < len(dialogues) < 30
    for problem, (wrong, again, right) in dialogues:
        assert again == verifier.AGAIN
        assert paid(problem, wrong) < 1.0 == paid(problem, right)


def test_the_answer_is_in_the_last_tag_or_is_the_whole_text():
    (problem,) = TASK.problems("train", 1, 0, **SMALL)
    answer = problem.columns["answer"]
    assert paid(problem, f" {answer}\n") == 1.0
    assert paid(problem, f"<answer>77</answer> no: <answer> {answer} </answer>") == 1.0
    assert paid(problem, f"<answer>{answer}</answer> no: <answer>77</answer>") < 1.0
