"""MaxBoxAcc V1 with top-1 and top-5, SAT's evaluator, PxAP: each against a plain reading of its published rules."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from test_maxboxacc import as_box, batch, blob, painted_iou, random_boxes

from provscale.errors import UserError
from provscale.evaluation.maxboxacc import MaxBoxAcc
from provscale.evaluation.pxap import PxAP
from provscale.evaluation.sat_localization import THRESHOLDS, SATLocalization
from provscale.sample import Sample

SIZE = (40, 56)
CLASSES = 8


@pytest.fixture(scope="module")
def data() -> tuple[Sample, dict[str, torch.Tensor]]:
    """Twelve bumps, of which half have a box around them, and random logits."""
    rng = np.random.default_rng(0)
    maps = [blob(rng, 7, 9) for _ in range(12)]
    boxes = random_boxes(rng, 12, SIZE)
    for number in range(0, 12, 2):
        resized = cv2.resize(maps[number], SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        rows, columns = np.nonzero(resized > resized.min() + 0.5 * np.ptp(resized))
        boxes[number] = columns.min(), rows.min(), columns.max(), rows.max()
    sample, outputs = batch(maps, boxes, SIZE)
    sample.targets = torch.from_numpy(rng.integers(0, CLASSES, (12, 1)))
    outputs["logits"] = torch.from_numpy(rng.normal(size=(12, CLASSES))).float()
    outputs["logits"][::3] += 5.0 * torch.nn.functional.one_hot(sample.targets[::3, 0], CLASSES)
    return sample, outputs


def ranks(sample: Sample, outputs: dict[str, torch.Tensor]) -> list[int]:
    order = outputs["logits"].argsort(dim=1, descending=True).tolist()
    return [row.index(int(target)) for row, target in zip(order, sample.targets[:, 0], strict=True)]


def truths(sample: Sample) -> list[tuple[int, int, int, int]]:
    return [as_box(row) for row in sample.annotations["box"].numpy()]


def test_v1_takes_the_largest_contour(data: tuple[Sample, dict[str, torch.Tensor]]) -> None:
    """wsolevaluation's first evaluator: c = max(contours, key=cv2.contourArea), IoU >= 0.5, best threshold."""
    sample, outputs = data
    right = np.zeros((3, 1000))
    for cam, truth, rank in zip(outputs["score_map"].numpy(), truths(sample), ranks(sample, outputs), strict=True):
        resized = cv2.resize(cam.astype(np.float64), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        heatmap = ((resized - resized.min()) / (resized - resized.min()).max() * 255).astype(np.uint8)
        for t, tau in enumerate(np.arange(0, 1, 0.001)):
            binary = cv2.threshold(heatmap, int(tau * heatmap.max()), 255, cv2.THRESH_BINARY)[1]
            contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            if contours:
                x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
                box = (x, y, min(x + w, SIZE[1] - 1), min(y + h, SIZE[0] - 1))
            else:
                box = (0, 0, 0, 0)
            if painted_iou(box, truth) >= 0.5:
                right[:, t] += [1, rank == 0, rank < 5]
    best = int(right[0].argmax())
    assert right[0, best] > right[2, best] > right[1, best] > 0, "figures that are equal would test nothing"
    evaluator = MaxBoxAcc(CLASSES)
    evaluator.accumulate(sample, outputs)
    found = evaluator.compute()
    names = ("maxboxacc_v1", "maxboxacc_v1/top1", "maxboxacc_v1/top5")
    assert [found[name] for name in names] == pytest.approx((right[:, best] * 100 / 12).tolist())
    assert found["maxboxacc_v1/threshold"] == pytest.approx(best * 0.001)
    assert found["maxboxacc/iou50"] >= found["maxboxacc_v1"], "all contours include the largest"
    alone = MaxBoxAcc(CLASSES)
    alone.accumulate(sample, {"score_map": outputs["score_map"]})
    assert alone.compute() == {name: value for name, value in found.items() if "/top" not in name}


def test_sat_evaluator(data: tuple[Sample, dict[str, torch.Tensor]]) -> None:
    """SAT's evaluator.py in words, with SciPy's components: one threshold, the best sum of GT-known and top-1."""
    sample, outputs = data
    right = {name: np.zeros(4) for name in ("gt_known", "top1", "top5", "iou30", "iou50", "iou70")}
    for cam, truth, rank in zip(
        outputs["score_map"].double().numpy(), truths(sample), ranks(sample, outputs), strict=True
    ):
        normal = (cam - cam.min()) / (cam.max() - cam.min() + 1e-5)
        heatmap = cv2.resize(normal, SIZE[::-1])
        for t, threshold in enumerate(THRESHOLDS):
            labels, count = ndimage.label(heatmap > threshold, structure=np.ones((3, 3)))
            sizes = ndimage.sum_labels(labels > 0, labels, range(1, count + 1))
            rows, columns = ndimage.find_objects(labels)[int(np.argmax(sizes))]
            iou = painted_iou((columns.start, rows.start, columns.stop, rows.stop), truth)
            right["gt_known"][t] += iou >= 0.5
            right["top1"][t] += iou >= 0.5 and rank == 0
            right["top5"][t] += iou >= 0.5 and rank < 5
            for percent in (30, 50, 70):
                right[f"iou{percent}"][t] += iou >= percent / 100
    best = int((right["gt_known"] + right["top1"]).argmax())
    evaluator = SATLocalization(CLASSES)
    evaluator.accumulate(sample, outputs)
    found = evaluator.compute()
    for name, counts in right.items():
        assert found[f"sat/{name}"] == pytest.approx(counts[best] * 100 / 12), name
    mean = sum(right[f"iou{percent}"][best] for percent in (30, 50, 70)) * 100 / 36
    assert found["sat/iou_mean"] == pytest.approx(mean)
    assert found["sat/threshold"] == THRESHOLDS[best]
    assert found["sat/iou30"] > found["sat/iou70"] > 0
    other = int(np.argmin(right["gt_known"] + right["top1"]))
    evaluator.validation = {"sat/threshold": THRESHOLDS[other]}
    carried = evaluator.compute()
    assert {name: carried[name] for name in found} == found
    for name, counts in right.items():
        assert carried[f"sat_at_validation_threshold/{name}"] == pytest.approx(counts[other] * 100 / 12), name
    assert carried["sat_at_validation_threshold/gt_known"] < carried["sat/gt_known"], "else nothing is tested"
    halves = [SATLocalization(CLASSES) for _ in range(2)]
    for half, rows in zip(halves, (slice(0, 5), slice(5, 12)), strict=True):
        half.accumulate(sample[rows], {name: value[rows] for name, value in outputs.items()})
    assert halves[0].compute(lambda state: [state, (halves[1].correct, halves[1].images)]) == found


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_sat_evaluator_takes_the_whole_image_without_a_component(value: float) -> None:
    sample, outputs = batch([np.full((4, 4), value, np.float32)], np.array([[0, 0, 56, 40]], np.float32), SIZE)
    outputs["logits"] = torch.zeros(1, CLASSES)
    evaluator = SATLocalization(CLASSES)
    evaluator.accumulate(sample, outputs)
    assert evaluator.compute()["sat/iou70"] == 100.0
    with pytest.raises(UserError, match="sat_localization needs logits"):
        evaluator.accumulate(sample, {"score_map": outputs["score_map"]})


def pixels(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[Sample, dict[str, torch.Tensor]]:
    sample, outputs = batch(list(maps), np.zeros((len(maps), 4), np.float32), masks.shape[1:])
    sample.annotations = {"object_mask": torch.from_numpy(masks[:, None]).float()}
    return sample, outputs


def test_pxap_is_the_published_sum() -> None:
    """wsolevaluation's MaskEvaluator, bin by bin: thresholds 2, 1, 0.999, ... 0, and sum of P(t) (R(t) - R(t + 1))."""
    rng = np.random.default_rng(1)
    maps, masks = np.stack([blob(rng, 6, 8) for _ in range(4)]), rng.random((4, 12, 16)) > 0.6
    evaluator = PxAP(1)
    evaluator.accumulate(*pixels(maps, masks))
    scores = []
    for cam in maps:
        resized = cv2.resize(cam.astype(np.float64), (16, 12), interpolation=cv2.INTER_CUBIC)
        scores.append((resized - resized.min()) / (resized - resized.min()).max())
    flat, true = np.stack(scores), masks
    area, before = 0.0, 0.0
    for threshold in [2.0, 1.0, *np.arange(0, 1, 0.001)[::-1]]:
        above = flat >= threshold
        recall = (above & true).sum() / true.sum()
        if above.any():
            area += (above & true).sum() / above.sum() * (recall - before)
        before = recall
    assert 0.3 < area < 0.9
    assert evaluator.compute()["pxap"] == pytest.approx(100 * area, rel=1e-9)


def test_pxap_of_a_perfect_map_and_of_a_constant_one() -> None:
    """A map that is the mask has 100; one that says nothing has the share of object pixels."""
    mask = np.zeros((1, 8, 8), dtype=bool)
    mask[0, :4] = True
    perfect, constant = PxAP(1), PxAP(1)
    perfect.accumulate(*pixels(mask.astype(np.float32), mask))
    constant.accumulate(*pixels(np.full((1, 8, 8), 3.0, np.float32), mask))
    assert perfect.compute()["pxap"] == pytest.approx(100.0)
    assert constant.compute()["pxap"] == pytest.approx(50.0)


def test_pxap_refuses_what_it_cannot_measure() -> None:
    mask = np.zeros((1, 8, 8), dtype=bool)
    evaluator = PxAP(1)
    evaluator.accumulate(*pixels(np.eye(8, dtype=np.float32)[None], mask))
    with pytest.raises(UserError, match="no object pixel"):
        evaluator.compute()
    sample, outputs = pixels(np.eye(8, dtype=np.float32)[None], mask)
    sample.annotations = {}
    with pytest.raises(UserError, match="pxap needs the annotation 'object_mask'"):
        evaluator.accumulate(sample, outputs)
