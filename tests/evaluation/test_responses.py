"""Tests of the matching of response rows to problems."""

import pytest

from gvpo.errors import DataError
from gvpo.evaluation.responses import Responses
from gvpo.sampling import Request, SamplingParams
from gvpo.types import Problem

PROBLEMS = [Problem("1+1?", "a"), Problem("1+2?", "b")]


def texts(responses: Responses) -> list[list[str | None]]:
    asked = [Request(problem.id, (0,)) for problem in PROBLEMS]
    drawn = responses.sample(asked, SamplingParams(group_size=responses.most), seed=0, step=0)
    return [[completion.text for completion in completions] for completions in drawn]


def test_rows_with_one_id_are_samples_of_one_problem():
    rows = [{"id": "b", "response": "3"}, {"id": "a", "response": "2"}, {"id": "b", "responses": ["4", "5"]}]
    found = Responses.of_rows(rows, PROBLEMS, "file")
    assert texts(found) == [["2"], ["3", "4", "5"]]
    assert found.most == 3


def test_rows_without_ids_are_in_the_order_of_the_problems():
    assert texts(Responses.of_rows([{"response": "2"}, {"response": "3"}], PROBLEMS, "file")) == [["2"], ["3"]]
    with pytest.raises(DataError, match="file has no row with the id 'b'"):
        Responses.of_rows([{"id": "a", "response": "2"}] * 2, PROBLEMS, "file")
