"""Suggestions for misspelled names, and names without a suggestion."""

import pytest

from gvpo.config import FIELDS
from gvpo.nearest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("beta", ["objective.beta"]),
        ("Beta", ["objective.beta"]),
        ("learning_rate", ["train.learning_rate", "warm_start.learning_rate"]),
        ("steps", ["train.steps", "warm_start.steps"]),
        ("path", ["lora.path", "model.path"]),
        ("trian.steps", ["train.steps"]),
        ("train.max_tokens", ["sampling.max_tokens"]),
        ("sampler.group_size", ["sampling.group_size"]),
        ("train.stpes", ["train.steps"]),
        ("objective.betta", ["objective.beta"]),
        ("betta", ["objective.beta"]),
        ("groupsize", ["sampling.group_size"]),
        ("group-size", ["sampling.group_size"]),
        ("model.grup_size", ["sampling.group_size"]),
        ("temprature", ["sampling.temperature"]),
        ("keep_shares", ["data.keep_share"]),
        ("stpes", ["train.steps", "warm_start.steps"]),
        ("actor_rollout_ref.model.path", ["model.path"]),
    ],
)
def test_suggested_settings(name, known):
    assert nearest(name, FIELDS) == known


@pytest.mark.parametrize(
    "name",
    [
        *("max_steps", "num_generations", "per_device_train_batch_size", "batch_size", "logging_steps", "save_steps"),
        *("warmup_steps", "output_dir", "lr", "epsilon", "loss_type", "max_completion_length", "report_to", "fp16"),
        *("gradient_accumulation_steps", "clip", "", "."),
    ],
)
def test_settings_without_a_suggestion(name):
    assert nearest(name, FIELDS) == []


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("size", ["sizes", "operators"], ["sizes"]),
        ("family", ["count", "families"], ["families"]),
        ("forget", ["digits", "forget_carry"], ["forget_carry"]),
        ("prompt", ["answer", "user_prompt"], ["user_prompt"]),
        ("prompt", ["system_prompt", "user_prompt"], []),
        ("prompt", ["PROMPT", "user_prompt"], ["PROMPT"]),
        ("aime", ["gsm8k", "aime24", "aime25"], ["aime24"]),
        ("math50", ["math500", "minerva"], ["math500"]),
        ("rtx409", ["rtx4090", "h100"], ["rtx4090"]),
        ("top_n", ["top_k", "top_p"], []),
        ("anything", [], []),
    ],
)
def test_other_names(name, known, meant):
    assert nearest(name, known) == meant


@pytest.mark.parametrize(
    ("name", "otherwise", "said"),
    [
        ("bata", "", "; did you mean 'objective.beta'?"),
        ("steps", "", "; did you mean 'train.steps' or 'warm_start.steps'?"),
        ("lr", "", ""),
        ("lr", "choose another", "; choose another"),
    ],
)
def test_words_of_messages(name, otherwise, said):
    assert did_you_mean(name, FIELDS, otherwise) == said
