"""Students of a probability flow, against one Gaussian, whose flow is a closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trilemma_bench import registry
from trilemma_bench.diffusion import Chain, linear_betas
from trilemma_bench.nets import consistency, mixture
from trilemma_bench.training._loop import Step
from trilemma_bench.training._points import Teacher

CENTRE, SIGMA = torch.tensor([0.3, -0.2], dtype=torch.float64), 0.1
CHAIN = Chain(linear_betas(500, 1e-6, 0.08, 3.0))
ONE = {"centres": [CENTRE.tolist()], "sigma": SIGMA}


def teacher(steps: int) -> Teacher:
    return Teacher(mixture.Epsilon(ONE, CHAIN.alpha_bar.sqrt(), (1 - CHAIN.alpha_bar).sqrt()), CHAIN, steps)


def end(x_t: Tensor, t: int) -> Tensor:
    """Where the flow ends from x_t: deviations shrink from sqrt(a^2 sigma^2 + s^2) to sigma."""
    a2 = CHAIN.alpha_bar[t]
    return CENTRE + SIGMA / (a2 * SIGMA**2 + 1 - a2).sqrt() * (x_t.double() - a2.sqrt() * CENTRE)


def test_the_teachers_flow_is_that_of_one_gaussian() -> None:
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher(500).solve(x).double(), end(x, 499), atol=0.02, rtol=0)


def test_the_teachers_steps_stay_on_one_trajectory_each_row_at_its_own_t() -> None:
    """What a consistency model must be constant on."""
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    t, t_prev = torch.tensor([100, 250, 480]), torch.tensor([99, 248, 479])
    after = teacher(50).step(x, t, t_prev)
    for row in range(3):
        found, start = end(after[row], int(t_prev[row])), end(x[row], int(t[row]))
        torch.testing.assert_close(found, start, atol=2e-3, rtol=0)
        assert not torch.allclose(after[row], x[row], atol=1e-5)
    # The last step is to the data: E[x_0 | x_t] itself.
    first = torch.zeros(3).long()
    a2 = CHAIN.alpha_bar[0]
    shrunk = CENTRE + a2.sqrt() * SIGMA**2 / (a2 * SIGMA**2 + 1 - a2) * (x.double() - a2.sqrt() * CENTRE)
    torch.testing.assert_close(teacher(50).step(x, first, first - 1).double(), shrunk, atol=2e-3, rtol=0)


def test_a_consistency_model_is_the_identity_at_the_first_noise() -> None:
    net = consistency.build({"width": 6, "members": 2}, CHAIN)
    x = torch.randn(4, 2)
    torch.testing.assert_close(net(x, torch.zeros(4).long()), x / float(CHAIN.alpha_bar[0].sqrt()))
    assert not torch.allclose(net(x, torch.full((4,), 300)), x)


def task(name: str, **changes: Any) -> Any:
    kind = registry.get("trainer", name)
    small = {"class": name, "width": 8, "members": 2}
    settings = {"mlp": small, "batch": 8, "teacher_steps": 4, **changes}
    return kind.task(kind.recipes["gaussians25-cpu"].model_copy(update=settings), torch.device("cpu"))


def test_the_pairs_of_a_student_are_those_of_its_own_teacher() -> None:
    """A member's pool is made by the same member of the shipped network."""
    found = task("distilled", pool=6)
    noise, made = found.pairs()
    assert noise.shape == made.shape == (12, 2)
    torch.testing.assert_close(found.teacher.solve(noise), made)
    # The other member makes other points of the same noise.
    swapped = found.teacher.solve(noise.roll(6, 0)).roll(6, 0)
    assert float((swapped - made).abs().max()) > 1e-3
    assert torch.equal(task("distilled", pool=6).pairs()[1], made)


@pytest.mark.parametrize("name", ["distilled", "consistency"])
def test_a_student_that_knows_the_answer_has_no_loss(name: str) -> None:
    """The closed form in place of the network and of its average, and one Gaussian in that of the teacher."""
    found = task(name, pool=64, teacher_steps=250, batch=64)
    found.teacher = teacher(250)

    class Answer(torch.nn.Module):
        config, coefficients = found.net.config, found.net.coefficients

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return torch.stack([end(x, int(step)) for x, step in zip(x_t, t, strict=True)]).float()

    rng = torch.Generator().manual_seed(2)
    points = (CENTRE + SIGMA * torch.randn(64, 2, generator=rng, dtype=torch.float64)).float()
    step = Step(0, 0, torch.Generator().manual_seed(0))
    untrained = float(found.loss(points, step).detach())
    found.networks["net"] = found.averages["net"] = Answer()
    assert float(found.loss(points, Step(0, 0, torch.Generator().manual_seed(0)))) < 0.02 * untrained


def test_a_consistency_models_distance_is_linear_far_away_and_square_near() -> None:
    """Of points between two modes, which a squared distance is all about, and of those at one."""
    points, far, near = torch.zeros(8, 2), [], []
    for huber, found in ((1e-6, far), (1e3, near)):
        shifted = task("consistency", huber=huber)
        for shift in (1.0, 3.0):
            shifted.teacher.step = lambda x, t, t_prev, shift=shift: torch.full_like(x, shift)
            shifted.teacher.pairs = [(499, -1)]
            shifted.networks["net"].run = lambda x, t: torch.zeros_like(x)
            shifted.networks["net"].coefficients = lambda t, like: (torch.zeros(8, 1), torch.ones(8, 1))
            found.append(float(shifted.loss(points, Step(0, 0, torch.Generator().manual_seed(0)))))
    assert far == pytest.approx([2**0.5, 3 * 2**0.5], rel=1e-3)
    assert near[1] / near[0] == pytest.approx(9, rel=0.05)
