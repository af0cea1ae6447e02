"""What is good: reward functions with TRL's signature, and a pool of processes that runs them under a deadline."""

from gvpo.rewards.addition import addition_slip, addition_steps
from gvpo.rewards.base import Answer, RewardBatch, RewardFunc, check_ready, completion_text
from gvpo.rewards.boxed import boxed_answer
from gvpo.rewards.choice import multiple_choice
from gvpo.rewards.code import code_reward, code_tests
from gvpo.rewards.countdown import countdown
from gvpo.rewards.exact import exact_match
from gvpo.rewards.format import boxed_format, regex_format
from gvpo.rewards.gsm8k import gsm8k
from gvpo.rewards.ifeval import ifeval, ifeval_loose, ifeval_share
from gvpo.rewards.jsonform import json_fields, json_format, json_match
from gvpo.rewards.judge import judge
from gvpo.rewards.length import length_penalty, token_cost
from gvpo.rewards.local import LocalReward
from gvpo.rewards.math_answer import math_answer
from gvpo.rewards.number import number_match
from gvpo.rewards.outcomes import Failure
from gvpo.rewards.pool import RewardPool
from gvpo.rewards.reasons import no_value
from gvpo.rewards.refusal import over_refusal, refusal
from gvpo.rewards.registry import MAKERS, REWARDS, load, needs_options
from gvpo.rewards.repetition import repetition_penalty
from gvpo.rewards.text import text_f1, text_match

__all__ = [
    "MAKERS",
    "REWARDS",
    "Answer",
    "Failure",
    "LocalReward",
    "RewardBatch",
    "RewardFunc",
    "RewardPool",
    "addition_slip",
    "addition_steps",
    "boxed_answer",
    "boxed_format",
    "check_ready",
    "code_reward",
    "code_tests",
    "completion_text",
    "countdown",
    "exact_match",
    "gsm8k",
    "ifeval",
    "ifeval_loose",
    "ifeval_share",
    "json_fields",
    "json_format",
    "json_match",
    "judge",
    "length_penalty",
    "load",
    "math_answer",
    "multiple_choice",
    "needs_options",
    "no_value",
    "number_match",
    "over_refusal",
    "refusal",
    "regex_format",
    "repetition_penalty",
    "text_f1",
    "text_match",
    "token_cost",
]
