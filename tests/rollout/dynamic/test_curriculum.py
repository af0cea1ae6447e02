"""The curriculum draws prompts by their running accuracy."""

import dataclasses

import numpy as np
import pytest

from gvpo.errors import CheckpointError, DataError
from gvpo.rollout.collect import EncodedProblem, Rollout
from gvpo.rollout.dynamic.curriculum import Curriculum
from gvpo.types import Completion, Group, Problem, Verdict

ITEMS = [EncodedProblem(Problem("p", f"row-{number}"), (1,)) for number in range(4)]


def curriculum(items=ITEMS, target=0.5):
    return Curriculum(items, 3, target=target, judge="right")


def rollout(**accuracies):
    """Return a rollout with groups of 4 rows, of which a fraction is correct."""
    verdicts = [[Verdict(0.0, {"right": float(row < 4 * share)}) for row in range(4)] for share in accuracies.values()]
    groups = [Group([1], [Completion([1])] * 4) for _ in accuracies]
    return Rollout(groups, verdicts, [Problem("p", name.replace("_", "-")) for name in accuracies])


def test_weights_are_those_of_the_standard_deviation_of_a_reward_at_a_target_of_one_half():
    drawn = curriculum()
    drawn.note(rollout(row_0=0.25, row_1=0.5, row_2=1.0))
    expected = [2 * np.sqrt(0.25 * 0.75), 1.0, 2 * np.sqrt(0.999 * 0.001), 1.0]
    assert drawn.weights() == pytest.approx(expected)


def test_the_frequencies_of_single_draws_are_proportional_to_the_weights():
    drawn = curriculum()
    drawn.note(rollout(row_0=0.25, row_1=0.5, row_2=1.0, row_3=0.75))
    counts = np.zeros(4)
    for first in range(4000):
        counts[int(drawn.draw(first, 1)[0].problem.id[-1])] += 1
    expected = drawn.weights() / drawn.weights().sum()
    assert np.abs(counts / 4000 - expected).max() < 4 * np.sqrt(0.25 / 4000)


def test_a_higher_target_prefers_easier_prompts():
    easy = curriculum(target=0.75)
    easy.note(rollout(row_0=0.25, row_1=0.5, row_2=0.75, row_3=1.0))
    assert int(np.argmax(easy.weights())) == 2


def test_prompts_with_the_same_value_of_a_column_share_an_accuracy():
    levels = [EncodedProblem(Problem("p", f"row-{n}", {"level": n // 2}), (1,)) for n in range(4)]
    drawn = Curriculum(levels, 3, target=0.5, judge="right", by="level")
    drawn.note(rollout(row_1=1.0, row_2=0.5))
    assert drawn.weights() == pytest.approx([2 * np.sqrt(0.999 * 0.001)] * 2 + [1.0] * 2)
    again = Curriculum(levels, 3, target=0.5, judge="right", by="level")
    again.load_state_dict(drawn.state_dict())
    assert [item.problem.id for item in again.draw(7, 4)] == [item.problem.id for item in drawn.draw(7, 4)]
    with pytest.raises(DataError, match=r"rollout\.curriculum_by='size': the prompt 'row-0' has no such column"):
        Curriculum(levels, 3, target=0.5, judge="right", by="size")


def test_given_rows_do_not_count():
    drawn, found = curriculum(), rollout(row_0=0.75)
    rows = [Completion([1], source=source) for source in ("expert", "history", "live", "live")]
    drawn.note(dataclasses.replace(found, groups=[Group([1], rows)]))
    assert drawn.metrics() == {"curriculum/accuracy": 0.5}  # the third row is right, the fourth is not


def test_a_longer_draw_begins_with_the_shorter_one_and_repeats_no_prompt():
    drawn = curriculum()
    ids = [item.problem.id for item in drawn.draw(7, 4)]
    assert [item.problem.id for item in drawn.draw(7, 2)] == ids[:2]
    assert len(set(ids)) == 4
    assert [item.problem.id for item in drawn.draw(7, 6)] == ids + ids[:2]


def test_the_running_accuracy_follows_the_newest_groups():
    drawn = curriculum()
    drawn.note(rollout(row_0=1.0))
    drawn.note(rollout(row_0=0.0))
    assert drawn.metrics() == {"curriculum/accuracy": 0.5}
    drawn.note(rollout(row_0=0.0, row_1=0.25))
    assert drawn.metrics() == {"curriculum/accuracy": 0.25}


def test_rows_without_a_reward_do_not_count():
    drawn = curriculum()
    failed = Rollout([Group([1], [Completion([1])])], [[Verdict(None)]], [Problem("p", "row-0")])
    drawn.note(failed)
    assert drawn.metrics() == {}


def test_a_resumed_curriculum_draws_the_same_prompts():
    one, other = curriculum(), curriculum()
    one.note(rollout(row_0=1.0, row_2=0.5))
    other.load_state_dict(one.state_dict())
    assert [one.draw(first, 3) for first in range(20)] == [other.draw(first, 3) for first in range(20)]


def test_the_state_of_other_data_is_refused():
    with pytest.raises(CheckpointError, match="has 4 prompts, and the data has 3"):
        curriculum(ITEMS[:3]).load_state_dict(curriculum().state_dict())


def test_a_curriculum_needs_prompts():
    with pytest.raises(DataError, match="there are no problems to train on"):
        curriculum([])
