"""IFEval's 25 kinds of instructions: followed, not followed, and on the edge."""

import importlib.util

import pytest

from gvpo.errors import RewardError
from gvpo.rewards import RewardBatch, RewardPool, ifeval, ifeval_loose, ifeval_share
from gvpo.rewards.verifiers.ifeval import loose_forms
from gvpo.rewards.verifiers.instructions import CHECKS, count_sentences, follows

needs_langdetect = pytest.mark.skipif(
    importlib.util.find_spec("langdetect") is None, reason="needs the extra ifeval (langdetect)"
)
LESS, LEAST = "less than", "at least"
ENGLISH = "The weather in the north of England is often cold and wet in the winter months."
GERMAN = "Das Wetter im Norden von Deutschland ist im Winter oft kalt und nass, aber im Sommer schön."
CASES = [
    ("keywords:existence", {"keywords": ["Kiwi", "fig"]}, "A kiwi and a FIG.", "A kiwi."),
    ("keywords:existence", {"keywords": ["c++ (new)"]}, "I like C++ (new)!", "I like c+++."),
    ("keywords:frequency", {"keyword": "ha", "frequency": 3, "relation": LEAST}, "haha. Ha!", "haha"),
    ("keywords:frequency", {"keyword": "ha", "frequency": 2, "relation": LESS}, "ha", "ha ha"),
    ("keywords:forbidden_words", {"forbidden_words": ["can", "ask?"]}, "A canoe, a task", "Yes we CAN."),
    ("keywords:forbidden_words", {"forbidden_words": ["ask?"]}, "I ask", "You ask?"),
    ("keywords:letter_frequency", {"letter": "Q", "let_frequency": 2, "let_relation": LEAST}, "Quiz: q", "Quiz"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": LESS}, "Calm.", "Calm!"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LEAST}, "One. Two!", "One, two."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LESS}, "One.", "One? Two."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***", "a\n***\n***\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a *** b", "a\n\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": LEAST}, "one, two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, "one - two", "one two three"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "President"},
        "One.\n\n\"President's men.",
        "President one.\n\nTwo.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "two"},
        "One.\n\n\n\nTwo, three.",
        "One.\n\nTwo.\n\nThree.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] lives in [place]", "[name] [place"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Write soon.", "Bye. Maps. Soon."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\n\nP. P. S. Write.", "Bye\nP.S. Write."),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "p. s.: me too", "Bye. P.S."),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "P.S.Write.", "PS Write soon."),  # its dots count
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "(P.S. Write.)", "PXSX Write. P.S: soon"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "P.P.S. Write.", "P,S, Write. APS. Soon"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S: Write.", "PPS Write."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S. Write.", "P.P.Something else"),
    ("detectable_content:postscript", {"postscript_marker": "NB"}, "nb: write", "N.B. write"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two\nthree", "* one\n** two **\n"),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and * *"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "***x***", "***x"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "***x*** *y*", "***x***"),  # once each
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "**a *b* c**", "**a\nb**"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "* a **b** **c**", "* a **b** c"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na\nSection two\nb",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<A title>>\nText", "<< >>\nText"),
    ("combination:two_responses", {}, "One\n******\nTwo", "One\n******\nOne"),
    ("combination:two_responses", {}, "One******Two******", "One\n******\n******\nTwo"),
    ("combination:two_responses", {}, "One ****** Two", "One"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, "SAY HI. Hi!", "Hi! Say hi."),
    ("startend:end_checker", {"end_phrase": "Is that all?"}, 'Hello. "Is that ALL?"', "Is that all? Yes."),
    ("startend:quotation", {}, ' "Hello." ', '"Hello.'),
    ("startend:quotation", {}, '""', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LEAST},
        "It is VERY BAD.",
        "It is VERY bad.",
    ),
    ("punctuation:no_comma", {}, "One two", "One, two"),
]
LANGUAGES = [
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    ("language:response_language", {"language": "en"}, ENGLISH, "1234 5678"),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_capital", {}, ENGLISH.upper(), GERMAN.upper()),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), ENGLISH),
]


@pytest.mark.parametrize(("instruction", "keywords", "followed", "broken"), CASES)
def test_instructions(instruction, keywords, followed, broken):
    assert follows(followed, instruction, keywords)
    assert not follows(broken, instruction, keywords)
    assert not follows(" \n", instruction, keywords)


@needs_langdetect
@pytest.mark.parametrize(("instruction", "keywords", "followed", "broken"), LANGUAGES)
def test_instructions_about_language(instruction, keywords, followed, broken):
    assert follows(followed, instruction, keywords)
    assert not follows(broken, instruction, keywords)


def test_every_kind_has_a_case_and_there_are_25():
    assert {case[0] for case in [*CASES, *LANGUAGES]} == set(CHECKS)
    assert len(CHECKS) == 25


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Who met Mrs. Smith at 3.30 p.m. on Monday. They left.", 2),
        ('Really?! Yes... "No." I said so.', 4),
        ("No full stop", 1),
        # a single letter ends a sentence
        ("See plan B. Then go home.", 2),
        ("She got an A. He got a B. Both were glad.", 3),
        ("Take vitamin C. Drink water.", 2),
        ("Solve for x. Then add 2.", 2),
        ("Plan B. The rest is easy.", 2),
        ("So do I. You too.", 2),
        ("It is plan B.", 1),
        # but an initial of a name does not, nor an abbreviation
        ("J. R. R. Tolkien wrote it.", 1),
        ("George W. Bush spoke. It was late.", 2),
        ("It is by E. Hopper. We saw it.", 2),
        ("See p. 5 of the book.", 1),
        ("We left at 5 p.m. Then it rained.", 2),
        ("The U.S. Senate met.", 1),
        ("Apples, pears, etc. They were ripe.", 2),
        ("Apples, pears, etc. are ripe.", 1),
        ("- - -", 0),
        ("今日は。元気ですか？", 2),
        ("", 0),
    ],
)
def test_sentences(text, sentences):
    assert count_sentences(text) == sentences


RECORD = {
    "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
    # as in the dataset on the Hugging Face Hub: every keyword of every kind, most of them null
    "kwargs": [{"end_phrase": None, "num_words": None}, {"end_phrase": "Bye.", "num_words": None}],
}


def judged(reward, *texts):
    columns = {name: [value] * len(texts) for name, value in RECORD.items()}
    return reward(completions=list(texts), **columns)


def test_a_record_is_followed_in_all_or_in_part():
    texts = ("Hi. Bye.", "Hi, you. Bye.", "Hi, you.", "")
    assert judged(ifeval, *texts) == [1.0, 0.0, 0.0, 0.0]
    assert judged(ifeval_share, *texts) == [1.0, 0.5, 0.0, 0.0]


def test_the_loose_check_ignores_an_introduction_a_farewell_and_asterisks():
    texts = ("Sure, here:\nHi. Bye.", "Hi.\n**Bye.**", "Hi. Bye.\nHope that helps!", "Hi, you. Bye.")
    assert judged(ifeval, *texts) == [0.0] * 4
    assert judged(ifeval_loose, *texts) == [1.0, 1.0, 1.0, 0.0]
    assert len(set(loose_forms("*a*\n*b*\n*c*"))) == 8
    assert loose_forms("only")[-1] == ""


def test_each_instruction_may_be_followed_by_another_form():
    """Without the first line there is no comma; with all lines but the last there is the end phrase."""
    text = "So, hi\nBye.\nthe end"
    assert judged(ifeval_loose, text) == [1.0]


def test_no_instructions_abstain_and_errors_name_bad_records():
    assert ifeval(completions=["a"], instruction_id_list=[[]], kwargs=[[]]) == [None]
    assert ifeval(completions=["a"], instruction_id_list=[["punctuation:no_comma"]]) == [1.0]
    with pytest.raises(ValueError, match="kwargs has 1 entries for 2 instructions"):
        ifeval(completions=["a"], instruction_id_list=[RECORD["instruction_id_list"]], kwargs=[[{}]])
    for name, keywords, message in (
        ("punctuation:no_dot", {}, "there is no instruction 'punctuation:no_dot'"),
        ("startend:end_checker", {"end_phrase": None}, "needs 'end_phrase' in its kwargs"),
        ("length_constraints:number_words", {"num_words": 1, "relation": "over"}, "'over' is not a relation of IFEval"),
    ):
        with pytest.raises(RewardError, match=message):
            follows("text", name, keywords)


@needs_langdetect
def test_it_works_in_a_pool():
    with RewardPool({"ifeval": ifeval}, workers=1) as pool:
        (verdicts,) = pool.score([RewardBatch("p", ["Hi. Bye.", "Hi, you. Bye."], RECORD)])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]


def test_without_the_extra_the_error_states_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "langdetect", None)
    with RewardPool({"ifeval": ifeval}) as pool, pytest.raises(RewardError, match=r"pip install 'gvpo\[ifeval\]'"):
        pool.score([RewardBatch("p", ["a"], RECORD)])
