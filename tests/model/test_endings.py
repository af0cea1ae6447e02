"""Tests of the end of an answer by template family: the tokens that stop a completion and the one that is written."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import GenerationConfig, PreTrainedTokenizerFast

from gvpo.model.endings import ending
from tests.fakes import byte_tokenizer

TURNS = "{% for m in messages %}{header}{{ m.content }}{end}{% endfor %}{% if add_generation_prompt %}{open}{% endif %}"


def template(header: str, end: str, opening: str) -> str:
    return TURNS.replace("{header}", header).replace("{end}", end).replace("{open}", opening)


CHATML = template("<|im_start|>{{ m.role }}\n", "<|im_end|>\n", "<|im_start|>assistant\n")
LLAMA3 = template(
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n",
    "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
GEMMA = template("<start_of_turn>{{ m.role }}\n", "<end_of_turn>\n", "<start_of_turn>model\n")
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
GLM = template("<|{{ m.role }}|>\n", "", "<|assistant|>\n")
VICUNA = template("{{ m.role }}: ", "\n\n", "assistant: ")
UNLESS_LAST = CHATML.replace("<|im_end|>\n{%", "{% if not loop.last %}<|im_end|>\n{% endif %}{%", 1)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
)
ALWAYS_OPEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)

IM = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Family:
    """A tokenizer, and the end of its answers.

    Args:
        name: Name of the family.
        template: Chat template.
        special: Special tokens, in addition to bos and pad.
        added: Added tokens that are not special.
        eos: End token of the tokenizer.
        configured: End tokens of the generation config.
        stops: Tokens that end a completion.
        written: Token that ends a training target.
        plain: Token that ends a training target if prompts are plain text; default the end token.
    """

    name: str
    template: str | None
    stops: set[str]
    written: str | None
    eos: str | None = "</s>"
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    configured: tuple[str, ...] = ()
    plain: str | None = None
    pad: str = "<pad>"
    args: dict[str, object] = field(default_factory=dict)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = byte_tokenizer(self.template)
        tokenizer.add_special_tokens({"additional_special_tokens": list(self.special)})
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in self.added])
        tokenizer.add_special_tokens({"eos_token": self.eos} if self.eos is not None else {})
        tokenizer.eos_token, tokenizer.pad_token = self.eos, self.pad
        return tokenizer


FAMILIES = [
    # the template's terminator in addition to another end token
    Family("chatml, eos </s>", CHATML, {"</s>", IM[1]}, IM[1], special=IM),
    Family("qwen base", CHATML, {"<|endoftext|>", IM[1]}, IM[1], eos="<|endoftext|>", special=IM),
    Family(
        "llama 3 base's eos",
        LLAMA3,
        {"<|end_of_text|>", "<|eot_id|>"},
        "<|eot_id|>",
        eos="<|end_of_text|>",
        special=("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    Family(
        "llama 3.1 with a list of end tokens",
        LLAMA3,
        {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"},
        "<|eot_id|>",
        eos="<|eot_id|>",
        special=("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|end_of_text|>"),
        configured=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    Family(
        "gemma",
        GEMMA,
        {"<eos>", "<end_of_turn>"},
        "<end_of_turn>",
        eos="<eos>",
        special=("<start_of_turn>", "<end_of_turn>"),
    ),
    Family(
        "phi 3, whose end of text follows",
        PHI3,
        {"<|endoftext|>", "<|end|>"},
        "<|end|>",
        eos="<|endoftext|>",
        special=("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    Family("harmony", HARMONY, {"</s>", "<|return|>"}, "<|return|>", special=("<|end|>", "<|return|>", "<|start|>")),
    # the same token
    Family("llama 2", LLAMA2, {"</s>"}, "</s>"),
    Family("smollm 2", CHATML, {IM[1]}, IM[1], eos=IM[1], special=IM),
    Family("pad is eos", CHATML, {"</s>", IM[1]}, IM[1], special=IM, pad="</s>"),
    Family("pad is the terminator", CHATML, {"</s>", IM[1]}, IM[1], special=IM, pad=IM[1]),
    # no token after an answer: the end token
    Family("no template", None, {"</s>"}, "</s>"),
    Family("no terminator, next turn's header only", GLM, {"</s>"}, "</s>", special=("<|user|>", "<|assistant|>")),
    Family(
        "headers of several tokens",
        LLAMA3.replace("<|eot_id|>", ""),
        {"</s>"},
        "</s>",
        special=("<|end_header_id|>", "<|start_header_id|>"),
    ),
    Family("plain text \\n\\n", VICUNA, {"</s>"}, "</s>"),
    Family("</s> and a line break", VICUNA.replace("\n\n", "</s>\n"), {"</s>"}, "</s>"),
    Family("several ordinary tokens", CHATML, {"</s>"}, "</s>"),
    Family("a word", VICUNA.replace("\n\n", " END"), {"</s>"}, "</s>"),
    Family("a word that was added", VICUNA.replace("\n\n", "END"), {"</s>"}, "</s>", added=("END",)),
    Family("a template that refuses", "{{ raise_exception('no') }}", {"</s>"}, "</s>"),
    Family("a template that cannot be computed", "{{ 1 / 0 }}", {"</s>"}, "</s>", special=IM),
    Family("a template that drops answers", "{{ messages[0].content }}<|im_end|>", {"</s>"}, "</s>", special=IM),
    # terminators in odd places
    Family("an added token that is not special", CHATML, {"</s>", IM[1]}, IM[1], added=IM),
    Family("text before the terminator", VICUNA.replace("\n\n", "\n###<|im_end|>"), {"</s>", IM[1]}, IM[1], special=IM),
    Family(
        "a tag that is not special before it",
        VICUNA.replace("\n\n", "</answer><|im_end|>"),
        {"</s>", IM[1]},
        IM[1],
        special=IM,
        added=("</answer>",),
    ),
    Family("no terminator after the last turn", UNLESS_LAST, {"</s>", IM[1]}, IM[1], special=IM),
    Family("a generation prompt after each conversation", ALWAYS_OPEN, {"</s>", IM[1]}, IM[1], special=IM),
    Family("tools", TOOLS, {"</s>", IM[1]}, IM[1], special=IM, added=("<tool_call>", "</tool_call>")),
    Family(
        "by a template's argument",
        VICUNA.replace("\n\n", "{% if turns %}<|im_end|>{% endif %}"),
        {"</s>", IM[1]},
        IM[1],
        special=IM,
        args={"turns": True},
    ),
    Family(
        "a template that demands a system prompt",
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system prompt') }}{% endif %}" + CHATML,
        {"</s>", IM[1]},
        IM[1],
        special=IM,
    ),
    # no end token in the tokenizer
    Family("no eos, with a template", CHATML, {IM[1]}, IM[1], eos=None, special=IM, plain=IM[1]),
    Family("no eos, a generation config", None, {"a", "b"}, "b", eos=None, configured=("b", "a"), plain="b"),
    Family("nothing", VICUNA, set(), None, eos=None),
]


def model(ends: list[int]) -> Any:
    """Return a stand-in for a model that has only a generation config."""
    return SimpleNamespace(generation_config=GenerationConfig(eos_token_id=ends or None))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_how_answers_end(family: Family):
    tokenizer = family.tokenizer()
    ids = tokenizer.convert_tokens_to_ids(list(family.configured))
    found = ending(tokenizer, model(ids), template_args=family.args)
    assert set(tokenizer.convert_ids_to_tokens(list(found.stops))) == family.stops
    assert found.stops == tuple(sorted(found.stops))
    assert found.written == (None if family.written is None else tokenizer.convert_tokens_to_ids(family.written))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_plain_prompts_change_what_is_written_and_not_what_stops(family: Family):
    tokenizer = family.tokenizer()
    ids = tokenizer.convert_tokens_to_ids(list(family.configured))
    found = ending(tokenizer, model(ids), chat="plain", template_args=family.args)
    assert set(tokenizer.convert_ids_to_tokens(list(found.stops))) == family.stops
    written = family.plain or family.eos
    assert found.written == (None if written is None else tokenizer.convert_tokens_to_ids(written))


SPELLED_OUT = [
    ("chatml", CHATML, "<|im_end|>"),
    ("another model's end token", VICUNA.replace("\n\n", "<|eot_id|>"), "<|eot_id|>"),
    ("in square brackets", VICUNA.replace("\n\n", " [END]\n"), "[END]"),
]


@pytest.mark.parametrize(("name", "template", "mark"), SPELLED_OUT, ids=lambda value: str(value)[:20])
def test_the_error_names_an_end_that_is_not_a_token(name: str, template: str, mark: str):
    tokenizer = byte_tokenizer(template)
    found = ending(tokenizer, None)
    assert found.doubt.startswith(f"the chat template ends an answer with '{mark}', which the tokenizer writes as ")
    assert found.stops == (tokenizer.eos_token_id,)
    assert ending(tokenizer, None, chat="plain").doubt == ""
    tokenizer.add_special_tokens({"additional_special_tokens": [mark]})
    assert ending(tokenizer, None).doubt == ""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_endings_of_known_families_give_no_warning(family: Family):
    tokenizer = family.tokenizer()
    ids = tokenizer.convert_tokens_to_ids(list(family.configured))
    doubt = ending(tokenizer, model(ids), template_args=family.args).doubt
    assert bool(doubt) == (family.name in ("several ordinary tokens", "nothing"))


def test_an_id_without_a_token_ends_nothing():
    tokenizer = byte_tokenizer()
    assert ending(tokenizer, model([-1])).stops == (tokenizer.eos_token_id,)


def test_the_unknown_token_ends_nothing():
    tokenizer = byte_tokenizer(VICUNA)
    tokenizer.unk_token = "<unk>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<unk>"]})
    tokenizer.chat_template = VICUNA.replace("\n\n", "<unk>")
    assert ending(tokenizer, None).stops == (tokenizer.eos_token_id,)


def test_without_a_generation_config_the_tokenizer_decides():
    tokenizer = byte_tokenizer()
    assert ending(tokenizer, None).stops == (tokenizer.eos_token_id,)
    tokenizer.eos_token = None
    assert ending(tokenizer, None).stops == ()
