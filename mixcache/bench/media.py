"""Clips as files: for people to play, and without loss for the contact sheet.

Arrays carry their layout in their names: F frames, H height, W width, C colour channels.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from mixcache.bench.extras import check_extras, extra
from mixcache.core.files import replacing
from mixcache.core.metrics import Frames
from mixcache.errors import ConfigurationError

CLIPS = (".mp4", ".gif")
IMAGES = (".png",)
FPS = 8
"""Frames per second of the clips in a gallery: slow enough to look."""


def slug(text: str) -> str:
    """A file name for a text: its words, and a hash that tells apart what the words do not."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def as_uint8(frames_FHWC: Frames) -> NDArray[np.uint8]:
    """Values in [0, 1] as levels from 0 to 255; values that are not finite become 0."""
    finite = np.nan_to_num(frames_FHWC, nan=0.0, posinf=1.0, neginf=0.0)
    return np.asarray(np.clip(np.rint(finite * 255), 0, 255), dtype=np.uint8)


def write_clip(path: Path, frames_FHWC: NDArray[np.uint8], fps: float = FPS) -> Path:
    """Write an mp4 (H.264), gif or png by the suffix, whole or not at all, and return its path.

    A png holds one frame. Raises `ConfigurationError` if the file cannot be written in that format.
    """
    options: dict[str, Any] = {}
    if path.suffix == ".mp4":
        options = {"plugin": "FFMPEG", "fps": fps, "codec": "libx264", "quality": 9, "macro_block_size": 2}
    elif path.suffix == ".gif":
        options = {"plugin": "pillow", "duration": 1000 / fps, "loop": 0}
    elif len(frames_FHWC) > 1:
        raise ConfigurationError(f"{path}: a {path.suffix} holds one frame, not {len(frames_FHWC)}; use .mp4 or .gif.")
    imageio = extra("imageio.v3", f"writing {path.name}")
    with replacing(path) as partial:
        try:
            imageio.imwrite(partial, frames_FHWC if options else frames_FHWC[0], **options)
        except Exception as error:
            raise ConfigurationError(f"cannot write {path}: {error}") from error
    return path


@frozen
class Clips:
    """The clips of a comparison in a folder: each as .npy (levels, without loss) and as a file to play."""

    folder: Path

    def save(self, prompt: str, seed: int, label: str, frames_FHWC: Frames) -> None:
        """Keep one clip."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stem, levels = self._stem(prompt, seed, label), as_uint8(frames_FHWC)
        if len(levels) == 1:
            write_clip(stem.with_suffix(".png"), levels)
        else:
            try:
                write_clip(stem.with_suffix(".mp4"), levels)
            except ConfigurationError:  # no encoder for this platform
                write_clip(stem.with_suffix(".gif"), levels)
        with replacing(stem.with_suffix(".npy")) as partial:
            np.save(partial, levels)

    def forget(self) -> None:
        """Remove the lossless copies, so that every clip counts as missing until it is saved again."""
        for path in self.folder.glob("*-seed*.npy"):
            path.unlink()

    def load(self, prompt: str, seed: int, label: str) -> NDArray[np.uint8] | None:
        """The levels of a clip, or `None` if it was never kept."""
        path = self._stem(prompt, seed, label).with_suffix(".npy")
        return np.load(path) if path.is_file() else None

    def playable(self, prompt: str, seed: int, label: str) -> Path | None:
        """The file to play, or `None`."""
        stem = self._stem(prompt, seed, label)
        return next((stem.with_suffix(s) for s in (*CLIPS, *IMAGES) if stem.with_suffix(s).is_file()), None)

    def has(self, prompt: str, seed: int, label: str) -> bool:
        """Whether the clip is there, both ways."""
        lossless = self._stem(prompt, seed, label).with_suffix(".npy").is_file()
        return lossless and self.playable(prompt, seed, label) is not None

    def _stem(self, prompt: str, seed: int, label: str) -> Path:
        return self.folder / f"{slug(prompt)}-seed{seed}-{slug(label)}"


def writable(folder: Path) -> None:
    """Make the folder. Raises `ConfigurationError` if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(f"cannot write to {folder}: {error.strerror or error}.") from error


def check_output(out: Path) -> None:
    """Raises `ConfigurationError` if `out` is neither a clip's file name nor a folder, or cannot be written."""
    if not out.is_dir() and out.suffix and out.suffix not in (*CLIPS, *IMAGES):
        raise ConfigurationError(f"--out {out} must end in {', '.join((*CLIPS, *IMAGES))}, or be a folder.")
    check_extras(f"--out {out}", "imageio", *(("imageio_ffmpeg",) if out.suffix in ("", ".mp4") else ()))
    writable(out if out.is_dir() or not out.suffix else out.parent)


def find_target(out: Path, prompt: str, seed: int, video: bool) -> Path:
    """The file to write. Raises `ConfigurationError` if its format cannot hold what the model makes."""
    fitting = CLIPS if video else IMAGES
    if out.is_dir():
        return out / f"{slug(prompt)}-seed{seed}{fitting[0]}"
    if out.suffix not in fitting:
        kind = "clips" if video else "images"
        raise ConfigurationError(f"--out {out}: this model makes {kind}; use {' or '.join(fitting)}.")
    return out
