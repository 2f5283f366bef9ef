"""Pictures of where a network finds objects: what they hold, and where they go at the end of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import train

from provscale.build import build_data, build_network
from provscale.command_line import parse
from provscale.data.loader import LoadedItems, make_loader
from provscale.predictions import predict
from provscale.randomness import numpy_generator
from provscale.run.checkpoint_folder import Progress
from provscale.run.final_test import localised_by_best
from provscale.run.localised import FILE, FOUND_BOX, TRUE_BOX, LocalisedPictures
from provscale.run.report_pictures import localised_pictures
from provscale.synthesis import Synthesis

# A metric that no two networks have in common, by which the best epoch is not the last.
RUN = {
    "evaluation__metrics": "[maxboxacc, gradient_energy, group_accuracy]", "evaluation__best": "gradient_energy",
    "model__options": "{output_stride: 8}", "train__epochs": 3, "tracking__trackers": "[tensorboard]",
    "tracking__localisation": 3,
}  # fmt: skip
NAME = "score map and boxes | input gradient"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was started again, which must change nothing."""
    folder = tmp_path_factory.mktemp("localised")
    train(folder, **RUN)
    return train(folder, **RUN)


def test_they_are_the_best_epochs_on_validation(run: Path) -> None:
    """The same from the weight file, image by image; boxes by OpenCV at the threshold that the summary has."""
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_epoch"] < 3, "else the final weights would do"
    config = parse(["--cfg", str(run / "config.yaml"), "--model.pretrained", str(run / "checkpoints/best.safetensors")])
    splits = build_data(config)
    assert splits.validation is not None
    network = build_network(config, splits.num_classes).network.eval()
    shown = LocalisedPictures.load(run / FILE)
    drawn = sorted(numpy_generator(config.seed, "localisation").choice(len(splits.validation), 3, replace=False))
    assert shown.names.tolist() == [f"{number:06d}" for number in drawn]
    threshold = summary["validation"]["maxboxacc_v1/threshold"]
    items = LoadedItems(splits.validation, Synthesis().prepare, splits.evaluation_transform, 2, 0)
    (loaded,) = make_loader(items, [[(0, int(number)) for number in drawn]], 0, False)
    sample = loaded.to("cpu")
    outputs = predict(network, sample, ["score_map", "input_gradient"], None)
    np.testing.assert_allclose(shown.gradients, outputs["input_gradient"].norm(dim=1), rtol=1e-4, atol=1e-5)
    for place in range(3):
        heatmap = cv2.resize(outputs["score_map"][place].double().numpy(), (32, 32), interpolation=cv2.INTER_CUBIC)
        heatmap = (heatmap - heatmap.min()) / np.ptp(heatmap)
        np.testing.assert_allclose(shown.heatmaps[place], heatmap, atol=1e-4)
        levels = (shown.heatmaps[place].astype(np.float64) * 255).astype(np.uint8)
        contours, _ = cv2.findContours(
            (levels > int(threshold * levels.max())).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE
        )
        x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
        assert shown.boxes[place].tolist() == [x, y, min(x + width, 31), min(y + height, 31)]
        assert shown.true_boxes[place][0].tolist() == sample.annotations["box"][place].int().tolist()
        assert shown.right[place] == (outputs["logits"][place].argmax() == sample.targets[place, 0])
        assert shown.classes[place] == splits.class_names[int(sample.targets[place, 0])]


def test_trackers_get_them_once_at_the_end(run: Path) -> None:
    content = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = [tag for tag in content.Tags()["images"] if tag.startswith(NAME)]
    assert sorted(tags) == [f"{NAME}/{name}" for name in LocalisedPictures.load(run / FILE).names]
    for tag in tags:
        (shown,) = content.Images(tag)
        assert (shown.width, shown.height) == (2 * 224, 224)


def test_switched_off_or_without_score_maps_there_are_none(run: Path) -> None:
    """Before the best weights are read: neither an engine nor they are needed to say so."""
    missing: Any = None
    for key, value in (("--tracking.localisation", "0"), ("--evaluation.metrics", "[gradient_energy]")):
        config = parse(["--cfg", str(run / "config.yaml"), key, value])
        assert localised_by_best(missing, config, build_data(config), missing, Progress()) is None


def pictures() -> LocalisedPictures:
    """Two gray images of 56 pixels; the second has one box less than the first."""
    return LocalisedPictures(
        np.full((2, 56, 56, 3), 100, dtype=np.uint8),
        np.zeros((2, 56, 56), dtype=np.float32),
        np.zeros((2, 56, 56), dtype=np.float32),
        np.array([[[4, 8, 23, 27], [30, 30, 39, 39]], [[0, 0, 9, 9], [-1] * 4]]),
        np.array([[4, 8, 23, 47], [20, 20, 29, 29]]),
        np.array([True, False]),
        np.array(["crow", "<wren>"]),
        np.array(["a/1.jpg", "a/2.jpg"]),
    )


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    """Enlarged fourfold: a box from x0 to x1 spans the pixels 4 x0 to 4 x1 + 3."""
    shown = pictures()
    picture = shown.found(0)
    assert picture.shape == (224, 224, 3)
    assert picture[100, 111].tolist() == [84, 51, 92], "half gray, half viridis' first, (68.1, 1.2, 84.0)"
    for x, y, colour in ((30 * 4, 140, TRUE_BOX), (39 * 4 + 3, 140, TRUE_BOX), (4 * 4, 150, FOUND_BOX),
                         (23 * 4 + 3, 150, FOUND_BOX), (60, 47 * 4 + 3, FOUND_BOX)):  # fmt: skip
        assert picture[y, x].tolist() == list(colour)
    white = (shown.found(1) == 255).all(axis=2)
    assert white[:, :44].any()
    assert not white[:, 44:].any(), "padding is not drawn"
    # 20 x 20 in 20 x 40 pixels; disjoint.
    assert [shown.verdict(0), shown.verdict(1)] == ["IoU 0.50, class right", "IoU 0.00, class wrong"]
    shown.save(tmp_path / FILE)
    again = LocalisedPictures.load(tmp_path / FILE)
    assert all(np.array_equal(getattr(again, name), getattr(shown, name)) for name in vars(shown))


def test_the_report_shows_the_images_that_all_runs_have(run: Path) -> None:
    shown = LocalisedPictures.load(run / FILE)
    assert f"score map: guided of {shown.names[0]}" in (run / "report.html").read_text()
    names = np.array([shown.names[2], "elsewhere", shown.names[0]])
    other = replace(shown, names=names, right=~shown.right, classes=np.array(["<b>"] * 3))
    section = localised_pictures({"baseline": shown, "guided": other})
    for place, name in enumerate(shown.names.tolist()):
        assert section.count(f' of {name}: {shown.classes[place]}"') == (0 if place == 1 else 5)
    for verdict in (shown.verdict(0), other.verdict(2)):
        assert f"<small>{verdict}</small>" in section
    assert "elsewhere: &lt;b&gt;" in localised_pictures({"guided": other})
    assert "show no image in common" in localised_pictures(
        {"baseline": shown, "guided": replace(other, names=names + "x")}
    )
    assert localised_pictures({}) == ""
