import numpy as np
import pytest

from hybridcore.tasks.convection_pinn import ConvectionPinn, travelling_wave


@pytest.mark.parametrize("beta", [10.0, 30.0])
def test_the_wave_solves_the_equation_by_finite_differences(beta):
    rng, h = np.random.default_rng(0), 1e-4
    points = rng.uniform(0.0, [2 * np.pi, 1.0], (50, 2))
    slopes = [
        (travelling_wave(points + h * axis, beta) - travelling_wave(points - h * axis, beta)) / (2 * h)
        for axis in np.eye(2)
    ]
    assert np.abs(slopes[1] + beta * slopes[0]).max() < 1e-5 * beta**3


def test_points_lie_where_they_belong():
    problem = ConvectionPinn(ConvectionPinn.Config(points=400, edge_points=100)).problem(seed=0)
    interior, start, value, left, right = next(problem.batches())
    assert interior.min(axis=0).min() > 0
    assert np.all(interior.max(axis=0) < [2 * np.pi, 1.0])
    assert np.all(start[:, 1] == 0)
    assert value == pytest.approx(np.sin(start[:, 0].astype(float)), abs=1e-6)
    assert np.all(left[:, 0] == 0)
    assert right[:, 0] == pytest.approx(2 * np.pi)
    assert np.array_equal(left[:, 1], right[:, 1])
    counts, _ = np.histogram(interior[:, 0], bins=4, range=(0, 2 * np.pi))
    assert counts.min() > 90


@pytest.mark.parametrize("cls_name", ["convection-pinn", "poisson-pinn"])
def test_probes_are_the_full_batch_or_other_points(cls_name):
    from hybridcore.tasks.poisson_pinn import PoissonPinn

    cls = {"convection-pinn": ConvectionPinn, "poisson-pinn": PoissonPinn}[cls_name]
    same = cls(cls.Config()).problem(seed=0)
    assert same.probes[0] is next(same.batches())
    other = cls(cls.Config(probe_points="held-out")).problem(seed=0)
    rows = {row.tobytes() for row in next(other.batches())[0]}
    probes = {row.tobytes() for row in other.probes[0][0]}
    validation = {row.tobytes() for row in other.validation[0][0]}
    assert len(probes) == len(rows) == 512
    assert not probes & rows
    assert not probes & validation
