"""Reading clips back, independently of what wrote them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageSequence


def read_clip(path: Path, height: int = 16, width: int = 16) -> np.ndarray:
    """The frames [F, H, W, C] of an mp4 of that size, or of a gif or png."""
    if path.suffix != ".mp4":
        with Image.open(path) as file:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)])
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24"]
    raw = subprocess.run([*command, "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
