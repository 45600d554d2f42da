"""Find and load a diffusers pipeline by name, folder or hub id, and say what it was run on."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen

from mixcache.bench.extras import extra
from mixcache.bench.flags import FLAGS
from mixcache.core import catalogue
from mixcache.core.metrics import Score
from mixcache.errors import ConfigurationError, MixcacheError
from mixcache.host.diffusers import models_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_SAMPLED = 1 << 16
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
"""How pipelines call the number of frames that a latent frame stands for."""


@frozen(kw_only=True)
class Model:
    """A loaded pipeline.

    name: how it was asked for. defaults: the call arguments that it comes with. tuning: prompts to choose settings on.
    held_out: prompts kept for evaluation. demo: recipes that `mixcache demo` shows. score: whether a clip shows what
    was asked, see `PipelineFolder`. fingerprint: a hash of its files (`None` for a hub id).
    """

    name: str
    pipeline: Any
    defaults: Mapping[str, Any] = field(factory=dict)
    tuning: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    demo: tuple[str, ...] = ()
    score: Score | None = None
    fingerprint: str | None = None

    @property
    def makes_video(self) -> bool:
        """Whether the pipeline generates clips rather than images."""
        return "num_frames" in inspect.signature(self.pipeline.__call__).parameters

    def arguments(self, **given: Any) -> dict[str, Any]:
        """Keyword arguments of a call: what was given, and the model's defaults for the rest; `None` means not given.

        Raises `ConfigurationError` for an argument that the pipeline does not take, for counts and sizes below 1, and
        for a number of frames that the pipeline would silently change.
        """
        accepted = inspect.signature(self.pipeline.__call__).parameters
        chosen = {name: value for name, value in given.items() if value is not None}
        for name, value in chosen.items():
            if name not in accepted:
                takes = ", ".join(FLAGS[known] for known in FLAGS if known in accepted)
                raise ConfigurationError(
                    f"{type(self.pipeline).__name__} takes no {name} ({FLAGS.get(name, name)}); it takes: {takes}."
                )
            if isinstance(value, int) and value < 1:
                raise ConfigurationError(f"{FLAGS.get(name, name)} must be >= 1, got {value}.")
        self._check_frames(chosen.get("num_frames"))
        usual = {name: value for name, value in self.defaults.items() if name in accepted}
        return {**usual, **chosen}

    def _check_frames(self, frames: int | None) -> None:
        """A latent frame stands for k frames, the first one for a single one: a clip has n * k + 1 frames.

        A pipeline rounds any other number, upwards or downwards. One whose own default has another form is left alone.
        """
        k = next((getattr(self.pipeline, name) for name in _TEMPORAL if hasattr(self.pipeline, name)), 1)
        parameter = inspect.signature(self.pipeline.__call__).parameters.get("num_frames")
        usual = None if parameter is None else parameter.default
        if frames is None or not isinstance(usual, int) or usual % k != 1 % k or frames % k == 1 % k:
            return
        below = (frames - 1) // k * k + 1
        raise ConfigurationError(
            f"--frames {frames}: {type(self.pipeline).__name__} makes {k}n + 1 frames; give {below} or {below + k}."
        )

    def steps(self, arguments: Mapping[str, Any]) -> int:
        """How many denoising steps a call with `arguments` makes."""
        default = inspect.signature(self.pipeline.__call__).parameters.get("num_inference_steps")
        return int(arguments.get("num_inference_steps", default.default if default is not None else 1))


def load(name: str, device: str = "auto", dtype: str | None = None) -> Model:
    """Load a pipeline by the name a plugin gave it, by folder or by hub id, quietly.

    device: "auto" takes CUDA if there is one. dtype: float32 on a CPU and bfloat16 elsewhere, if `None`. Raises
    `ConfigurationError` for a model, device or dtype that is not there.
    """
    where = find_device(device)
    precision = find_dtype(dtype, where)
    known = catalogue.pipelines().get(name)
    source = str(known.path) if known is not None else _source(name)
    local = Path(source).is_dir()
    quieten()
    from diffusers import DiffusionPipeline

    try:
        pipeline = DiffusionPipeline.from_pretrained(source, dtype=precision, local_files_only=local)
        pipeline.to(where)
    except MixcacheError:
        raise
    except Exception as error:
        raise ConfigurationError(f"cannot load model {name!r}: {first_line(error)}") from error
    models_of(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return Model(
        name=name,
        pipeline=pipeline,
        defaults=known.defaults if known is not None else {},
        tuning=known.tuning if known is not None else (),
        held_out=known.held_out if known is not None else (),
        demo=known.demo if known is not None else (),
        score=known.score if known is not None else None,
        fingerprint=fingerprint(Path(source)) if local else None,
    )


def as_texts(given: Iterable[str]) -> tuple[str, ...]:
    """A converter of prompts."""
    return tuple(given)


def as_seeds(given: Iterable[int]) -> tuple[int, ...]:
    """A converter of seeds."""
    return tuple(given)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def fingerprint(folder: Path) -> str:
    """A hash of a folder's file names and sizes and of both ends of every file: enough to notice other weights."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLED))
            file.seek(max(size - _SAMPLED, 0))
            digest.update(file.read(_SAMPLED))
    return digest.hexdigest()[:16]


def quieten() -> None:
    """Keep the loading bars and notices of diffusers, transformers and the hub off the terminal; errors stay."""
    import diffusers.utils.logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    for logging in (diffusers.utils.logging, extra("transformers.utils.logging", "loading a pipeline")):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    disable_progress_bars()


def _source(name: str) -> str:
    folder = Path(name).expanduser()
    names = ", ".join(sorted(catalogue.pipelines())) or "none"
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ConfigurationError(f"{name} is no diffusers pipeline: it has no model_index.json.")
        return str(folder)
    if folder.exists():
        raise ConfigurationError(f"{name} is a file; --model takes a pipeline folder, a hub id or one of: {names}.")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not name.endswith("/"):
        return name
    raise ConfigurationError(
        f"no model {name!r}: there is no such folder, a hub id looks like owner/name, and the names known are: {names}."
    )


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA if there is one. `ConfigurationError` for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        raise ConfigurationError(f"device {name!r} is not there: {first_line(error)}") from error
    if device.type == "meta":
        raise ConfigurationError("device 'meta' holds no data; use cpu, cuda or another device that computes.")
    return device


def find_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of that name; float32 on a CPU and bfloat16 elsewhere, if `None`. `ConfigurationError` otherwise."""
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        return DTYPES[_SHORT.get(name, name)]
    except KeyError:
        raise ConfigurationError(f"dtype must be one of {', '.join((*DTYPES, *_SHORT))}, got {name!r}.") from None


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a file that are not empty, each once; `ConfigurationError` if there are none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read --prompts {path}: {error}") from error
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise ConfigurationError(f"--prompts {path} holds no prompts; write one per line.")
    return prompts


def environment(device: torch.device) -> dict[str, Any]:
    """Versions of what was measured with, and the machine it ran on."""
    import diffusers

    return {
        "mixcache": metadata.version("mixcache"),
        "torch": str(torch.__version__),
        "diffusers": str(diffusers.__version__),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
