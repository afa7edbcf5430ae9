import numpy as np
import pytest

from hybridcore.tasks.full_batch import interior_points
from hybridcore.tasks.poisson_pinn import PoissonPinn, boundary_points, exact_solution, source_term


@pytest.mark.parametrize("waves", [1, 3])
def test_source_is_minus_the_laplacian_by_finite_differences(waves):
    points, h = interior_points(0, 50), 1e-3
    laplacian = np.zeros(50)
    for axis in np.eye(2):
        up, down = exact_solution(points + h * axis, waves), exact_solution(points - h * axis, waves)
        laplacian += (up - 2 * exact_solution(points, waves) + down) / h**2
    source = source_term(points, waves)
    assert np.allclose(-laplacian, source, atol=1e-5 * np.abs(source).max() * waves**2)


def test_solution_vanishes_on_the_edge():
    edge = boundary_points(0, 400)
    assert np.abs(exact_solution(edge, 2)).max() < 1e-12
    on_edge = np.isclose(edge, 0) | np.isclose(edge, 1)
    assert on_edge.any(axis=1).all()
    for side in (edge[:, 0] == 0, edge[:, 0] == 1, edge[:, 1] == 0, edge[:, 1] == 1):
        assert 95 <= side.sum() <= 105


def test_interior_points_cover_the_square_evenly():
    cells = np.floor(interior_points(700, 1600) * 4).astype(int)
    counts = np.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16)
    assert counts.min() > 90
    assert counts.max() < 110


def test_every_batch_is_the_same_full_batch():
    problem = PoissonPinn(PoissonPinn.Config(points=40, edge_points=12)).problem(seed=0)
    stream = problem.batches()
    first, second = next(stream), next(stream)
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert [a.shape for a in first] == [(40, 2), (40,), (12, 2), (12,)]
    exact = problem.validation[0][4]
    assert np.allclose(exact, exact_solution(problem.validation[0][0].astype(float), 1), atol=1e-6)
