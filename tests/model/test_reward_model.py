"""Tests of reward models: random sequence classifiers of real architectures, with their own tokenizers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2ForSequenceClassification,
)

from gvpo.errors import GvpoWarning, ModelError
from gvpo.model.reward_model import RewardModel
from gvpo.rewards import RewardBatch, RewardPool
from gvpo.rewards.identity import identity
from tests.fakes import CHAT_TEMPLATE, CONFIGS, byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:AutoTokenizer loads")  # as Qwen2Tokenizer; the file takes precedence
QUESTION = [{"role": "user", "content": "Why?"}]
ANSWERS = ["", "b", "because", "because it is so, and always was", "é"]


def save(directory: Path, kind: str = "qwen2", *, template: str | None = CHAT_TEMPLATE, **config: Any) -> str:
    torch.manual_seed(0)
    heads = {"qwen2": Qwen2ForSequenceClassification, "llama": LlamaForSequenceClassification}
    settings = type(CONFIGS[kind])(**{**CONFIGS[kind].to_diff_dict(), "num_labels": 1, **config})
    model = heads[kind](settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12.0)
    return store(model, directory, template)


def store(model: PreTrainedModel, directory: Path, template: str | None = None) -> str:
    model.save_pretrained(directory)
    byte_tokenizer(template).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("reward"))


def score(model: RewardModel, *answers: str, prompt: Any = "Why?") -> list[Any]:
    return model(prompts=[prompt] * len(answers), completions=list(answers))


def by_hand(path: str, text: str) -> float:
    """Score with plain transformers, one text at a time."""
    model = Qwen2ForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([byte_tokenizer()(text).input_ids])).logits[0, 0])


# input texts


def test_the_score_is_computed_from_the_closed_conversation(path: str):
    model = RewardModel(path)
    wanted = by_hand(path, "<bos>[user]Why?\n[assistant]because\n")
    assert score(model, "because") == [pytest.approx(wanted, abs=1e-5)]
    assert score(model, "because", prompt=QUESTION) == score(model, "because")
    message = [{"role": "assistant", "content": "because"}]
    assert model(prompts=[QUESTION], completions=[message]) == score(model, "because")
    assert len(set(score(model, *ANSWERS))) == len(ANSWERS)


def test_without_a_template_the_completion_follows_the_prompt(path: str, tmp_path: Path):
    plain = save(tmp_path, template=None)
    wanted = by_hand(plain, "Why?because")
    assert score(RewardModel(plain), "because") == [pytest.approx(wanted, abs=1e-5)]
    assert score(RewardModel(path, form="plain"), "because") == [pytest.approx(by_hand(path, "Why?because"), abs=1e-5)]
    assert score(RewardModel(path, form="pair"), "because") == score(RewardModel(path, form="plain"), "because")
    (refused,) = RewardModel(plain).verdicts(prompts=[QUESTION], completions=["a"])
    assert refused.reward is None
    assert refused.reason.startswith("exception: cannot be read by the reward model: the prompt is messages and")


def test_another_tokenizer(path: str, tmp_path: Path):
    byte_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}").save_pretrained(tmp_path)
    wanted = by_hand(path, "Why?because")
    assert score(RewardModel(path, tokenizer=tmp_path), "because") == [pytest.approx(wanted, abs=1e-5)]


# batches


@pytest.mark.parametrize("pad", [0, 1, None])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_row_scores_the_same_in_any_batch(tmp_path: Path, kind: str, pad: int | None):
    """The cases include a padding token that is the end token, a config without one, and texts with the first ids."""
    path = save(tmp_path, kind, pad_token_id=pad)
    texts = [*ANSWERS, "<eos>", "<pad><eos><bos>"]
    alone = [score(RewardModel(path), text)[0] for text in texts]
    together = score(RewardModel(path), *texts)
    cut = score(RewardModel(path, tokens_per_batch=60), *texts)
    assert together == pytest.approx(alone, abs=1e-5)
    assert cut == pytest.approx(alone, abs=1e-5)


def test_the_token_budget_bounds_each_forward(path: str):
    model = RewardModel(path, tokens_per_batch=100)
    shapes: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    score(model, *ANSWERS, "x" * 300)
    assert [shape for shape in shapes if shape[0] > 1 and shape[0] * shape[1] > 100] == []
    assert len(shapes) > 2
    assert sum(shape[0] for shape in shapes) == 6


def test_the_budget_is_halved_when_memory_runs_out(path: str):
    model = RewardModel(path)

    def too_much(_: Any, __: Any, given: dict[str, torch.Tensor]) -> None:
        if len(given["input_ids"]) > 2:
            raise torch.OutOfMemoryError("out of memory")

    wanted = score(model, *ANSWERS)
    model.model.register_forward_pre_hook(too_much, with_kwargs=True)
    assert score(model, *ANSWERS) == pytest.approx(wanted, abs=1e-5)
    assert model.tokens_per_batch < 200


# length


def test_longer_texts_are_truncated_at_the_beginning_with_one_warning(path: str):
    model = RewardModel(path, max_length=20, form="plain")
    long = "x" * 30 + "the last 20 letters."
    with pytest.warns(GvpoWarning, match="reads 20 tokens, and 1 of 2 texts are longer: their beginning is cut off"):
        cut, _ = score(model, long, "short", prompt="p")
    assert cut == pytest.approx(by_hand(path, long[-20:]), abs=1e-5)
    assert score(model, long, prompt="p") == [pytest.approx(cut, abs=1e-5)]  # and no second warning


def test_the_token_that_begins_every_text_is_kept(path: str):
    model = RewardModel(path, max_length=20)
    text = "[user]Why?\n[assistant]because\n"
    with pytest.warns(GvpoWarning, match="their beginning is cut off"):
        assert score(model, "because") == [pytest.approx(by_hand(path, "<bos>" + text[-19:]), abs=1e-5)]


def test_too_long_rows_may_have_no_reward(path: str):
    model = RewardModel(path, max_length=20, form="plain", too_long="fail")
    short, long = model.verdicts(prompts=["p", "p"], completions=["short", "x" * 30])
    assert short.reason == ""
    assert (long.reward, long.reason) == (None, "too long: has 31 tokens, and the reward model reads 20")


def test_the_models_context_is_the_limit(path: str):
    assert RewardModel(path).max_length == CONFIGS["qwen2"].max_position_embeddings
    assert RewardModel(path, max_length=10**6).max_length == CONFIGS["qwen2"].max_position_embeddings


# labels and types


def test_with_several_labels_the_probability_of_one_is_the_reward(tmp_path: Path):
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {0: "bad", 1: "so-so", 2: "good"}
    bert = BertForSequenceClassification(BertConfig(**small, intermediate_size=64, id2label=labels, num_labels=3))
    path = store(bert, tmp_path)
    parts = [score(RewardModel(path, label=label), *ANSWERS) for label in ("bad", 1, "good")]
    assert [sum(row) for row in zip(*parts, strict=True)] == pytest.approx([1.0] * len(ANSWERS))
    for label in (None, "fine", 3):
        with pytest.raises(ModelError, match=r"has 3 labels \(bad, so-so, good\); set label to one of them"):
            RewardModel(path, label=label).check_ready()


def test_the_two_texts_of_a_pair_have_their_types(tmp_path: Path):
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForSequenceClassification(BertConfig(**small, intermediate_size=64, num_labels=1)).eval()
    for weight in (bert.bert.embeddings.token_type_embeddings.weight, bert.classifier.weight):
        torch.nn.init.normal_(weight)
    bert.save_pretrained(tmp_path)
    backend = byte_tokenizer().backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", 2)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="<bos>", model_input_names=names)
    tokenizer.save_pretrained(tmp_path)

    def right(first: str, second: str) -> float:
        ids, types = [2, *byte_tokenizer()(first + second).input_ids], [0] * (1 + len(first)) + [1] * len(second)
        with torch.no_grad():
            given = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([types])}
            return float(bert(**given).logits[0, 0])

    wanted = [right("Why?", answer) for answer in ("b", "because")]
    assert score(RewardModel(tmp_path, form="pair"), "b", "because") == pytest.approx(wanted, abs=1e-5)
    with pytest.warns(GvpoWarning, match="their beginning is cut off"):
        (cut,) = score(RewardModel(tmp_path, form="pair", max_length=10), "because")
    assert cut == pytest.approx(right("y?", "because"), abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_the_requested_one(path: str, dtype: str):
    model = RewardModel(path, dtype=dtype)
    assert {parameter.dtype for parameter in model.model.parameters()} == {getattr(torch, dtype)}
    assert score(model, "because") == pytest.approx(score(RewardModel(path), "because"), rel=0.1, abs=0.1)


def test_on_a_cpu_the_dtype_is_float32_and_the_model_is_frozen(path: str):
    model = RewardModel(path).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


# in a pool, and rejected settings


def test_in_a_pool_it_scores_all_groups_in_one_call(path: str):
    model = RewardModel(path)
    calls: list[int] = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    batches = [RewardBatch("Why?", ["a", "bb"]), RewardBatch(QUESTION, [[{"role": "assistant", "content": "ccc"}]])]
    with RewardPool({"reward_model": model}, {"reward_model": 0.5}) as pool:
        (a, bb), (ccc,) = pool.score(batches)
    assert [v.reward for v in (a, bb, ccc)] == pytest.approx([each / 2 for each in score(model, "a", "bb", "ccc")])
    assert len(calls) == 2  # the pool's call, and the direct call above


def test_scores_that_are_not_numbers_are_a_reason(path: str):
    model = RewardModel(path)
    with torch.no_grad():
        model.model.score.weight.fill_(float("nan"))
    with RewardPool({"helpful": model}) as pool:
        ((verdict,),) = pool.score([RewardBatch("p", ["a"])])
    assert (verdict.reward, verdict.reason) == (None, "nan: helpful returned nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "chatty"}, "the reward model's form is 'chatty'; use one of auto, chat, plain, pair"),
        ({"too_long": "drop"}, "too_long is 'drop'; use one of cut, fail"),
        ({"dtype": "int8"}, "dtype is 'int8'; use one of auto, float32"),
        ({"max_length": 0}, "max_length is 0; give at least 1"),
        ({"tokens_per_batch": 0}, "tokens_per_batch is 0; give at least 1"),
    ],
)
def test_invalid_settings_are_rejected(path: str, options: dict[str, Any], message: str):
    with pytest.raises(ModelError, match=message):
        RewardModel(path, **options)


def test_errors_of_other_models_are_one_line(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from tests.fakes import tiny_model

    causal = store(tiny_model("llama"), tmp_path / "causal")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/config.json").write_text(json.dumps({"model_type": "qwen"}))
    for where, message in (
        (causal, "is not a reward model: it lacks score.weight, which would be random"),
        (str(tmp_path / "torn"), "cannot load the reward model in"),
        ("./nowhere/at/all", "there is no directory './nowhere/at/all' to load a reward model from"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            RewardModel(where).check_ready()
        assert "\n" not in str(caught.value)


# a classifier that is already loaded


def loaded(path: str) -> PreTrainedModel:
    model: PreTrainedModel = Qwen2ForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    return model


def test_a_loaded_classifier_scores_like_its_directory(path: str):
    model = loaded(path).train()
    wanted = score(RewardModel(path), *ANSWERS)
    assert score(RewardModel(model), *ANSWERS) == wanted  # with the tokenizer of its directory
    assert score(RewardModel(model, tokenizer=byte_tokenizer(CHAT_TEMPLATE)), *ANSWERS) == wanted
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_identity_of_a_loaded_classifier_is_its_weights(path: str):
    first, again = (identity(RewardModel(loaded(path), tokenizer=byte_tokenizer())) for _ in range(2))
    assert first == again
    changed = loaded(path)
    with torch.no_grad():
        changed.score.weight.add_(1e-3)
    same, other = (RewardModel(changed, tokenizer=byte_tokenizer(template)) for template in (None, CHAT_TEMPLATE))
    assert len({first, identity(same), identity(other)}) == 3


def test_a_loaded_model_that_cannot_score_is_rejected(path: str):
    from tests.fakes import tiny_model

    with pytest.raises(ModelError, match="is a LlamaForCausalLM, which predicts tokens and gives no score"):
        RewardModel(tiny_model("llama"), tokenizer=byte_tokenizer()).check_ready()
    nameless = loaded(path)
    nameless.name_or_path = ""
    with pytest.raises(ModelError, match="its tokenizer is not known; pass it as reward_processing_classes"):
        RewardModel(nameless).check_ready()


def test_tokens_that_the_classifier_does_not_have_are_named(path: str):
    model = loaded(path)
    model.config.pad_token_id = 10**6
    with pytest.raises(ModelError, match="pad_token_id is 1000000 but its embedding has only 259 rows"):
        RewardModel(model).check_ready()
    model.config.pad_token_id = None
    model.resize_token_embeddings(100)
    with pytest.raises(ModelError, match=r"a text has the token id \d+ but the reward model's embedding has only 100"):
        score(RewardModel(model), "zzz")
