"""F24: bounded, ordered, clear, save and load. F25: nearest neighbours against brute force."""

from __future__ import annotations

import json

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridcore.correction.compression import compress_buckets
from hybridcore.correction.store import ResidualStore
from hybridcore.errors import StoreError
from hybridcore.layout import ParamGroup, ParamLayout
from hybridcore.protocols import Residual, Situation
from hybridcore.state import FEATURE_NAMES

K = len(FEATURE_NAMES)
LAYOUT = ParamLayout.plan([("w", (30, 20), "float32", "cpu", None), ("b", (7,), "float32", "cpu", None)])


def residual(step, features=None, predictor="drift", realised=-0.1, weights=None):
    features = np.random.default_rng(step).standard_normal(K) if features is None else features
    place = Situation(step, features, predictor, 20.0 + step, 1.5, -0.25)
    return Residual(place, realised, {ParamGroup.MATRIX: (0.5, 1.0 + step)}, weights)


def filled(n, capacity=1000, **more):
    store = ResidualStore(capacity)
    for step in range(n):
        store.add(residual(step, **more))
    return store


def plain(entries):
    """Everything in an entry, comparable."""
    return [
        (
            attrs.astuple(attrs.evolve(r.situation, features=0)),
            r.situation.features.tobytes(),
            repr(r.realised_change),
            r.groups,
            None if r.weights is None else [np.asarray(b).tobytes() for b in r.weights.expand(np)],
        )
        for r in entries
    ]


def test_f24_bounded_ordered_and_cleared():
    store = filled(12, capacity=5)
    assert len(store) == store.capacity == 5
    assert [r.situation.step for r in store] == [7, 8, 9, 10, 11]
    store.clear()
    assert len(store) == 0 and store.similar(np.zeros(K), 3) == []


def test_f51_bytes_are_counted_and_bounded():
    from array_api_compat import numpy as xp

    rng = np.random.default_rng(0)
    buckets = tuple(rng.standard_normal(s).astype(np.float32) for s in LAYOUT.bucket_sizes)
    weights = compress_buckets(buckets, LAYOUT, 3, xp, rng)
    # Rank 3 of 30 x 20 by its factors, the 7 of the vector as they are; features of float64 twice.
    arrays = 4 * (3 * (30 + 20) + 7) + 2 * 8 * K
    one = ResidualStore()
    one.add(residual(0, weights=weights))
    assert arrays <= one.nbytes <= arrays + 300
    store = ResidualStore(1000, memory_bytes=5.5 * one.nbytes)
    for step in range(20):
        store.add(residual(step, weights=weights))
    assert [r.situation.step for r in store] == [15, 16, 17, 18, 19]
    assert store.nbytes == 5 * one.nbytes
    by_count = ResidualStore(3)
    for step in range(7):
        by_count.add(residual(step, weights=weights))
    assert by_count.nbytes == 3 * one.nbytes
    by_count.clear()
    assert by_count.nbytes == 0


@pytest.mark.parametrize("n", [0, 1, 9])
def test_f24_save_and_load_give_the_same_entries(tmp_path, n):
    store = filled(n, realised=float("nan"))
    rng = np.random.default_rng(0)
    buckets = tuple(rng.standard_normal(s).astype(np.float32) for s in LAYOUT.bucket_sizes)
    from array_api_compat import numpy as xp

    store.add(residual(99, weights=compress_buckets(buckets, LAYOUT, 3, xp, rng)))
    store.save(tmp_path / "store")
    other = filled(3)
    other.load(tmp_path / "store")
    assert plain(other) == plain(store)
    same = ResidualStore()
    same.load_state_dict(store.state_dict())
    assert plain(same) == plain(store)
    found = [r.weights for r in other][-1]
    assert found.nbytes == [r.weights for r in store][-1].nbytes > 0


def test_f24_load_into_a_smaller_store_keeps_the_newest(tmp_path):
    filled(9).save(tmp_path)
    store = ResidualStore(4)
    store.load(tmp_path)
    assert [r.situation.step for r in store] == [5, 6, 7, 8]


def test_f24_saving_again_leaves_one_file_of_arrays_and_no_part(tmp_path):
    for n in (2, 3, 3):
        filled(n).save(tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 2 and names[1] == "residuals.json"


def test_a_kill_before_the_header_is_swapped_leaves_the_old_store(tmp_path, monkeypatch):
    import os

    filled(2).save(tmp_path)
    replace = os.replace

    def killed(source, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        filled(7).save(tmp_path)
    store = ResidualStore()
    store.load(tmp_path)
    assert len(store) == 2


def damage_arrays(folder):
    next(folder.glob("*.safetensors")).write_bytes(b"x" * 40)


def damage_header(folder):
    (folder / "residuals.json").write_text("{")


def other_features(folder):
    header = json.loads((folder / "residuals.json").read_text())
    header["features"] = header["features"][1:]
    (folder / "residuals.json").write_text(json.dumps(header))


@pytest.mark.parametrize("damage", [damage_arrays, damage_header, other_features])
def test_a_damaged_store_is_a_typed_error_and_changes_nothing(tmp_path, damage):
    filled(2).save(tmp_path)
    damage(tmp_path)
    store = filled(3)
    with pytest.raises(StoreError, match=r"correction\.store") as caught:
        store.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and len(store) == 3


def test_no_store_is_a_typed_error(tmp_path):
    with pytest.raises(StoreError):
        ResidualStore().load(tmp_path / "nothing")


def brute_force(entries, features, n):
    """Mahalanobis distances by an explicit inverse, one pair at a time."""
    rows = np.array([r.situation.features for r in entries], dtype=np.float64)
    count = len(rows)
    mean = sum(rows) / count
    covariance = sum(np.outer(x - mean, x - mean) for x in rows) / count
    mixed = covariance * count / (count + K)
    for i in range(K):
        mixed[i, i] = max(covariance[i, i], 1e-4)
    inverse = np.linalg.inv(mixed)
    distances = [float(np.sqrt((features - x) @ inverse @ (features - x))) for x in rows]
    order = sorted(range(count), key=lambda i: (distances[i], -i))[:n]
    return [(entries[i].situation.step, distances[i]) for i in order]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 120), st.integers(1, 12), st.integers(0, 2**16))
def test_f25_top_n_equals_brute_force(count, n, seed):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((K, K)) * np.logspace(-2, 1, K)  # correlated, of different sizes
    mixing[0] = 0.0  # a feature that never varies
    store = ResidualStore()
    for step in range(count):
        store.add(residual(step, features=mixing @ rng.standard_normal(K)))
    features = mixing @ rng.standard_normal(K)
    found = store.similar(features, n)
    wanted = brute_force(list(store), features, n)
    assert [r.situation.step for r, _ in found] == [s for s, _ in wanted]
    np.testing.assert_allclose([d for _, d in found], [d for _, d in wanted], rtol=1e-6)


def test_f25_scale_of_a_feature_does_not_matter_where_raw_cosine_would_err():
    """One feature in large units would decide a raw comparison alone."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, K))
    target = rows[17] + 0.01
    for units in (1.0, 1e4):
        store = ResidualStore()
        scale = np.ones(K)
        scale[3] = units
        for step, row in enumerate(rows):
            store.add(residual(step, features=row * scale))
        assert store.similar(target * scale, 1)[0][0].situation.step == 17


def test_f25_search_can_be_kept_to_one_predictor():
    store = ResidualStore()
    for step in range(6):
        store.add(residual(step, features=np.full(K, step), predictor="a" if step % 2 else "b"))
    assert [r.situation.step for r, _ in store.similar(np.full(K, 4.0), 9, "a")] == [5, 3, 1]
