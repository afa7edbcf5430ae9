"""Every sentence of the `Adapter` protocol as a test; subclass `AdapterContract` to run them."""

# ruff: noqa: D102 -- the names of the tests are their descriptions

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load, save

from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.engine_state import Moment
from hybridcore.config import HistoryConfig, MemoryConfig
from hybridcore.errors import BatchError, DeltaError, SnapshotError
from hybridcore.history import History
from hybridcore.layout import Buckets, ParamGroup
from hybridcore.memory import Memory
from hybridcore.protocols import (
    API_VERSION,
    Adapter,
    CheckpointAdapter,
    ClippingAdapter,
    HostCopy,
    HostMemoryAdapter,
    MemoryAdapter,
    PeakMemoryAdapter,
    RateAdapter,
)

__all__ = ["AdapterContract", "AdapterFixture"]

_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@attrs.frozen
class AdapterFixture:
    """One adapter with data, fresh for every test.

    Attributes:
        adapter: Under test; its model has not been trained yet.
        batches: At least four training batches.
        probe: A batch for probes.
        nan_batch: A batch whose loss is not finite, or None where the model cannot give one.
        bad_batch: A batch of a form the model cannot take, or None.
        n_probe: Examples in `probe`.
        random_steps: Whether a training step draws random numbers (dropout).
        weights: The framework's own view of the trainable weights by layout name, read without the
            adapter; None leaves the comparison out.
        other: An adapter of another layout, or None.
    """

    adapter: Adapter
    batches: Sequence[Any]
    probe: Any
    nan_batch: Any = None
    bad_batch: Any = None
    n_probe: int | None = None
    random_steps: bool = False
    weights: Callable[[], Mapping[str, NDArray[Any]]] | None = None
    other: Adapter | None = None


def _numpy(array: Any) -> NDArray[np.float64]:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array).astype(np.float64)


def _values(adapter: Adapter) -> list[NDArray[np.float64]]:
    return [_numpy(b) for b in adapter.read_params()]


def _buckets(adapter: Adapter, arrays: Sequence[NDArray[Any]]) -> Buckets:
    xp = adapter.xp
    like = adapter.read_params()
    return tuple(
        xp.asarray(np.array(a, dtype=adapter.layout.bucket_dtype), dtype=b.dtype, device=b.device)
        for a, b in zip(arrays, like, strict=True)
    )


def _random(adapter: Adapter, seed: int, size: float = 0.01) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [_held(adapter, size * rng.standard_normal(n)) for n in adapter.layout.bucket_sizes]


def _held(adapter: Adapter, array: NDArray[Any]) -> NDArray[np.float64]:
    """The array as a bucket holds it."""
    return array.astype(adapter.layout.bucket_dtype).astype(np.float64)


def _same(a: Sequence[NDArray[np.float64]], b: Sequence[NDArray[np.float64]]) -> bool:
    return len(a) == len(b) and all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def _epsilon(adapter: Adapter) -> float:
    return max(_EPSILON[p.dtype] for p in adapter.layout.params)


def _rounding(adapter: Adapter) -> float:
    """Relative error of one operation on buckets."""
    return _EPSILON[adapter.layout.bucket_dtype]


def _close(adapter: Adapter, got: Sequence[NDArray[np.float64]], want: Sequence[NDArray[np.float64]]) -> None:
    """Equal up to a few roundings in the model's own precision."""
    eps = _epsilon(adapter)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=4 * eps, atol=4 * eps * max(1e-3, float(np.abs(y).max())))


def _train(fixture: AdapterFixture, count: int = 3) -> list[float]:
    return [fixture.adapter.train_step(fixture.batches[i % len(fixture.batches)]).loss for i in range(count)]


class AdapterContract:
    """Base class of tests; a subclass says how to make the adapter.

    Example:
        >>> class TestMine(AdapterContract):
        ...     def make(self):
        ...         return AdapterFixture(adapter=..., batches=..., probe=...)
    """

    def make(self) -> AdapterFixture:
        """A fresh fixture, equal at every call."""
        raise NotImplementedError

    # Identity and layout

    def test_has_every_member_of_the_protocol(self) -> None:
        adapter = self.make().adapter
        assert isinstance(adapter, Adapter)
        assert adapter.api_version == API_VERSION
        assert adapter.name
        assert isinstance(adapter.device, str)
        assert isinstance(adapter.capabilities, frozenset)

    def test_layout_covers_each_bucket_once(self) -> None:
        layout = self.make().adapter.layout
        assert len(set(layout.names)) == len(layout.names) > 0
        stop = [0] * len(layout.bucket_sizes)
        for spec in layout.params:
            assert spec.offset == stop[spec.bucket]
            stop[spec.bucket] = spec.stop
        assert tuple(stop) == layout.bucket_sizes

    def test_layout_names_the_frameworks_own_weights(self) -> None:
        fixture = self.make()
        if fixture.weights is None:
            pytest.skip("the fixture gives no independent view of the weights")
        adapter, own = fixture.adapter, fixture.weights()
        assert set(own) == set(adapter.layout.names)
        named = adapter.layout.unpack(adapter.read_params(), adapter.xp)
        for name, value in own.items():
            assert tuple(named[name].shape) == value.shape
            np.testing.assert_array_equal(_numpy(named[name]), _held(adapter, value))

    # Reading and writing weights

    def test_read_params_gives_one_dimensional_buckets_of_the_layouts_dtype(self) -> None:
        adapter = self.make().adapter
        buckets = adapter.read_params()
        adapter.layout.check(buckets)
        assert all(b.dtype == getattr(adapter.xp, adapter.layout.bucket_dtype) for b in buckets)
        total = adapter.add_params(buckets, 0.5, 0.5)
        assert all(b.dtype == getattr(adapter.xp, adapter.layout.bucket_dtype) for b in total)

    def test_read_params_is_a_copy(self) -> None:
        adapter = self.make().adapter
        read = adapter.read_params()
        before = [_numpy(b) for b in read]
        adapter.apply_delta(_buckets(adapter, _random(adapter, 1, 1.0)))
        assert _same([_numpy(b) for b in read], before)
        assert not _same(_values(adapter), before)

    def test_read_params_into_out_equals_a_fresh_read(self) -> None:
        fixture = self.make()
        adapter = fixture.adapter
        out = adapter.read_params()
        _train(fixture, 1)
        want = _values(adapter)
        assert _same([_numpy(b) for b in adapter.read_params(out)], want)
        assert _same(_values(adapter), want)

    @pytest.mark.parametrize(("weight", "decay"), [(1.0, 1.0), (0.25, 0.75), (1.0, -1.0), (0.5, 0.0)])
    def test_add_params_is_the_stated_formula(self, weight: float, decay: float) -> None:
        adapter = self.make().adapter
        params, start = _values(adapter), _random(adapter, 2, 1.0)
        result = adapter.add_params(_buckets(adapter, start), weight, decay)
        for got, into, param in zip(result, start, params, strict=True):
            eps = 16 * _rounding(adapter)
            np.testing.assert_allclose(_numpy(got), decay * into + weight * param, rtol=eps, atol=eps)
        assert _same(_values(adapter), params)

    def test_running_mean_by_add_params_is_the_mean(self) -> None:
        fixture = self.make()
        adapter = fixture.adapter
        total, seen = adapter.read_params(), [_values(adapter)]
        for _ in range(3):
            _train(fixture, 1)
            total = adapter.add_params(total)
            seen.append(_values(adapter))
        for index, got in enumerate(total):
            want = np.sum([values[index] for values in seen], axis=0)
            eps = 8 * _rounding(adapter)
            np.testing.assert_allclose(_numpy(got), want, rtol=10 * eps, atol=eps)

    def test_write_params_sets_the_weights(self) -> None:
        adapter = self.make().adapter
        want = [v + d for v, d in zip(_values(adapter), _random(adapter, 3), strict=True)]
        adapter.write_params(_buckets(adapter, want))
        _close(adapter, _values(adapter), want)

    def test_write_of_what_was_read_changes_nothing(self) -> None:
        fixture = self.make()
        adapter = fixture.adapter
        _train(fixture)
        before = _values(adapter)
        adapter.write_params(adapter.read_params())
        assert _same(_values(adapter), before)

    # Deltas

    @pytest.mark.parametrize("scale", [1.0, -0.5, 7.0])
    def test_apply_delta_adds_scale_times_delta(self, scale: float) -> None:
        adapter = self.make().adapter
        before, delta = _values(adapter), _random(adapter, 4, 0.1)
        adapter.apply_delta(_buckets(adapter, delta), scale)
        _close(adapter, _values(adapter), [v + scale * d for v, d in zip(before, delta, strict=True)])

    def test_apply_delta_scales_each_group(self) -> None:
        adapter = self.make().adapter
        before, delta = _values(adapter), _random(adapter, 5, 0.1)
        factors = {ParamGroup.MATRIX: 2.0, ParamGroup.BIAS: 0.0, ParamGroup.NORM: 0.5}
        adapter.apply_delta(_buckets(adapter, delta), 0.5, factors)
        want = [v.copy() for v in before]
        for spec in adapter.layout.params:
            part = slice(spec.offset, spec.stop)
            want[spec.bucket][part] += 0.5 * factors.get(spec.group, 1.0) * delta[spec.bucket][part]
        _close(adapter, _values(adapter), want)

    def test_displacements_add_up(self) -> None:
        """F21: y applications of a y-th move the weights as one whole application does."""
        adapter = self.make().adapter
        before, delta = _values(adapter), _random(adapter, 6, 0.5)
        buckets = _buckets(adapter, delta)
        for _ in range(4):
            adapter.apply_delta(buckets, 0.25)
        _close(adapter, _values(adapter), [v + d for v, d in zip(before, delta, strict=True)])
        assert _same([_numpy(b) for b in buckets], delta)

    def test_misfitting_delta_raises_and_changes_nothing(self) -> None:
        """F22."""
        adapter = self.make().adapter
        before = _values(adapter)
        good = _random(adapter, 7)
        long = [*good[:-1], np.concatenate([good[-1], [1.0]])]
        for wrong in (_buckets(adapter, long), _buckets(adapter, good)[:-1]):
            with pytest.raises(DeltaError):
                adapter.apply_delta(wrong)
            with pytest.raises(DeltaError):
                adapter.write_params(wrong)
        assert _same(_values(adapter), before)

    def test_training_goes_on_after_a_delta(self) -> None:
        fixture = self.make()
        adapter = fixture.adapter
        _train(fixture)
        deltas = _buckets(adapter, _random(adapter, 8, 0.001))
        adapter.apply_delta(deltas)
        moved = _values(adapter)
        adapter.after_jump(deltas)
        assert _same(_values(adapter), moved)
        assert all(math.isfinite(loss) for loss in _train(fixture))
        assert not _same(_values(adapter), moved)

    # Temporary weights

    def test_weights_are_lent_and_returned_exactly(self) -> None:
        fixture = self.make()
        adapter = fixture.adapter
        _train(fixture)
        before = _values(adapter)
        lent = [v + d for v, d in zip(before, _random(adapter, 9, 0.3), strict=True)]
        with adapter.weights(_buckets(adapter, lent)):
            _close(adapter, _values(adapter), lent)
            with adapter.weights(_buckets(adapter, before)):
                _close(adapter, _values(adapter), before)
            _close(adapter, _values(adapter), lent)
        assert _same(_values(adapter), before)

    def test_weights_come_back_after_an_exception(self) -> None:
        adapter = self.make().adapter
        before = _values(adapter)
        with pytest.raises(KeyError), adapter.weights(_buckets(adapter, _random(adapter, 10))):
            raise KeyError
        assert _same(_values(adapter), before)

    # What only some adapters can do

    def test_capabilities_and_methods_go_together(self) -> None:
        adapter = self.make().adapter
        assert isinstance(adapter, RateAdapter) == ("learning-rate" in adapter.capabilities)
        assert isinstance(adapter, ClippingAdapter) == ("adaptive-clipping" in adapter.capabilities)
        assert isinstance(adapter, MemoryAdapter) == ("memory" in adapter.capabilities)
        assert isinstance(adapter, HostMemoryAdapter) == ("host-memory" in adapter.capabilities)
        assert isinstance(adapter, PeakMemoryAdapter) == ("peak-memory" in adapter.capabilities)

    def test_the_device_tells_its_peak_and_the_host_leaves_it_to_the_core(self) -> None:
        """F90."""
        fixture = self.make()
        adapter = fixture.adapter
        if not isinstance(adapter, PeakMemoryAdapter):
            pytest.skip("the adapter has no capability 'peak-memory'")
        adapter.reset_peak()
        _train(fixture)
        peak = adapter.peak_bytes()
        assert peak is None if fixture.adapter.device.startswith("cpu") else peak is not None and peak > 0

    def rated(self) -> tuple[AdapterFixture, RateAdapter]:
        """A fixture, and its adapter if it can change the learning rate."""
        fixture = self.make()
        if not isinstance(fixture.adapter, RateAdapter):
            pytest.skip("the adapter has no capability 'learning-rate'")
        return fixture, fixture.adapter

    def test_learning_rate_is_scaled_from_the_next_step_on(self) -> None:
        """F40."""
        fixture, adapter = self.rated()
        _train(fixture)
        rate = adapter.learning_rate
        adapter.scale_learning_rate(0.25)
        assert adapter.learning_rate == pytest.approx(0.25 * rate, rel=1e-6)
        _train(fixture, 1)
        assert adapter.learning_rate == pytest.approx(0.25 * rate, rel=0.2), (
            "apart from a schedule's own step"
        )

    def test_a_tiny_learning_rate_makes_tiny_steps(self) -> None:
        fixture, adapter = self.rated()
        _train(fixture)
        point, before = adapter.snapshot(), _values(adapter)
        _train(fixture, 1)
        usual = sum(float(np.abs(a - b).sum()) for a, b in zip(_values(adapter), before, strict=True))
        adapter.restore(point)
        adapter.scale_learning_rate(2.0**-20)
        _train(fixture, 1)
        tiny = sum(float(np.abs(a - b).sum()) for a, b in zip(_values(adapter), before, strict=True))
        assert tiny <= 1e-3 * usual

    def test_scaling_there_and_back_changes_nothing(self) -> None:
        fixture, adapter = self.rated()
        _train(fixture)
        point, want = adapter.snapshot(), _train(fixture)
        adapter.restore(point)
        adapter.scale_learning_rate(0.5)
        adapter.scale_learning_rate(2.0)
        assert _train(fixture) == want

    def test_a_snapshot_takes_the_learning_rate_back(self) -> None:
        """F40: the factor belongs to the state."""
        fixture, adapter = self.rated()
        _train(fixture)
        point, rate, want = adapter.snapshot(), adapter.learning_rate, _train(fixture)
        adapter.scale_learning_rate(0.125)
        adapter.restore(point)
        assert adapter.learning_rate == rate
        assert _train(fixture) == want

    def test_adaptive_clipping_shortens_what_is_long_and_nothing_else(self) -> None:
        """F69: a huge ratio changes nothing, a tiny one nearly stops the gradient, None ends it."""
        fixture = self.make()
        adapter = fixture.adapter
        if not isinstance(adapter, ClippingAdapter):
            pytest.skip("the adapter has no capability 'adaptive-clipping'")
        _train(fixture)
        point = adapter.snapshot()

        def norm(ratio: float | None) -> float:
            adapter.restore(point)
            adapter.clip_adaptively(ratio)
            return adapter.train_step(fixture.batches[0]).grad_norm

        free = norm(None)
        if math.isnan(free):
            pytest.skip("the adapter measures no gradient norm")
        assert norm(1e9) == pytest.approx(free, rel=1e-5)
        weights = math.sqrt(sum(float((v * v).sum()) for v in _values(adapter)))
        assert norm(1e-6) <= 1e-6 * (weights + 1.0)
        assert norm(None) == free

    # Real steps

    def test_train_step_reports_and_moves(self) -> None:
        fixture = self.make()
        adapter = fixture.adapter
        before = _values(adapter)
        result = adapter.train_step(fixture.batches[0])
        assert math.isfinite(result.loss)
        assert result.skipped is False
        assert math.isnan(result.grad_norm) or result.grad_norm > 0.0
        assert not _same(_values(adapter), before)

    def test_non_finite_batch_changes_nothing(self) -> None:
        """F41: weights at once; optimizer and buffers by an identical continuation."""
        fixture = self.make()
        if fixture.nan_batch is None:
            pytest.skip("the model cannot give a non-finite loss")
        adapter = fixture.adapter
        _train(fixture)
        before, probe, point = _values(adapter), adapter.probe_loss(fixture.probe), adapter.snapshot()
        undisturbed = _train(fixture)
        adapter.restore(point)
        result = adapter.train_step(fixture.nan_batch)
        assert result.skipped is True
        assert _same(_values(adapter), before)
        np.testing.assert_array_equal(adapter.probe_loss(fixture.probe), probe)
        if not fixture.random_steps:
            assert _train(fixture) == undisturbed

    def test_non_finite_first_batch_changes_nothing(self) -> None:
        fixture, fresh = self.make(), self.make()
        if fixture.nan_batch is None:
            pytest.skip("the model cannot give a non-finite loss")
        before = _values(fixture.adapter)
        assert fixture.adapter.train_step(fixture.nan_batch).skipped is True
        assert _same(_values(fixture.adapter), before)
        if not fixture.random_steps:
            assert _train(fixture) == _train(fresh)

    def test_misformed_batch_raises_and_changes_nothing(self) -> None:
        fixture = self.make()
        if fixture.bad_batch is None:
            pytest.skip("the fixture gives no misformed batch")
        _train(fixture)
        before = _values(fixture.adapter)
        with pytest.raises(BatchError):
            fixture.adapter.train_step(fixture.bad_batch)
        assert _same(_values(fixture.adapter), before)
        assert all(math.isfinite(loss) for loss in _train(fixture))

    # Probes

    def test_probe_gives_one_float64_loss_per_example(self) -> None:
        fixture = self.make()
        losses = fixture.adapter.probe_loss(fixture.probe)
        assert isinstance(losses, np.ndarray)
        assert losses.dtype == np.float64
        assert losses.ndim == 1
        assert losses.size > 0
        assert np.isfinite(losses).all()
        if fixture.n_probe is not None:
            assert losses.shape == (fixture.n_probe,)

    def test_probe_follows_the_weights(self) -> None:
        fixture = self.make()
        adapter = fixture.adapter
        here = adapter.probe_loss(fixture.probe)
        with adapter.weights(_buckets(adapter, _random(adapter, 11, 1.0))):
            there = adapter.probe_loss(fixture.probe)
        assert not np.array_equal(here, there)
        np.testing.assert_array_equal(adapter.probe_loss(fixture.probe), here)

    def test_probe_leaves_no_trace(self) -> None:
        """Parameters at once; buffers, RNG and training mode by an identical continuation."""
        fixture = self.make()
        adapter = fixture.adapter
        _train(fixture)
        point = adapter.snapshot()
        undisturbed, end = _train(fixture), adapter.probe_loss(fixture.probe)
        adapter.restore(point)
        before = _values(adapter)
        adapter.probe_loss(fixture.probe)
        assert _same(_values(adapter), before)
        disturbed = []
        for loss in range(3):
            disturbed.append(adapter.train_step(fixture.batches[loss % len(fixture.batches)]).loss)
            adapter.probe_loss(fixture.probe)
        assert disturbed == undisturbed
        np.testing.assert_array_equal(adapter.probe_loss(fixture.probe), end)

    def test_refreshing_statistics_touches_nothing_else(self) -> None:
        """F86: weights at once; optimizer, RNG and mode by an identical continuation."""
        fixture = self.make()
        adapter = fixture.adapter
        _train(fixture)
        point = adapter.snapshot()
        undisturbed = _train(fixture)
        adapter.restore(point)
        before = _values(adapter)
        adapter.refresh_statistics(fixture.batches[:2])
        assert _same(_values(adapter), before)
        assert _train(fixture) == undisturbed

    # Snapshots

    def test_restore_is_bit_for_bit_and_repeatable(self) -> None:
        fixture = self.make()
        adapter = fixture.adapter
        _train(fixture)
        point, before = adapter.snapshot(), _values(adapter)
        probe, rate, moments = adapter.probe_loss(fixture.probe), adapter.learning_rate, adapter.moments()
        first = _train(fixture, 4)
        assert not _same(_values(adapter), before)
        for _ in range(2):
            adapter.restore(point)
            assert _same(_values(adapter), before)
            np.testing.assert_array_equal(adapter.probe_loss(fixture.probe), probe)
            assert (adapter.learning_rate, adapter.moments()) == (rate, moments)
            assert _train(fixture, 4) == first

    def test_restore_to_before_the_first_step(self) -> None:
        """The optimizer has no state yet; afterwards it must have none again."""
        fixture = self.make()
        adapter = fixture.adapter
        point, before, moments = adapter.snapshot(), _values(adapter), adapter.moments()
        first = _train(fixture)
        adapter.restore(point)
        assert _same(_values(adapter), before)
        assert adapter.moments() == moments
        assert _train(fixture) == first

    def test_restore_undoes_a_jump(self) -> None:
        fixture = self.make()
        adapter = fixture.adapter
        _train(fixture)
        point, before = adapter.snapshot(), _values(adapter)
        undisturbed = _train(fixture)
        adapter.restore(point)
        deltas = _buckets(adapter, _random(adapter, 12, 0.05))
        adapter.apply_delta(deltas)
        adapter.after_jump(deltas)
        _train(fixture, 1)
        adapter.restore(point)
        assert _same(_values(adapter), before)
        adapter.apply_delta(deltas)
        adapter.after_jump(deltas)
        adapter.restore(point)
        assert _train(fixture) == undisturbed

    def test_snapshot_of_another_layout_is_refused(self) -> None:
        fixture = self.make()
        if fixture.other is None:
            pytest.skip("the fixture gives no adapter of another layout")
        before = _values(fixture.adapter)
        with pytest.raises(SnapshotError):
            fixture.adapter.restore(fixture.other.snapshot())
        assert _same(_values(fixture.adapter), before)

    def test_snapshot_nbytes_counts_at_least_the_weights(self) -> None:
        fixture = self.make()
        _train(fixture)
        width = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
        least = sum(p.size * width[p.dtype] for p in fixture.adapter.layout.params)
        assert fixture.adapter.snapshot_nbytes() >= least

    # Scalars

    def test_window_means_wait_in_host_memory_unchanged(self) -> None:
        """F63; as they are and encoded, bit for bit."""
        fixture = self.make()
        adapter = fixture.adapter
        pairs = []
        for dtype in ("float32", "bfloat16", "int8"):
            config = HistoryConfig(window=2, windows=2, dtype=dtype)
            places = [Memory(adapter, MemoryConfig(history=place)) for place in ("device", "host")]
            needs = {"window-means"}
            pairs.append([History(adapter.layout, adapter.xp, config, needs, memory=m) for m in places])
        for batch in fixture.batches[:4]:
            adapter.train_step(batch)
            for history in itertools.chain(*pairs):
                history.after_step(adapter)
        for pair in pairs:
            stays, goes = ([*h.window_means, h.displacement()] for h in pair)
            assert len(stays) == 3
            for one, other in zip(stays, goes, strict=True):
                assert _same([_numpy(b) for b in one], [_numpy(b) for b in other])
        to_host = Memory(adapter, MemoryConfig(history="host")).to_host
        assert to_host is not None
        truth, kept = _values(adapter), to_host(adapter.read_params())
        assert isinstance(kept, HostCopy)
        assert kept.homes == tuple(str(getattr(b, "device", "")) for b in adapter.read_params())
        assert kept.nbytes == sum(v.size for v in truth) * adapter.layout.itemsize
        adapter.add_params(kept.back(), 1.0, 3.0)  # which may write into what came back
        for found in (kept.back(), kept.numpy()):
            assert _same([_numpy(b) for b in found], truth)

    def test_scalars_have_their_ranges(self) -> None:
        fixture = self.make()
        adapter = fixture.adapter
        _train(fixture)
        assert isinstance(adapter.learning_rate, float)
        assert adapter.learning_rate > 0.0
        assert adapter.momentum_memory >= 1.0
        moments = adapter.moments()
        assert set(moments) == {"m_mean", "m_std", "v_mean", "v_std"}
        assert all(math.isfinite(v) for v in moments.values())
        assert moments["m_std"] >= 0.0
        assert moments["v_mean"] >= 0.0

    def test_mean_scalar_is_the_value_on_one_process(self) -> None:
        adapter = self.make().adapter
        assert adapter.mean_scalar(0.1) == 0.1
        adapter.synchronize()

    def test_state_dict_is_plain_and_comes_back(self) -> None:
        fixture, fresh = self.make(), self.make()
        _train(fixture)
        state = fixture.adapter.state_dict()
        assert json.loads(json.dumps(state)) == state
        fresh.adapter.load_state_dict(state)
        assert fresh.adapter.state_dict() == state

    def test_snapshots_leave_the_process_and_come_back(self) -> None:
        fixture, fresh = self.make(), self.make()
        adapter, other = fixture.adapter, fresh.adapter
        if "checkpoints" not in adapter.capabilities:
            pytest.skip("no capability 'checkpoints'")
        assert isinstance(adapter, CheckpointAdapter)
        assert isinstance(other, CheckpointAdapter)
        _train(fixture)
        counters = adapter.state_dict()
        snapshot = adapter.snapshot()
        adapter.load_state_dict(counters)
        encoder = Encoder(adapter.snapshot_state, adapter.xp)
        tree = json.loads(json.dumps(encoder.encode(Moment(snapshot)), allow_nan=False))
        expected = [adapter.train_step(batch).loss for batch in fixture.batches]
        arrays = load(save(encoder.arrays))
        decoder = Decoder(arrays, other.snapshot_from_state, other.xp, other.read_params())
        other.restore(decoder.decode(tree).snapshot)
        other.load_state_dict(counters)
        assert [other.train_step(batch).loss for batch in fresh.batches] == expected
        for one, two in zip(_values(adapter), _values(other), strict=True):
            assert one.tobytes() == two.tobytes()

    def test_exported_weights_are_safetensors(self, tmp_path: Path) -> None:
        adapter = self.make().adapter
        if "checkpoints" not in adapter.capabilities:
            pytest.skip("no capability 'checkpoints'")
        assert isinstance(adapter, CheckpointAdapter)
        path = tmp_path / "weights.safetensors"
        adapter.export_weights(str(path))
        with safe_open(str(path), framework="numpy") as file:
            assert len(list(file.keys())) >= 1
