"""MaxBoxAccV2 against a plain reading of the published convention, and against values computed by hand."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from provscale.errors import UserError
from provscale.evaluation.maxboxacc import (
    BoxCounts,
    MaxBoxAcc,
    box_iou_inclusive,
    ious_at_thresholds,
    resize_scoremap,
    truncate_boxes,
)
from provscale.sample import Sample

Box = tuple[int, int, int, int]
FULL_NAN = [math.nan] * 4


def best_ious(scoremap: NDArray[np.floating], boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    return ious_at_thresholds(scoremap, boxes)[0]


def painted_iou(a: Box, b: Box, canvas: int = 300) -> float:
    """IoU by painting both boxes, ends included, and counting pixels."""
    first, second = np.zeros((2, canvas, canvas), dtype=bool)
    first[a[1] : a[3] + 1, a[0] : a[2] + 1] = True
    second[b[1] : b[3] + 1, b[0] : b[2] + 1] = True
    return int((first & second).sum()) / int((first | second).sum())


def naive_best_ious(cam: NDArray[np.float32], truth: list[Box], size: tuple[int, int]) -> list[float]:
    """One image by the convention's words: every threshold on its own, every pair of boxes by painting.

    Choe et al. (CVPR 2020) and their code wsolevaluation: resize (cubic), min-max normalise (constant or NaN: zeros),
    quantise by truncation, binarise strictly above int(tau * max), RETR_TREE, all contours, clip, 0,0,0,0 if none.
    """
    height, width = size
    resized = cv2.resize(np.asarray(cam, dtype=np.float64), (width, height), interpolation=cv2.INTER_CUBIC)
    if np.isnan(resized).any() or resized.max() == resized.min():
        resized = np.zeros((height, width))
    else:
        resized = resized - resized.min()
        resized = resized / resized.max()
    heatmap = (resized * 255).astype(np.uint8)
    known: dict[tuple[Box, Box], float] = {}
    result = []
    for tau in np.arange(0, 1, 0.001):
        binary = np.where(heatmap > int(float(tau) * int(heatmap.max())), 255, 0).astype(np.uint8)
        contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        boxes: list[Box] = []
        for contour in contours:
            xs, ys = contour[:, 0, 0], contour[:, 0, 1]
            boxes.append(
                (int(xs.min()), int(ys.min()), min(int(xs.max()) + 1, width - 1), min(int(ys.max()) + 1, height - 1))
            )
        best = 0.0
        for box in boxes or [(0, 0, 0, 0)]:
            for other in truth:
                if (box, other) not in known:
                    known[box, other] = painted_iou(box, other, canvas=max(size) + 2)
                best = max(best, known[box, other])
        result.append(best)
    return result


def naive_scores(ious_of_images: list[list[float]]) -> dict[str, float]:
    """The data set's scores: per IoU the share of right images at the best of the 1000 thresholds, then the mean."""
    scores: dict[str, float] = {}
    best = []
    for percent in (30, 50, 70):
        right = [sum(ious[t] >= percent / 100 for ious in ious_of_images) for t in range(1000)]
        best.append(max(right) * 100 / len(ious_of_images))
        scores[f"maxboxacc/iou{percent}"] = best[-1]
        scores[f"maxboxacc/threshold{percent}"] = right.index(max(right)) * 0.001
    return scores | {"maxboxacc": sum(best) / 3}


def as_box(row: NDArray[np.float32]) -> Box:
    return int(row[0]), int(row[1]), int(row[2]), int(row[3])


def random_boxes(rng: np.random.Generator, count: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """[count, 4] boxes with fractions, some reaching the image's very edge."""
    height, width = size
    xs, ys = np.sort(rng.uniform(0, width, (count, 2))), np.sort(rng.uniform(0, height, (count, 2)))
    return np.stack([xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]], axis=1).astype(np.float32)


def blob(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """A noisy bump, like a class activation map."""
    rows, columns = np.mgrid[:height, :width]
    distance = (rows - rng.uniform(0, height)) ** 2 + (columns - rng.uniform(0, width)) ** 2
    return (np.exp(-distance / height) + 0.3 * rng.random((height, width)) - 2).astype(np.float32)


def batch(
    maps: list[NDArray[np.float32]], boxes: NDArray[np.float32], size: tuple[int, int]
) -> tuple[Sample, dict[str, torch.Tensor]]:
    sample = Sample.real(torch.zeros(len(maps), 3, *size), torch.zeros(len(maps), dtype=torch.long))
    sample.annotations = {"box": torch.from_numpy(boxes)}
    return sample, {"score_map": torch.from_numpy(np.stack(maps))}


class TestAgainstTheNaiveConvention:
    @pytest.mark.parametrize(
        ("map_size", "image_size"),
        [((14, 14), (56, 56)), ((7, 9), (40, 65)), ((12, 6), (48, 33)), ((30, 40), (30, 40)), ((20, 20), (15, 12))],
    )
    def test_the_scores_are_equal(self, map_size: tuple[int, int], image_size: tuple[int, int]) -> None:
        rng = np.random.default_rng(sum(map_size))
        maps = [blob(rng, *map_size) for _ in range(5)] + [rng.normal(size=map_size).astype(np.float32)]
        constant, with_nan = np.full(map_size, 3.5, np.float32), blob(rng, *map_size)
        with_nan[1:3, 2:5] = np.nan
        levels = rng.integers(0, 3, map_size).astype(np.float32)  # few distinct values before the resize
        maps += [constant, with_nan, levels]
        boxes = random_boxes(rng, 3 * len(maps), image_size).reshape(len(maps), 3, 4)
        boxes[::2, 1:] = np.nan
        boxes[1::4, 0] = np.nan  # padding need not come last

        truth = [[as_box(row) for row in rows if not np.isnan(row).any()] for rows in boxes]
        naive = [naive_best_ious(cam, boxes_of, image_size) for cam, boxes_of in zip(maps, truth, strict=True)]

        evaluator = MaxBoxAcc(num_classes=1)
        evaluator.accumulate(*batch(maps, boxes, image_size))
        expected = naive_scores(naive)
        found = evaluator.compute()
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        expected_counts = [[sum(ious[t] >= p / 100 for ious in naive) for t in range(1000)] for p in (30, 50, 70)]
        np.testing.assert_array_equal(evaluator.counts.correct, expected_counts)

    def test_every_iou_is_bitwise_equal_at_224(self) -> None:
        rng = np.random.default_rng(3)
        cam = blob(rng, 14, 14)
        resized = resize_scoremap(cam, (224, 224))
        # The convention resizes in double precision, which moves a quantised value now and then.
        double = cv2.resize(cam.astype(np.float64), (224, 224), interpolation=cv2.INTER_CUBIC)
        np.testing.assert_array_equal(resized, double)
        truth = [(60, 50, 150, 170), (10, 180, 90, 223)]
        assert best_ious(resized, np.array(truth)).tolist() == naive_best_ious(cam, truth, (224, 224))

    def test_saved_maps_give_the_evaluators_counts(self) -> None:
        rng = np.random.default_rng(4)
        maps, boxes = [blob(rng, 8, 8) for _ in range(4)], random_boxes(rng, 4, (32, 48))
        evaluator = MaxBoxAcc(num_classes=1)
        evaluator.accumulate(*batch(maps, boxes, (32, 48)))
        counts = BoxCounts()
        for cam, box in zip(maps, boxes, strict=True):
            saved = cv2.resize(cam.astype(np.float64), (48, 32), interpolation=cv2.INTER_CUBIC)
            saved = (saved - saved.min()) / (saved - saved.min()).max()  # normalised before it was saved
            counts.accumulate(saved, box)
        np.testing.assert_array_equal(counts.correct, evaluator.counts.correct)
        assert counts.images == 4


class TestHandComputedValues:
    def test_inclusive_iou(self) -> None:
        # Columns 3..4 and rows 2..5 are common: 8 pixels of 5 x 5 + 2 x 5 - 8 = 27. A box of one pixel has area 1.
        ious = box_iou_inclusive(np.array([[1, 2, 5, 6], [0, 0, 0, 0]]), np.array([[3, 1, 4, 5], [0, 0, 1, 1]]))
        np.testing.assert_array_equal(ious, [[8 / 27, 0.0], [0.0, 1 / 4]])

    def test_the_threshold_is_strict_on_the_truncated_quantised_map(self) -> None:
        # 0.5 becomes 127. int(tau * 255) is 126 up to tau = 0.498 and 127 from 0.499 on: then only the 1.0 remains.
        scoremap = np.zeros((10, 10))
        scoremap[2:6, 2:6] = 0.5
        scoremap[3, 3] = 1.0
        ious = best_ious(scoremap, np.array([[2, 2, 6, 6]]))
        assert (ious[:499] == 1.0).all()
        assert (ious[499:] == 4 / 25).all()  # the box 3,3,4,4 of one pixel

    def test_inner_contours_count_and_boxes_are_clipped(self) -> None:
        # A frame 3 pixels thick fills the image. Its hole's contour runs over pixels 2..6: box 2,2,7,7. The outer box
        # is 0,0,9,9 clipped to 0,0,8,8, whose IoU with 2,2,7,7 is 36 / 81.
        scoremap = np.ones((9, 9))
        scoremap[3:6, 3:6] = 0.0
        assert (best_ious(scoremap, np.array([[2, 2, 7, 7]])) == 1.0).all()
        assert (best_ious(scoremap, np.array([[0, 0, 8, 8]])) == 1.0).all()

    @pytest.mark.parametrize("value", [0.0, 2.5, math.nan, math.inf])
    def test_a_map_without_contour_predicts_the_first_pixel(self, value: float) -> None:
        # Box 0,0,0,0 against 0,0,1,1: 1 of 4 pixels.
        assert (best_ious(np.full((6, 6), value), np.array([[0, 0, 1, 1]])) == 1 / 4).all()

    def test_the_best_threshold_is_one_for_the_data_set(self) -> None:
        # Image 1 is right only below tau = 0.499, image 2 only from there on: never both, so 50 %, not 100 %.
        wide = np.zeros((20, 20))
        wide[2:12, 2:12] = 0.5
        wide[5, 5] = 1.0
        counts = BoxCounts()
        counts.accumulate(wide, [2, 2, 12, 12])
        counts.accumulate(wide, [5, 5, 6, 6])
        scores = counts.scores()
        assert scores["maxboxacc"] == 50.0
        assert scores["maxboxacc/threshold70"] == 0.0
        counts.accumulate(wide, [5, 5, 6, 6])
        scores = counts.scores()
        assert scores["maxboxacc/iou30"] == pytest.approx(100 * 2 / 3)
        assert scores["maxboxacc/threshold30"] == pytest.approx(0.499)

    def test_the_mean_is_over_the_three_ious(self) -> None:
        # Predicted 2,2,7,7 (36 pixels) in a truth of 2,2,7,10 (54 pixels): IoU 2/3, right at 0.3 and 0.5.
        scoremap = np.zeros((12, 12))
        scoremap[2:7, 2:7] = 1.0
        counts = BoxCounts()
        counts.accumulate(scoremap, [2, 2, 7, 10])
        scores = counts.scores()
        assert [scores[f"maxboxacc/iou{p}"] for p in (30, 50, 70)] == [100.0, 100.0, 0.0]
        assert scores["maxboxacc"] == pytest.approx(200 / 3)

    def test_thresholds_of_validation_are_carried_to_test(self) -> None:
        """As `naive_best_ious` has it: the threshold with the most images there, the first of equal ones, used here.
        The images of test, every second, have wider maps, so that another threshold would be best for them."""
        rows, columns = np.mgrid[:24, :30]
        images = []
        for number in range(14):
            box = (number, 3, number + 12, 17)
            distance = (columns - number - 5 - number % 3) ** 2 + (rows - 8 - number % 4) ** 2
            images.append((np.exp(-distance / (2 * (3 + 3 * (number % 2)) ** 2)).astype(np.float32), box))
        naive = np.array([naive_best_ious(cam, [box], (24, 30)) for cam, box in images])
        parts, largest = [BoxCounts(), BoxCounts()], []
        for number, (cam, box) in enumerate(images):
            parts[number % 2].accumulate(cam, box, (24, 30))
            largest.append(ious_at_thresholds(resize_scoremap(cam, (24, 30)), np.array([box]))[1] >= 0.5)
        chosen = parts[0].scores()
        found = parts[1].scores_at(chosen)
        expected = []
        for percent in (30, 50, 70):
            right = naive >= percent / 100
            expected.append(100 * right[1::2, int(right[::2].sum(axis=0).argmax())].mean())
            assert found[f"maxboxacc_at_validation_thresholds/iou{percent}"] == pytest.approx(expected[-1])
        assert found["maxboxacc_at_validation_thresholds"] == pytest.approx(np.mean(expected))
        single = np.array(largest)
        place = int(single[::2].sum(axis=0).argmax())
        assert found["maxboxacc_v1_at_validation_threshold"] == pytest.approx(100 * single[1::2, place].mean())
        assert found["maxboxacc_at_validation_thresholds"] < parts[1].scores()["maxboxacc"], "else nothing is tested"
        assert parts[0].scores_at(chosen)["maxboxacc_at_validation_thresholds"] == pytest.approx(chosen["maxboxacc"])


class TestBoxes:
    def test_boxes_scaled_in_float32_truncate_like_exact_ones(self) -> None:
        # The convention: int(x * 224 / width) in double precision. The loader scales float32 boxes with torchvision.
        for width in [*range(2, 700), 1024, 2047, 4999, 8191]:
            xs = torch.arange(width)
            loaded = tv_tensors.BoundingBoxes(
                torch.stack([xs] * 4, dim=1).float(),
                format="XYXY",
                canvas_size=(width, width),
            )
            scaled = transforms.resize(loaded, [224, 224]).as_subclass(torch.Tensor).numpy()
            expected = [int(float(x) * 224.0 / float(width)) for x in range(width)]
            assert truncate_boxes(scaled, (224, 224))[:, 2].tolist() == expected, width

    @pytest.mark.parametrize(
        "boxes",
        [
            [[-1.0, 0, 4, 4]],
            [[5.0, 0, 4, 4]],
            [[0.0, 5, 4, 4]],
            [[0.0, 0, 21, 4]],
            [[0.0, 0, 4, 11]],
            [[0.0, 0, 4, math.nan]],
            [[0.0, 0, math.inf, 4]],
            [FULL_NAN],
            [[0.0, 0, 4]],
        ],
    )
    def test_bad_boxes_are_user_errors(self, boxes: list[list[float]]) -> None:
        sample, outputs = batch([np.eye(4, dtype=np.float32)], np.array(boxes, dtype=np.float32), (10, 20))
        with pytest.raises(UserError, match="sample 0: ") as caught:
            MaxBoxAcc(num_classes=1).accumulate(sample, outputs)
        assert "\n" not in str(caught.value)

    def test_only_rows_of_nothing_but_nan_are_padding(self) -> None:
        whole = [1.0, 2.0, 4.0, 5.5]
        assert truncate_boxes([FULL_NAN, whole, FULL_NAN], (10, 20)).tolist() == [[1, 2, 4, 5]]
        with pytest.raises(UserError, match=r"box: box .*nan"):
            truncate_boxes([whole, [0.0, 0.0, 4.0, math.nan]], (10, 20))

    def test_a_missing_annotation_is_named(self) -> None:
        sample, outputs = batch([np.eye(4, dtype=np.float32)], np.zeros((1, 4), np.float32), (10, 20))
        sample.annotations = {"group": torch.zeros(1)}
        with pytest.raises(UserError, match="maxboxacc needs the annotation 'box' and the data set gives: group"):
            MaxBoxAcc(num_classes=1).accumulate(sample, outputs)

    def test_wrong_shapes_are_user_errors(self) -> None:
        sample, outputs = batch([np.eye(4, dtype=np.float32)], np.zeros((1, 4), np.float32), (10, 20))
        with pytest.raises(UserError, match="2 score maps and 1 box annotations for a batch of 1"):
            MaxBoxAcc(num_classes=1).accumulate(sample, {"score_map": outputs["score_map"].repeat(2, 1, 1)})
        with pytest.raises(UserError, match=r"sample 0: the score map has shape \(1, 4, 4\)"):
            MaxBoxAcc(num_classes=1).accumulate(sample, {"score_map": outputs["score_map"][:, None]})
