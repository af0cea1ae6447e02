"""New weights and adapters for servers: the order of calls, versions of rows, files, and what happens to old ones."""

import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gvpo.errors import EngineError
from gvpo.sampling import AdapterSampler, StreamingSampler, UpdatableSampler
from gvpo.sampling.server.file_transport import FileTransport
from gvpo.sampling.transfer import LOCK, TransferDirectory
from tests.sampling.server.fake_vllm import FakeVllm, serving, until
from tests.sampling.server.helpers import PARAMS, REQUESTS, expected, opened, tokens_of

LONG = REQUESTS[:1]
CYCLE = [
    "/init_weight_transfer_engine",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
]


def weights(value: float) -> list[tuple[str, torch.Tensor]]:
    """Return the weights of a table, with a tied entry."""
    bias = torch.tensor(value)
    return [("bias", bias), ("tied", bias)]


def unfinished(rows: list[list[list[int]]]) -> int:
    """Return the number of rows with more than one token."""
    return sum(len(tokens) > 1 for group in rows for tokens in group)


def write_adapter(path: Path, value: float) -> Path:
    path.mkdir(exist_ok=True)
    save_file({"bias": torch.tensor(value)}, path / "adapter_model.safetensors")
    return path


def test_rows_after_an_update_come_from_the_new_weights_of_every_server(tmp_path: Path) -> None:
    one, two = FakeVllm(), FakeVllm()
    with serving(one, two), opened(one, two, transfer_dir=tmp_path) as sampler:
        for version in range(3):
            sampler.update(weights(version + 1.0), version)
            rows = sampler.sample(REQUESTS, PARAMS, seed=0, step=1)
            assert tokens_of(rows) == expected(REQUESTS, PARAMS, seed=0, step=1, weights=version + 1.0)
            assert {row.version for group in rows for row in group} == {version}
            assert {row.versions for group in rows for row in group} == {None}
    for fake in (one, two):
        assert fake.paths("/start") == ["/start_weight_update"] * 3
        assert fake.generated()


def test_an_update_makes_the_calls_of_vllm_in_their_order(tmp_path: Path) -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        fake.calls.clear()
        sampler.update(weights(1.0), 7)
    assert fake.paths() == ["/pause?mode=wait", *CYCLE, "/reset_prefix_cache", "/weight_info", "/resume"]
    bodies = dict(fake.calls)
    assert bodies["/finish_weight_update"]["weight_version"].endswith("-step-7")
    assert Path(bodies["/update_weights"]["update_info"]["path"]).is_absolute()


def test_the_file_has_all_entries_and_only_the_newest_stays(tmp_path: Path) -> None:
    fake = FakeVllm()
    seen: list[dict[str, torch.Tensor]] = []

    def hook(fake: FakeVllm, path: str, body: dict[str, Any]) -> None:
        if path == "/update_weights":
            seen.append(load_file(body["update_info"]["path"]))

    fake.hook = hook
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        sampler.update(weights(1.0), 0)
        sampler.update(weights(2.0), 1)
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1
        assert not list(tmp_path.rglob("*.part"))
    assert [{name: float(value) for name, value in each.items()} for each in seen] == [
        {"bias": 1.0, "tied": 1.0},
        {"bias": 2.0, "tied": 2.0},
    ]
    assert not list(tmp_path.iterdir())  # `close` leaves nothing


def test_an_update_waits_for_unfinished_rows(tmp_path: Path) -> None:
    fake, old = FakeVllm(), expected(REQUESTS, PARAMS, seed=0, step=1, weights=1.0)
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        sampler.update(weights(1.0), 0)
        sampling, rows = fake.hold(unfinished(old), lambda: sampler.sample(REQUESTS, PARAMS, seed=0, step=1))
        updating = threading.Thread(target=sampler.update, args=(weights(2.0), 1))
        updating.start()
        until(lambda: fake.pausing == "wait")
        assert fake.paths()[-1] == "/pause?mode=wait"
        fake.go.set()
        sampling.join()
        updating.join()
        later = sampler.sample(REQUESTS, PARAMS, seed=0, step=2)
    assert tokens_of(rows[0]) == old
    assert {(row.version, row.versions) for group in rows[0] for row in group} == {(0, None)}
    assert tokens_of(later) == expected(REQUESTS, PARAMS, seed=0, step=2, weights=2.0)
    assert {row.version for group in later for row in group} == {1}


def test_in_flight_updates_continue_rows_with_the_version_of_each_token(tmp_path: Path) -> None:
    fake, old = FakeVllm(), expected(REQUESTS, PARAMS, seed=0, step=1, weights=1.0)
    with serving(fake), opened(fake, transfer_dir=tmp_path, in_flight_updates=True) as sampler:
        sampler.update(weights(1.0), 4)
        sampling, rows = fake.hold(unfinished(old), lambda: sampler.sample(REQUESTS, PARAMS, seed=0, step=1))
        sampler.update(weights(2.0), 5)
        fake.go.set()
        sampling.join()
    mixed = [row for group in rows[0] for row in group if row.versions is not None]
    assert len(mixed) == unfinished(old) > 6
    for row in mixed:
        assert row.version == 4
        assert row.versions == [4] + [5] * (len(row.tokens) - 1)
    assert "/pause?mode=keep" in fake.paths()
    assert "/reset_prefix_cache?reset_running_requests=true" in fake.paths()


def test_a_server_that_rejects_the_weights_ends_the_update_with_its_words(tmp_path: Path) -> None:
    fake = FakeVllm()
    fake.hook = lambda _, path, body: (
        (500, {"error": "the engine's model has no weight lm_head"}, {}) if path == "/update_weights" else None
    )
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"has no weight lm_head.*serve the model that is trained"):
            sampler.update(weights(1.0), 0)
        assert time.monotonic() - began < 10  # not after the deadline
        assert fake.pausing == ""


def test_an_update_that_was_interrupted_is_ended_before_the_next(tmp_path: Path) -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        fake.updating = 1
        sampler.update(weights(1.0), 0)
        rows = sampler.sample(REQUESTS, PARAMS, seed=0, step=1)
    assert tokens_of(rows) == expected(REQUESTS, PARAMS, seed=0, step=1, weights=1.0)


def test_a_server_without_developer_mode_is_an_error_that_names_the_variable(tmp_path: Path) -> None:
    fake = FakeVllm()
    fake.hook = lambda _, path, body: (404, {"detail": "Not Found"}, {}) if path.startswith("/pause") else None
    with (
        serving(fake),
        opened(fake, transfer_dir=tmp_path) as sampler,
        pytest.raises(EngineError, match=r"answered 404 to /pause.*VLLM_SERVER_DEV_MODE=1"),
    ):
        sampler.update(weights(1.0), 0)


def test_adapters_are_served_under_a_new_name_per_version(tmp_path: Path) -> None:
    fake, old = FakeVllm(), expected(REQUESTS, PARAMS, seed=0, step=2, weights=1.0)
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        sampler.update_adapter(write_adapter(tmp_path / "one", 1.0), 3)
        first = sampler.sample(REQUESTS, PARAMS, seed=0, step=1)
        sampling, rows = fake.hold(unfinished(old), lambda: sampler.sample(REQUESTS, PARAMS, seed=0, step=2))
        updating = threading.Thread(target=sampler.update_adapter, args=(write_adapter(tmp_path / "two", 2.0), 4))
        updating.start()
        until(lambda: len(fake.adapters) == 2)
        assert updating.is_alive()  # the trainer may delete the older adapter when the call has returned
        fake.go.set()
        sampling.join()
        updating.join()
        (second,) = rows
        third = sampler.sample(REQUESTS, PARAMS, seed=0, step=3)
        assert list(fake.adapters.values()) == [str(tmp_path / "two")]
    assert fake.adapters == {}  # the sampler was closed
    assert tokens_of(first) == expected(REQUESTS, PARAMS, seed=0, step=1, weights=1.0)
    assert tokens_of(second) == old
    assert tokens_of(third) == expected(REQUESTS, PARAMS, seed=0, step=3, weights=2.0)
    assert [{row.version for group in rows for row in group} for rows in (first, second, third)] == [
        {3},
        {3},
        {4},
    ]
    names = [body["lora_name"] for path, body in fake.calls if path == "/v1/load_lora_adapter"]
    assert len(set(names)) == 2


def test_an_adapter_that_a_server_cannot_load_is_an_error(tmp_path: Path) -> None:
    fake = FakeVllm()
    with (
        serving(fake),
        opened(fake, transfer_dir=tmp_path) as sampler,
        pytest.raises(EngineError, match=r"no adapter found.*sampling.transfer_dir"),
    ):
        sampler.update_adapter(tmp_path / "missing", 0)


def test_the_sampler_has_the_methods_of_its_protocols(tmp_path: Path) -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake) as sampler:
        assert isinstance(sampler, StreamingSampler)
        assert isinstance(sampler, UpdatableSampler)
        assert isinstance(sampler, AdapterSampler)
        assert (sampler.concurrent, sampler.shares_model) == (True, False)


def test_files_of_programs_that_were_killed_are_deleted_and_others_stay(tmp_path: Path) -> None:
    mine = FileTransport(tmp_path)
    mine.store(weights(1.0))
    process = os.fork()
    if process == 0:
        for kind in ("weights", "adapters"):
            TransferDirectory(tmp_path, kind).path.joinpath("file").touch()
        os._exit(0)
    os.waitpid(process, 0)
    elsewhere = tmp_path / "gvpo-weights-another-host-x"
    elsewhere.mkdir()
    elsewhere.joinpath(LOCK).touch()
    assert len(list(tmp_path.iterdir())) == 4
    for kind in ("weights", "adapters"):
        TransferDirectory(tmp_path, kind).close()
    assert sorted(tmp_path.iterdir()) == sorted([mine.directory, elsewhere])


def test_servers_get_an_absolute_path_of_files_that_they_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    transport = FileTransport(Path("shared"))
    transport.store(weights(1.0))
    (file,) = transport.directory.glob("weights-*")
    assert file.is_relative_to(tmp_path / "shared")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (transport.directory, file)] == [0o755, 0o644]


def test_weights_that_do_not_fit_are_an_error_that_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = FileTransport(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3})())
    with pytest.raises(EngineError, match=r"0.0 GiB of room.*sampling.transfer_dir"):
        transport.store(weights(1.0))
    assert not list(transport.directory.glob("weights-*"))


def test_a_directory_that_cannot_be_written_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"sampling.transfer_dir"):
        FileTransport(tmp_path / "file" / "directory")
