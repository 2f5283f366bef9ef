"""PuzzleMix: the graph cut against exhaustive search, the energy and the transport against their definitions."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random_sample, small_cnn
from scipy.stats import kstest
from tiny_runs import train
from torch import Tensor

from provscale.config import SynthesisConfig
from provscale.errors import UserError
from provscale.predictions import predict
from provscale.sample import Sample
from provscale.synthesis import PuzzleMix, build_synthesis
from provscale.synthesis.graph_cut import exact_cut, swap_cut
from provscale.synthesis.puzzlemix import block_saliency, border_differences, transported

KEY = (7, 3)


def photographs(batch: int, side: int = 32, seed: int = 0) -> Sample:
    """Random images with a random saliency that has a few peaks."""
    generator = torch.Generator().manual_seed(seed)
    sample = Sample.real(torch.randn(batch, 3, side, side, generator=generator), torch.arange(batch) % 5)
    sample.index = 100 + torch.arange(batch)
    sample.annotations["saliency"] = torch.rand(batch, 1, side, side, generator=generator) ** 8
    return sample


def problems(size: int, count: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Costs of which neither the cells' own nor the neighbours' decide alone."""
    generator = torch.Generator().manual_seed(size)
    unary = torch.rand(count, size, size, 3, generator=generator, dtype=torch.float64)
    strength = torch.linspace(0, 1, count, dtype=torch.float64)[:, None, None]
    right = strength * torch.rand(count, size, size - 1, generator=generator, dtype=torch.float64)
    down = strength * torch.rand(count, size - 1, size, generator=generator, dtype=torch.float64)
    return unary, right, down


def costs(z: Tensor, unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """The energy [B] of labels [B, n, n] as the module's docstring has it."""
    own = unary.expand(len(z), -1, -1, -1).gather(3, (2 * z).long()[..., None]).sum(dim=(1, 2, 3))
    horizontal = (right * (z[:, :, 1:] - z[:, :, :-1]) ** 2).sum(dim=(1, 2))
    return own + horizontal + (down * (z[:, 1:] - z[:, :-1]) ** 2).sum(dim=(1, 2))


def best_of_all(unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    size = unary.shape[1]
    every = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=size**2)), dtype=torch.float64)
    every = every.reshape(-1, size, size)
    return torch.stack(
        [costs(every, *(part[None] for part in one)).min() for one in zip(unary, right, down, strict=True)]
    )


@pytest.mark.parametrize("size", [2, 3])
def test_exact_cut_is_the_minimum_of_all_labelings(size: int) -> None:
    """3^4 and 3^9 labelings; capacities are rounded to a millionth."""
    problem = problems(size)
    found = exact_cut(*problem)
    assert set(found.unique().tolist()) == {0.0, 0.5, 1.0}
    torch.testing.assert_close(costs(found.double(), *problem), best_of_all(*problem), rtol=0, atol=1e-4)


def test_swap_cut_is_no_better_and_nearly_as_good() -> None:
    """Alpha-beta swaps end in a minimum over moves, not always over labelings: above the exact one, by little."""
    pytest.importorskip("gco")
    problem = problems(3)
    least, found = best_of_all(*problem), costs(swap_cut(*problem).double(), *problem)
    assert (found >= least - 1e-4).all()
    assert (found <= 1.1 * least).all()
    assert (found - least).median() < 1e-4


def test_a_cut_does_not_depend_on_the_others() -> None:
    problem = problems(4)
    whole = exact_cut(*problem)
    for row in range(len(whole)):
        assert torch.equal(exact_cut(*(part[row : row + 1] for part in problem))[0], whole[row])


def test_energy_is_the_papers() -> None:
    """For labels 0 and 1, up to a constant, against the sum over blocks and borders written out in NumPy."""
    mixing = PuzzleMix(smoothness=3.0, data_smoothness=0.7, prior=0.4, near=1)
    sample, partners, blocks, weight = photographs(1), photographs(1, seed=1), 2, 0.3
    saliencies = [block_saliency(part.annotations["saliency"], blocks) for part in (sample, partners)]
    energy = mixing.energy(sample, partners, saliencies, torch.tensor([weight]))
    pair = np.stack([sample.inputs[0].numpy(), partners.inputs[0].numpy()])
    a, b = (pair - pair.min()) / (pair.max() - pair.min())
    side = 32 // blocks

    def difference(x: np.ndarray, y: np.ndarray, p: tuple[int, int], q: tuple[int, int]) -> float:
        """Mean over channels and the border's pixels between block p and its right or lower neighbour q."""
        if p[0] == q[0]:
            rows, column = slice(p[0] * side, (p[0] + 1) * side), q[1] * side
            return float(np.abs(x[:, rows, column - 1] - y[:, rows, column]).mean())
        columns, row = slice(p[1] * side, (p[1] + 1) * side), q[0] * side
        return float(np.abs(x[:, row - 1, columns] - y[:, row, columns]).mean())

    pairs = [((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 0), (1, 0)), ((0, 1), (1, 1))]
    s_a, s_b = (saliency[0].numpy() for saliency in saliencies)
    offsets = []
    for labels in itertools.product((0.0, 1.0), repeat=4):
        z = np.array(labels).reshape(2, 2)
        expected = (z * s_b + (1 - z) * s_a).sum()
        shares = weight ** (2 * z) * (1 - weight) ** (2 - 2 * z)
        expected -= 0.4 / 4 * np.log(shares).sum()
        for p, q in pairs:
            aa, ab, ba, bb = (difference(x, y, p, q) for x, y in ((a, a), (a, b), (b, a), (b, b)))
            mixed = z[p] * z[q] * aa + z[p] * (1 - z[q]) * ab + (1 - z[p]) * z[q] * ba + (1 - z[p]) * (1 - z[q]) * bb
            expected += 3.0 / 32 * ((z[p] - z[q]) ** 2 + 0.7 * mixed)
        offsets.append(float(costs(torch.from_numpy(z)[None], *energy)) - expected)
    assert np.ptp(offsets) < 1e-6


def test_block_saliency_sums_to_one() -> None:
    saliency = torch.rand(3, 1, 32, 48)
    saliency[2] = 0
    found = block_saliency(saliency, 4)
    expected = saliency[:2, 0].reshape(2, 4, 8, 4, 12).sum(dim=(2, 4)) / saliency[:2].sum(dim=(1, 2, 3))[:, None, None]
    torch.testing.assert_close(found[:2], expected)
    torch.testing.assert_close(found[2], torch.full((4, 4), 1 / 16))


def test_border_differences_average_what_is_near() -> None:
    """A is 1 in the last two columns of each block; two pixels near see all of it, four see half."""
    first = torch.zeros(1, 3, 16, 16)
    first[..., [2, 3, 6, 7, 10, 11, 14, 15]] = 1.0
    for near, expected in ((2, 1.0), (4, 0.5)):
        across, down = border_differences(first, torch.zeros_like(first), 4, near)
        assert across.shape == (1, 4, 3)
        assert down.shape == (1, 3, 4)
        torch.testing.assert_close(across, torch.full_like(across, expected))
        torch.testing.assert_close(down, torch.full_like(down, 0.5))


# ---- transport ---------------------------------------------------------------------------------------------------
def numbered(blocks: int) -> Tensor:
    """An image whose pixels are their block's number."""
    return torch.arange(blocks**2).reshape(1, 1, blocks, blocks).float().repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_transport_brings_the_salient_block_to_where_it_is_shown() -> None:
    """Only the right column is shown, the salient block is in the left one: it moves one to the right."""
    shown, saliency = torch.zeros(1, 4, 4), torch.full((1, 4, 4), 1e-4)
    shown[:, :, 3] = 1
    saliency[0, 1, 2] = 0.9
    moved = transported(numbered(4), shown, saliency, xi=0.8)[0, 0, ::4, ::4]
    assert moved[:, 3].tolist() == [3.0, 6.0, 11.0, 15.0]


def test_transport_that_costs_too_much_moves_nothing() -> None:
    shown, saliency = (torch.rand(5, 8, 8) > 0.5).float(), torch.rand(5, 8, 8)
    images = numbered(8).expand(5, -1, -1, -1)
    assert torch.equal(transported(images, shown, saliency, xi=100.0), images)


def test_every_shown_position_gets_one_block_of_its_own() -> None:
    """No block is shown twice and none is empty, whatever the competition."""
    generator = torch.Generator().manual_seed(0)
    shown = (torch.rand(20, 8, 8, generator=generator) > 0.4).float()
    saliency = torch.rand(20, 8, 8, generator=generator) ** 6
    moved = transported(numbered(8).expand(20, -1, -1, -1), shown, saliency, xi=0.05)
    elsewhere = 0
    for image, where in zip(moved, shown, strict=True):
        blocks = image[0, ::4, ::4][where > 0].tolist()
        assert len(set(blocks)) == len(blocks)
        assert torch.equal(image, image[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2))
        places = where.flatten().nonzero()[:, 0].tolist()
        elsewhere += sum(number != place for number, place in zip(blocks, places, strict=True))
    assert elsewhere > 20


# ---- the whole ---------------------------------------------------------------------------------------------------
def test_mixed_image_equals_its_sources_where_the_mask_says_so() -> None:
    """Exactly: A where M = 1, B where M = 0, the mean of both where it is 1/2; lambda is the mask's mean."""
    sample, partners = photographs(64), photographs(64, seed=1)
    mixed = PuzzleMix(transport=False)(sample, partners, KEY)
    mask = mixed.provenance_mask
    assert set(mask.unique().tolist()) == {0.0, 0.5, 1.0}
    expected = torch.where(mask == 1, sample.inputs, torch.where(mask == 0, partners.inputs, 0.0))
    between = (0.5 * sample.inputs + 0.5 * partners.inputs) * (mask == 0.5)
    assert torch.equal(mixed.inputs, expected + between)
    torch.testing.assert_close(mixed.mixing_weight, mask.mean(dim=(1, 2, 3)))
    assert mixed.soft
    assert mixed.guided
    assert mixed.is_synthetic.all()


def test_mask_refers_to_output_positions() -> None:
    """With transport: A is positive, B negative, so signs tell the sources apart wherever blocks have moved."""
    sample, partners = photographs(64), photographs(64, seed=1)
    sample.inputs, partners.inputs = sample.inputs.abs() + 1, -partners.inputs.abs() - 1
    mixed = PuzzleMix()(sample, partners, KEY)
    mask = mixed.provenance_mask.expand_as(mixed.inputs)
    assert (mixed.inputs[mask == 1] >= 1).all()
    assert (mixed.inputs[mask == 0] <= -1).all()
    still = PuzzleMix(transport=False)(sample, partners, KEY)
    assert torch.equal(still.provenance_mask, mixed.provenance_mask)
    assert not torch.equal(still.inputs, mixed.inputs)


def test_lambda_is_drawn_from_its_distribution() -> None:
    """The draws themselves are uniform (b = 1), and the masks follow them: area and draw correlate."""
    sample, partners = photographs(400, side=16), photographs(400, side=16, seed=1)
    drawn: list[float] = []

    class Watched(PuzzleMix):
        def mix_blocks(self, sample, partners, blocks, weights):
            drawn.extend(weights.tolist())
            images, mask = super().mix_blocks(sample, partners, blocks, weights)
            areas.extend(mask.mean(dim=(1, 2, 3)).tolist())
            counts[blocks] = len(weights)
            return images, mask

    areas: list[float] = []
    counts: dict[int, int] = {}
    Watched()(sample, partners, KEY)
    assert kstest(drawn, "uniform").pvalue > 0.01
    assert np.corrcoef(drawn, areas)[0, 1] > 0.8
    assert counts.keys() == {2, 4, 8, 16}
    assert all(abs(count - 100) < 4 * math.sqrt(400 * 3 / 16) for count in counts.values())


def test_salient_blocks_are_kept() -> None:
    """A sees its object in the left half, B in the right one: most of M follows, for middling lambda."""
    sample, partners = photographs(40), photographs(40, seed=1)
    for part, columns in ((sample, slice(16, 32)), (partners, slice(0, 16))):
        part.annotations["saliency"][..., columns] *= 1e-3
    mixed = PuzzleMix(prior=0.0)(sample, partners, KEY)
    assert mixed.provenance_mask[..., :16].mean() > 0.9
    assert mixed.provenance_mask[..., 16:].mean() < 0.1


def test_result_depends_on_key_and_index_only() -> None:
    sample, partners = photographs(8), photographs(8, seed=1)
    whole = PuzzleMix()(sample, partners, KEY)
    order = torch.tensor([5, 2, 7, 0])
    part = PuzzleMix()(sample[order], partners[order], KEY)
    assert torch.equal(part.provenance_mask, whole.provenance_mask[order])
    torch.testing.assert_close(part.inputs, whole.inputs[order], rtol=0, atol=1e-6)
    other = PuzzleMix()(sample, partners, (7, 4)).provenance_mask
    assert (other != whole.provenance_mask).flatten(1).any(dim=1).float().mean() > 0.8


def test_saliency_is_the_length_of_the_losss_gradient() -> None:
    """Sample by sample, by plain autograd, in evaluation mode, where samples do not meet."""
    network, sample = small_cnn().eval(), random_sample(1)
    found = predict(network, sample, ["saliency"], None)
    for row in range(len(sample)):
        inputs = sample.inputs[row : row + 1].clone().requires_grad_()
        loss = -network(inputs).log_softmax(1)[0, sample.targets[row, 0]]
        (gradient,) = torch.autograd.grad(loss, inputs)
        expected = (gradient[0] ** 2).mean(dim=0).sqrt()
        torch.testing.assert_close(found["saliency"][row, 0], expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found["logits"], network(sample.inputs))


def test_trains_by_name(tmp_path: Path) -> None:
    """The trainer provides the saliency, for steps and for pictures."""
    folder = train(tmp_path, synthesis__name="puzzlemix", train__max_steps=2, tracking__images=2)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    assert len(steps) == 2
    assert all(row["loss_guidance"] > 0 for row in steps)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"multiples of 16, .*\[1, 3, 24, 24\]"):
        PuzzleMix()(photographs(1, side=24), photographs(1, side=24), KEY)
    bare = Sample.real(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    with pytest.raises(UserError, match=r"annotations\['saliency'\]"):
        PuzzleMix()(bare, bare, KEY)
    for options in ({"data_smoothness": 1.0}, {"beta": 0.0}, {"xi": -1.0}, {"solver": "greedy"}):
        with pytest.raises(UserError, match=r"synthesis\.options"):
            build_synthesis(SynthesisConfig("puzzlemix", options=options))
    monkeypatch.setitem(__import__("sys").modules, "gco", None)
    with pytest.raises(UserError, match="gco-wrapper, which is not installed"):
        PuzzleMix(solver="swap")
