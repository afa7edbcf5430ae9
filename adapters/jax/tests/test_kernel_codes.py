"""F65, F70: the trial of a kernel set on JAX arrays, where XLA's division is not correctly rounded."""

from __future__ import annotations

import array_api_compat.numpy as compat_numpy
import attrs
import jax.numpy as jnp
import numpy as np

from hybridcore.kernels import REFERENCE, ReferenceKernels
from hybridcore.kernels.trial import Sample, difference
from hybridcore.protocols import EncodedBuckets


class Exact(ReferenceKernels):
    """Encodes by NumPy, whose division is correctly rounded, as a kernel of CUDA does."""

    def encode(self, buckets, dtype, seed, xp):
        if dtype != "int8":
            return super().encode(buckets, dtype, seed, xp)
        coded = super().encode(tuple(map(np.asarray, buckets)), dtype, seed, compat_numpy)
        return EncodedBuckets(
            dtype, tuple(map(jnp.asarray, coded.codes)), tuple(map(jnp.asarray, coded.scales))
        )


def test_f65_codes_that_are_divided_exactly_are_right():
    # So many that XLA's own division turns a code or two, on the processor as on a GPU.
    sample = Sample.make(jnp, jnp.zeros(1, jnp.float32), 1_130_506, None)
    narrow, coded = sample.calls["encode"](Exact())
    assert not difference(sample, "encode", (narrow, coded))
    assert not difference(sample, "encode", sample.calls["encode"](REFERENCE))
    wrong = attrs.evolve(coded, codes=(coded.codes[0].at[-1].add(-1),))
    assert "numbers of array 2 of 2" in difference(sample, "encode", (narrow, wrong))
