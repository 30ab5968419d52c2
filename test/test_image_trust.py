"""Trust belongs to a task, its models and judges, and to the kind of image that they were measured on."""
from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from world_gymnast_ros.adaptation.trust import (
    MIN_IMAGES,
    STATISTICS,
    ImageKind,
    Known,
    TaskRelease,
    image_doubt,
    image_statistics,
    trust_of,
)
from world_gymnast_ros.errors import BadConfig, BadFrame
from world_gymnast_ros.loading.load import TABLETOP_JUDGES
from world_gymnast_ros.loading.release import release_table
from world_gymnast_ros.twin.observer import capture
from world_gymnast_ros.twin.scene import known_scenes, load_scene
from world_gymnast_ros.twin.sim import Twin
from world_gymnast_ros.types import U8


def render(scene: str, seed: int = 9999) -> U8:
    loaded = load_scene(scene)
    twin = Twin(loaded)
    try:
        twin.reset(seed, loaded.instructions[0])
        return capture(twin)[0].rgb
    finally:
        twin.close()


@pytest.fixture(scope="module")
def image() -> U8:
    return render("novel_evening")


@pytest.fixture(scope="module")
def shipped() -> TaskRelease:
    return release_table("", TABLETOP_JUDGES)["reach"]


OTHERS = ("lab_dark_table",)
"""Scenes of another kind of image than the shipped table was measured on, by intention: nearly black."""


@pytest.mark.parametrize("scene", OTHERS)
def test_a_scene_of_another_kind_is_doubted(scene: str) -> None:
    images = [render(scene, seed) for seed in (9999, 9998)]
    for task, row in release_table("", TABLETOP_JUDGES).items():
        assert row.images is not None and image_doubt(row, images), task


@pytest.mark.parametrize("scene", [s for s in known_scenes() if s not in OTHERS])
def test_the_twin_is_what_the_shipped_table_was_measured_on(scene: str) -> None:
    images = [render(scene, seed) for seed in (9999, 9998)]
    for task, row in release_table("", TABLETOP_JUDGES).items():
        assert row.images is not None and image_doubt(row, images) == "", task


def as_photographed(rgb: U8) -> U8:
    """The same view with the noise of a small sensor."""
    noise = np.random.default_rng(0).normal(0.0, 6.0, rgb.shape)
    return np.clip(rgb + noise, 0, 255).astype(np.uint8)


def textured(rgb: U8) -> U8:
    """Grain of wood, weave of cloth: even surfaces of a rendering become uneven."""
    rows, columns = np.indices(rgb.shape[:2])
    grain = 12.0 * np.sin(rows * 0.9 + 4.0 * np.sin(columns * 0.05))
    return np.clip(rgb + grain[..., None], 0, 255).astype(np.uint8)


def blurred(rgb: U8) -> U8:
    from PIL import Image, ImageFilter
    return np.array(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(8)))


@pytest.mark.parametrize(("change", "says"), [
    (as_photographed, "even surface"), (textured, "even surface"), (blurred, "sharpest edges"),
    (lambda rgb: np.zeros_like(rgb), "contrast 0 "), (lambda rgb: np.full_like(rgb, 128), "contrast 0 "),
    (lambda rgb: rgb[30:-30], "aspect ratio 1.78"), (lambda rgb: rgb[:, 40:-40], "aspect ratio 1 "),
    (lambda rgb: rgb[::4, ::4], "height 60 pixels"),
])
def test_another_kind_of_image_is_unknown_and_it_is_said_why(change, says: str, image: U8, shipped: TaskRelease
                                                               ) -> None:
    other = change(image)
    assert trust_of("reach", shipped, "wm", [image], True).known is Known.YES
    trust = trust_of("reach", shipped, "wm", [image, other], True)
    assert trust.known is Known.UNKNOWN and "frame 2 of 2 is not of the kind" in trust.because
    assert says in trust.because and "do not move one" in trust.line


def test_trust_is_no_where_it_was_measured_and_is_bad_and_unknown_where_nothing_was(image: U8, shipped: TaskRelease
                                                                                    ) -> None:
    assert trust_of("reach", shipped, "wm", [image], True).line.startswith("yes, within limits. 'wm' ranks 'reach'")
    assert trust_of("reach", replace(shipped, auc=0.8), "wm", [image], True).known is Known.NO
    assert trust_of("reach", replace(shipped, false_success_high=0.2), "wm", [image], True).known is Known.NO
    for row in (None, replace(shipped, auc=math.nan), replace(shipped, images=None)):
        assert trust_of("wipe the table", row, "wm", [image], True).known is Known.UNKNOWN
    mute = trust_of("reach", shipped, "wm", [image], False)
    assert mute.known is Known.UNKNOWN and "no verdict" in mute.because
    assert trust_of("reach", shipped, "wm", [], True).known is Known.UNKNOWN


def test_few_images_say_nothing_of_a_kind(image: U8) -> None:
    few = ImageKind.of([image] * (MIN_IMAGES - 1), "a webcam")
    assert few.departures(image) == ["only 19 images were measured on, fewer than 20"]
    enough = ImageKind.of([image] * MIN_IMAGES, "a webcam")
    assert enough.departures(image) == []


def test_the_more_images_the_less_their_range_is_widened(image: U8) -> None:
    bright = np.clip(image * 1.2, 0, 255).astype(np.uint8)
    brighter = np.clip(image * 1.23, 0, 255).astype(np.uint8)
    assert ImageKind.of([image, bright] * 12, "").departures(brighter) == []
    assert any("brightness" in d for d in ImageKind.of([image, bright] * 500, "").departures(brighter))


def test_a_kind_survives_the_table_and_bad_values_are_refused(image: U8) -> None:
    kind = ImageKind.of([image] * 20, "a webcam")
    again = ImageKind.from_json(json.loads(json.dumps(kind.to_json())))
    assert (again.source, again.count, again.height_px) == ("a webcam", 20, 240) and again.departures(image) == []
    with pytest.raises(BadConfig, match="ranges are of brightness"):
        ImageKind("", 20, 240, {"brightness": (0.0, 1.0)})
    with pytest.raises(BadConfig, match="in order"):
        ImageKind("", 20, 240, dict.fromkeys(STATISTICS, (1.0, 0.0)))
    with pytest.raises(BadConfig, match="no images"):
        ImageKind.of([], "nothing")
    with pytest.raises(BadFrame):
        image_statistics(image[..., 0])


def test_statistics_do_not_hang_on_the_resolution(image: U8) -> None:
    loaded = load_scene("novel_evening")
    twin = Twin(loaded)
    try:
        twin.reset(9999, loaded.instructions[0])
        small, large = (image_statistics(twin.render(w, h)) for w, h in ((320, 240), (640, 480)))
    finally:
        twin.close()
    assert list(small) == list(STATISTICS)
    for name in STATISTICS:
        assert small[name] == pytest.approx(large[name], rel=0.12, abs=0.5), name
