"""On which pipelines of diffusers mixcache works: the real call, the real noise scheduler, a cell at a time.

`python -m tests.models.piped [NAME ...]` prints the table. What a cell wants is worked out beside mixcache: from what
the pipeline's models were given and gave, and from what its noise scheduler was given.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

import mixcache
from mixcache import MixcacheError
from tests.models.support import Cell, hanging_on, leaves
from tests.zoo.every import PIPELINES
from tests.zoo.tiny import Tiny

SKIP = "static:every=2,first_steps=2,last_steps=1"


@define
class Seen:
    """What passed through a pipeline. calls: the arguments and results of its models."""

    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = field(factory=list)


def denoisers(pipe: Any) -> dict[str, Any]:
    """The models that mixcache sits on."""
    from mixcache.host.diffusers import models_of

    return models_of(pipe)


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(copied(one) for one in value)
    if isinstance(value, dict) and type(value) is dict:
        return {name: copied(one) for name, one in value.items()}
    return value


@contextmanager
def seeing(pipe: Any) -> Iterator[Seen]:
    """Whatever the models of a pipeline are called with and give."""
    seen = Seen()
    handles = []
    for model in denoisers(pipe).values():

        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            kept = [one.clone() for one in leaves(result)]
            seen.calls.append((module, copied(args), copied(kwargs), kept))

        handles.append(model.register_forward_hook(note, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def repeats(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether one result is another, or the end of it: a first call may give the prompt's tokens as well."""
    return len(one) == len(other) and all(
        a.dim() == b.dim() and all(m <= n for m, n in zip(a.shape, b.shape)) and torch.equal(a, ending(b, a.shape))
        for a, b in zip(one, other)
    )


def ending(tensor: Tensor, shape: Any) -> Tensor:
    for dim, size in enumerate(shape):
        tensor = tensor.narrow(dim, tensor.shape[dim] - size, size)
    return tensor


def why(session: Any) -> str:
    """What a report says of a level at which nothing happened."""
    return "; ".join(session.report().notes)


def exact(tiny: Tiny) -> Cell:
    """Bit-identical where nothing is reused, and every call was followed."""
    wanted = tiny.run()
    with mixcache.enable(tiny.pipe, "static:every=1") as session:
        found = tiny.run()
    assert torch.equal(found, wanted), "not bit-exact"
    report = session.report()
    if not report.visits:
        return Cell("refused", why(session))
    assert report.evaluations >= 5, f"only {report.evaluations} evaluations of {report.calls} calls were followed"
    return Cell("works")


def step(tiny: Tiny) -> Cell:
    """A reused call gives what the last computed one gave, to the bit, in basis `output`."""
    pipe = tiny.pipe
    with mixcache.enable(pipe, SKIP, basis="output") as session, seeing(pipe) as seen:
        tiny.run()
    records = [r for r in session.records if r.point.path == "step"]
    reused = sum(r.outcome.reused for r in records)
    if not reused:
        return Cell("refused", why(session))
    repeated = sum(any(repeats(call[3], before[3]) for before in seen.calls[:i]) for i, call in enumerate(seen.calls))
    assert repeated >= reused, f"{reused} calls are said to be reused, {repeated} repeat an earlier one"
    with mixcache.enable(pipe, SKIP) as session:
        tiny.run()
    assert any(r.outcome.reused for r in session.records), why(session)
    return Cell("works")


def cfg(tiny: Tiny) -> Cell:
    """Where a branch is rebuilt, the conditional one is what the model gives, and the other stays as far from it."""
    pipe = tiny.pipe
    with mixcache.enable(pipe, f"{SKIP},at=cfg") as session, seeing(pipe) as seen:
        tiny.run()
    records = [r for r in session.records if r.point.path.endswith("cfg")]
    if not any(r.outcome.reused for r in records):
        return Cell("refused", why(session))
    with torch.no_grad():
        truths = [list(leaves(model(*args, **kwargs))) for model, args, kwargs, _ in seen.calls]
    touched = [i for i, (call, truth) in enumerate(zip(seen.calls, truths)) if not close(call[3], truth)]
    assert touched, "a branch is said to be rebuilt, and every call is what the model gives"
    for i in touched:
        rows = truths[i][0].shape[0]
        parts = [count for count in (2, 3, 4) if rows % count == 0]
        whole = all(not close_rows(seen.calls[i][3], truths[i], k, rows) for k in range(rows))
        assert whole or parts, "rows of a call that is no batch of branches were rebuilt"
    return Cell("works")


def close(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4) for a, b in zip(found, wanted))


def close_rows(found: list[Tensor], wanted: list[Tensor], row: int, rows: int) -> bool:
    return close([t[row] for t in found if t.shape[0] == rows], [t[row] for t in wanted if t.shape[0] == rows])


def block(tiny: Tiny) -> Cell:
    """Spans of blocks: exact where nothing is reused; somewhere one is passed over."""
    wanted = tiny.run()
    with mixcache.enable(tiny.pipe, "static:every=1,at=block") as session:
        assert torch.equal(tiny.run(), wanted), "not bit-exact"
    with mixcache.enable(tiny.pipe, f"{SKIP},at=block") as session:
        found = tiny.run()
    if not any(r.outcome.reused for r in session.records):
        return Cell("refused", why(session))
    assert not torch.equal(found, wanted)
    return Cell("works")


def default(tiny: Tiny) -> Cell:
    """The adaptive policies run, and say what they did."""
    with mixcache.enable(tiny.pipe, "easycache:threshold=0.5 + window:first_steps=2") as session:
        found = tiny.run()
    assert found.isfinite().all()
    report = session.report()
    return Cell("works") if report.visits else Cell("refused", why(session))


def noise(tiny: Tiny) -> Cell:
    """While the noise is held, each step of the noise scheduler goes on with the noise that the last computed one
    implied: solved from what it was given, by its own noise levels."""
    pipe = tiny.pipe
    with stepping(pipe) as steps, mixcache.enable(pipe, SKIP, basis="noise") as session:
        tiny.run()
    records = [r for r in session.records if r.point.path == "step"]
    if not any(r.outcome.reused for r in records):
        return Cell("refused", why(session))
    with stepping(pipe) as plain:
        tiny.run()
    noises, natural = ([implied_noise(pipe.scheduler, *one) for one in made] for made in (steps, plain))
    by_step = {r.point.step: r.outcome.reused for r in records}  # guidance of other branches is another noise
    checked = 0
    for i in range(1, min(len(noises), len(by_step))):
        now, before = noises[i], noises[i - 1]
        alike = sum(r.point.step == i for r in records) == sum(r.point.step == i - 1 for r in records)
        if alike and by_step.get(i) and now is not None and before is not None and now.shape == before.shape:
            off = float((now - before).norm() / before.norm())
            was, then = natural[i], natural[i - 1]
            moves = 0.0 if was is None or then is None else float((was - then).norm() / then.norm())
            # rescaled guidance of branches that are held moves a little
            assert off < max(2e-3, 0.3 * moves), (
                f"SILENT: the noise that evaluation {i} goes on with is off by {off:.3g}"
            )
            checked += 1
    return Cell("works", "" if checked else "reused; the noise could not be worked out beside it")


@contextmanager
def stepping(pipe: Any) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
    """What the noise scheduler is given at each of its steps: its index, model_output and sample."""
    steps: list[tuple[int, Tensor, Tensor]] = []
    kind = type(pipe.scheduler)
    original = kind.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is pipe.scheduler:
            given = signature.bind(self, *args, **kwargs).arguments
            steps.append((index_of(self, given["timestep"]), given["model_output"].clone(), given["sample"].clone()))
        return original(self, *args, **kwargs)

    signature = inspect.signature(original)
    kind.step = functools.wraps(original)(step)
    try:
        yield steps
    finally:
        kind.step = original


def index_of(scheduler: Any, timestep: Any) -> int:
    if getattr(scheduler, "step_index", None) is not None:
        return int(scheduler.step_index)
    if getattr(scheduler, "begin_index", None) is not None:
        return int(scheduler.begin_index)
    times = scheduler.timesteps.tolist()
    return min(range(len(times)), key=lambda i: abs(times[i] - float(torch.as_tensor(timestep).flatten()[0])))


def implied_noise(scheduler: Any, index: int, output: Tensor, sample: Tensor) -> Tensor | None:
    """The noise in the sample that an output of the model implies to this noise scheduler."""
    kind = getattr(scheduler.config, "prediction_type", "flow_prediction")
    sigmas = getattr(scheduler, "sigmas", None)
    x, m = sample.double(), output.double()
    name = type(scheduler).__name__
    if "EDM" in name or "Cosine" in name:
        s = float(sigmas[index])
        x0 = precondition(scheduler, x, m, s)
        return None if x0 is None else (x - x0) / s
    if (sigmas is not None and kind in ("flow_prediction", "flow")) or "FlowM" in name:
        s = float(sigmas[index])
        rising = float(sigmas[0]) < float(sigmas[len(scheduler.timesteps) - 1])
        return x - s * m if rising else x + (1 - s) * m
    if hasattr(scheduler, "alphas_cumprod"):
        if "Euler" in name:
            s = float(sigmas[index])
            return m if kind == "epsilon" else None
        t = scheduler.timesteps[index]
        a = float(scheduler.alphas_cumprod[int(t)])
        if kind == "epsilon":
            return m
        if kind == "v_prediction":
            return a**0.5 * m + (1 - a) ** 0.5 * x
    return None


def precondition(scheduler: Any, x: Tensor, m: Tensor, s: float) -> Tensor | None:
    try:
        return scheduler.precondition_outputs(x, m, torch.tensor(s, dtype=torch.float64))
    except Exception:
        return None


def restored(tiny: Tiny) -> Cell:
    """After enabling, running and disabling, nothing is left on models and noise scheduler."""
    wanted = tiny.run()
    models = denoisers(tiny.pipe)
    before = {name: hanging_on(model) for name, model in models.items()}
    alive = [dict(vars(module)) for model in models.values() for module in model.modules()]
    tiny.run()
    own = {  # what the models and the pipeline do to themselves
        (name, key)
        for name, model in models.items()
        for key, value in hanging_on(model).items()
        if before[name].get(key) != value
    }
    kind = type(tiny.pipe.scheduler)
    for policy in (SKIP, f"{SKIP},at=block"):
        with mixcache.enable(tiny.pipe, policy):
            tiny.run()
    for name, model in models.items():
        after = hanging_on(model)
        changed = {(name, k) for k in before[name].keys() | after.keys() if before[name].get(k) != after.get(k)}
        assert changed <= own, f"left on the model: {sorted(changed - own)}"
    del alive
    assert type(tiny.pipe.scheduler) is kind
    assert not any("mixcache" in key for key in vars(tiny.pipe.scheduler))
    assert torch.equal(tiny.run(), wanted)
    return Cell("works")


CELLS: dict[str, Callable[[Tiny], Cell]] = {
    "exact": exact,
    "step": step,
    "cfg": cfg,
    "block": block,
    "default": default,
    "noise": noise,
    "restored": restored,
}


def check(name: str, column: str) -> Cell:
    """One cell. Raises `AssertionError` for a result that is wrong, or an error that is no refusal."""
    tiny = PIPELINES[name]()
    try:
        return CELLS[column](tiny)
    except MixcacheError as error:
        return Cell("refused", f"raised: {error}")


def main(names: list[str], columns: list[str]) -> None:
    counts: dict[str, Counter[str]] = {column: Counter() for column in columns}
    for name in names:
        began = time.time()
        row = []
        for column in columns:
            try:
                cell = check(name, column)
                verdict, reason = cell.verdict, cell.why
            except Exception as error:
                verdict, reason = "WRONG", f"{type(error).__name__}: {error}".splitlines()[0][:300]
            counts[column][verdict] += 1
            row.append(f"{column}={verdict}" + (f" ({reason})" if reason else ""))
        print(f"{name} [{time.time() - began:.1f} s]\n    " + "\n    ".join(row), flush=True)
    print({column: dict(count) for column, count in counts.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    wanted = [one for one in sys.argv[1:] if one not in CELLS]
    chosen = [one for one in sys.argv[1:] if one in CELLS]
    main(wanted or list(PIPELINES), chosen or list(CELLS))
