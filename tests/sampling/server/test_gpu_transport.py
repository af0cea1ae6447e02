"""The transports between GPUs, with stand-ins for vLLM's classes: this machine has no GPU."""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

from gvpo.errors import ConfigError
from gvpo.sampling.engines import EngineOptions
from gvpo.sampling.server import gpu_transport
from gvpo.sampling.server.file_transport import FileTransport
from gvpo.sampling.server.gpu_transport import GpuTransport
from gvpo.sampling.server.sampler import transport_of
from tests.sampling.server.fake_vllm import FakeVllm, serving
from tests.sampling.server.helpers import PARAMS, REQUESTS, opened

PLACE = "vllm.distributed.weight_transfer"


@dataclass
class ParamMeta:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Engine:
    """A stand-in of vLLM's engine on the trainer's side, which makes the same calls in the same order."""

    made: ClassVar[list["Engine"]] = []

    def __init__(self, info: Any, *, client: Any, source: Any) -> None:
        self.info, self.client, self.source = info, client, source
        self.sent: list[dict[str, float]] = []
        self.is_shut = False
        client.init_weight_transfer_engine({"master_port": 1})
        Engine.made.append(self)

    def send_weights(self) -> None:
        names = [each.name for each in self.source.metadata()]
        self.client.start_weight_update()
        self.client.update_weights({"names": names, "path": "/nowhere"})
        self.sent.append({name: float(tensor) for name, tensor in self.source})
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.is_shut = True


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the stand-ins under vLLM's names."""
    parts = {
        "base": {"ParamMeta": ParamMeta},
        "clients": {"_json_safe_update_payload": lambda info: info},
        "factory": {"WeightTransferTrainerFactory": type("Factory", (), {"trainer_init": staticmethod(Engine)})},
        "nccl_engine": {"NCCLTrainerInitInfo": lambda **given: ("nccl", given)},
        "ipc_engine": {"IPCTrainerInitInfo": lambda **given: ("ipc", given)},
    }
    for name in ("vllm", "vllm.distributed", PLACE):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, content in parts.items():
        module = ModuleType(f"{PLACE}.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, f"{PLACE}.{name}", module)
    Engine.made = []


def fake_with_gpus() -> FakeVllm:
    """Return a server that takes weights from elsewhere than a file."""
    fake = FakeVllm()

    def hook(fake: FakeVllm, path: str, body: dict[str, Any]) -> Any:
        if path == "/get_world_size":
            return 200, {"world_size": 4}, {}
        return (200, {}, {}) if path == "/update_weights" else None

    fake.hook = hook
    return fake


@pytest.mark.usefixtures("vllm")
def test_each_server_has_a_group_that_sends_every_entry_of_each_update() -> None:
    one, two = fake_with_gpus(), fake_with_gpus()
    tied = torch.tensor(1.0)
    with serving(one, two), opened(one, two, transport=lambda: GpuTransport("nccl")) as sampler:
        sampler.update([("bias", tied), ("tied", tied)], 0)
        sampler.update([("bias", torch.tensor(2.0)), ("tied", torch.tensor(2.0))], 1)
        rows = sampler.sample(REQUESTS, PARAMS, seed=0, step=1)
    assert {row.version for group in rows for row in group} == {1}
    assert len(Engine.made) == 2
    for engine in Engine.made:
        kind, info = engine.info
        assert kind == "nccl"
        assert (info["world_size"], info["rank"], info["master_address"]) == (5, 0, "127.0.0.1")
        assert engine.sent == [{"bias": 1.0, "tied": 1.0}, {"bias": 2.0, "tied": 2.0}]
        assert engine.is_shut
    assert Engine.made[0].info[1]["master_port"] != Engine.made[1].info[1]["master_port"]
    for fake in (one, two):
        assert fake.paths("/finish") == ["/finish_weight_update"] * 2
        assert fake.paths("/init") == ["/init_weight_transfer_engine"]


@pytest.mark.usefixtures("vllm")
def test_a_server_that_comes_back_between_updates_gets_weights_with_the_next_one() -> None:
    one, two = fake_with_gpus(), fake_with_gpus()
    with serving(one, two), opened(one, two, transport=lambda: GpuTransport("ipc")) as sampler:
        sampler.update([("bias", torch.tensor(1.0))], 0)
        two.kill()
        two.start()
        two.calls.clear()
        for step in range(1, 4):
            rows = sampler.sample(REQUESTS, PARAMS, seed=0, step=step)
            assert {row.version for group in rows for row in group} == {0}
        sampler.update([("bias", torch.tensor(2.0))], 1)
        assert two.label == one.label
    assert Engine.made[0].info[0] == "ipc"


def test_without_vllm_the_error_names_the_package_and_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"weight_transfer='nccl' needs vllm.*gvpo\[vllm\].*'file'"):
        GpuTransport("nccl")


@pytest.mark.parametrize(("setting", "device", "kind"), [("auto", "cpu", "file"), ("file", "cuda", "file")])
def test_the_transport_follows_from_the_setting_and_the_device(setting: Any, device: str, kind: str, tmp_path) -> None:
    transport = transport_of(EngineOptions(weight_transfer=setting, transfer_dir=tmp_path), device)()
    assert isinstance(transport, FileTransport)
    transport.close()


@pytest.mark.parametrize(("setting", "kind"), [("auto", "nccl"), ("nccl", "nccl"), ("ipc", "ipc")])
def test_a_policy_on_a_gpu_sends_from_gpu_to_gpu(setting: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_transport, "GpuTransport", lambda kind: kind)
    assert transport_of(EngineOptions(weight_transfer=setting), "cuda")() == kind
