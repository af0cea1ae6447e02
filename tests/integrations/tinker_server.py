"""A server for the real client of the tinker SDK, in this process: one row per forward pass, on a tiny model.

The client's own code runs down to the bytes of a request: chunks, reserved numbers, custom losses, protobuf. What is
replaced is the connection, and the waiting for results.
"""

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from tinker import types
from tinker.lib.public_interfaces import training_client
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture
from tinker.proto.request_conv import forward_backward_request_to_proto


class Server:
    """The work of a server.

    Args:
        model: Causal language model; its `.grad` receives gradients.
        normalize: Divide each row by max(sum of its signed weights, 1e-9), as SkyRL's JAX backend does.
        report: Report the sum of the loss.
    """

    def __init__(self, model, *, normalize=False, report=True):
        self.model, self.normalize, self.report = model, normalize, report
        self.requests = []
        self.optimizer = None

    def forward_backward(self, message, *, forward_only):
        self.requests.append((message.seq_id, len(message.data), forward_only))
        outputs, total = [], 0.0
        for datum in message.data:
            tokens = np.frombuffer(datum.model_input[0].encoded_text.tokens, np.int32)
            targets = np.frombuffer(datum.loss_fn_inputs["target_tokens"].dense, np.int64)
            weights = torch.tensor(np.frombuffer(datum.loss_fn_inputs["weights"].dense, np.float32).copy())
            logits = self.model(input_ids=torch.tensor(tokens[None].astype(np.int64))).logits[0]
            logprobs = logits.log_softmax(-1).gather(1, torch.tensor(targets.copy())[:, None]).squeeze(1)
            loss = -(weights * logprobs).sum()
            if not forward_only:
                share = weights.sum().clamp(min=1e-9) if self.normalize else 1.0
                (loss / share).backward()
            total += float(loss.detach())
            outputs.append({"logprobs": types.TensorData.from_torch(logprobs.detach().float())})
        metrics = {"loss:sum": total} if self.report else {}
        return types.ForwardBackwardOutput("ArrayRecord", outputs, metrics)

    def optim_step(self, params):
        settings = {"lr": params.learning_rate, "betas": (params.beta1, params.beta2), "eps": params.eps}
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.0)
        self.optimizer.param_groups[0].update(settings)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return types.OptimStepResponse(metrics={})


class Holder:
    """The part of the SDK's client holder that a training client uses."""

    def __init__(self, server, rows_per_request):
        self.server = server
        self._client_config = SimpleNamespace(
            fwdbwd_max_chunk_bytes_count=1_000_000, fwdbwd_max_chunk_len=rows_per_request, parallel_fwdbwd_chunks=True
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run_coroutine_threadsafe(self, coroutine):
        return AwaitableConcurrentFuture(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def get_telemetry(self):
        return None

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def execute_with_retries(self, function, *arguments):
        return await function(*arguments)

    @asynccontextmanager
    async def fwdbwd_dispatch_rate_limit(self, size):
        yield

    @contextmanager
    def aclient(self, pool):
        yield SimpleNamespace(training=self)

    async def forward_backward(self, *, request, forward_only):
        sent = forward_backward_request_to_proto(request).SerializeToString()
        message = type(forward_backward_request_to_proto(request)).FromString(sent)
        return self.server.forward_backward(message, forward_only=forward_only)

    async def optim_step(self, *, request):
        return self.server.optim_step(request.optim_params)


class Done:
    """The result of a request, which this server has at once."""

    def __init__(self, kind, holder, result, *_, **__):
        self.value = result

    async def result_async(self, timeout=None):
        return self.value

    def __await__(self):
        return self.result_async().__await__()


def connect(server, monkeypatch, rows_per_request=3):
    """Return a real training client of the server, and its holder."""
    monkeypatch.setattr(training_client, "_APIFuture", Done)
    holder = Holder(server, rows_per_request)
    return training_client.TrainingClient(holder, 0, "model", info=None), holder
