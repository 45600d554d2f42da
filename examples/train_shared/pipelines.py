"""Finished pipelines: written in half precision, and loaded again to be scored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch


def replace_folder(new: Path, place: Path) -> None:
    """Put folder ``new`` at ``place``, so that a reader finds the old one or the new one and never half of either."""
    old = place.with_name(place.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def write_pipeline(pipe: Any, folder: Path) -> Path:
    """Write ``pipe`` to ``folder``/pipeline, in half precision; says how large it is and returns its path."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, torch.float16)  # the parts' own ``to`` warns about layers that prefer float32
    new, place = folder / "pipeline.new", folder / "pipeline"
    shutil.rmtree(new, ignore_errors=True)
    pipe.save_pretrained(str(new), safe_serialization=True)
    replace_folder(new, place)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    print(f"pipeline: {place}, {size / 1e6:.2f} MB", flush=True)
    return place


def load_pipeline(folder: Path) -> Any:
    """The pipeline at ``folder``, in float32 and without progress bars."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe
