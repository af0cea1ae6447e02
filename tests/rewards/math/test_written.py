"""Mathematical answers in the words and layouts of language models, as (gold, written), by family."""

import pytest

from gvpo.rewards.math.math_answer import final_answer, gold_text
from gvpo.rewards.math.values import same_answer
from tests.rewards.judging import judged, table

pytest.importorskip("mpmath")

SAME = {
    "words after a number": [
        ("10", "10 books"),
        ("10", "10 Newtons"),
        ("10", "10 eggs per day"),
        ("10", "10 mi"),
        ("10", r"10~\mathrm{kg\cdot m^2}"),
        ("10", r"10\, \mathrm{km\,h^{-1}}"),
        ("10", r"10\,\mu\text{m}"),
        ("5", r"5\text{ more}"),
        ("5", "5 quarters"),
        ("5", "5 months"),
        ("28%", "28 percentage"),
        (r"164\pi", r"164 \pi \text{ square feet}"),
        (r"164 \pi \mbox{ square feet}", "164π"),
        (r"164\pi", "164π square feet"),
    ],
    "millions and dozens": [
        ("5000000", "5 million"),
        ("5000000", r"\$5\text{ million}"),
        ("5000000", r"5 \text{ million dollars}"),
        ("2500000", "2.5 million"),
        (r"5\text{ million}", "5,000,000"),
        ("24", "2 dozen eggs"),
    ],
    "coordinates with names": [
        ("(2,3)", "y=3, x=2"),
        ("(1,2,3)", "a=1, c=3, b=2"),
        ("(2,3)", r"m = 2 \text{ and } n = 3"),
        ("2,3", "y=2, x=3"),
    ],
    "lines and systems": [
        ("5", r"\begin{aligned}5\end{aligned}"),
        ("7", r"\begin{aligned} x &= 3+4 \\ &= 7. \end{aligned}"),
        ("x=2,y=3", r"\begin{align*} x&=2 \\ y&=3 \end{align*}"),
        ("x=2,y=3", r"\begin{cases} x=2 \\ y=3 \end{cases}"),
        ("(2,3)", r"\left\{\begin{array}{l} x=2 \\ y=3 \end{array}\right."),
        (r"\begin{cases} x^2 & x>0 \\ 0 & x\le 0\end{cases}", r"\begin{cases}x^2&x>0\\0&x\leq0\end{cases}"),
    ],
    "functions and Greek letters without a backslash": [
        (r"\log_2 3", "log_2(3)"),
        (r"\ln 2", "ln 2"),
        (r"\sin^2\theta", "sin^2(θ)"),
        (r"2\sin x \cos x", "2 sin(x) cos(x)"),
        (r"x \sin x", "x sin x"),
        (r"\cot x", "cot(x)"),
        (r"\arcsin{1.3 \sin{\theta_w}}", "asin(1.3*sin(theta_w))"),
        (r"\omega^2+s^2", "omega**2 + s**2"),
        (r"2.2\tau", "2.2 tau"),
        ("v_0^2 t", "v_0**2*t"),
        (r"\binom{2n}{n}", "binomial(2*n, n)"),
        (r"m n-\lfloor m / 2\rfloor", "m*n - floor(m/2)"),
        (r"2\cos(\pi t+\pi/3)", "2*cos(pi*t + pi/3)"),
        (r"\cos 20^\circ + i \sin 20^\circ", r"\operatorname{cis} 20^\circ"),
        ("5", "5 sec"),
        (r"\sqrt{2}", "2^0.5"),
    ],
    "sets": [
        (r"(-\infty,0)\cup(0,\infty)", "(-inf, 0) U (0, inf)"),
        (r"(-\infty,0)\cup(0,\infty)", r"\text{all real numbers except } 0"),
        (r"(-\infty,0)\cup(0,\infty)", "All real numbers except x = 0"),
        (r"\mathbb{R}", r"\text{All real numbers}"),
        (r"(-\infty,-2)\cup(-2, 2)\cup(2,\infty)", r"((-\infty, -2) \cup (-2, 2)) \cup (2, \infty)"),
    ],
    "absolute values": [
        ("(-1,1)", "|x|<1"),
        ("[-1,1]", r"|x| \le 1"),
        (r"(-\infty,-1)\cup(1,\infty)", "|x|>1"),
        (r"[-\frac12, \frac12]", r"\frac12 \ge |x|"),
        (r"(-\infty,-1)\cup(-1,1)\cup(1,\infty)", r"|x| \ne 1"),
    ],
    "for all x": [
        ("f(x)=x", r"f(x) = x \text{ for all real } x"),
        ("f(x)=x", r"f(x)=x \quad \forall x"),
        ("(1,1)", r"(1,1) \text{ only}"),
        ("f(x)=0", r"f(x) \equiv 0"),
    ],
    "fonts and accents": [
        ("5", r"{\Large 5}"),
        (r"\frac{dM}{dt}=kM", r"\frac{\mathrm{d}M}{\mathrm{d}t}=kM"),
        (r"\dot{x}+2x=0", r"2x+\dot x=0"),
        (r"\pi i", r"\pi\mathrm{i}"),
    ],
    "others": [
        ("1,2", r"1 \mathrm{\ and\ } 2"),
        ("3:4", r"3 \colon 4"),
        ("B", "B)"),
        (r"\begin{pmatrix}-1\\2\end{pmatrix}", r"-\begin{pmatrix}1\\-2\end{pmatrix}"),
        ("no solution", r"\text{No solution}"),
        (r"x\ne 2", r"x \not= 2"),
        (r"\hbar \omega", r"\omega\hbar"),
        (r"\neg p", r"\neg  p"),
        (r"\frac{5\sqrt{42}}{27}", r"\frac{10\sqrt{10.5}}{27}"),
        (r"\frac{1}{3\sqrt[3]{x}^2}", r"\frac{1}{3x^{2/3}}"),
    ],
}
WRONG = {
    "words that change a number": [
        ("5", r"5\text{ or more}"),
        ("5", r"5\text{ or less}"),
        ("5", r"5\text{ at most}"),
        ("5", r"5\text{ is wrong}"),
        ("5", r"5\text{ if even, else }6"),
        ("5", "5 million"),
        ("5", r"5\text{ million}"),
        ("5", r"5\text{ dozen}"),
        ("5", "5 squared"),
        ("5", r"5\text{ squared}"),
        ("5", r"5\text{ thirds}"),
        ("5", "5 halves"),
        ("5", "5 theta"),
        ("5", "5 less than x"),
        ("5", "5 times x"),
        ("5", "5 below zero"),
        ("5", r"5\text{ less than }x"),
        ("5", "5 xyz"),
        ("5", "5 sinx"),
        ("5", r"5\text{ cm} x"),
    ],
    "0 times what is no number": [
        ("0", "not 0"),
        ("0", "never 0"),
        ("0", r"\text{not }0"),
        ("0", r"\neg 0"),
        ("0", r"x \notin 0"),
        ("0", r"\det 0"),
        ("0", r"\text{None of the above, }0"),
    ],
    "coordinates with names": [("(2,3)", "y=2,x=3"), ("(2,3)", "x=3,y=2"), ("(2,3)", "b=2,a=3")],
    "lines and systems": [
        ("x=2,y=3", r"\begin{cases} x=3 \\ y=2 \end{cases}"),
        ("7", r"\begin{aligned} x &= 7 \\ y &= 8 \end{aligned}"),
        ("x^2", r"\begin{cases} x^2 & x>0 \\ 0 & x\le 0\end{cases}"),
        (r"\begin{cases} x^2 & x>0 \\ 0 & x\le 0\end{cases}", r"\begin{cases} x^2 & x>0 \\ 1 & x\le 0\end{cases}"),
    ],
    "equations that contradict themselves": [("5", "x=6=5"), ("x=5", "x=6=5")],
    "absolute values": [("(-1,1)", r"|x| \le 1"), ("(-1,1)", "|x|<2"), ("(-1,1)", "|x|>1"), ("1", "|x|=1")],
    "indices that are no number bases": [("E_{1}", "E"), ("F_{n}", "F"), ("A_{12}", "A")],
    "intervals without brackets": [("(0,1]", "0,1"), ("[0,1)", "0,1"), ("[-2,2]", "-2,2"), ("0,1", "(0,1]")],
    "others": [(r"\frac{14}{3}", r"0.\frac{14}{3}")],
}
COMPLETIONS = [
    ("1,2", r"The roots are $\boxed{1}$ and $\boxed{2}$.", True),
    ("1,-2", r"\[ \boxed{-2} \quad \text{and} \quad \boxed{1}. \]", True),
    ("1,2", r"\(\boxed{1}\) or \(\boxed{2}\)", True),
    ("1,2,3", r"$\boxed{1}, \boxed{2}, \text{ and } \boxed{3}$", True),
    ("5", r"$\boxed{5}$, $\boxed{5}$", True),
    ("5", r"First \boxed{4}, and after a correction \boxed{5}", True),
    ("5", r"\boxed{4}. \boxed{5}", True),
    ("5", r"\boxed{x=\boxed{5}}", True),
    ("2", r"$\boxed{1}$ and $\boxed{2}$", False),
    ("2", r"\boxed{1} or \boxed{2}", False),
    ("1", r"\boxed{1}, \boxed{2}", False),
]


@pytest.mark.parametrize(("gold", "written"), table(SAME))
def test_the_same_answer(gold, written):
    assert judged(gold, written)


@pytest.mark.parametrize(("gold", "written"), table(WRONG))
def test_wrong_answers(gold, written):
    assert not judged(gold, written)


@pytest.mark.parametrize(("gold", "completion", "right"), COMPLETIONS)
def test_boxes_that_are_enumerated_are_one_answer(gold, completion, right):
    assert same_answer(gold_text(gold), final_answer(completion) or "") is right
