"""On which denoisers mixcache works: every class of diffusers through a loop of one's own, a cell at a time.

`python -m tests.models.support` prints the support table. A cell works, is refused with a reason that is true of the
model, or does not apply; whatever else happens, a wrong number or an error that no one foresaw, is an AssertionError.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from attrs import frozen
from torch import Tensor

import mixcache
from mixcache import MixcacheError, ModelAdapter, Session
from mixcache.host.inspect import find_row, watched
from tests.helpers import state_of
from tests.zoo.denoisers import BUILT, NOT_BUILT, aligned, build, latent_argument

STEPS = 6
MISSING: Any = object()
SKIP = "every=2,first_steps=1,last_steps=0"
KEPT = ("time", "ids", "rope", "rotary", "coords", "size", "mask", "camera", "guidance")
"""Arguments that pipelines leave in float32 where the model is in bfloat16, by parts of their names."""

ALL_CAST = {
    "AceStepTransformer1DModel",
    "HunyuanDiT2DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "Ideogram4Transformer2DModel",
    "MiniMaxMusic3Transformer1DModel",
    "T5FilmDecoder",
}
"""Classes that take all of it in the model's own dtype."""

FLOAT32_ONLY = {
    "SanaWMTransformer3DModel": "its grid of pixels takes no bfloat16 on a CPU, and its rays no mixed dtypes"
}
"""Classes whose bare model fails in bfloat16, each with the cause."""


@frozen
class Cell:
    """What came of one check. why: the reason of a refusal, or why the check does not apply."""

    verdict: Literal["works", "refused", "not applicable"]
    why: str = ""


WORKS = Cell("works")


@frozen
class Case:
    """A tiny model with the arguments of a call. Nothing is told about it: no record, no name of an argument."""

    name: str
    model: Any
    arguments: dict[str, Any]
    latent: str

    @classmethod
    def of(cls, name: str, dtype: torch.dtype = torch.float32) -> Case:
        model, arguments = build(name)
        if dtype is not torch.float32:
            kept = () if name in ALL_CAST else KEPT
            arguments = {k: v if any(part in k for part in kept) else cast(v, dtype) for k, v in arguments.items()}
            lower(model, dtype)
        return cls(name, model, arguments, latent_argument(name))

    def loop(self, call: Callable[[int, dict[str, Any]], Any], *, moving: bool, **more: Any) -> tuple[list[Any], ...]:
        """A denoising in the smallest: the latents and the results. moving: follow the prediction, as Euler does."""
        more = {name: value for name, value in more.items() if name in inspect.signature(self.model.forward).parameters}
        latent, latents, results = self.arguments[self.latent], [], []
        for i in range(STEPS):
            latents.append(latent)
            results.append(call(i, {**self.arguments, self.latent: latent, **more}))
            if moving:
                latent = followed(self.name, latent, next(fields(results[-1])))
        return latents, results

    def bare(self, *, moving: bool = True, **more: Any) -> tuple[list[Any], ...]:
        """The loop without mixcache."""
        with torch.no_grad():
            return self.loop(lambda i, arguments: self.model(**arguments), moving=moving, **more)

    def cached(self, policy: str, *, moving: bool = True, form: Any = MISSING, **choices: Any) -> tuple[Any, ...]:
        """The same loop with mixcache on: the session, the latents and the results."""
        more = {} if form is MISSING else {"return_dict": form}
        session = mixcache.enable(self.model, policy, adapter=ModelAdapter(model=self.name, generic=True), **choices)
        with session, session.run(num_steps=STEPS) as run, torch.no_grad():

            def call(i: int, arguments: dict[str, Any]) -> Any:
                with run.step(i, sigma=1 - i / STEPS):
                    return self.model(**arguments)

            return (session, *self.loop(call, moving=moving, **more))


def followed(name: str, latent: Any, output: Any) -> Any:
    """The latent after a step of Euler's along the prediction, with all that stands beside the latent as it was."""
    if isinstance(latent, list):
        return [followed(name, one, out) for one, out in zip(latent, output)]
    moved = latent.clone()
    x, prediction = aligned(name, moved, output)
    x.add_(prediction.to(x.dtype), alpha=-0.1)
    return moved


def fields(result: Any) -> Iterator[Any]:
    """The outputs in a result: tensors, or lists of them."""
    if isinstance(result, dict):
        yield from result.values()
    elif isinstance(result, tuple):
        yield from result
    else:
        yield result


def lower(model: Any, dtype: torch.dtype) -> None:
    """The model in another dtype, but for what its class keeps in float32: as `from_pretrained` loads it."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)


def cast(value: Any, dtype: torch.dtype | None = None, factor: float = 1.0) -> Any:
    """Every floating tensor in it, in another dtype or scaled."""
    if isinstance(value, Tensor):
        return (value * factor).to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: cast(one, dtype, factor) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(cast(one, dtype, factor) for one in value)
    return value


def leaves(result: Any) -> Iterator[Tensor]:
    """Every tensor in a result, in order."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, dict):
        yield from leaves(list(result.values()))
    elif isinstance(result, (list, tuple)):
        for one in result:
            yield from leaves(one)


def form(result: Any) -> Any:
    """What a result is made of: types, names, shapes and dtypes."""
    if isinstance(result, Tensor):
        return tuple(result.shape), result.dtype
    if isinstance(result, dict):
        return type(result), {name: form(one) for name, one in result.items()}
    if isinstance(result, (list, tuple)):
        return type(result), [form(one) for one in result]
    return type(result)


def same(results: Sequence[Any], wanted: Sequence[Any], rounding: float = 0.0, coarse: float = 0.0) -> None:
    """Raise `AssertionError` unless they have one form, and values equal to so many roundings of the largest."""
    assert [form(one) for one in results] == [form(one) for one in wanted], "the form of a result changed"
    for i, (found, right) in enumerate(zip(results, wanted)):
        for a, b in zip(leaves(found), leaves(right)):
            limit = rounding * max(torch.finfo(b.dtype).eps, coarse) * max(float(b.abs().max()), 1.0)
            error = float((a.float() - b.float()).abs().max())
            assert error <= limit, f"step {i} is off by {error:.3g}, allowed are {limit:.3g}"


# is a refusal true?


def _no_row(case: Case) -> bool:
    seen: list[Any] = []
    with torch.no_grad(), watched(case.model, seen):
        case.model(**case.arguments)
    return not find_row(case.model, seen).kinds


def _several(case: Case) -> bool:
    with torch.no_grad():
        return sum(1 for one in fields(case.model(**case.arguments)) if one is not None) > 1


TRUE: dict[str, tuple[str, Callable[[Case], bool]]] = {
    "returned more than one tensor": ("several outputs, of which a step shows one", _several),
    "returned what is no tensor": ("returns what is no tensor", _several),
    "has no spans of blocks to skip": ("its blocks hand on to nobody", _no_row),
}
"""Parts of messages: what they say in short, and what must hold of the model for it to be true."""


def truth(error: MixcacheError | str, case: Case) -> str:
    """The reason of a refusal in short; `AssertionError` if it is not true of the model, or not known here."""
    for part, (short, holds) in TRUE.items():
        if part in str(error):
            assert holds(case), f"a refusal that is not true of {case.name}: {error}"
            return short
    raise AssertionError(f"a refusal that nobody foresaw: {error}")


def noted(session: Session, case: Case, part: str = "computed and not cached") -> Cell | None:
    """The refusal that a session's notes tell of, of a run that was computed as a whole."""
    found = [note for note in session.report().notes if part in note]
    return Cell("refused", truth(found[0], case)) if found else None


# the cells


def exact(case: Case) -> Cell:
    """A policy that never reuses changes no bit, whichever form the caller asks for."""
    for more in ({"return_dict": False}, {}):
        _, wanted = case.bare(**more)
        session, _, results = case.cached("static:every=1", form=more.get("return_dict", MISSING))
        same(results, wanted)
        report = session.report()
        assert (report.evaluations, report.foreign_calls) == (STEPS, 0)
        assert report.visits or noted(session, case)
    return WORKS


def step(case: Case) -> Cell:
    """A reuse in the default basis is the last output, its prediction moved as the latent; all else is computed."""
    reused = list(range(1, STEPS, 2))
    for form in (False, MISSING):
        session, latents, results = case.cached(f"static:{SKIP}", form=form)
        if refused := noted(session, case):
            return refused
        assert session.report().visits["step"].reused == len(reused), "not reused where it was asked for"
        for i in range(STEPS):
            if i not in reused:
                with torch.no_grad():
                    more = {} if form is MISSING or "return_dict" not in parameters(case) else {"return_dict": form}
                    same(results[i : i + 1], [case.model(**{**case.arguments, case.latent: latents[i], **more})])
                continue
            wanted = copy.deepcopy(results[i - 1])
            first = next(fields(wanted))
            for now, before, out in pairs(latents[i], latents[i - 1], first):
                x, predicted = aligned(case.name, now, out)
                y, _ = aligned(case.name, before, out)
                predicted.copy_(predicted.float() + x.float() - y.float())
            same(results[i : i + 1], [wanted], 4.0)
    return WORKS


def parameters(case: Case) -> Any:
    return inspect.signature(case.model.forward).parameters


def pairs(now: Any, before: Any, output: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One sample after the other, where they are in lists."""
    if isinstance(now, list):
        yield from zip(now, before, output)
    else:
        yield now, before, output


def output(case: Case) -> Cell:
    """Reused steps repeat the last output, to the bit."""
    session, _, results = case.cached(f"static:{SKIP}", form=False, basis="output")
    if refused := noted(session, case):
        return refused
    same(results, [results[i - i % 2] for i in range(STEPS)])
    return WORKS


def blocks(case: Case) -> Cell:
    """Spans of blocks: exact where nothing is reused; a reused span gives what running it gives."""
    _, wanted = case.bare(return_dict=False)
    session, _, results = case.cached("static:every=1,at=block,blocks=1", form=False)
    same(results, wanted)
    if refused := noted(session, case, "not skipped"):
        return refused
    session, _, results = case.cached(f"static:{SKIP},at=block", form=False, moving=False)
    assert session.report().visits["block"].reused >= STEPS // 2, "no span was reused"
    coarse = max(torch.finfo(p.dtype).eps for p in case.model.parameters())  # hidden states may be coarser than outputs
    same(results, case.bare(moving=False, return_dict=False)[1], 64.0, coarse)
    return WORKS


def restored(case: Case) -> Cell:
    """After enabling, running and disabling, nothing is left on the model; also where the run was refused."""
    _, wanted = case.bare()
    before = hanging_on(case.model)
    alive = [dict(vars(module)) for module in case.model.modules()]  # an identity of something dead says nothing
    case.bare()
    own = {key for key, value in hanging_on(case.model).items() if before.get(key) != value}  # the model's own doing
    for policy in (f"static:{SKIP}", f"static:{SKIP},at=block"):
        try:
            case.cached(policy)
        except MixcacheError as error:
            truth(error, case)
        after = hanging_on(case.model)
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert changed <= own, f"left on the model: {sorted(changed - own)}"
    del alive
    same(case.bare()[1], wanted)
    return WORKS


def hanging_on(model: Any) -> dict[tuple[str, str], Any]:
    """`state_of` by module and attribute, with tensors by identity."""

    def by_identity(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: by_identity(one) for key, one in value.items()}
        return id(value) if isinstance(value, Tensor) else value

    found = state_of(model).items()
    return {(name, key): by_identity(value) for name, state in found for key, value in state.items()}


CELLS: dict[str, tuple[Callable[[Case], Cell], torch.dtype]] = {
    "exact": (exact, torch.float32),
    "step": (step, torch.float32),
    "step in bfloat16": (step, torch.bfloat16),
    "step, basis output": (output, torch.float32),
    "blocks": (blocks, torch.float32),
    "blocks in bfloat16": (blocks, torch.bfloat16),
    "restored": (restored, torch.float32),
}


def check(name: str, column: str) -> Cell:
    """One cell. Raises `AssertionError` for a result that is wrong, or an error that is no true refusal."""
    check_cell, dtype = CELLS[column]
    case = Case.of(name, dtype)
    if dtype is torch.bfloat16 and name in FLOAT32_ONLY:
        with contextlib.suppress(RuntimeError, ValueError):
            case.bare()
            raise AssertionError(f"{name} runs in bfloat16 by now")
        return Cell("not applicable", f"without mixcache it fails in bfloat16: {FLOAT32_ONLY[name]}")
    try:
        return check_cell(case)
    except MixcacheError as error:
        return Cell("refused", truth(error, case))


def matrix() -> str:
    """The support table in Markdown: a row for every class, and a count of every column."""
    lines = [f"| class | {' | '.join(CELLS)} |", f"|---{'|---' * len(CELLS)}|"]
    counts: dict[str, Counter[str]] = {column: Counter() for column in CELLS}
    for name in BUILT:
        row = []
        for column in CELLS:
            try:
                cell = check(name, column)
            except Exception as error:  # a table that stops at the first failure tells nothing of the rest
                verdict, why = "WRONG", f"{type(error).__name__}: {error}".splitlines()[0][:160]
            else:
                verdict, why = cell.verdict, cell.why
            counts[column][verdict] += 1
            row.append(f"{verdict}: {why}" if why else verdict)
        lines.append(f"| {name} | {' | '.join(row)} |")
    for verdict in sorted({verdict for count in counts.values() for verdict in count}):
        lines.append(f"| **{verdict}** | {' | '.join(str(counts[column][verdict]) for column in CELLS)} |")
    left_out = [f"\nLeft out: {name}, which {why}." for name, why in NOT_BUILT.items()]
    return "\n".join(lines + left_out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(matrix())
