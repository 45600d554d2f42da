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
from attrs import define, field, frozen
from torch import Tensor

import mixcache
from mixcache import MixcacheError, PluginError
from tests.models.support import Cell, hanging_on, leaves
from tests.zoo.every import PIPELINES
from tests.zoo.tiny import Tiny

SKIP = "static:every=2,first_steps=2,last_steps=1"


DEFAULT = "easycache:threshold=0.5,first_steps=2 + window:first_steps=2"

Call = tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]
"""One call of a model: the model, its arguments, and the tensors that it gave."""

APART = {
    "AnyFlowFARPipeline": (1, "a chunk that is done is read once more, for its keys and values"),
    "SkyReelsV2DiffusionForcingPipeline": (6, "asynchronous: the last frames go on after the timesteps of the first"),
}
"""How many calls of a pipeline may belong to no evaluation, and why; they are computed."""


SHORT = {"LTXI2VLongMultiPromptPipeline": (1, "its loop leaves out the last of the timesteps that it sets")}
"""How many evaluations less than timesteps a pipeline makes, and why: nothing told so beforehand."""


@define
class Seen:
    """What passed through a pipeline. calls: the arguments and results of its models. truths: what they give alone."""

    calls: list[Call] = field(factory=list)
    truths: list[list[Tensor]] = field(factory=list)

    @property
    def same(self) -> list[bool]:
        """By call, whether it gave what its model gives, to the bit."""
        return [all(map(torch.equal, call[3], truth)) for call, truth in zip(self.calls, self.truths)]


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
def seeing(pipe: Any, *, truth: bool = False) -> Iterator[Seen]:
    """Whatever the models of a pipeline are called with and give; and what they give by themselves, if asked for.

    That is computed on the spot: pipelines change their models while they run (perturbed attention), and models what
    they are given (lists of residuals).
    """
    seen = Seen()
    handles = []
    given: list[tuple[Any, Any]] = []

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((copied(args), copied(kwargs)))

    def leave(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        args, kwargs = given.pop()
        seen.calls.append((module, args, kwargs, [one.clone() for one in leaves(result)]))
        if truth:
            with torch.no_grad():
                seen.truths.append(list(leaves(type(module).forward(module, *copied(args), **copied(kwargs)))))

    for model in denoisers(pipe).values():
        handles.append(model.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(model.register_forward_hook(leave, with_kwargs=True))
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
    """Bit-identical where nothing is reused; every call was followed, and the run is as long as it was said to be."""
    wanted = tiny.run()
    with mixcache.enable(tiny.pipe, "static:every=1") as session, seeing(tiny.pipe) as seen:
        found = tiny.run()
    assert torch.equal(found, wanted), "not bit-exact"
    report = session.report()
    if not report.visits:
        return Cell("refused", why(session))
    calls = sum(
        type(model).__module__.startswith("diffusers.") for model, *_ in seen.calls
    )  # no stand-in of an encoder
    apart, _ = APART.get(type(tiny.pipe).__name__, (0, ""))
    assert report.evaluations >= calls - apart, f"only {report.evaluations} of {calls} calls were followed"
    made = sorted({record.point.step for record in session.records})
    told = {record.point.num_steps for record in session.records}
    short, _ = SHORT.get(type(tiny.pipe).__name__, (0, ""))
    assert made == list(range(made[0], made[-1] + 1))
    assert made[0] < 3, "what its models give was not known after three evaluations"
    assert told == {made[-1] + 1 + short}, f"evaluations {made} in a run of {told}"
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
    """Where branches are rebuilt, one is what the model gives, and it is the one that guidance goes towards; each
    other one stays as far from it as at the last evaluation that was computed."""
    pipe = tiny.pipe
    policy = f"{SKIP},at=cfg"
    with seeing(pipe, truth=True) as seen, stepping(pipe, seen) as steps, mixcache.enable(pipe, policy) as session:
        tiny.run()
    if not any(r.outcome.reused for r in session.records if r.point.path.endswith("cfg")):
        return Cell("refused", why(session))
    same = seen.same
    assert not all(same), "a branch is said to be rebuilt, and every call is what the model gives"
    before: Branches = {}
    towards: set[tuple[int, int]] = set()
    checked = 0
    for calls, passed in evaluations(seen, steps):
        found, truth = (branches([of[i] for i in calls]) for of in ([call[3] for call in seen.calls], seen.truths))
        if all(same[i] for i in calls):
            before |= truth
            towards |= conditional(truth, passed)
            continue
        checked += 1
        alone = [key for key in found if off(found[key], truth[key]) <= ALONE]
        rebuilt = found.keys() - set(alone)
        assert rebuilt, "a call is not what the model gives, and every branch in it is"
        around = [key for key in alone if all(off(found[o], moved(o, key, found, before)) <= 1e-4 for o in rebuilt)]
        assert around, f"branches {rebuilt} are not as far from any of {alone} as they were"
        assert towards <= set(around), f"branches are rebuilt around {around}, and guidance goes towards {towards}"
        for key in around:
            if sum(call == key[0] for call, _ in found) == 1:  # in a call of its own
                assert same[calls[key[0]]], "the conditional branch is not bit-exact"
    assert checked, "no evaluation could be told from another"
    return Cell("works")


ALONE = 1e-5
"""How far samples computed alone may be from the same ones in a batch, relative and in L2: rounding."""


def evaluations(seen: Seen, steps: list[Any]) -> Iterator[tuple[list[int], Any]]:
    """The calls between two steps of the noise scheduler, and what it was given then."""
    begin = 0
    for passed in steps:
        if passed.calls > begin:
            yield list(range(begin, passed.calls)), passed
        begin = passed.calls


Branches = dict[tuple[int, int], Tensor]


def branches(outputs: list[list[Tensor]]) -> Branches:
    """The first output of every call of one evaluation, by call and row: one image has a row for each branch."""
    found: Branches = {}
    for i, output in enumerate(outputs):
        listed = len(output) > 1 and len({one.shape for one in output}) == 1
        found |= {(i, row): one.double() for row, one in enumerate(output if listed else output[0])}
    return found


def moved(other: tuple[int, int], key: tuple[int, int], now: Branches, before: Branches) -> Tensor:
    """A branch as far from another as it was: of one that begins with the prompt's tokens, what is behind them."""
    shape = now[other].shape
    return before[other] + ending(now[key], shape) - ending(before[key], shape)


def conditional(found: Branches, passed: Any) -> set[tuple[int, int]]:
    """The branch that weighs more than all together in what the noise scheduler was given; none if that is no sum."""
    wanted = passed.output.double().flatten()
    columns = list(found.values())
    if len(columns) < 2 or any(one.numel() != len(wanted) for one in columns):
        return set()
    table = torch.stack([one.flatten() for one in columns], dim=1)
    weights = torch.linalg.lstsq(table, wanted[:, None]).solution[:, 0]
    if off(table @ weights, wanted) > 1e-4 or abs(float(weights.sum())) < 1e-3:
        return set()
    shares = (weights / weights.sum()).tolist()
    return {key for key, share in zip(found, shares) if share > 1.001}


def off(found: Tensor, wanted: Tensor) -> float:
    """The distance, relative and in L2."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


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
    """Under an adaptive policy every call that is said to be computed is what the model gives for what it was called
    with, to the bit; one that is reused is the last computed one of its branch, moved as its latent."""
    with mixcache.enable(tiny.pipe, DEFAULT) as session, seeing(tiny.pipe, truth=True) as seen:
        found = tiny.run()
    assert found.isfinite().all()
    report = session.report()
    if not report.visits:
        return Cell("refused", why(session))
    same, reused = seen.same, report.visits["step"].reused
    assert same.count(False) <= reused, f"{same.count(False)} calls changed, {reused} were reused"
    for i, call in enumerate(seen.calls):
        earlier = [before for k, before in enumerate(seen.calls[:i]) if same[k] and before[0] is call[0]]
        assert same[i] or any(held(call, before) for before in earlier), f"call {i} is neither computed nor held"
    return Cell("works")


def held(call: Call, before: Call) -> bool:
    """Whether a result is an earlier one, its prediction moved as some argument has: all of it, or a part."""
    for now, then in zip(call[3], before[3]):
        if now.shape != then.shape or off(now.double(), then.double()) == 0.0:
            continue
        moves = [(a.double(), b.double()) for a, b in zip(tensors(call), tensors(before)) if a.shape == b.shape]
        if not any(follows(now.double() - then.double(), a - b) for a, b in moves if a.is_floating_point()):
            return False
    return True


def tensors(call: Call) -> list[Tensor]:
    """The floating tensors that a model was called with; lists with a tensor for every sample as well as one."""
    _, args, kwargs, _ = call
    given = [*args, *kwargs.values()]
    listed = [torch.stack(one) for one in given if isinstance(one, list) and one and stackable(one)]
    return [one for one in [*listed, *leaves(given)] if one.is_floating_point()]


def stackable(listed: list[Any]) -> bool:
    return all(isinstance(one, Tensor) and one.shape == listed[0].shape for one in listed)


def follows(change: Tensor, move: Tensor) -> bool:
    """Whether a change is a move, or a part of it, or stands still beside a part that is."""
    if change.shape == move.shape:
        return off(change, move) < 1e-3
    if change.dim() != move.dim():
        return change.numel() == move.numel() and off(change.flatten(), move.flatten()) < 1e-3
    for dim in range(change.dim()):
        size = min(change.shape[dim], move.shape[dim])
        for a, b in ((0, 0), (change.shape[dim] - size, 0), (0, move.shape[dim] - size)):
            x, y = change.narrow(dim, a, size), move.narrow(dim, b, size)
            if x.shape == y.shape and off(x, y) < 1e-3:
                still = change.clone()
                still.narrow(dim, a, size).zero_()
                return float(still.abs().max()) == 0.0
    return False


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
    noises, natural = (
        [implied_noise(pipe.scheduler, one.index, one.output, one.sample) for one in made] for made in (steps, plain)
    )
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


@frozen
class Passed:
    """What the noise scheduler was given at one of its steps. calls: those that were made before."""

    index: int
    output: Tensor
    sample: Tensor
    calls: int


@contextmanager
def stepping(pipe: Any, seen: Seen | None = None) -> Iterator[list[Passed]]:
    """What the noise scheduler is given at each of its steps."""
    steps: list[Passed] = []
    kind = type(pipe.scheduler)
    original = kind.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is pipe.scheduler or seen is not None:  # diffusion forcing has a copy for every frame
            given = signature.bind(self, *args, **kwargs).arguments
            output, sample = given["model_output"].clone(), given["sample"].clone()
            calls = 0 if seen is None else len(seen.calls)
            steps.append(Passed(index_of(self, given["timestep"]), output, sample, calls))
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
    except PluginError:  # none of the plugins here is a user's
        raise
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
