"""The table of objectives: the facts that settings can use without torch."""

import pytest

from gvpo.config import OBJECTIVE_KEYWORDS, OBJECTIVES, TrainConfig, find_objective, resolve
from gvpo.config.given_objective import spec_of
from gvpo.config.objectives import INPUT_OF, crediting_turns, learning_from, taking
from gvpo.errors import ConfigError


def test_names_and_kinds_of_data():
    assert {name: spec.learns_from for name, spec in OBJECTIVES.items() if spec.learns_from != "groups"} == {
        "dpo": "pairs",
        "epa": "pairs",
        "poft": "answers",
        "sft": "answers",
    }
    assert learning_from("pairs") == ["dpo", "epa"]
    assert {"gvpo", "grpo", "rloo", "gspo"} < set(learning_from("groups"))


def test_error_about_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"^objective.name='gpo' does not exist; choose one of .*, gvpo, pmd_mean"):
        resolve(TrainConfig(objective="gpo"))


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("beta", ["gvpo", "regression", "pmd_mean", "dpo", "epa"]),
        ("anchor", ["gvpo", "regression", "pmd_mean"]),
        ("teacher", ["distill"]),
        ("is_cap", ["grpo", "dr_grpo", "dapo", "rloo", "cispo", "constrained_grpo"]),
        ("weak_weight", ["epa"]),
        ("segment_at", ["gsspo"]),
        ("costs", ["constrained_grpo"]),
        ("multiplier_rate", ["constrained_grpo"]),
    ],
)
def test_objectives_that_accept_a_setting(setting, names):
    assert taking(setting) == names


@pytest.mark.parametrize("setting", OBJECTIVE_KEYWORDS)
def test_the_description_of_a_keyword_lists_its_objectives(setting):
    text = TrainConfig.model_fields[setting].description or ""
    assert taking(setting)
    assert text.endswith(f" ({', '.join(taking(setting))})")


def test_inputs_from_settings_belong_to_an_objective():
    assert set(INPUT_OF) < set(OBJECTIVE_KEYWORDS)
    assert all(any(needed in spec.needs for spec in OBJECTIVES.values()) for needed in INPUT_OF.values())


def test_the_reference_is_read_always_or_only_for_a_kl_term():
    assert find_objective("gvpo").reads_reference({})
    assert find_objective("grpo").reads_reference({"kl_coef": 0.1})
    assert not find_objective("grpo").reads_reference({"kl_coef": 0.0})
    assert not find_objective("sft").reads_reference({})


def test_a_preset_has_the_facts_of_its_objective_and_its_own_defaults():
    grpo, dapo = find_objective("grpo"), find_objective("dapo")
    assert (dapo.needs, dapo.min_group) == (grpo.needs, grpo.min_group)
    assert {key for key, value in dapo.keywords.items() if value != grpo.keywords[key]} == {"clip_high", "reduction"}


def test_objectives_that_accept_an_advantage_per_turn():
    assert crediting_turns() == ["grpo", "dr_grpo", "dapo", "rloo", "cispo", "gspo_token", "gsspo"]


def given(logprobs, *, rewards, group, mask, advantages=None):
    """Stand for an objective of a user that accepts advantages."""


def test_a_given_objective_accepts_advantages_if_it_names_them():
    assert spec_of(given, 4).token_advantages
    assert not spec_of(lambda logprobs, *, rewards, group: None, 4).token_advantages
