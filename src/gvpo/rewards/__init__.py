"""Reward functions with TRL's signature, and a pool of processes that runs them with deadlines."""

from gvpo.rewards.base import Answer, RewardBatch, RewardFunc, check_ready, completion_text, reward
from gvpo.rewards.code.code import code_reward, code_tests
from gvpo.rewards.judges.judge import judge
from gvpo.rewards.math.math_answer import math_answer
from gvpo.rewards.pool.in_process import InProcessReward
from gvpo.rewards.pool.local import LocalReward
from gvpo.rewards.pool.outcomes import Failure
from gvpo.rewards.pool.pool import RewardPool
from gvpo.rewards.registry import MAKERS, REWARD_MODEL, REWARDS, is_model_name, load, needs_options, require_named
from gvpo.rewards.verifiers.addition import addition_slip, addition_steps
from gvpo.rewards.verifiers.boxed import boxed_answer
from gvpo.rewards.verifiers.calculator import calculator
from gvpo.rewards.verifiers.choice import multiple_choice
from gvpo.rewards.verifiers.countdown import countdown
from gvpo.rewards.verifiers.exact import exact_match
from gvpo.rewards.verifiers.format import boxed_format, regex_format
from gvpo.rewards.verifiers.gsm8k import gsm8k
from gvpo.rewards.verifiers.ifeval import ifeval, ifeval_loose, ifeval_share
from gvpo.rewards.verifiers.json_format import json_fields, json_format, json_match
from gvpo.rewards.verifiers.length import length_penalty, token_cost
from gvpo.rewards.verifiers.number import number_match
from gvpo.rewards.verifiers.reasoning_gym import reasoning_gym
from gvpo.rewards.verifiers.refusal import over_refusal, refusal
from gvpo.rewards.verifiers.repetition import repetition_penalty
from gvpo.rewards.verifiers.text import text_f1, text_match
from gvpo.workers.reasons import no_value

__all__ = [
    "MAKERS",
    "REWARDS",
    "REWARD_MODEL",
    "Answer",
    "Failure",
    "InProcessReward",
    "LocalReward",
    "RewardBatch",
    "RewardFunc",
    "RewardPool",
    "addition_slip",
    "addition_steps",
    "boxed_answer",
    "boxed_format",
    "calculator",
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
    "is_model_name",
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
    "reasoning_gym",
    "refusal",
    "regex_format",
    "repetition_penalty",
    "require_named",
    "reward",
    "text_f1",
    "text_match",
    "token_cost",
]
