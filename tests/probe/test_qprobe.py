"""Tests of the probe as a file: it round-trips with its metadata, and other files raise errors."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from gvpo.errors import DataError, ModelError
from gvpo.probe.features import embed_all
from gvpo.probe.qprobe import QProbe
from gvpo.probe.store import FeatureStore

PROBE = QProbe(np.array([1.0, -2.0], dtype=np.float32), 0.1, {"fit": {"loss": "mse", "seed": 3}, "features": None})


def test_scores_match_hand_computed_values():
    assert PROBE([[1.0, 1.0], [0.5, 0.0]]).tolist() == pytest.approx([-0.9, 0.6])


def test_rows_on_disk_score_as_in_memory(tmp_path):
    texts = [str(n) for n in range(50)]
    rows = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    stored = embed_all(lambda p, t: rows[[int(x) for x in t]], texts, texts, store=FeatureStore(tmp_path, "x"), chunk=7)
    assert np.array_equal(PROBE(stored), PROBE(rows))


def test_a_probe_round_trips(tmp_path):
    path = PROBE.save(tmp_path / "sub" / "p.safetensors")
    loaded = QProbe.load(path)
    assert np.array_equal(loaded.weight, PROBE.weight)
    assert loaded.bias == PROBE.bias
    assert loaded.metadata == PROBE.metadata


def test_any_reader_of_safetensors_can_read_it(tmp_path):
    with safe_open(PROBE.save(tmp_path / "p.safetensors"), framework="numpy") as file:
        assert set(file.keys()) == {"weight", "bias"}
        assert json.loads(file.metadata()["probe"])["fit"]["loss"] == "mse"


def test_files_that_are_not_probes_raise(tmp_path):
    with pytest.raises(ModelError, match="there is no probe"):
        QProbe.load(tmp_path / "gone")
    save_file({"weight": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"other.safetensors is not a probe; give the file"):
        QProbe.load(tmp_path / "other.safetensors")
    path = PROBE.save(tmp_path / "p.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ModelError, match=r"is corrupt .*; fit it again"):
        QProbe.load(path)


def test_features_of_another_width_raise():
    with pytest.raises(DataError, match=r"needs features of 2 numbers, but these have shape \(1, 3\)"):
        PROBE([[1.0, 2.0, 3.0]])
