"""Exact GVPO inside TRL's GRPOTrainer, and GRPO with gvpo's update.

from gvpo.integrations.trl import GVPOConfig, GVPOTrainer              in place of TRL's two names
from gvpo.integrations.trl import FastGRPOTrainer as GRPOTrainer       the same losses and gradients, faster
"""

from gvpo.integrations.trl.config import FastGRPOConfig as FastGRPOConfig
from gvpo.integrations.trl.config import GVPOConfig as GVPOConfig
from gvpo.integrations.trl.trainers import FastGRPOTrainer as FastGRPOTrainer
from gvpo.integrations.trl.trainers import GVPOTrainer as GVPOTrainer

__all__ = ["FastGRPOConfig", "FastGRPOTrainer", "GVPOConfig", "GVPOTrainer"]
