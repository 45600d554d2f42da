"""Clips, contact sheet, plot and page: they show what was measured."""

from __future__ import annotations

import base64
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from PIL import Image

from mixcache.bench import Case, CaseStore, Comparison, Spread, Summary, compare, load, media, summarize, write_gallery
from mixcache.bench.extras import LIBRARIES, check_extras, extra
from mixcache.bench.gallery import Strip, contact_sheet
from mixcache.bench.media import Clips, as_uint8, check_output, find_target, slug, write_clip
from mixcache.bench.plots import speed_quality
from mixcache.errors import ConfigurationError
from tests.zoo.clips import read_clip

HOSTILE = '<script>alert("x")</script> & a "red" circle'


def plain(*rgb: int, frames: int = 5, size: int = 32) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, np.uint8), (frames, size, size, 3)).copy()


def summary(variant: str, speedup: float, psnr: float) -> Summary:
    return Summary(
        variant=variant,
        cases=1,
        speedup=speedup,
        speedup_interval=None,
        ideal_speedup=speedup,
        seconds=1.0,
        uncached_seconds=speedup,
        evaluations=Spread(mean=10.0, worst=10.0),
        evaluations_uncached=10 * speedup,
        scores={"psnr": Spread(mean=psnr, worst=psnr - 3)},
        above_fewer_steps=None,
        latents_error=None,
        truth_psnr=None,
        truth_error=None,
        cache_bytes=10,
    )


# files


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_clip_plays_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 200, 7).astype(np.uint8)
    frames_FHWC = np.broadcast_to(ramp[:, None, None, None], (7, 32, 48, 3)).copy()
    path = write_clip(tmp_path / f"clip{suffix}", frames_FHWC)
    back = read_clip(path, 32, 48)
    assert back.shape == frames_FHWC.shape
    assert np.abs(back.astype(int) - frames_FHWC).max() <= 6
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_image_is_a_png_and_a_png_holds_no_clip(tmp_path: Path) -> None:
    image = plain(1, 2, 3, frames=1)
    assert np.array_equal(read_clip(write_clip(tmp_path / "image.png", image)), image)
    with pytest.raises(ConfigurationError, match=r"one frame, not 5; use \.mp4"):
        write_clip(tmp_path / "clip.png", plain(1, 2, 3))


def test_a_file_that_cannot_be_written_is_one_error_and_leaves_no_half(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot write"):
        write_clip(tmp_path / "nowhere" / "clip.gif", plain(1, 2, 3))
    broken = np.zeros((3, 32, 32, 7), np.uint8)
    with pytest.raises(ConfigurationError, match="cannot write"):
        write_clip(tmp_path / "clip.gif", broken)
    assert list(tmp_path.iterdir()) == []


def test_levels_are_rounded_and_what_is_no_number_is_black() -> None:
    values = np.array([0.0, 0.5, 1.0, 1.5, -1.0, np.nan, np.inf], np.float32)
    assert as_uint8(values).tolist() == [0, 128, 255, 255, 0, 0, 255]


def test_kept_clips_fall_back_to_gif_without_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_mp4(path: Path, frames: Any, fps: float = 8) -> Path:
        if path.suffix == ".mp4":
            raise ConfigurationError("no encoder")
        return write_clip(path, frames, fps)

    monkeypatch.setattr(media, "write_clip", no_mp4)
    clips = Clips(tmp_path)
    clips.save("a", 0, "b", np.zeros((3, 32, 32, 3), np.float32))
    path = clips.playable("a", 0, "b")
    assert path is not None
    assert path.suffix == ".gif"
    assert clips.has("a", 0, "b")
    clips.forget()
    assert not clips.has("a", 0, "b")


def test_a_slug_is_a_file_name_and_tells_texts_apart() -> None:
    assert re.fullmatch(r"static-every-2-basis-noise-[0-9a-f]{6}", slug("static:every=2 @ basis=noise"))
    assert len({slug(text) for text in ("a/b", "a:b", "a b", "A b", "../a b", "a" * 200, "a" * 201)}) == 7
    assert all(len(slug(text)) < 60 and "/" not in slug(text) for text in ("../" * 40, "é" * 300))


def test_where_a_clip_goes(tmp_path: Path) -> None:
    for good in (tmp_path / "new" / "clip.mp4", tmp_path / "clip.GIF".lower(), tmp_path / "folder"):
        check_output(good)
    assert find_target(tmp_path / "folder", "a cat", 3, True).name == f"{slug('a cat')}-seed3.mp4"
    assert find_target(tmp_path / "folder", "a cat", 3, False).suffix == ".png"
    with pytest.raises(ConfigurationError, match=r"makes images; use \.png"):
        find_target(tmp_path / "clip.mp4", "a cat", 0, False)
    with pytest.raises(ConfigurationError, match=r"must end in \.mp4"):
        check_output(tmp_path / "clip.avi")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot write to"):
        check_output(tmp_path / "file" / "clip.mp4")


# pictures


def test_the_contact_sheet_has_a_row_a_clip_and_its_frames_in_order(tmp_path: Path) -> None:
    green = plain(0, 250, 0)
    green[-1] = (0, 0, 250)
    contact_sheet(
        tmp_path / "sheet.png",
        [Strip(label="one", frames_FHWC=plain(250, 0, 0), title="a title"), Strip(label="two", frames_FHWC=green)],
    )
    picture = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)

    def where(*rgb: int) -> np.ndarray:
        return np.argwhere(np.abs(picture - rgb).sum(axis=-1) == 0)

    red, green_, blue = where(250, 0, 0), where(0, 250, 0), where(0, 0, 250)
    assert red[:, 0].max() < green_[:, 0].min()
    assert green_[:, 1].max() < blue[:, 1].min()
    assert len(red) == pytest.approx(5 * len(blue), rel=0.1)
    assert len(green_) == pytest.approx(4 * len(blue), rel=0.1)


@pytest.mark.parametrize(
    "psnrs", [[40.0], [math.inf], [math.inf, 30.0, 45.5], [math.nan, 30.0], [20.0 + i for i in range(15)]]
)
def test_the_plot_is_drawn_whatever_the_numbers_are(tmp_path: Path, psnrs: Sequence[float]) -> None:
    path = tmp_path / "plot.png"
    speed_quality(path, [summary(f"policy{i} @ basis=noise", 0.9 + i, psnr) for i, psnr in enumerate(psnrs)])
    picture = np.asarray(Image.open(path).convert("RGB"))
    colours = np.unique(picture.reshape(-1, 3), axis=0).astype(int)
    assert (np.ptp(colours, axis=1) > 60).any()  # a coloured marker is there, not axes alone


# the page


@pytest.fixture(scope="module")
def gallery(wan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison, list[Case]]:
    model = load(str(wan_folder), device="cpu")
    comparison = Comparison(
        model=model,
        arguments=model.arguments(num_inference_steps=4, num_frames=5, height=16, width=16),
        prompts=(HOSTILE, "a blue square moving up"),
        seeds=(0,),
        variants=("static:every=2", "cfg:every=2"),
        pictured=2,
    )
    folder = tmp_path_factory.mktemp("gallery")
    store = CaseStore(folder).open(comparison.settings)
    cases = compare(comparison, store)
    write_gallery(folder, "mixcache compare <all>", comparison, store, cases, summarize(comparison, cases))
    return folder, comparison, cases


def test_the_page_is_one_file_that_holds_everything(gallery: tuple[Path, Comparison, list[Case]]) -> None:
    folder, comparison, cases = gallery
    text = (folder / "index.html").read_text()
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert "mixcache compare &lt;all&gt;" in text
    assert "<script>" not in text
    for item in summarize(comparison, cases):
        assert f"<td>{item.ideal_speedup:.3f}x</td>" in text
        assert item.speedup is None or f"<td>{item.speedup:.3f}x</td>" in text
    for case in cases:
        assert f'title="{case.mask}"' in text or case.report is None
    assert text.count("mixcache report") == sum(case.report is not None for case in cases) == 4


def test_the_pages_clips_are_the_ones_that_were_made(
    gallery: tuple[Path, Comparison, list[Case]], tmp_path: Path
) -> None:
    folder, comparison, _ = gallery
    videos = re.findall(r'<video src="data:video/mp4;base64,([^"]*)"', (folder / "index.html").read_text())
    assert len(videos) == 6  # two prompts, uncached and two variants
    (tmp_path / "first.mp4").write_bytes(base64.b64decode(videos[1]))
    made = Clips(folder / "clips").load(HOSTILE, 0, comparison.labels[0])
    assert made is not None
    back = read_clip(tmp_path / "first.mp4")
    assert back.shape == made.shape
    assert np.abs(back.astype(int) - made).mean() < 16


def test_a_variant_that_was_not_kept_leaves_no_hole(
    gallery: tuple[Path, Comparison, list[Case]], tmp_path: Path
) -> None:
    _, comparison, cases = gallery
    one = attrs.evolve(comparison, variants=comparison.variants[:1])
    mine = [case for case in cases if case.variant == one.labels[0]]
    store = CaseStore(tmp_path)
    store.clips.save(HOSTILE, 0, "none", np.zeros((5, 16, 16, 3), np.float32))
    write_gallery(tmp_path, "command", one, store, mine, summarize(one, mine))
    assert {"contact_sheet.png", "speed_quality.png", "index.html"} <= {p.name for p in tmp_path.iterdir()}


# the extra


def test_every_library_of_the_extra_is_here() -> None:
    check_extras("this test")
    assert extra("matplotlib.figure", "this test").Figure


@pytest.mark.parametrize("module", LIBRARIES)
def test_a_missing_library_is_one_clear_error(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hiding(module)])
    says = rf"^the plot needs {LIBRARIES[module]}: pip install 'mixcache\[bench\]'$"
    with pytest.raises(ConfigurationError, match=says):
        extra(f"{module}.part", "the plot")
    with pytest.raises(ConfigurationError, match=says):
        check_extras("the plot")


class Hiding:
    """Finds every module but those of one library, as if it were not installed."""

    def __init__(self, module: str) -> None:
        self._module, self._finders = module, list(sys.meta_path)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] == self._module:
            return None
        found = (finder.find_spec(name, path, target) for finder in self._finders)
        return next((spec for spec in found if spec is not None), None)
