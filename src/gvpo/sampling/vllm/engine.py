"""Sampling with vLLM in this process, from its own weights.

    requests ──one per row──▶ LLMEngine.add_request, step, step, ... ──▶ groups, as soon as they are finished
    state_dict() ──reload_weights, reset_prefix_cache──▶ the engine's own weights

`gvpo.sampling.vllm.start` starts the engine. This module does not import vllm before an engine exists.
"""

import copy
import itertools
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from gvpo.errors import EngineError, GvpoError, ModelError, one_line
from gvpo.hub import from_hub
from gvpo.model import endings, lora
from gvpo.model.generation_config import stored_generation_config
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.decode import Tally
from gvpo.sampling.engines import EngineOptions
from gvpo.sampling.turns import Turns
from gvpo.sampling.vllm.request import RequestFormat
from gvpo.sampling.vllm.start import adapter_arguments, require_vllm, start
from gvpo.sampling.vllm.weights import Shapes, check_shapes, require_replaceable, shapes_for, shapes_of
from gvpo.types import Completion

_OF_AN_ADAPTER = re.compile(r"\.lora_")


class VllmSampler:
    """Samples completions with vLLM in this process, from its own copy of the weights.

    Its methods may be called from any thread; the threads take turns.

    Args:
        llm: A `vllm.LLM`.
        form: Conversion of requests and results.
        expected: Shapes of the weights that `update` requires.
        sleeps: Free the engine's GPU memory between calls. Its weights move to the CPU's memory, and its cache is
            dropped. The engine must have been started with `enable_sleep_mode`.

    Attributes:
        version: Number of completed training steps of the policy with the engine's weights; None before the first
            update.
    """

    shares_model = False
    concurrent = False

    def __init__(self, llm: Any, form: RequestFormat, expected: Shapes, *, sleeps: bool = False) -> None:
        self.llm, self.form = llm, form
        self.version: int | None = None
        self._expected, self._sleeps, self._turns = expected, sleeps, Turns()
        self._names, self._adapters = itertools.count(1), itertools.count(1)
        self._adapter: Any = None

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Sample `params.group_size` completions for each request; see `Sampler.sample`.

        Raises:
            ConfigError: If vLLM does not support `params`.
            DataError: If a prompt is empty or leaves no room in the context, or if ids are not distinct.
            ModelError: If a prompt has tokens outside the vocabulary, or if the logits are not finite.
            EngineError: If the engine fails.
        """
        found = dict(self.stream(requests, params, seed=seed, step=step))
        return [found[index] for index in range(len(requests))]

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each group as soon as it is finished; no update begins before the last one, or `close()`.

        Raises:
            GvpoError: In the cases of `sample`.
        """
        self.form.check(requests, params)
        with self._turns.sampling(), self._awake():
            yield from self._groups(requests, params, seed, step)

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raise the errors that `sample` would raise for these requests, and warn about an uncertain end token."""
        self.form.check(requests, params)

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights, after the sampling in progress; see `UpdatableSampler.update`.

        Raises:
            ModelError: If a name is unknown or missing, if a shape differs, or if the engine fails.
        """
        entries = {name: tensor.detach() for name, tensor in weights}
        check_shapes(shapes_of(entries), self._expected)
        with self._turns.updating(), self._awake(), _failures("vLLM did not load the new weights", ModelError):
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(entries.items())})
            self._forget()
            self.version = version

    def update_adapter(self, directory: str | Path, version: int | None) -> None:
        """Sample with the LoRA adapter in a directory from now on, without merging it. It is read during the call.

        Each call gives the adapter a new id, because vLLM ignores changed files of a known id.

        Args:
            directory: Directory that PEFT wrote.
            version: Number of completed training steps of the policy with this adapter.

        Raises:
            ModelError: If the adapter does not fit the engine's model or its maximum rank.
        """
        from vllm.lora.request import LoRARequest

        number = next(self._adapters)
        adapter = LoRARequest(f"gvpo-{number}", number, str(Path(directory).resolve()))
        with (
            self._turns.updating(),
            self._awake(),
            _failures(f"vLLM did not load the adapter in {directory}", ModelError),
        ):
            if self._adapter is not None:
                self.llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            self.llm.llm_engine.add_lora(adapter)
            self._forget()
            self._adapter, self.version = adapter, version

    def close(self) -> None:
        """End the engine and free its memory. The sampler must not be used afterwards."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None

    def _groups(
        self, requests: Sequence[Request], params: SamplingParams, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield the position and the completions of each request. A caller that stops early leaves no requests."""
        engine, size = self.llm.llm_engine, params.group_size
        tally = Tally(len(requests) * size)
        places = self._add(requests, params, seed, step)
        found: dict[int, dict[int, Completion]] = {place: {} for place in range(len(requests))}
        try:
            while places:
                with _failures("vLLM failed; continue the run with --resume", EngineError):
                    outputs = engine.step()
                for output in (each for each in outputs if each.finished):
                    place, row = places.pop(output.request_id)
                    found[place][row] = self._completion(requests[place], output.outputs[0])
                    tally.add(1, len(found[place][row].tokens))
                    if len(found[place]) == size:
                        rows = found.pop(place)
                        yield place, [rows[index] for index in range(size)]
        finally:
            if places:
                engine.abort_request(list(places))

    def _add(
        self, requests: Sequence[Request], params: SamplingParams, seed: int, step: int
    ) -> dict[str, tuple[int, int]]:
        """Give the engine one request per row. Return the position and the row of each by its name."""
        from vllm import SamplingParams as Fields
        from vllm.sampling_params import RequestOutputKind

        places = {}
        for (place, request), row in itertools.product(enumerate(requests), range(params.group_size)):
            fields = self.form.parameters(request, params, seed=seed, step=step, row=row)
            name = f"gvpo-{next(self._names)}"
            with _failures(f"vLLM did not accept the prompt of {request.id!r}", EngineError):
                self.llm.llm_engine.add_request(
                    name,
                    {"prompt_token_ids": list(request.prompt)},
                    Fields(**fields, output_kind=RequestOutputKind.FINAL_ONLY),
                    lora_request=self._adapter,
                )
            places[name] = (place, row)
        return places

    def _completion(self, request: Request, output: Any) -> Completion:
        """Return a finished output of vLLM as a completion."""
        tokens = list(output.token_ids)
        logprobs = [entry[token].logprob for entry, token in zip(output.logprobs or [], tokens, strict=False)]
        return self.form.completion(request, tokens, logprobs, output.finish_reason, version=self.version)

    def _forget(self) -> None:
        """Drop the cache of prompts, which older weights have computed."""
        if not self.llm.reset_prefix_cache():
            raise EngineError("vLLM did not drop its cache of prompts, although no request is running")

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Keep the engine awake within this context, if it sleeps between calls."""
        if self._sleeps:
            self.llm.wake_up()
        try:
            yield
        finally:
            if self._sleeps:
                self.llm.sleep(level=1)


def open_sampler(model: str, tokenizer: PreTrainedTokenizerBase, options: EngineOptions) -> VllmSampler:
    """Load a model, or an adapter on its base, and return its sampler. `ENGINES` refers to this function.

    Raises:
        ConfigError: If vllm is missing or does not accept the options.
        ModelError: If the model cannot be loaded.
    """
    require_vllm()
    adapter = model if lora.is_adapter(model) else None
    base = lora.base_of(model)[0] if adapter else model
    arguments = adapter_arguments(max_rank(lora.read_config(model))) if adapter else {}
    with from_hub(base):
        config = AutoConfig.from_pretrained(base)
    end = endings.ending(tokenizer, stored_generation_config(model) or stored_generation_config(base))
    llm = start(base, options, context=_context(config), trains=False, **arguments)
    sampler = VllmSampler(llm, _form(llm, tokenizer, end, config), shapes_for(config), sleeps=_sleeps(options))
    if adapter:
        sampler.update_adapter(adapter, None)
    return sampler


def open_for_training(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ending: endings.Ending, options: EngineOptions
) -> VllmSampler:
    """Start an engine for a policy, and return its sampler. The policy's weights are not in it before an update.

    For a LoRA policy, the engine has the weights of the base, and `update_adapter` replaces the adapter.

    Args:
        model: The policy, possibly random.
        tokenizer: Its tokenizer.
        ending: Tokens that end a completion.
        options: Options of the engine.

    Raises:
        ConfigError: If vllm is missing or does not accept the options.
        ModelError: If vLLM cannot start with the model, or cannot replace its weights.
    """
    require_vllm()
    if lora.is_adapted(model):
        weights = base_weights(model)
        llm = _start_base(model, weights, options)
    else:
        require_replaceable(model.config, "cuda" if torch.cuda.is_available() else "cpu")
        weights = model.state_dict()
        with _described(model) as directory:
            llm = start(directory, options, context=_context(model.config), trains=True, load_format="dummy")
    form = _form(llm, tokenizer, ending, model.config)
    return VllmSampler(llm, form, shapes_of(weights), sleeps=_sleeps(options))


def _start_base(model: PreTrainedModel, weights: Mapping[str, Tensor], options: EngineOptions) -> Any:
    """Start an engine with the base of a LoRA policy, from where it was loaded, or from its weights if it is random."""
    fields = {"context": _context(model.config), "trains": True, **adapter_arguments(max_rank(lora.own_config(model)))}
    if base := lora.named_base(model):
        with from_hub(base):
            return start(base, options, revision=lora.base_revision(model), **fields)
    with _described(model) as directory:
        save_file({name: tensor.clone() for name, tensor in weights.items()}, f"{directory}/model.safetensors")
        return start(directory, options, **fields)


@contextmanager
def _described(model: PreTrainedModel) -> Iterator[str]:
    """Yield a temporary directory with the model's configuration, which vLLM reads the architecture from."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    with tempfile.TemporaryDirectory(prefix="gvpo-vllm-") as directory:
        config.save_pretrained(directory)
        yield directory


def base_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the state dict of a LoRA policy's base, under the names that it has without an adapter."""
    named = ((name.replace(".base_layer.", "."), tensor) for name, tensor in model.state_dict().items())
    return {name: tensor for name, tensor in named if not _OF_AN_ADAPTER.search(name)}


def max_rank(config: Any) -> int:
    """Return the largest rank of a `peft.LoraConfig`."""
    ranks: list[int] = [config.r, *(config.rank_pattern or {}).values()]
    return max(ranks)


def _form(llm: Any, tokenizer: PreTrainedTokenizerBase, ending: endings.Ending, config: Any) -> RequestFormat:
    length = int(llm.llm_engine.model_config.max_model_len)
    return RequestFormat(tokenizer, ending, int(config.get_text_config().vocab_size), length)


def _context(config: Any) -> int | None:
    length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length


def _sleeps(options: EngineOptions) -> bool:
    return options.engine_sleep and torch.cuda.is_available()


@contextmanager
def _failures(what: str, kind: type[GvpoError]) -> Iterator[None]:
    """Raise vLLM's errors in this context as an error of one line."""
    try:
        yield
    except GvpoError:
        raise
    except Exception as error:  # vLLM has no common class of errors
        raise kind(f"{what}: {one_line(error)}") from error
