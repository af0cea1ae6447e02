"""Tests of tokenizers: loading from a checkpoint, prompts as token ids, padding ids."""

import warnings
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gvpo.errors import ConfigError, DataError, ModelError
from gvpo.model.tokenizer import PROBES, TokenizerWarning, encode_prompt, load_tokenizer, pad_id, tokenizer_difference
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer, tiny_model

PLAIN_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}{% if not thinking | default(true) %}<quick>{% endif %}"
)


def digit_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of digit pairs and single characters with its own pattern, which Qwen2's class loses."""
    words = ["<pad>", "<eos>", "<unk>", *"0123456789+=\n ", *(f"{n:02d}" for n in range(100))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d\d|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def with_bos(tokenizer: PreTrainedTokenizerFast, *, eos: bool = False) -> PreTrainedTokenizerFast:
    """Put <bos> before each text, as Llama's tokenizers do, and <eos> after it on request."""
    single = "<bos> $A <eos>" if eos else "<bos> $A"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return tokenizer


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


# loading


@pytest.mark.parametrize("make", [byte_tokenizer, digit_tokenizer])
def test_a_custom_tokenizer_of_a_qwen2_checkpoint_is_loaded_unchanged(make, tmp_path):
    """transformers returns Qwen2Tokenizer here, which rebuilds normalizer and pre-tokenizer."""
    original = make()
    tiny_model("qwen2").save_pretrained(tmp_path)
    original.save_pretrained(tmp_path)
    texts = ["12+345=357\n1020304050", "cafe\u0301 12  34"]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert any(theirs(text).input_ids != original(text).input_ids for text in texts)
    with pytest.warns(TokenizerWarning, match=r"Qwen2Tokenizer.*using tokenizer\.json"):
        ours = load_tokenizer(tmp_path)
    for text in (*texts, *PROBES):
        assert ours(text).input_ids == original(text).input_ids
    assert (ours.eos_token_id, ours.pad_token_id) == (original.eos_token_id, original.pad_token_id)
    assert tokenizer_difference(original, ours, texts) == ""


def test_a_tokenizer_that_transformers_loads_correctly_gives_no_warning(tmp_path):
    original = byte_tokenizer(CHAT_TEMPLATE)
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    original.save_pretrained(tmp_path / "alone")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_tokenizer(tmp_path / "alone")
    assert tokenizer_difference(original, loaded, ["one text"]) == ""
    assert loaded.chat_template == CHAT_TEMPLATE


def test_the_error_names_a_directory_without_a_tokenizer(tmp_path):
    tiny_model("qwen2").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_the_error_names_a_corrupt_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot load the tokenizer in .*; save it again"):
        load_tokenizer(tmp_path)


# differences


def test_a_changed_special_token_or_template_is_a_difference():
    other = byte_tokenizer()
    other.eos_token = "<bos>"
    assert "eos_token_id was 1 and is 2" in tokenizer_difference(byte_tokenizer(), other)
    assert "chat_template" in tokenizer_difference(byte_tokenizer(), byte_tokenizer(CHAT_TEMPLATE))


def test_other_tokens_of_a_real_text_are_a_difference():
    other = byte_tokenizer()
    other.add_tokens(["zebra"])
    assert tokenizer_difference(byte_tokenizer(), other) == ""
    assert "'a zebra'" in tokenizer_difference(byte_tokenizer(), other, ["a zebra"])


def test_an_added_bos_is_a_difference():
    assert tokenizer_difference(byte_tokenizer(), with_bos(byte_tokenizer())) != ""


# prompts


def test_plain_text_becomes_its_own_tokens():
    tokenizer = byte_tokenizer()
    assert text_of(tokenizer, encode_prompt(tokenizer, "1+2=")) == "1+2="


def test_plain_text_gets_the_tokenizers_bos_once():
    tokenizer = with_bos(byte_tokenizer())
    assert text_of(tokenizer, encode_prompt(tokenizer, "1+2=")) == "<bos>1+2="
    assert text_of(tokenizer, encode_prompt(tokenizer, "<bos>1+2=")) == "<bos>1+2="


def test_an_end_token_that_the_tokenizer_adds_is_not_part_of_a_prompt():
    tokenizer = with_bos(byte_tokenizer(), eos=True)
    assert text_of(tokenizer, encode_prompt(tokenizer, "1+2=")) == "<bos>1+2="
    assert text_of(tokenizer, encode_prompt(tokenizer, "1+2=<eos>")) == "<bos>1+2=<eos>"


def test_a_template_that_writes_bos_gives_one_bos():
    tokenizer = with_bos(byte_tokenizer(CHAT_TEMPLATE))
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "hi"}])
    assert text_of(tokenizer, ids) == "<bos>[user]hi\n[assistant]"
    assert ids.count(tokenizer.bos_token_id) == 1


def test_text_is_one_user_message_if_there_is_a_template():
    tokenizer = byte_tokenizer(PLAIN_TEMPLATE)
    assert encode_prompt(tokenizer, "hi") == encode_prompt(tokenizer, [{"role": "user", "content": "hi"}])
    assert text_of(tokenizer, encode_prompt(tokenizer, "hi", chat="chat")) == "[user]hi[assistant]"
    assert text_of(tokenizer, encode_prompt(tokenizer, "hi", chat="plain")) == "hi"


def test_system_prompt_and_template_arguments_reach_the_template():
    tokenizer = byte_tokenizer(PLAIN_TEMPLATE)
    ids = encode_prompt(tokenizer, "hi", system_prompt="be brief", template_args={"thinking": False})
    assert text_of(tokenizer, ids) == "[system]be brief[user]hi[assistant]<quick>"


def test_a_prompts_own_system_message_stays():
    tokenizer = byte_tokenizer(PLAIN_TEMPLATE)
    messages = [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]
    assert (
        text_of(tokenizer, encode_prompt(tokenizer, messages, system_prompt="other"))
        == "[system]own[user]hi[assistant]"
    )
    assert len(messages) == 2


def test_a_last_message_of_the_assistant_is_continued():
    tokenizer = byte_tokenizer(PLAIN_TEMPLATE)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well,"}]
    assert text_of(tokenizer, encode_prompt(tokenizer, messages)) == "[user]hi[assistant]Well,"


@pytest.mark.parametrize("empty", ["", []])
def test_an_empty_prompt_is_rejected(empty):
    with pytest.raises(DataError, match="empty"):
        encode_prompt(byte_tokenizer(CHAT_TEMPLATE), empty)


def test_a_prompt_without_tokens_is_rejected():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(DataError, match="no token"):
        encode_prompt(tokenizer, "  ")


def test_messages_without_a_template_suggest_a_fix():
    with pytest.raises(DataError, match=r"set tokenizer\.chat_template"):
        encode_prompt(byte_tokenizer(), [{"role": "user", "content": "hi"}])
    with pytest.raises(DataError, match=r"set tokenizer\.chat_template"):
        encode_prompt(byte_tokenizer(), "hi", chat="chat")


def test_messages_in_plain_mode_are_rejected():
    with pytest.raises(DataError, match="chat='plain'"):
        encode_prompt(byte_tokenizer(CHAT_TEMPLATE), [{"role": "user", "content": "hi"}], chat="plain")


def test_the_error_names_an_invalid_message():
    with pytest.raises(DataError, match="message 1 has no `role` and `content`; write messages as"):
        encode_prompt(byte_tokenizer(CHAT_TEMPLATE), ["hi"])


def test_the_error_of_a_template_is_reported():
    tokenizer = byte_tokenizer("{{ raise_exception('no system role here') }}")
    with pytest.raises(DataError, match="no system role here"):
        encode_prompt(tokenizer, "hi")


@pytest.mark.parametrize("settings", [{"system_prompt": "be brief"}, {"template_args": {"thinking": False}}])
def test_settings_that_plain_text_would_ignore_are_rejected(settings):
    with pytest.raises(ConfigError, match="need a chat template"):
        encode_prompt(byte_tokenizer(), "hi", **settings)


def test_an_unknown_mode_is_rejected():
    with pytest.raises(ConfigError, match="'auto', 'chat' or 'plain'"):
        encode_prompt(byte_tokenizer(), "hi", chat="always")


# padding ids


def test_padding_falls_back_to_the_end_token_and_adds_none():
    tokenizer = byte_tokenizer()
    assert pad_id(tokenizer) == 0
    tokenizer.pad_token = None
    assert pad_id(tokenizer) == tokenizer.eos_token_id == 1
    assert len(tokenizer) == len(byte_tokenizer())
    tokenizer.eos_token = None
    assert pad_id(tokenizer) == 0


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_the_error_names_a_corrupt_config(tmp_path: Path, name: str, data: bytes):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=f"{name} is not a JSON object; copy or download the model again"):
        load_tokenizer(tmp_path)
