"""Mathematical answers as a table: one comment per family, with wrong answers that must score 0."""

import subprocess
import sys
import threading

import pytest

pytest.importorskip("mpmath")

from gvpo.rewards import RewardBatch, RewardPool, math_answer
from gvpo.rewards.math import values
from gvpo.rewards.math.math_answer import final_answer, gold_text
from gvpo.rewards.math.python_numbers import as_latex


@pytest.fixture(autouse=True, scope="module")
def _warm():
    values.prepare()


SAME = [
    # integers: AIME's zeros, AMC's floats, signs, commas
    ("25", "025"),
    ("033", "33"),
    ("27", 27.0),
    ("27.0", "27"),
    ("-3", "−3"),
    ("+2", "2"),
    ("10000", r"10{,}000"),
    ("10,080", r"10,\!080"),
    ("58500", "58,500"),
    ("58, 500", "500, 58"),
    (r"11,\! 111,\! 111,\! 100", "11111111100"),
    # fractions and decimals
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac{4}{3}", r"\frac43"),
    (r"\frac{5}{9}", r"\frac 59"),
    (r"\frac{9}{5}", r"1\frac{4}{5}"),
    ("4/3", r"\frac43"),
    (".35625", "0.35625"),
    ("0.333333", r"\frac{1}{3}"),
    (r"\frac{-1}{1997}", r"-\frac{1}{1997}"),
    # powers of ten, tiny and huge
    (r"8.7 \times 10^{8}", "8.7e8"),
    ("870000000", "8.7e8"),
    (r"8.7\cdot10^8", "8.7e8"),
    (r"1.6 \times 10^{-19}", "1.6e-19"),
    ("10^{-8}", "1e-8"),
    ("1e11", "100000000000"),
    (r"3\times 10^{6}\text{ m}", "3e6"),
    # Python
    (r"\arcsin\left(\frac{10}{13}\right)", "np.arcsin(10/13)"),
    (r"\arcsin(10/13)", "np.arcsin(10/13)"),
    (r"-\frac{1}{3}", "-1./3"),
    ("-1.5", "-3./2"),
    (r"\sqrt{2}", "math.sqrt(2)"),
    ("2**10", "1024"),
    (r"2\pi", "2*np.pi"),
    # constants in another form
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (r"11\sqrt2", r"11 \sqrt{2}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"2^{1009}", r"2 \cdot 2^{1008}"),
    (r"\frac{100!}{2^{50}}", r"\frac{100 \cdot 99!}{2^{50}}"),
    ("1.414214", r"\sqrt{2}"),
    (r"5 \sqrt[3]{4}", r"5 \cdot 4^{1/3}"),
    ("274i+1", "1+274i"),
    (r"e^{i\pi}", "-1"),
    (r"\frac{2}{3} \approx 0.67", r"\frac{2}{3}"),
    # formulas
    ("(x-1)(x+1)", "x^2-1"),
    ("q(p-1)+p-pq", "p - q"),
    (r"\frac{1}{2n+2}", r"\frac{1}{2(n+1)}"),
    (r"\frac{n(n-1)}{2}", r"\binom{n}{2}"),
    (r"1-\sin^2 x", r"\cos^2 x"),
    ("6m", "6 m"),
    (r"\frac{E_1+2E_2}{3}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}"),
    ("SRMC=MR", "MR=SRMC"),
    (r"e^{-2t}+1", r"1+\frac{1}{e^{2t}}"),
    ("1.6e-19 x", r"1.6 \times 10^{-19} x"),
    # assignments
    ("5", "x=5"),
    ("x = 5", "5"),
    ("2x", "f(x)=2 x"),
    ("y=3+2x", "y = 2x + 3"),
    ("[-2,7]", r"x \in [-2,7]"),
    ("f(x)=x+1, f(x)=-1", "$f(x)=-1$,$f(x)=x+1$"),
    # equations and inequalities
    (r"k \ge 2", r"$k \geqslant 2$"),
    (r"2 \le k", r"k \ge 2"),
    ("5x+11z+4=7y", "5x - 7y + 11z + 4 = 0"),
    # tuples and vectors
    (r"(3, \pi/2)", r"\left( 3, \frac{\pi}{2} \right)"),
    ("[1,2,3]", "(1,2,3)"),
    ("(2, 251, 252)", "$(2,251,252)$"),
    ("6,5", "(6,5)"),
    (r"\begin{bmatrix} -2 \\ -14 \end{bmatrix}", r"\begin{pmatrix} -2 \\ -14 \end{pmatrix}"),
    (r"\begin{pmatrix} 0.2 & 1 \end{pmatrix}", r"\begin{pmatrix} 1/5 & 1 \end{pmatrix}"),
    # intervals and unions
    (r"(2, +\infty)", r"(2,\infty)"),
    ("(3, 4.0]", "(3,4]"),
    (r"(9,36) \cup (0,9)", r"(0,9) \cup (9,36)"),
    # several answers: the order does not count
    ("84, 69", "$69$,$84$"),
    (r"\{1, 3, 5\}", "5,3,1"),
    ("1 and -2", "1,-2"),
    (r"1 \text{ or } -2", "1,-2"),
    (r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}"),
    (r"\{-2, 1-\sqrt5, 1+\sqrt5\}", r"\{1\pm\sqrt{5},-2\}"),
    ("(7,2,13), (1,8,19)", "$(1,8,19), (7,2,13)$"),
    ("864, 1,350, 2,400", "2400, 1350, 864"),
    ("69, 84", ["$69$", "$84$"]),
    ("8, 221", "$221,$8$"),
    # money, percentages, degrees, units
    ("6", r"\$6"),
    (r"\$18.9", r"\$18.90"),
    (r"\$32,\!348", "32348"),
    (r"17.5\%", "17.5%"),
    ("17.5", "17.5%"),
    ("0.175", "17.5%"),
    (r"\frac{7}{40}", "17.5%"),
    ("4.2 percent", "4.2"),
    ("90", r"90^\circ"),
    ("90°", r"90^{\circ}"),
    ("145 degrees", r"145^\circ"),
    ("864", r"864 \mbox{ inches}^2"),
    (r"15 \text{ cm}^2", "15"),
    ("5.4", r"5.4 \text{ cents}"),
    ("12 square units", "12"),
    (r"\frac{270}{7}", r"\frac{270}7\text{ degrees}"),
    ("60 km/h", "60"),
    # words, choices, bases
    ("Evelyn", r"\text{Evelyn}"),
    (r"\text{ east }", r"\text{east}"),
    ("C", r"\text{(C)}"),
    (r"\textbf{(B)}", r"\text{(B)}"),
    ("52_{8}", "52_8"),
    ("4210", "4210_{5}"),
    # spelling
    (r"$\displaystyle \frac{1}{2}$.", "1/2"),
    (r"\left\lfloor \frac{2n}{3} \right\rfloor + 1", r"\lfloor 2n/3 \rfloor+1"),
]

DIFFERENT = [
    # numbers
    ("26", "025"),
    ("52", "025"),
    ("", "0"),
    ("27.5", 27.0),
    ("0.33", r"\frac{1}{3}"),
    ("1000001", "1000000"),
    ("12345678.5", "12345678"),
    ("58", "58,500"),
    ("500,58", "58,500"),
    ("500, 58", "58,500"),
    ("350, 1, 864", "864, 1,350"),
    # longer than Python turns into a number
    (rf"{'7' * 5000} \times 10^{{2}}", "3"),
    ("7" * 5000, r"1.6 \times 10^{-19}"),
    # powers of ten that absolute rounding gets wrong
    ("3.2e-19", "1.6e-19"),
    ("0", "1.6e-19"),
    (r"3.2 \times 10^{-19}", r"1.6 \times 10^{-19}"),
    (r"3.2 \times 10^{-19} x", r"1.6 \times 10^{-19} x"),
    (r"8.8 \times 10^{8}", "8.7e8"),
    (r"8.7 \times 10^{9}", "8.7e8"),
    ("8.7", "8.7e8"),
    # Python
    (r"\arccos(10/13)", "np.arcsin(10/13)"),
    (r"\frac{1}{3}", "-1./3"),
    ("__import__('os').getcwd()", "1"),
    # constants
    (r"2^{1009}+1", "2^{1009}"),
    (r"\frac{100!}{2^{49}}", r"\frac{100!}{2^{50}}"),
    (r"3\sqrt{13}", r"3\sqrt{14}"),
    ("1-274i", "1+274i"),
    (r"\frac{1}{0}", "0"),
    (r"-\infty", r"\infty"),
    ("1+10^{-20}", "1"),
    ("10^{100}+1", "10^{100}"),
    ("1.41", r"\sqrt{2}"),
    # formulas
    ("x^2+1", "x^2-1"),
    ("6", "6m"),
    ("2R", "2r"),
    (r"E_{2}", "E_{1}"),
    ("y", r"y^{\prime}"),
    ("x", "x+10^{-15}"),
    ("x'+1", "x+1"),
    ("2 3", "6"),
    ("|x|", "x"),
    ("x", r"\sqrt{x^2}"),
    ("p+q", "p - q"),
    (r"\frac{1}{3} \approx 0.67", r"\frac{2}{3}"),
    (r"\approx 0.67", r"\frac{2}{3}"),
    # assignments and relations
    ("y=5", "x=5"),
    ("x=6", "x=5"),
    (r"k > 2", r"k \ge 2"),
    (r"k \le 2", r"k \ge 2"),
    ("5x - 7y + 11z + 5 = 0", "5x - 7y + 11z + 4 = 0"),
    # tuples, intervals, unions
    ("(5,6)", "(6,5)"),
    ("5,6", "(6,5)"),
    ("[3,4]", "(3,4]"),
    ("(3,4)", "[3,4]"),
    ("(1,2,3,4)", "(1,2,3)"),
    (r"\{3, 4\}", "(3,4)"),
    (r"(0,9) \cup (9,37)", r"(0,9) \cup (9,36)"),
    ("(0,9)", r"(0,9) \cup (9,36)"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    # several answers
    ("69", "$69$,$84$"),
    ("69,84,1", "$69$,$84$"),
    ("1,1,5", "1,5,5"),
    (r"1 + \sqrt{19}", r"1 \pm \sqrt{19}"),
    ("(1,8,19)", "$(1,8,19), (2,7,13)$"),
    # money, percentages, units
    (r"\$7", r"\$6"),
    ("1.75", "17.5%"),
    (r"0.175\%", "17.5%"),
    ("91", r"90^\circ"),
    # words, choices, bases
    ("west", r"\text{east}"),
    ("D", r"\text{(C)}"),
    ("52_9", "52_8"),
    ("42", "52_8"),
    (r"\text{even}", "42"),
]


@pytest.mark.parametrize(("written", "gold"), SAME)
def test_the_same_answer_in_another_form(written, gold):
    assert values.same_answer(written, gold_text(gold))
    assert values.same_answer(gold_text(gold), written)


@pytest.mark.parametrize(("written", "gold"), DIFFERENT)
def test_wrong_answers(written, gold):
    assert not values.same_answer(written, gold_text(gold))
    assert not values.same_answer(gold_text(gold), written)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # the last box counts
        (r"first \boxed{1}, but no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} and done", r"\frac{1}{2}"),
        (r"the answer is 7, so \boxed{8}", "8"),
        # a last box that never closes is no answer
        (r"\boxed{1} then \boxed{2", None),
        # without a box, the text after "answer is"
        ("So the answer is 42.", "42"),
        ("**Answer:** 3/4", "3/4"),
        ("The answer is 3. The answer is $5$. Good.", "$5$"),
        ("it is 42", None),
        ("", None),
    ],
)
def test_the_answer_of_a_completion(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("python", "latex"),
    [
        ("np.arcsin(10/13)", r"\arcsin(\frac{10}{13})"),
        ("-1./3", r"\frac{(-1)}{3}"),
        ("8.7e8", r"(8.7 \cdot 10^{8})"),
        ("2**0.5", "(2)^{0.5}"),
        # not arithmetic, or no sign of Python
        ("__import__('os').system('x')", None),
        ("np.load('x')", None),
        ("(lambda: 1)()**2", None),
        ("I(0)", None),
        ("2*x", None),
        ("np." + "(" * 200, None),
    ],
)
def test_python_is_translated(python, latex):
    assert as_latex(python) == latex


def test_a_tolerance_from_the_data():
    completions = [rf"\boxed{{{value}}}" for value in ("4.2", r"4.25\%", "4.31", "4.1")]
    batches = [RewardBatch("", [text], {"answer": "4.2", "error": "1e-1"}) for text in completions]
    with RewardPool({"math_answer": math_answer}, workers=1) as pool:
        assert [verdict.reward for (verdict,) in pool.score(batches)] == [1.0, 1.0, 0.0, 1.0]


def test_without_an_answer_it_abstains_and_a_bad_tolerance_is_an_error():
    batch = RewardBatch("", [r"\boxed{1}"], {"answer": None})
    odd = RewardBatch("", [r"\boxed{1}"], {"answer": "1", "error": "a bit"})
    with RewardPool({"math_answer": math_answer}, workers=1) as pool:
        (abstained,), (failed,) = pool.score([batch, odd])
    assert abstained.reason.startswith("abstained")
    assert "the error 'a bit' is not a number" in failed.reason


def test_it_works_in_any_thread_outside_a_pool():
    found = {}

    def judge():
        found["values"] = math_answer([r"\boxed{9^{9^{9^{9}}}}", r"\boxed{\frac12}", r"\boxed{2}"], ["1", "0.5", None])

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join(60)
    assert found["values"] == [0.0, 1.0, None]


def test_the_reward_is_imported_without_mpmath():
    code = "import sys, gvpo.rewards; assert not {'mpmath', 'sympy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
