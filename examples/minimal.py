"""All of GVPO on one page: sample groups, reward them, score the reference, update.

The task is to write a given digit again. The model is randomly initialized, so everything it learns comes from rewards.
"""

import copy
import dataclasses
from functools import partial

import torch

import gvpo
from gvpo.model.fresh_tokenizer import fresh_tokenizer

STEPS, BETA = 60, 0.1

tokenizer = fresh_tokenizer(list("0123456789"))
model = gvpo.load_model(
    None,
    init={
        "architecture": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    },
    seed=0,
)
reference = copy.deepcopy(model)  # pi_theta': the KL-constrained optimum is defined relative to it
sampler = gvpo.TransformersSampler(model, tokenizer)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
objective = partial(gvpo.objectives.gvpo, beta=BETA)
requests = [gvpo.Request(id=digit, prompt=tuple(tokenizer(digit).input_ids)) for digit in "0123456789"]
params = gvpo.SamplingParams(group_size=8, max_tokens=4)


def reward(digit: str, text: str | None) -> float:
    """Return the fraction of four positions that contain the digit."""
    return (text or "").count(digit) / 4


def attach(group: gvpo.Group, logprobs: list[torch.Tensor]) -> gvpo.Group:
    """Return the group with each completion's log-probs under the reference."""
    rows = [dataclasses.replace(c, ref_logprobs=ref) for c, ref in zip(group.completions, logprobs, strict=True)]
    return dataclasses.replace(group, completions=rows)


def main() -> float:
    """Train and return the mean reward of the last step."""
    mean = 0.0
    for step in range(1, STEPS + 1):
        sampled = sampler.sample(requests, params, seed=0, step=step)
        groups = []
        for request, completions in zip(requests, sampled, strict=True):
            rows = [dataclasses.replace(c, reward=reward(request.id, c.text)) for c in completions]
            group = gvpo.Group(request.prompt, rows, id=request.id)
            groups.append(attach(group, [row.logprobs for row in gvpo.score(reference, [group])]))
        update = gvpo.group_backward(model, groups, objective)
        optimizer.step()
        optimizer.zero_grad()
        mean = sum(row.reward or 0.0 for group in groups for row in group.completions) / (8 * len(groups))
        if step % 10 == 0:
            certificate = float(update.metrics["gvpo/certificate"])
            print(f"step {step:3}  reward {mean:.2f}  KL to the optimum about {certificate:.2f} nats")
    return mean


if __name__ == "__main__":
    main()
