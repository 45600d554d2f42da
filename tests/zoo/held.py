"""What caching the pipeline of `zorp` should give, worked out beside mixcache; and what may be left on a solver."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.zoo.zorp import BESIDE, Pipe

By = Callable[[int, Tensor, Tensor, Tensor], Any]


def worked_out(pipe: Pipe, by: By, images: int = 1) -> Tensor:
    """The same run without mixcache, with `by` in place of the model."""
    pipe.by = by
    try:
        return pipe(images=images)
    finally:
        pipe.by = None


def prediction(result: Any) -> Tensor:
    return result["frob"] if isinstance(result, dict) else result[1]  # type: ignore[no-any-return]


def held(pipe: Pipe, reused: Collection[int], pq: Callable[[int], tuple[float, float]] = lambda i: (-1.0, 1.0)) -> By:
    """z = p * latent + q * output of the last computed evaluation stands for the output; a residual by default."""
    kept: list[Tensor] = []

    def by(i: int, qux: Tensor, blip: Tensor, words: Tensor) -> Any:
        (p, q), x = pq(i), qux[:, BESIDE:]
        if i in reused:
            return {"frob": (kept[-1] - p * x) / q}
        out = prediction(pipe.zorp(qux, blip, words))
        kept.append(p * x + q * out)
        return {"frob": out}

    return by


def held_branch(pipe: Pipe, reused: Collection[int], cond: int) -> By:
    """What the other branch differs by is held; the conditional one is computed alone."""
    kept: list[Tensor] = []

    def by(i: int, qux: Tensor, blip: Tensor, words: Tensor) -> Any:
        rows = len(qux) // 2
        if i in reused:
            own = slice(cond * rows, (cond + 1) * rows)
            alone = prediction(pipe.zorp(qux[own], blip[own], words[own]))
            both = (alone, alone + kept[-1])
            return {"frob": torch.cat(both if cond == 0 else both[::-1])}
        out = prediction(pipe.zorp(qux, blip, words))
        if i >= pipe.guided_from:
            halves = out.chunk(2)
            kept.append(halves[1 - cond] - halves[cond])
        return {"frob": out}

    return by


def spanned(
    pipe: Pipe, policy: dict[int, list[tuple[int, int]]], spans: Sequence[tuple[int, int]] = ((0, 4),)
) -> Tensor:
    """A run whose blocks are walked by hand. policy: by evaluation, the spans whose addition is held there; the others
    of `spans` are computed."""
    zorp, held_z, at = pipe.zorp, dict[tuple[int, int], Tensor](), [-1]

    def through(gloop: Tensor, wump: Tensor, time: float) -> Tensor:
        at[0] += 1
        entered: dict[tuple[int, int], Tensor] = {}
        over: tuple[int, int] | None = None
        every = {*spans, *(span for found in policy.values() for span in found)}
        for index, slab in enumerate(zorp.shelf["slabs"]):
            gloop = gloop if zorp.enter is None else zorp.enter(index, gloop.clone(), time)
            entered |= {span: gloop for span in every if span[0] == index}
            over = next((span for span in policy.get(at[0], []) if span[0] == index), over)
            if over is None:
                gloop = slab(gloop, wump)
            elif over[1] == index + 1:
                gloop, over = entered[over] + held_z[over], None
            for span in every:
                if span[1] == index + 1 and span not in policy.get(at[0], []):
                    held_z[span] = gloop - entered[span]
        return gloop

    zorp.through = through  # type: ignore[method-assign]
    try:
        return pipe()
    finally:
        del zorp.through


def noises(pipe: Pipe) -> list[Tensor]:
    """The noise in the latent at every step, as what the noise scheduler was given implies it."""
    solver, found = pipe.scheduler, []
    kind = getattr(solver.config, "prediction_type", "flow")
    for i, (x, m) in enumerate((x.double(), m.double()) for x, m in pipe.steps):
        if kind == "flow":
            found.append(x + (1 - float(solver.sigmas[i])) * m)
            continue
        kept = float(solver.alphas_cumprod[int(solver.timesteps[i])])
        a, s = kept**0.5, (1 - kept) ** 0.5
        found.append({"epsilon": m, "v_prediction": a * m + s * x, "sample": (x - a * m) / s}[kind])
    return found


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def sigmas(solver: Any) -> list[float]:
    """The noise in the latent at every evaluation."""
    if hasattr(solver, "sigmas"):
        return [float(sigma) for sigma in solver.sigmas[:-1]]
    return [(1 - float(solver.alphas_cumprod[int(time)])) ** 0.5 for time in solver.timesteps]


def traces(solver: Any) -> list[str]:
    """What hangs on a noise scheduler that is not its own."""
    return [name for name in vars(solver) if "mixcache" in name or callable(getattr(type(solver), name, None))]
