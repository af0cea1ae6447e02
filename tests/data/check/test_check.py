"""Tests of the checks on small datasets: problems that they find, and clean rows."""

import json

import pytest

from gvpo.data.check import Place, Tokens, check, read_rows
from gvpo.data.check.check import PERCENTILES
from gvpo.errors import DataError, RewardError
from gvpo.rewards import RewardPool, boxed_answer, code_tests, countdown, exact_match
from gvpo.rewards.sandbox.isolation import isolation_problem

LONG = (
    "A train leaves the station at {} o'clock and runs for {} hours at sixty kilometres an hour; how far does it get?"
)


def rows_of(tmp_path, records, name="data.jsonl", **columns):
    (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_rows(str(tmp_path / name), **columns)


def found(report, kind):
    """Return the row numbers of a kind of finding, each with the row that it refers to."""
    return [(finding.place.row, finding.other and finding.other.row) for finding in report.of(kind)]


def test_a_clean_dataset_has_no_finding(tmp_path):
    rows = rows_of(tmp_path, [{"prompt": LONG.format(n, n + 1), "answer": str(n)} for n in range(2, 9)])
    report = check(rows, benchmarks=rows_of(tmp_path, [{"problem": "What else?"}], "other.jsonl"))
    assert report.findings == []
    assert report.places == set()
    assert report.skipped.keys() == {"unscorable", "wrong answer paid", "too long"}


def test_missing_and_invalid_prompts_are_found(tmp_path):
    chat = [{"role": "user", "content": "Hi"}]
    silent = [{"role": "system", "content": "Hi"}, {"role": "user", "content": " "}]
    records = [
        {"prompt": "?"},
        {"prompt": " "},
        {"prompt": None},
        {"answer": "1"},
        {"prompt": []},
        {"prompt": chat},
        {"prompt": silent},
    ]
    report = check(rows_of(tmp_path, records))
    assert [row for row, _ in found(report, "no prompt")] == [2, 3, 4, 5, 7]
    details = [finding.detail for finding in report.of("no prompt")]
    assert details[0] == "row 2 has an empty prompt; remove the row or write one"
    assert details[2] == "there is no 'prompt'"
    assert details[4] == "no message of the user has text"


def test_rows_with_the_same_words_are_duplicates_of_the_first(tmp_path):
    records = [
        {"problem": "Find $\\frac12$ of 1,000.", "answer": "500"},
        {"problem": "Find $\\frac12$ of 1,001.", "answer": "500.5"},
        {"problem": "find  $\\dfrac{1}{2}$ of $1000$", "answer": "500"},
        {"problem": "Find \\frac{1}{2} of 1000", "answer": "5"},
    ]
    report = check(rows_of(tmp_path, records))
    assert found(report, "duplicate") == [(3, 1), (4, 1)]
    assert "another answer" not in report.of("duplicate")[0].detail
    assert report.of("duplicate")[1].detail.endswith("data.jsonl row 1, which has another answer")
    assert report.of("near duplicate") == []


def test_rows_with_another_number_or_answer_are_not_duplicates(tmp_path):
    text = LONG.format(5, 3)
    records = [
        {"question": text, "answer": "180"},
        {"question": f"{text} Say it in kilometres.", "answer": "180.0"},  # a near duplicate
        {"question": text.replace("far", "long"), "answer": "3"},  # the same story, another question
        {"question": LONG.format(5, 4), "answer": "180"},  # another number
        {"question": f"Well: {text}"},  # no answer to compare
    ]
    report = check(rows_of(tmp_path, records))
    assert found(report, "near duplicate") == [(2, 1), (5, 1)]
    assert report.of("near duplicate")[0].share == pytest.approx(20 / 24)  # 24 words are 20 grams, and 4 more


def test_a_row_is_compared_only_with_kept_rows(tmp_path):
    """Each row is similar to the previous one, but the third is not similar to the first, which is kept."""
    words = [f"w{chr(97 + n)}" for n in range(26)]
    records = [{"prompt": " ".join(words[n : n + 20])} for n in (0, 2, 4)]
    report = check(rows_of(tmp_path, records), similarity=0.75)
    assert found(report, "near duplicate") == [(2, 1)]


def test_an_instruction_around_every_prompt_is_not_compared(tmp_path):
    lead, end = "You are a careful mathematician who checks each of the steps.\n", "\nReason step by step, in a box."
    records = [{"prompt": f"{lead}What is {n} plus one?{end}"} for n in (1, 2, 3)]
    benchmark = rows_of(tmp_path, [{"problem": "What is $2$ plus one?"}, {"problem": "And now?"}], "b.jsonl")
    report = check(rows_of(tmp_path, records), benchmarks=benchmark)
    assert found(report, "contamination") == [(2, 1)]
    assert report.of("near duplicate") == []


def test_a_benchmarks_problem_inside_a_longer_prompt_is_contamination(tmp_path):
    problem = LONG.format(5, 3)
    benchmark = rows_of(tmp_path, [{"problem": problem, "answer": "180"}, {"problem": "Why?"}], "b.jsonl")
    records = [
        {"prompt": f"Read carefully. {problem} Show your work.", "answer": "180"},
        {"prompt": problem.replace("the station", "a station"), "answer": "181"},
        {"prompt": f"Read carefully. {LONG.format(5, 4)}", "answer": "240"},
        {"prompt": "Something else altogether, with 5 and 3 in it."},
    ]
    report = check(rows_of(tmp_path, records), benchmarks=benchmark)
    assert found(report, "contamination") == [(1, 1), (2, 1)]
    first, second = report.of("contamination")
    assert first.other == Place(str(tmp_path / "b.jsonl"), 1)
    assert first.share == 1.0
    assert first.detail.endswith("row 1, the same answer")
    assert 0.7 <= second.share < 1
    assert second.detail.endswith("row 1, another answer")


def test_several_files_are_one_data_set(tmp_path):
    one = rows_of(tmp_path, [{"prompt": "Same?"}, {"prompt": "Other?"}], "one.jsonl")
    two = rows_of(tmp_path, [{"prompt": "same"}], "two.jsonl")
    (finding,) = check([*one, *two]).findings
    assert (finding.place.data, finding.other) == (str(tmp_path / "two.jsonl"), Place(str(tmp_path / "one.jsonl"), 1))


def test_answers_are_scored_in_a_box_and_by_themselves(tmp_path):
    records = [
        {"prompt": "a", "answer": "7"},
        {"prompt": "b", "answer": ""},
        {"prompt": "c"},
        {"prompt": "d", "answer": "\\boxed{7"},
        {"prompt": "e", "answer": "so \\boxed{\\frac{1}{2}}"},
        {"prompt": [{"role": "user", "content": "f"}], "answer": 7},
    ]
    rows = rows_of(tmp_path, records)
    told = []
    with RewardPool({"boxed": boxed_answer}) as pool:
        report = check(rows, pool=pool, progress=told.append)
    assert [row for row, _ in found(report, "unscorable")] == [2, 3, 4]
    assert [finding.detail for finding in report.of("unscorable")] == [
        "there is no answer",
        "there is no answer",
        "the reference answer scores 0",
    ]
    assert sum(told) == len(rows)
    with RewardPool({"exact": exact_match}) as pool:
        assert [row for row, _ in found(check(rows, pool=pool), "unscorable")] == [2, 3]


def test_the_finding_of_a_failed_reward_has_its_reason(tmp_path):
    def fails(completions, answer, **_):
        return [1.0 / int(each) for each in answer]

    rows = rows_of(tmp_path, [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "0"}])
    with RewardPool({"fails": fails}) as pool:
        (finding,) = check(rows, pool=pool).of("unscorable")
    assert finding.place.row == 2
    assert finding.detail.startswith("exception: fails raised ZeroDivisionError")


def paid(report):
    return {finding.place.row: finding.detail for finding in report.of("wrong answer paid")}


def test_findings_name_the_rewards_of_wrong_answers_and_their_scores(tmp_path):
    """Each reward counts separately. Its full score is that of the correct answer, or 1 if that is not known."""

    def anything(completions, **_):
        return [1.0] * len(completions)

    def words(completions, **_):
        return [float("idea" in text) for text in completions]

    def numbers(completions, **_):
        return [float(any(map(str.isdigit, text))) for text in completions]

    def tens(completions, answer, **_):
        return [10.0 if right in text else 1.0 for text, right in zip(completions, answer, strict=True)]

    def half(completions, answer, **_):
        return [0.5 if text == right else 0.4 for text, right in zip(completions, answer, strict=True)]

    records = [{"prompt": "a", "answer": "7"}, {"prompt": "b", "answer": "8"}, {"prompt": "c", "answer": "8.0"}]
    rows = rows_of(tmp_path, records)
    other = str(tmp_path / "data.jsonl")
    for reward, expected in {
        boxed_answer: {},
        tens: {},
        half: {},
        words: dict.fromkeys((1, 2, 3), 'words pays 1 for "no idea"'),
        numbers: {1: f"numbers pays 1 for the answer of {other} row 2"}
        | dict.fromkeys((2, 3), f"numbers pays 1 for the answer of {other} row 1"),
    }.items():
        with RewardPool({reward.__name__: reward}, workers=1) as pool:
            assert paid(check(rows, pool=pool)) == expected
    with RewardPool({"boxed": boxed_answer, "anything": anything}, workers=1) as pool:
        found = paid(check(rows, pool=pool))
    assert found[2] == f'anything pays 1 for an empty completion and "no idea" and the answer of {other} row 1'


@pytest.mark.parametrize(
    ("answer", "other", "differs"),
    [
        ("20", "20 degrees", False),
        ("\\frac12", ".5", False),
        ("k=6", "6", False),
        (["a", "b"], "B", False),  # one of several accepted answers
        ("20", "21", True),
        ("\\frac12", "12", True),
        ("yes", "no", True),
    ],
)
def test_an_answer_is_wrong_for_another_row_only_if_it_differs(tmp_path, answer, other, differs):
    def paying(completions, answer, **_):
        return [float(text not in ("", "no idea")) for text in completions]

    rows = rows_of(tmp_path, [{"prompt": "a", "answer": answer}, {"prompt": "b", "answer": other}])
    with RewardPool({"paying": paying}, workers=1) as pool:
        assert bool(paid(check(rows, pool=pool))) is differs


def test_rows_that_are_the_same_to_a_reward_are_scored_once(tmp_path):
    log = tmp_path / "log"

    def counted(completions, answer, **_):
        with log.open("a") as file:
            file.write(f"{len(completions)}\n")
        return [0.0] * len(completions)

    rows = rows_of(tmp_path, [{"prompt": "a", "answer": "7"}] * 5)
    told = []
    with RewardPool({"counted": counted}, workers=1) as pool:
        report = check(rows, pool=pool, progress=told.append)
    assert [row for row, _ in found(report, "unscorable")] == [1, 2, 3, 4, 5]
    assert log.read_text().split() == ["3", "1"]  # the answer in a box and two wrong ones, the answer by itself
    assert told == [5]


@pytest.mark.skipif(bool(isolation_problem()), reason=f"code cannot be isolated: {isolation_problem()}")
def test_code_problems_that_cannot_be_scored_are_found(tmp_path):
    """Try all problems, also without reference answers, and report a stub that passes."""
    records = [
        {"prompt": "a", "tests": ["assert f(1) == 2"]},
        {"prompt": "b", "tests": ["# no tests"]},
        {"prompt": "c", "tests": ["assert f(1) is None"]},
        {"prompt": "d", "tests": {"inputs": ["1"], "outputs": [""]}},
        {"prompt": "e", "tests": None},
        {"prompt": "f", "tests": [{"in": "1"}]},
        {"prompt": "g", "tests": ["assert f(1) == 2"], "solution": "def f(n):\n    return n + 1"},
        {"prompt": "h", "tests": ["assert f(1) > 1"], "solution": "def f(n):\n    return n + 2"},
    ]
    with RewardPool({"code": code_tests}, timeout=60) as pool:
        report = check(rows_of(tmp_path, [row for row in records if "solution" not in row]), pool=pool)
        solved = check(rows_of(tmp_path, records[-2:]), pool=pool)
    bad = {finding.place.row: finding.detail for finding in report.of("unscorable")}
    assert bad.keys() == {2, 4, 5, 6}
    assert "pass for an empty program" in bad[2]
    assert "accept an empty output" in bad[4]
    assert bad[5].startswith("abstained")
    assert "have ['in']" in bad[6]
    assert paid(report) == {3: "code pays 1 for functions that return nothing"}
    assert solved.of("unscorable") == []
    assert paid(solved) == {2: f"code pays 1 for the answer of {tmp_path / 'data.jsonl'} row 1"}


def test_answers_may_be_solutions_and_only_in_some_rows(tmp_path):
    records = [
        {"prompt": "a", "numbers": [3, 4], "target": 7, "solution": "3+4"},
        {"prompt": "b", "numbers": [3, 4], "target": 8, "solution": "3+4"},
        {"prompt": "c", "solution": "3+4"},
    ]
    with RewardPool({"countdown": countdown}) as pool:
        report = check(rows_of(tmp_path, records), pool=pool)
    assert [(f.place.row, f.detail.partition(":")[0]) for f in report.of("unscorable")] == [
        (2, "the reference answer scores 0"),
        (3, "abstained"),
    ]


def test_a_dataset_without_answers_raises(tmp_path):
    rows = rows_of(tmp_path, [{"prompt": "a", "gold": "1"}])
    with RewardPool({"boxed": boxed_answer}) as pool:
        with pytest.raises(DataError, match="no row has an answer in answer or final_answer; name its column"):
            check(rows, pool=pool)
        named = rows_of(tmp_path, [{"prompt": "a", "gold": "1"}], answer_column="gold")
        assert check(named, pool=pool).findings == []
    with RewardPool({"countdown": countdown}) as pool, pytest.raises(RewardError, match="needs a column 'numbers'"):
        check(rows_of(tmp_path, [{"prompt": "a", "solution": "1"}]), pool=pool)


def test_lengths_and_prompts_longer_than_the_context(tmp_path):
    rows = rows_of(tmp_path, [*({"prompt": "x " * n} for n in range(1, 101)), {"prompt": ""}])
    report = check(rows, tokens=Tokens(lambda prompt: len(prompt.split()), context=98))
    assert report.lengths["tokens"] == [1, 10, 50, 90, 99, 100]
    assert report.lengths["characters"] == [2, 20, 100, 180, 198, 200]
    assert len(PERCENTILES) == 6
    assert [(f.place.row, f.detail) for f in report.of("too long")] == [(99, "99 tokens"), (100, "100 tokens")]
    unlimited = check(rows, tokens=Tokens(lambda prompt: len(prompt.split())))
    assert unlimited.of("too long") == []
    assert "too long" in unlimited.skipped


def test_report_as_json(tmp_path):
    rows = rows_of(tmp_path, [{"prompt": "a"}, {"prompt": "A"}, {"prompt": ""}])
    report = json.loads(json.dumps(check(rows).to_json()))
    place = str(tmp_path / "data.jsonl")
    assert (report["rows"], report["rows_with_findings"]) == (3, 2)
    assert report["counts"] == {"no prompt": 1, "duplicate": 1, "near duplicate": 0}
    assert report["lengths"]["characters"]["p50"] == 1
    assert report["findings"][1] == {
        "kind": "duplicate",
        "place": {"data": place, "row": 2},
        "detail": f"{place} row 1",
        "other": {"data": place, "row": 1},
        "share": 1.0,
    }


def test_rows_are_read_from_files_of_a_directory_with_any_prompt_column(tmp_path):
    (tmp_path / "set").mkdir()
    rows_of(tmp_path / "set", [{"question": "One?"}], "a.jsonl")
    rows_of(tmp_path / "set", [{"problem": "Two?"}, {"problem": "Three?"}], "b.jsonl")
    (tmp_path / "set" / "README.md").write_text("Not data.")
    rows = read_rows(str(tmp_path / "set"))
    assert [(row.place.row, row.text) for row in rows] == [(1, "One?"), (1, "Two?"), (2, "Three?")]
    said = {"type": "text", "text": "Seen?"}
    parts = [[{"role": "user", "content": content}] for content in ([said], [said, {"type": "image"}])]
    seen, shown = rows_of(tmp_path, [{"messages": each, "text": "no"} for each in parts], prompt_column="messages")
    assert seen.text == "Seen?"
    assert shown.prompt is None
    assert "a part of type 'image', and gvpo trains only on text" in shown.problem


@pytest.mark.parametrize(
    ("records", "columns", "message"),
    [
        ([], {}, "data.jsonl has no rows; give a file with rows"),
        ([{"ask": "?"}], {}, r"data.jsonl has no prompts: its columns are 'ask'; name one with data.prompt_column"),
        ([{"ask": "?"}], {"prompt_column": "asks"}, r"no prompt column 'asks': its columns are 'ask'"),
        ([{"prompt": "?"}], {"answer_column": "gold"}, r"no answer column 'gold': its columns are 'prompt'"),
    ],
)
def test_error_explains_data_that_cannot_be_checked(tmp_path, records, columns, message):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path, records, **columns)


def test_a_directory_without_data_raises(tmp_path):
    with pytest.raises(DataError, match=r"has no data file; give a directory with files that end in \.jsonl, \.json"):
        read_rows(str(tmp_path))
