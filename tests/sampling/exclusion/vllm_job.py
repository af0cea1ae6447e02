"""A job of test_vllm.py in a separate process: a tiny model in vLLM, completions with and without exclusions.

python vllm_job.py DIRECTORY     reads a model there, prints one JSON object
"""

import json
import sys

LETTERS = {"allow": ["[a-z]"], "ban": ["text:ab"]}
CHOICES = {"allow": ["text:yes", "text:no"]}
PROMPTS = [[10, 70, 30], [20, 21], [5, 6, 7, 8, 9]]


def asked(exclusion):
    """Return the exclusion as written in a request."""
    return {f"gvpo_{verb}": items for verb, items in exclusion.items()}


def main(directory):
    from vllm import LLM, SamplingParams
    from vllm.exceptions import VLLMValidationError

    llm = LLM(
        directory,
        logits_processors=["gvpo.sampling.exclusion.vllm:ExclusionProcessor"],
        logprobs_mode="processed_logprobs",
        enforce_eager=True,
        max_model_len=64,
        dtype="float32",
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]

    def drawn(exclusion, **settings):
        params = SamplingParams(max_tokens=12, logprobs=0, seed=1, extra_args=asked(exclusion), **settings)
        rows = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
        return [
            {
                "tokens": list(row.token_ids),
                "logprobs": [step[token].logprob for step, token in zip(row.logprobs, row.token_ids, strict=True)],
            }
            for row in rows
        ]

    found = {
        "greedy": drawn(LETTERS, temperature=0.0),
        "sampled": drawn(LETTERS, temperature=0.7),
        "cut": drawn(LETTERS, temperature=1.0, top_k=2),
        "penalised": drawn(LETTERS, temperature=0.0, repetition_penalty=1.7),
        "choices": drawn(CHOICES, temperature=1.0),
        "free": drawn({}, temperature=0.0),
    }
    each = [None, asked(LETTERS), asked(LETTERS)]
    mixed = [SamplingParams(max_tokens=12, temperature=0.0, extra_args=extra) for extra in each]
    found["mixed"] = [list(o.outputs[0].token_ids) for o in llm.generate(prompts, mixed, use_tqdm=False)]
    try:
        drawn({"allow": ["Klingon"]}, temperature=1.0)
    except VLLMValidationError as error:
        found["refused"] = str(error)
    found["after"] = drawn({}, temperature=0.0)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
