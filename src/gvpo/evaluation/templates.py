r"""Prompt templates: the text around a question, and the reading of answers in tags.

The results of base models depend on the template as much as on their training (Dr.GRPO, arXiv:2503.20783, figure 3), so
a number without its template means little.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gvpo.errors import ConfigError
from gvpo.evaluation.benchmarks import Benchmark
from gvpo.rewards.base import Answer, RewardFunc, completion_text
from gvpo.types import Problem, Prompt

Ask = Callable[[Benchmark, str], str]
AUTO = "auto"

QWEN_MATH = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{{}}.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""Qwen2.5-Math's own prompt (arXiv:2409.12122)."""

R1 = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.\nUser: {}\nAssistant: <think>"
)
"""DeepSeek-R1-Zero's prompt (arXiv:2501.12948, table 1), in the form in which Dr.GRPO evaluates base models."""

STOPS_OF_A_FUNCTION = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n```")
"""Texts that follow the end of a function completed by a base model (Chen et al., arXiv:2107.03374, section 2.1)."""

ANSWERED = "</answer>"
"""Stop text of `R1`: without it, base models continue with another question and answer."""

_ANSWER_TAG = re.compile(rf"<answer>(.*?)(?:{ANSWERED}|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """Text around a question.

    Args:
        name: Its key in `TEMPLATES`.
        text: Function of benchmark and question that returns the text of the prompt.
        form: "plain" if the text is the model's input; "chat" if it is a user message for the chat template.
        stops: Texts that end a completion, by the family of the benchmark.
        tagged: Whether the answer is written in <answer> </answer>.
        families: Families of benchmarks that the template fits; None for all.
    """

    name: str
    text: Ask
    form: Literal["plain", "chat"] = "plain"
    stops: Mapping[str, tuple[str, ...]] | None = None
    tagged: bool = False
    families: tuple[str, ...] | None = None

    def apply(self, benchmark: Benchmark, problem: Problem) -> Prompt:
        """Return the prompt of a problem.

        Raises:
            ConfigError: If the template does not fit the benchmark's family, or is plain and the prompt is already chat
                messages.
        """
        if self.families is not None and benchmark.family not in self.families:
            raise ConfigError(f"the template {self.name!r} does not fit {benchmark.name}; use chat or plain")
        if not isinstance(problem.prompt, str):
            if self.form == "plain":
                raise ConfigError(f"the prompts of {benchmark.name} are chat messages; use the template chat")
            return problem.prompt
        text = self.text(benchmark, problem.prompt)
        return [{"role": "user", "content": text}] if self.form == "chat" else text

    def stops_for(self, benchmark: Benchmark) -> tuple[str, ...]:
        """Return the texts that end a completion."""
        return (self.stops or {}).get(benchmark.family, ())

    def judged_by(self, reward: RewardFunc, benchmark: Benchmark) -> RewardFunc:
        """Return the benchmark's reward; if the template uses answer tags, it receives only the answer."""
        return inside_answer(reward, boxed=benchmark.family == "math") if self.tagged else reward


def inside_answer(reward: RewardFunc, *, boxed: bool) -> RewardFunc:
    r"""Return a reward that receives only the content of the last <answer> </answer>, or a text without tags unchanged.

    Args:
        reward: The reward to wrap.
        boxed: Put the answer into \boxed{} if it is not.
    """

    @functools.wraps(reward)
    def judged(completions: Sequence[Answer], **columns: Any) -> Any:
        return reward(
            completions=[answer_inside(completion_text(each), boxed=boxed) for each in completions], **columns
        )

    return judged


def answer_inside(text: str, *, boxed: bool) -> str:
    """Return the content of the last answer tag; see `inside_answer`."""
    found = _ANSWER_TAG.findall(text)
    if not found:
        return text
    answer = str(found[-1])
    return rf"\boxed{{{answer.strip()}}}" if boxed and r"\boxed" not in answer else answer


def _asked(benchmark: Benchmark, question: str) -> str:
    """Return the question with the benchmark's instruction."""
    if benchmark.family == "continuation":
        return f"{benchmark.instruction}{question}"
    return f"{question}{benchmark.instruction}"


def _plain(benchmark: Benchmark, question: str) -> str:
    """Return the question with the benchmark's instruction; a text to be continued needs no instruction."""
    return question if benchmark.family == "continuation" else _asked(benchmark, question)


def _r1(benchmark: Benchmark, question: str) -> str:
    return R1.format(question if benchmark.family == "math" else _asked(benchmark, question))


EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "math": (
        (
            "A box holds 4 rows of 6 eggs. Five eggs are broken. How many are whole?",
            r"There are $4 \cdot 6 = 24$ eggs, and $24 - 5 = 19$ are whole. The answer is \boxed{19}.",
        ),
        (
            "What is the sum of the roots of $x^2 - 7x + 12 = 0$?",
            r"$x^2 - 7x + 12 = (x - 3)(x - 4)$, so the roots are 3 and 4. The answer is \boxed{7}.",
        ),
        (
            "A fair die is thrown twice. How likely is it that both numbers are even?",
            r"Each number is even with probability $\frac{1}{2}$, independently of the other, so both are with "
            r"$\frac{1}{2} \cdot \frac{1}{2} = \frac{1}{4}$. The answer is \boxed{\frac{1}{4}}.",
        ),
        (
            "The legs of a right triangle measure 5 and 12. Find the length of its hypotenuse.",
            r"By Pythagoras its square is $5^2 + 12^2 = 25 + 144 = 169$, so it is $\sqrt{169} = 13$. "
            r"The answer is \boxed{13}.",
        ),
    ),
    "code": (
        (
            "Write a function to count the vowels of a word.\nIt has to pass:\nassert count_vowels('banana') == 3",
            "```python\ndef count_vowels(word):\n    return sum(letter in 'aeiou' for letter in word.lower())\n```",
        ),
        (
            "Write a function to find the second largest number of a list.\nIt has to pass:\n"
            "assert second_largest([4, 9, 7]) == 7",
            "```python\ndef second_largest(numbers):\n    return sorted(set(numbers))[-2]\n```",
        ),
    ),
}
"""Worked examples by family. They were written for this library, so no benchmark contains them."""

_PROBLEM, _SOLUTION = "Problem:\n", "Solution:\n"


def few_shot(examples: Sequence[tuple[str, str]] | None = None) -> Template:
    """Return a template that puts worked examples before the question, for base models.

    Args:
        examples: Pairs of a question and a solution; default: `EXAMPLES` of the benchmark's family.
    """

    def text(benchmark: Benchmark, question: str) -> str:
        shown = EXAMPLES[benchmark.family] if examples is None else examples
        before = "".join(f"{_PROBLEM}{asked}\n\n{_SOLUTION}{solved}\n\n" for asked, solved in shown)
        return f"{before}{_PROBLEM}{question}\n\n{_SOLUTION}"

    families = ("math", "code") if examples is None else ("math", "code", "own")
    return Template("few-shot", text, stops=dict.fromkeys(families, (f"\n{_PROBLEM.strip()}",)), families=families)


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template("chat", _asked, "chat"),
        Template("plain", _plain, stops={"continuation": STOPS_OF_A_FUNCTION}),
        Template("none", lambda _, question: question, stops={"continuation": STOPS_OF_A_FUNCTION}),
        Template("qwen-math", lambda _, question: QWEN_MATH.format(question), families=("math",)),
        Template("r1", _r1, stops=dict.fromkeys(("math", "code"), (ANSWERED,)), tagged=True, families=("math", "code")),
        few_shot(),
    )
}
"""Templates by name. `auto` is not listed: it means chat if the tokenizer has a chat template, otherwise plain."""


def find_template(name: str, *, chat_template: bool, examples: Sequence[tuple[str, str]] | None = None) -> Template:
    """Return the template with a name.

    Args:
        name: A key of `TEMPLATES`, or "auto".
        chat_template: Whether the tokenizer has a chat template.
        examples: The user's own worked examples, for few-shot.

    Raises:
        ConfigError: If examples are given for a template other than few-shot.
    """
    if name == AUTO:
        name = "chat" if chat_template else "plain"
    if examples is not None:
        if name != "few-shot":
            raise ConfigError(f"--examples are for the template few-shot, not {name}")
        return few_shot(examples)
    return TEMPLATES[name]
