"""A sampler of fake servers, and the rows that it must return."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gvpo.model.endings import ending
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.seeds import row_seed
from gvpo.sampling.server.client import Servers
from gvpo.sampling.server.file_transport import FileTransport
from gvpo.sampling.server.sampler import ServerSampler
from gvpo.sampling.vllm.request import RequestFormat
from gvpo.types import Completion
from tests.fakes import VOCABULARY, byte_tokenizer
from tests.sampling.server.fake_vllm import FakeVllm, table_token

REQUESTS = [Request("a", (10, 11)), Request("b", (12,)), Request("c", (13, 14, 15))]
PARAMS = SamplingParams(group_size=4, max_tokens=6)
EOS = 1


def request_format() -> RequestFormat:
    """Return the format for the byte tokenizer."""
    tokenizer = byte_tokenizer()
    return RequestFormat(tokenizer, ending(tokenizer, None), VOCABULARY, context=None)


@contextmanager
def opened(*fakes: FakeVllm, deadline: float = 20.0, concurrency: int = 64, **given: Any) -> Iterator[ServerSampler]:
    """Open a sampler of servers that run."""
    directory = given.pop("transfer_dir", None)
    if directory is not None:
        given["transport"] = lambda: FileTransport(directory)
    servers = Servers([fake.url for fake in fakes], given.pop("api_key_env", None), deadline, concurrency)
    sampler = ServerSampler(servers, request_format(), **given)
    try:
        yield sampler
    finally:
        sampler.close()


def row_tokens(
    request: Request, row: int, params: SamplingParams, *, seed: int, step: int, weights: float = 0.0
) -> list[int]:
    """Return the tokens that the table of a fake server gives for a row."""
    number, tokens = row_seed(seed, step, request.id, row), [-1]
    while tokens[-1] != EOS and len(tokens) <= params.max_tokens:
        tokens.append(table_token(number, len(tokens) - 1, list(request.prompt), weights))
    return tokens[1:]


def expected(
    requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int, weights: float = 0.0
) -> list[list[list[int]]]:
    """Return the tokens of all rows."""
    return [
        [row_tokens(each, row, params, seed=seed, step=step, weights=weights) for row in range(params.group_size)]
        for each in requests
    ]


def tokens_of(rows: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    """Return the tokens of the rows of each group."""
    return [[list(row.tokens) for row in group] for group in rows]
