"""What is good: reward functions with TRL's signature, and a pool of processes that runs them under a deadline."""

from gvpo.rewards.addition import addition_steps
from gvpo.rewards.base import Answer, RewardBatch, RewardFunc, completion_text
from gvpo.rewards.boxed import boxed_answer
from gvpo.rewards.code import code_reward, code_tests
from gvpo.rewards.countdown import countdown
from gvpo.rewards.exact import exact_match
from gvpo.rewards.format import boxed_format, regex_format
from gvpo.rewards.gsm8k import gsm8k
from gvpo.rewards.length import length_penalty, token_cost
from gvpo.rewards.math_answer import math_answer
from gvpo.rewards.number import number_match
from gvpo.rewards.pool import Failure, RewardPool
from gvpo.rewards.registry import REWARDS, load

__all__ = [
    "REWARDS",
    "Answer",
    "Failure",
    "RewardBatch",
    "RewardFunc",
    "RewardPool",
    "addition_steps",
    "boxed_answer",
    "boxed_format",
    "code_reward",
    "code_tests",
    "completion_text",
    "countdown",
    "exact_match",
    "gsm8k",
    "length_penalty",
    "load",
    "math_answer",
    "number_match",
    "regex_format",
    "token_cost",
]
