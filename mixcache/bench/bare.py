"""A bare transformer to time: made with random weights, or taken from a pipeline; and what to call it with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from mixcache.bench.loading import find_device, find_dtype, load, quieten
from mixcache.bench.published import FAMILIES, MODELS, Family, Inputs, Published, Size
from mixcache.errors import ConfigurationError
from mixcache.host.diffusers import models_of

SHIFT = 3.0


@frozen(kw_only=True)
class Bare:
    """A transformer ready to be timed. weights: "random", or the fingerprint of the pipeline they are from."""

    name: str
    weights: str
    family: Family
    transformer: Any
    size: Size
    inputs: Inputs

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.inputs.latent.device

    @property
    def blocks(self) -> list[nn.Module]:
        """Its blocks, in order."""
        return [block for path in self.family.blocks for block in self.transformer.get_submodule(path)]

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return sum(parameter.numel() for parameter in self.transformer.parameters())

    def compile(self) -> None:
        """Compile every block in place, inside of where hooks will be. Cannot be undone."""
        for block in self.blocks:
            block.forward = torch.compile(block.forward)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def prepare(
    name: str,
    *,
    random_weights: bool = False,
    device: str = "auto",
    dtype: str | None = None,
    layers: int | None = None,
    **given: int | None,
) -> Bare:
    """Make the transformer, and what it is called with.

    name: of `MODELS`, with random_weights; otherwise whatever `load` takes, if its transformer is of `FAMILIES`.
    layers: blocks of each kind, if fewer than published. given: frames, height, width and text where they differ from
    the defaults. Raises `ConfigurationError` for what cannot be, before anything large is made.
    """
    known = ", ".join(MODELS)
    if name in MODELS and not random_weights:
        raise ConfigurationError(
            f"--model {name}: mixcache comes without its weights and times it with random ones alone; give "
            "--random-weights. `mixcache compare --model FOLDER` measures real checkpoints."
        )
    if name not in MODELS and random_weights:
        raise ConfigurationError(f"--random-weights goes with --model {known}; got {name!r}. Leave it out for others.")
    where = find_device(device)
    if name not in MODELS:
        if layers is not None:
            raise ConfigurationError(f"--layers {layers}: {name!r} has its own; leave it out, or take one of {known}.")
        return _loaded(name, where, dtype, given)
    published, precision = MODELS[name], find_dtype(dtype, where)
    size = _sized(published.family, published.small if where.type == "cpu" else published.full, given)
    config = {**published.config, **_fewer(published, layers)}
    with roomy(name, where):
        transformer = _made(published.family, config, where, precision)
    return _ready(name, "random", published.family, transformer, size)


@contextmanager
def roomy(name: str, device: torch.device) -> Iterator[None]:
    """A lack of memory inside becomes a `ConfigurationError` that says what to ask less of."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            f"--model {name} does not fit on {device}: {str(error).splitlines()[0]} Give fewer --layers or --frames, "
            "or a smaller --height and --width."
        ) from error


def _fewer(published: Published, layers: int | None) -> dict[str, int]:
    """Entries of the configuration that leave blocks out."""
    most = {name: published.config[name] for name in published.family.layers}
    if layers is not None and not 1 <= layers <= max(most.values()):
        raise ConfigurationError(f"--layers must be from 1 to {max(most.values())}, got {layers}.")
    return {} if layers is None else {name: min(layers, count) for name, count in most.items()}


def _loaded(name: str, device: torch.device, dtype: str | None, given: Mapping[str, int | None]) -> Bare:
    """The transformer of a pipeline, with its own weights."""
    try:
        model = load(name, str(device), dtype)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} With --random-weights there are: {', '.join(MODELS)}.") from error
    transformer = next(iter(models_of(model.pipeline).values()))
    kind = type(transformer).__name__
    if kind not in FAMILIES:
        raise ConfigurationError(
            f"--model {name}: its {kind} is not one that can be called without its pipeline ({', '.join(FAMILIES)}); "
            "`mixcache compare --policy static:every=1` measures what mixcache costs on any pipeline."
        )
    family = FAMILIES[kind]
    like = next(published for published in MODELS.values() if published.family is family)
    usual = like.small if device.type == "cpu" else like.full
    told = {way: model.defaults.get(flag) for way, flag in _CALLED.items()}
    usual = evolve(usual, **{way: value for way, value in told.items() if value is not None})
    scales = {way: getattr(model.pipeline, attribute, None) for attribute, way in _SCALES.items()}
    family = evolve(family, **{way: scale for way, scale in scales.items() if scale is not None})
    size = _sized(family, usual, given)
    return _ready(name, model.fingerprint or name, family, transformer, size)


_CALLED = {"frames": "num_frames", "height": "height", "width": "width"}
_SCALES = {
    "vae_scale_factor": "spatial",
    "vae_scale_factor_spatial": "spatial",
    "vae_scale_factor_temporal": "temporal",
}


def _sized(family: Family, usual: Size, given: Mapping[str, int | None]) -> Size:
    """The size that was asked for, in pixels. Raises `ConfigurationError` for one that the transformer cannot make."""
    size = evolve(usual, **{way: value for way, value in given.items() if value is not None})
    if family.temporal is None and size.frames != 1:
        raise ConfigurationError(f"--frames {size.frames}: {family.transformer} makes images; leave it out.")
    unit = family.spatial * family.patch
    for way, step, first in (("frames", family.temporal or 1, 1), ("height", unit, unit), ("width", unit, unit)):
        value = getattr(size, way)
        below = max(first, value - (value - first) % step)
        if value != below:
            nearest = f"{below} or {below + step}" if value > first else f"{first}"
            form = f"{step}n + 1" if way == "frames" else f"a multiple of {step}"
            raise ConfigurationError(f"--{way} {value}: {family.transformer} takes {form} here; give {nearest}.")
    return size


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _made(family: Family, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A transformer with random weights, made where it will run; in float32 what its class keeps in float32."""
    quieten()
    import diffusers

    kind = getattr(diffusers, family.transformer)
    with torch.random.fork_rng(devices=[]), torch.device(device), _default_dtype(dtype):
        torch.manual_seed(0)
        made = kind(**config).eval().requires_grad_(False)
    kept = set(kind._keep_in_fp32_modules or ())
    for name, parameter in made.named_parameters():
        if kept & set(name.split(".")):
            parameter.data = parameter.data.float()
    return made


def _ready(name: str, weights: str, family: Family, transformer: Any, size: Size) -> Bare:
    """With its inputs, the same in every run and on every device."""
    generator = torch.Generator("cpu").manual_seed(0)
    device, dtype = transformer.device, transformer.dtype

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(device)

    latent = evolve(
        size,
        frames=(size.frames - 1) // (family.temporal or 1) + 1,
        height=size.height // family.spatial,
        width=size.width // family.spatial,
    )
    inputs = family.inputs(transformer.config, latent, random)
    branches = {
        branch: {name: value.to(dtype) for name, value in arguments.items()}
        for branch, arguments in inputs.branches.items()
    }
    return Bare(
        name=name,
        weights=weights,
        family=family,
        transformer=transformer,
        size=size,
        inputs=evolve(inputs, branches=branches),
    )


def schedule(steps: int) -> list[float]:
    """The noise levels of a flow-matching run, from 1 to 0, shifted so that more steps are spent where it is noisy."""
    levels = [1 - i / steps for i in range(steps + 1)]
    return [SHIFT * level / (1 + (SHIFT - 1) * level) for level in levels]
