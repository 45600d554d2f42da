"""The face: enable caching on a pipeline or a model, run it, read what happened, take it off again."""

from __future__ import annotations

import importlib.metadata
import threading
import warnings
from collections import ChainMap, Counter
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from attrs import evolve
from torch import distributed as dist

from mixcache.core import catalogue, trace
from mixcache.core.loop import Loop
from mixcache.core.panel import FOLLOWS
from mixcache.core.points import Granularity, Prediction
from mixcache.core.report import Report, Tally
from mixcache.core.tables import Calibrations
from mixcache.core.trace import Header, Record, Writer, amend
from mixcache.errors import ConfigurationError, NothingReusedWarning
from mixcache.host.adapter import ModelAdapter, adapter_for, check_adapter
from mixcache.host.blocks import on_block
from mixcache.host.bounds import Bound
from mixcache.host.calls import Calls
from mixcache.host.diffusers import BareHost, PipelineHost, fingerprint, group_of, is_pipeline, models_of
from mixcache.host.own_loop import Run
from mixcache.host.patch import Attachment, block_hook, check_compiled, root_hook
from mixcache.host.protocol import Host
from mixcache.host.rows import Row
from mixcache.host.sites import Layout
from mixcache.host.tuned import Conditions, check_model, check_run
from mixcache.recipe import Recipe


class Session:
    """mixcache on one pipeline or model. Made by `mixcache.enable`; a context manager that disables on leaving.

    recipe: as it was asked for. calibrated: with the tables of the model. records: those of the last run; a trace file
    keeps all of them, the report sums of all. conditions: under which the last run that is over was made.
    """

    def __init__(
        self,
        target: Any,
        recipe: Recipe,
        *,
        group: Any = None,
        adapter: ModelAdapter | None = None,
        trace_file: str | Path | None = None,
    ) -> None:
        self.recipe = recipe
        self.records: list[Record] = []
        self._tally = Tally()
        self._peak_bytes = 0
        self._lock = threading.RLock()  # a run may end while it is held: when a dead task is collected
        self._warned = False
        self._trace: Writer | None = None
        self._attachments: list[Attachment] = []
        self._models = models_of(target)
        self._target = target
        self.conditions: Conditions | None = None
        check_model(recipe.tuned, self._models)
        plan = recipe.plan(group)
        for model in self._models.values():
            check_compiled(model, inside=plan.uses(Granularity.BLOCK))
        known = catalogue.models().values()
        adapters = {
            name: adapter if adapter is not None else adapter_for(model, known) for name, model in self._models.items()
        }
        kinds = Counter(type(model) for model in self._models.values())
        known_tables = (adapters[name].tables(model, kinds[type(model)]) for name, model in self._models.items())
        tables = Calibrations(ChainMap(*known_tables), tuple(self._models.values()))
        self._tables = tables.taken
        self.plan = plan = plan.calibrated(tables)
        for granularity in Granularity:
            plan.check(granularity)
        self.calibrated = evolve(recipe, policies=plan.policies)
        host: Host = PipelineHost(target) if is_pipeline(target) else BareHost()
        self._host = host
        self._calls = Calls(plan, host, adapters, self._keep, self._ended)
        self._calls.layouts.attach = self._attach_blocks
        if trace_file is not None:
            self._trace = Writer(trace_file, self.header())
        try:
            for name, model in self._models.items():
                self._attachments.append(Attachment(model, root_hook(name, self._calls.forward, self._calls.finished)))
            if plan.uses(Granularity.BLOCK):
                self._calls.layouts.lay_out([(model, adapters[name]) for name, model in self._models.items()])
        except BaseException:
            self.disable()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.disable()

    def disable(self) -> None:
        """Leave the model as it was found, drop the cache, close the trace. What was recorded stays readable."""
        for attachment in self._attachments:
            attachment.detach()
        self._attachments.clear()
        self._calls.requests.end_all()
        self._host.hush()
        if self._trace is not None:
            self._trace.close()
            self._trace = None

    @property
    def enabled(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._attachments)

    def request(self, key: Hashable) -> AbstractContextManager[None]:
        """The model calls inside belong to request `key`: what they remember is seen by no other request.

        It holds for the thread or asyncio task in which it is written (and for tasks started inside of it). Needed
        where several denoisings go on at once on a model whose calls do not tell them apart. Any hashable key will do;
        a request may be entered again for its next call. Raises `RunError` inside of another request's block.
        """
        return self._calls.requests.request(key)

    def run(
        self, num_steps: int, prediction: Prediction = "flow", noise_scheduler: Any = None
    ) -> AbstractContextManager[Run[Loop]]:
        """Open a run of `num_steps` evaluations for a denoising loop of one's own (or around a pipeline call).

        Inside, `run.step(i, sigma=...)` and `run.branch(name)` say where a call stands. The run belongs to the request
        around it; without one it is a request of its own, in this thread or task.

        prediction: what the model returns. noise_scheduler: the one that the loop steps with, its timesteps set, for
        `bound()`; it is copied. Raises `ConfigurationError` for a count below 1, and `RunError` if this thread or task,
        or the request, has a run open.
        """
        return self._calls.requests.explicit(num_steps, prediction, noise_scheduler)

    def report(self) -> Report:
        """What happened so far: reuse by granularity, evaluations saved, reasons, predicted errors, cache bytes."""
        requests = self._calls.requests
        return Report.of(
            self._tally,
            runs=requests.count,
            calls=requests.calls,
            peak_bytes=max([self._peak_bytes, *(run.memory.store.peak_bytes for run in requests.open_runs)]),
            foreign_calls=requests.foreign_calls,
            notes=self._notes(),
        )

    def bound(
        self,
        *,
        run: int = -1,
        lipschitz: float | Sequence[float] | None = None,
        guidance: float | None = None,
        safety: float = 2.0,
    ) -> Bound:
        """How far the final latent of a run can be from that of the uncached run, in L2; needs `audit=True`.

        run: which of the runs so far, the last by default. lipschitz: of the model's output in its latent, in L2, one
        number or one per evaluation; with it the bound is a certificate. Without, `safety` times the rates of change
        that were seen stand for it and the bound is an estimate. guidance: the scale, where the pipeline tells none.
        See `mixcache.host.bounds` for the recursion and what it covers. Raises `ConfigurationError` for a bad argument.
        """
        ledgers = self._calls.requests.ledgers
        if not self.recipe.audit:
            return Bound(kind="none", why="the errors were not measured; enable(..., audit=True)")
        if not -len(ledgers) <= run < len(ledgers):
            raise ConfigurationError(f"`bound(run=...)` must be one of the {len(ledgers)} runs kept, got {run!r}.")
        return ledgers[run].bound(lipschitz, guidance, safety)

    def header(self, prompt: str | None = None, seed: int | None = None) -> Header:
        """What a trace of this session is of."""
        names = ("mixcache", "torch", "diffusers")
        return Header(
            recipe=str(self.recipe),
            calibrated=str(self.calibrated),
            models={name: fingerprint(model) for name, model in self._models.items()},
            prompt=prompt,
            seed=seed,
            versions={name: importlib.metadata.version(name) for name in names},
        )

    def save_trace(self, path: str | Path, prompt: str | None = None, seed: int | None = None) -> None:
        """Write the records of the last run as a trace file (JSON lines)."""
        trace.write(path, self.header(prompt, seed), self.records)

    def seen(self) -> dict[str, tuple[Any, Run[Loop] | None, Row | None]]:
        """By component: its model, its last run that is over, its blocks; for `mixcache.bench.inspect`."""
        calls = self._calls
        return {name: (model, calls.seen.get(name), calls.layouts.row(model)) for name, model in self._models.items()}

    def _notes(self) -> tuple[str, ...]:
        """What a user who expected more reuse should know."""
        notes = self._calls.notes | self._calls.requests.notes
        notes |= {
            f"{policy} reads the table of {source}; nothing but its configuration tells that this is that model"
            for policy, source in self._tables.items()
        }
        if not self._calls.requests.count:
            return tuple(sorted(notes))
        told = any(note.startswith(("guidance branches were not skipped", "calls were computed")) for note in notes)
        why = {} if told else {Granularity.CFG: ": the model's guidance is embedded, off, or makes no second branch"}
        for policy in self.plan.policies:
            for granularity in () if policy.guard else policy.granularities:
                if granularity not in self._tally.counts:
                    place = granularity.value
                    notes.add(f"{policy.policy_name()!r} decided nothing at {place!r}{why.get(granularity, '')}")
        return tuple(sorted(notes))

    def _keep(self, record: Record) -> None:
        with self._lock:
            self._tally.add(record)
            if self.records and self.records[-1].run < record.run:
                self.records.clear()
            if not self.records or self.records[-1].run == record.run:
                amend(self.records, record)
            if self._trace is not None:
                self._trace.add(record)

    def _ended(self, run: Run[Loop]) -> None:
        """A run is over: if it went to its end and nothing of it was reused, say so and why."""
        loop = run.memory
        with self._lock:
            self._peak_bytes = max(self._peak_bytes, loop.store.peak_bytes)
        self.conditions = Conditions.of(run, self._host.solver(), self._target)
        check_run(self.recipe.tuned, self.conditions, self._calls.notes)
        if loop.reuses or run.step_now < run.num_steps - 1:
            return
        told = [(reason, count) for reason, count in loop.why.most_common() if FOLLOWS not in reason]
        reasons = ", ".join(f"{reason} ({count} visits)" for reason, count in told[:3])
        if not loop.why:  # nothing was visited: because it could not be, or because nothing decides there
            reasons = "; ".join(sorted(note for note in self._calls.notes if note.startswith("calls were computed")))
        if not reasons:
            return
        note = f"nothing was reused in a run of {run.num_steps} evaluations: {reasons}"
        self._calls.notes.add(note)
        if not self._warned:
            self._warned = True
            warnings.warn(f"mixcache: {note}", NothingReusedWarning, stacklevel=2)

    def _attach_blocks(self, layout: Layout) -> None:
        for index, block in layout.modules():
            check_compiled(block, inside=False)
            self._attachments.append(Attachment(block, block_hook(on_block, index)))


def _check_group(group: Any, recipe: Recipe) -> None:
    """Ranks that hold shards of one model must decide alike: nothing may make one of them compute alone."""
    if not (dist.is_available() and dist.is_initialized() and isinstance(group, dist.ProcessGroup)):
        raise ConfigurationError(
            "`group` must be the process group of torch.distributed over which the model is sharded, initialised, got "
            f"{group!r}."
        )
    if recipe.max_cache_bytes is not None or recipe.on_error != "raise":
        raise ConfigurationError(
            "a model that is sharded over a `group` of ranks does not go with `max_cache_bytes` or on_error='compute': "
            "one rank alone could run out of room or fail, compute, and wait for the others for ever. Leave these out."
        )


def enable(
    target: Any,
    policies: Any = None,
    *,
    evaluations: int | None = None,
    speedup: float | None = None,
    group: Any = None,
    adapter: ModelAdapter | None = None,
    trace: str | Path | None = None,
    **choices: Any,
) -> Session:
    """Cache the transformer(s) of a diffusers pipeline, or one bare transformer.

    policies: one policy or spec, several ("a + b" or a sequence), a whole recipe as text ("static:every=3 @ basis=noise
    forecast=linear"), a `Recipe`, or the path of a .toml file; by default what plugins recommend.
    evaluations, speedup: how many evaluations of a run are computed, exactly, or evaluations over those computed, at
    least so much; of a policy that takes such orders, as the recommended one does.
    choices: the other fields of `Recipe` by name: rule, basis, forecast, anchor, samples, max_cache_bytes, offload,
    audit, on_error. They hold where `policies` says nothing itself.
    group: the torch.distributed process group over which the model is sharded, by default that of FSDP or diffusers'
    parallel configuration; its ranks decide by the worst of their readings, so all alike. Without any, each by its own.
    adapter: for a transformer class that no plugin describes. trace: a JSON-lines file to write while running.

    Returns the `Session`. Raises `ConfigurationError` for a bad argument and `AttachError` for a target that cannot be
    attached to; nothing is attached then.
    """
    recipe = Recipe.of(policies, **choices).ordered(evaluations, speedup)
    if (group := group_of(target) if group is None else group) is not None:
        _check_group(group, recipe)
    if trace is not None and not isinstance(trace, (str, Path)):
        raise ConfigurationError(f"`trace` must be the name of a file to write, got {trace!r}.")
    checked = None if adapter is None else check_adapter(adapter)
    return Session(target, recipe, group=group, adapter=checked, trace_file=trace)
