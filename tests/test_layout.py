from __future__ import annotations

import array_api_compat.numpy as xp_numpy
import array_api_strict
import numpy as np
import pytest

from hybridcore.errors import DeltaError, RecoveryAction
from hybridcore.layout import ParamGroup, ParamLayout, guess_group

ROWS = [
    ("net.0.bias", (3,), "float32", "cpu", None),
    ("net.0.weight", (3, 2), "float32", "cpu", None),
    ("norm.scale", (4,), "float32", "cpu", None),
    ("embed", (5, 2), "float32", "cpu", ParamGroup.EMBEDDING),
    ("head.weight", (2, 2), "bfloat16", "cpu", None),
    ("gain", (), "float32", "cpu", None),
]


@pytest.fixture(params=[np, array_api_strict], ids=["numpy", "strict"])
def xp(request):
    return request.param


@pytest.fixture
def layout():
    return ParamLayout.plan(ROWS)


def named(xp, seed=0):
    rng = np.random.default_rng(seed)
    return {
        n: xp.asarray(np.asarray(rng.standard_normal(s), np.float32), dtype=xp.float32) for n, s, *_ in ROWS
    }


def test_every_weight_lies_once_and_groups_are_contiguous(layout):
    taken = [np.zeros(n, int) for n in layout.bucket_sizes]
    for p in layout.params:
        taken[p.bucket][p.offset : p.stop] += 1
    assert all((t == 1).all() for t in taken)
    assert layout.total == 3 + 6 + 4 + 10 + 4 + 1
    assert layout.nbytes == 4 * layout.total
    assert layout.bucket_dtype == "float32"
    runs = layout.group_slices()
    assert len({(g, b) for g, b, _ in runs}) == len(runs)
    for group, bucket, part in runs:
        inside = {p.group for p in layout.params if p.bucket == bucket and part.start <= p.offset < part.stop}
        assert inside == {group}
    assert sum(part.stop - part.start for _, _, part in runs) == layout.total


def test_one_bucket_per_device_and_dtype(layout):
    assert len(layout.bucket_sizes) == 2
    assert {p.dtype for p in layout.params if p.bucket == 0} == {"bfloat16"}


def test_f20_pack_and_unpack_are_inverse_and_named_as_the_model(layout, xp):
    values = named(xp)
    back = layout.unpack(layout.pack(values, xp), xp)
    assert set(back) == {n for n, *_ in ROWS}
    for name, value in values.items():
        assert tuple(back[name].shape) == tuple(value.shape)
        assert np.array_equal(np.asarray(back[name]), np.asarray(value))


def test_parameters_not_named_get_zeros(layout, xp):
    values = named(xp)
    back = layout.unpack(layout.pack({"embed": values["embed"]}, xp), xp)
    assert np.array_equal(np.asarray(back["embed"]), np.asarray(values["embed"]))
    assert all(not np.asarray(v).any() for n, v in back.items() if n != "embed")


def test_f22_an_unknown_name_raises_and_names_the_nearest(layout):
    with pytest.raises(DeltaError, match=r"did you mean 'net\.0\.weight'") as caught:
        layout.pack({"net.0.weigth": np.zeros((3, 2), np.float32)}, np)
    assert caught.value.where == "net.0.weigth"
    assert caught.value.action is RecoveryAction.RESET_PREDICTOR


@pytest.mark.parametrize("shape", [(2, 3), (6,), (3, 2, 1)])
def test_f22_a_wrong_shape_raises_with_both_shapes(layout, shape):
    with pytest.raises(DeltaError, match="wrong shape") as caught:
        layout.pack({"net.0.weight": np.zeros(shape, np.float32)}, np)
    assert caught.value.got == shape and caught.value.expected == "(3, 2)"


def test_f22_buckets_of_other_sizes_raise(layout):
    with pytest.raises(DeltaError, match="do not fit"):
        layout.check(tuple(np.zeros(n + 1) for n in layout.bucket_sizes))
    with pytest.raises(DeltaError, match="do not fit"):
        layout.check((np.zeros(layout.total),))
    with pytest.raises(DeltaError, match="do not fit"):
        layout.check(tuple(np.zeros((n, 1)) for n in layout.bucket_sizes))


@pytest.mark.parametrize(
    ("name", "shape", "group"),
    [
        ("a.weight", (2, 3), "matrix"),
        ("conv.kernel", (3, 3, 1, 8), "matrix"),
        ("a.bias", (3,), "bias"),
        ("b", (3,), "bias"),
        ("ln.beta", (3,), "bias"),
        ("ln.weight", (3,), "norm"),
        ("bias.weight", (3,), "norm"),
    ],
)
def test_f86_groups_are_guessed_from_name_and_shape(name, shape, group):
    assert guess_group(name, shape).value == group


@pytest.mark.parametrize(
    "dtypes, expected",
    [
        (("float64", "float64"), "float64"),
        (("float64", "float32"), "float32"),
        (("bfloat16", "bfloat16"), "float32"),
        (("float64", "bfloat16"), "float32"),
        ((), "float32"),
    ],
)
def test_f62_buckets_are_float64_where_all_parameters_are(dtypes, expected):
    layout = ParamLayout.plan((f"p{i}", (3,), dtype, "cpu", None) for i, dtype in enumerate(dtypes))
    assert layout.bucket_dtype == expected
    assert layout.itemsize == np.dtype(expected).itemsize
    assert layout.nbytes == 3 * len(dtypes) * layout.itemsize
    packed = layout.pack({"p0": np.full(3, 0.1)} if dtypes else {}, np)
    assert all(bucket.dtype == expected for bucket in packed)
    if expected == "float64":
        assert packed[0][0] == 0.1


def test_f62_low_rank_residuals_keep_float64():
    """Exact to float64's rounding where the matrix has the kept rank; eight bytes a number."""
    from hybridcore.correction.compression import compress_buckets

    rng = np.random.default_rng(0)
    layout = ParamLayout.plan([("w", (40, 30), "float64", "cpu", None), ("b", (5,), "float64", "cpu", None)])
    matrix = np.outer(rng.standard_normal(40), rng.standard_normal(30))
    buckets = layout.pack({"w": matrix, "b": rng.standard_normal(5)}, xp_numpy)
    found = compress_buckets(buckets, layout, 1, xp_numpy, rng).to_host()
    assert found.nbytes == 8 * (40 + 30 + 5)
    expanded = found.expand(xp_numpy)[0]
    assert expanded.dtype == np.float64
    np.testing.assert_allclose(expanded, buckets[0], rtol=0.0, atol=1e-14 * np.abs(matrix).max() * 100)
