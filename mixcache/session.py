"""The face: enable caching on a pipeline or a transformer, run it, read what happened, take it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any

from attrs import evolve
from torch import Tensor

from mixcache import plugins, trace
from mixcache.adapter import ModelAdapter, adapter_for, check_adapter
from mixcache.attach import Attachment, Forward, block_hook, repack, root_hook, transformers_of
from mixcache.basis import Basis, Streams
from mixcache.calls import Layout, ModelCall, Produce, Walk, guided, guided_in_one_batch
from mixcache.errors import ConfigurationError, RunError
from mixcache.forecast import Forecaster
from mixcache.points import Granularity, NoiseLevel, Point, Prediction, RunInfo, parse_granularity
from mixcache.report import Report
from mixcache.scheduler import CacheScheduler, Plan, drive
from mixcache.steps import Call, Place, Progress, Schedule, is_set, position
from mixcache.trace import Record


class Run:
    """One denoising run of one thread. Made by the session; a loop of one's own opens it with `session.run`."""

    def __init__(self, scheduler: CacheScheduler, schedule: Schedule | None, prediction: Prediction | None) -> None:
        self.scheduler = scheduler
        self.schedule = schedule
        self.progress = Progress(num_steps=scheduler.run.num_steps)
        self.templates: dict[str, Any] = {}
        self.leading: tuple[int, Tensor, bool] | None = None
        self._prediction = prediction
        self._step: int | None = None
        self._sigma: float | None = None
        self._branch: str | None = None

    @contextmanager
    def step(self, index: int, sigma: float | None = None) -> Iterator[None]:
        """The calls inside belong to evaluation `index` (0-based), at noise level `sigma` if it is known."""
        if not isinstance(index, int) or not 0 <= index < self.progress.num_steps:
            raise ConfigurationError(
                f"`run.step({index!r})` must be an integer from 0 to {self.progress.num_steps - 1}, the run has "
                f"{self.progress.num_steps} steps."
            )
        before = self._step, self._sigma
        self._step, self._sigma = index, None if sigma is None else float(sigma)
        try:
            yield
        finally:
            self._step, self._sigma = before

    @contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """The calls inside are guidance branch `name`."""
        before, self._branch = self._branch, name
        try:
            yield
        finally:
            self._branch = before

    def place(self, call: Call) -> Place:
        """Where a call stands: what `step` and `branch` were told, else what the pipeline or its timestep tells."""
        step = call.step if self._step is None else self._step
        if step is None:
            step = self.progress.step_by_timestep(call.timestep)
        level = self.level(step, call.sigma if self._sigma is None else self._sigma)
        return self.progress.advance(evolve(call, branch=self._branch or call.branch), step, level)

    def level(self, step: int, sigma: float | None) -> NoiseLevel | None:
        """The noise level of an evaluation: from the schedule, else from a flow-matching sigma."""
        if self.schedule is not None and self._sigma is None:
            return self.schedule.levels[self.schedule.begin + step]
        return NoiseLevel.flow(sigma) if sigma is not None and self._prediction in (None, "flow") else None


class Session:
    """mixcache on one pipeline or transformer. Made by `mixcache.enable`; a context manager that disables on leaving.

    Every run has its own memory; every thread its own run. `records` is the trace so far.
    """

    def __init__(self, target: Any, plan: Plan, adapter: ModelAdapter | None, trace_file: str | Path | None) -> None:
        self.plan = plan
        self.records: list[Record] = []
        self.peak_bytes = 0
        self.foreign_calls = 0
        self._pipeline = target if hasattr(target, "components") and hasattr(target, "scheduler") else None
        models = transformers_of(target)
        known = plugins.models()
        self._adapters = {
            name: adapter if adapter is not None else adapter_for(model, known.values())
            for name, model in models.items()
        }
        self._runs: dict[int, Run] = {}
        self._explicit: dict[int, Run] = {}
        self._owners: list[tuple[object, int | None]] = []
        self._ended: list[object] = []
        self._count = 0
        self._trace = None if trace_file is None else open(trace_file, "w", encoding="utf-8")  # noqa: SIM115
        self.notes: set[str] = set()
        self._layouts: dict[int, Layout] = {}
        self._walks: dict[int, Walk] = {}
        self._attachments: list[Attachment] = []
        try:
            for name, model in models.items():
                self._attachments.append(Attachment(model, root_hook(name, self._forward, self._end_run)))
                if plan.uses(Granularity.BLOCK):
                    self._attach_blocks(name, model)
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
        for thread in [*self._runs, *self._explicit]:
            self._end_run(thread)
        if self._trace is not None:
            self._trace.close()
            self._trace = None

    @property
    def enabled(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._attachments)

    def report(self) -> Report:
        """What happened so far: reuse by granularity, evaluations saved, reasons, predicted errors, cache bytes."""
        for run in (*self._runs.values(), *self._explicit.values()):
            self.peak_bytes = max(self.peak_bytes, run.scheduler.store.peak_bytes)
        return Report.of(
            self.records, peak_bytes=self.peak_bytes, foreign_calls=self.foreign_calls, notes=self._notes()
        )

    def _notes(self) -> tuple[str, ...]:
        """What a user who expected more reuse should know."""
        visited = {record.point.granularity for record in self.records}
        unvisited = [policy for policy in self.plan.policies if self._count and policy.at not in visited]
        why = {Granularity.CFG: ": the model's guidance is embedded, off, or makes no second branch"}
        silent = {f"{p.policy_name()!r} decided nothing at {p.at.value!r}{why.get(p.at, '')}" for p in unvisited}
        return tuple(sorted(self.notes | silent))

    def save_trace(self, path: str | Path) -> None:
        """Write all records so far as JSON lines."""
        trace.write(path, self.records)

    @contextmanager
    def run(self, num_steps: int, prediction: Prediction = "flow") -> Iterator[Run]:
        """Open a run of `num_steps` evaluations for a denoising loop of one's own (or around a pipeline call).

        Inside, `run.step(i, sigma=...)` and `run.branch(name)` say where a call stands. Raises `ConfigurationError`
        for a count below 1 and `RunError` if this thread has a run open.
        """
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ConfigurationError(f"`session.run(num_steps=...)` must be an integer >= 1, got {num_steps!r}.")
        if get_ident() in self._explicit:
            raise RunError("this thread has a run open; leave its `with session.run(...)` block first.")
        self._end_run()
        run = self._explicit[get_ident()] = Run(self._new_scheduler(num_steps, None), None, prediction)
        try:
            yield run
        finally:
            self._close(self._explicit.pop(get_ident(), None))

    def _new_scheduler(self, num_steps: int, sigmas: tuple[float, ...] | None) -> CacheScheduler:
        info = RunInfo(index=self._count, num_steps=num_steps, sigmas=sigmas)
        scheduler = CacheScheduler(self.plan, info, self._keep)
        self._count += 1
        return scheduler

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if self._trace is not None:
            self._trace.write(record.to_json() + "\n")

    def _end_run(self, thread: int | None = None) -> None:
        run = self._runs.pop(get_ident() if thread is None else thread, None)
        if run is not None and run.schedule is not None:
            self._ended = [run.schedule.token]
            self._owners = [owner for owner in self._owners if owner[0] is not run.schedule.token]
        self._close(run)
        if thread is not None:
            self._close(self._explicit.pop(thread, None))

    def _close(self, run: Run | None) -> None:
        if run is not None:
            self.peak_bytes = max(self.peak_bytes, run.scheduler.store.peak_bytes)
            run.scheduler.end()
        if self._trace is not None:
            self._trace.flush()

    def _forward(self, model: Any, forward: Forward, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of a transformer: place it in its run and let the cache scheduler decide about it.

        The points of the call nest: STEP around CFG around the spans of blocks, which `_block` visits.
        """
        found = self._locate(call)
        if found is None:
            return forward(*args, **kwargs)
        run, place = found
        model_call = ModelCall(model, forward, args, kwargs, self._adapters[call.component])
        latent = model_call.adapter.latent(model, model_call.arguments)
        point = self._point(place, call.component)
        reuses = run.scheduler.reuses
        produce = self._nest(run, place, point, model_call, latent)
        (output,) = produce()
        if place.ordinal == 0:
            run.leading = (place.step, output, run.scheduler.reuses == reuses)
        if model_call.output is output:
            run.templates[call.component] = model_call.result
            return model_call.result
        return repack(output, run.templates.get(call.component), model_call.arguments.get("return_dict", True))

    def _nest(self, run: Run, place: Place, point: Point, call: ModelCall, latent: Tensor) -> Produce:
        """The call's points, each around the next, where a policy decides: STEP around CFG around spans of blocks."""
        produce: Produce = call.compute
        if self.plan.uses(Granularity.BLOCK):
            produce = self._spanned(run.scheduler, point, call, produce)
        if self.plan.uses(Granularity.CFG):
            if call.adapter.branches == "doubled":
                if getattr(self._pipeline, "do_classifier_free_guidance", place.branch == "cond_uncond"):
                    produce = guided_in_one_batch(run.scheduler, point, call, latent, produce)
            elif place.ordinal > 0 and place.branch != "cond" and run.leading is not None:
                step, output, exact = run.leading
                leading = (output, exact) if step == place.step else None
                produce = guided(run.scheduler, point, leading, place.ordinal == 1, produce)
        if self.plan.uses(Granularity.STEP):
            inner = produce
            return lambda: drive(run.scheduler.visit(point, (latent,)), inner)
        return produce

    def _spanned(self, scheduler: CacheScheduler, point: Point, call: ModelCall, produce: Produce) -> Produce:
        """The call with its spans of blocks visited, unless it adds something between its blocks."""
        injected = [name for name in call.adapter.injected if call.arguments.get(name) is not None]
        if injected:
            self.notes.add(f"spans of blocks were not skipped: `{injected[0]}` is added between blocks")
            return produce
        walk = Walk(scheduler, point, self._layouts[id(call.model)])

        def run() -> Streams:
            self._walks[get_ident()] = walk
            try:
                return produce()
            finally:
                self._walks.pop(get_ident(), None)

        return run

    def _block(self, module: Any, forward: Forward, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One block of a transformer: part of the call in progress on this thread, if that is cached."""
        walk = self._walks.get(get_ident())
        return forward(*args, **kwargs) if walk is None else walk.block(module, forward, index, args, kwargs)

    def _attach_blocks(self, component: str, model: Any) -> None:
        policies = [policy for policy in self.plan.policies if policy.at is Granularity.BLOCK]
        reads = self.plan.gauges[Granularity.BLOCK].reads
        prefix = bool(reads & {"previous_prefix", "computed_prefix"})
        layout = self._layouts[id(model)] = Layout.of(model, self._adapters[component], policies, prefix)
        for index, block in layout.modules(model):
            self._attachments.append(Attachment(block, block_hook(self._block, index)))

    def _point(self, place: Place, component: str) -> Point:
        return Point(
            granularity=Granularity.STEP,
            step=place.step,
            num_steps=place.num_steps,
            branch=place.branch,
            site=component if len(self._adapters) > 1 else "",
            leads=place.ordinal == 0,
            level=place.level,
        )

    def _locate(self, call: Call) -> tuple[Run, Place] | None:
        """The run that a call belongs to, opened if it is the first, and its place there; `None` if it is not ours."""
        explicit = self._explicit.get(get_ident())
        if explicit is not None:
            return explicit, explicit.place(call)
        run = self._runs.get(get_ident())
        schedule = self._schedule(call, run)
        step = call.step
        if step is None and schedule is not None:
            step = schedule.relative(position(self._pipeline))
        if step is None or (schedule is None and call.num_steps is None):
            self._count_foreign()
            return None
        if run is None or run.schedule is not schedule:
            run = self._open(schedule, call)
        elif run.progress.repeats(call, step):
            if 0 < step == run.progress.step:
                self._count_foreign()  # the same branch twice in one step: not the loop that this run follows
                return None
            run = self._open(schedule, call)
        return run, run.progress.advance(call, step, run.level(step, call.sigma))

    def _schedule(self, call: Call, run: Run | None) -> Schedule | None:
        """The pipeline's current schedule if it is the one this call belongs to."""
        if self._pipeline is None or not is_set(self._pipeline.scheduler):
            return None
        token = self._pipeline.scheduler.timesteps
        if run is not None and run.schedule is not None and run.schedule.token is token:
            self._claim(token)
            return run.schedule
        if any(ended is token for ended in self._ended):
            return None
        self._claim(token)
        return Schedule.of(self._pipeline.scheduler, self._adapters[call.component].prediction)

    def _claim(self, token: object) -> None:
        """A schedule belongs to the thread that used it first; two threads on one corrupt each other's, so refuse."""
        thread = get_ident()
        for i, (known, owner) in enumerate(self._owners):
            if known is not token:
                continue
            if owner != thread:
                self._owners[i] = (token, None)  # from now on neither thread may go on with it
                raise RunError(
                    "two threads drive one noise scheduler, which mixes up their denoising; give each thread a "
                    "pipeline with a noise scheduler of its own (the transformer may be shared)."
                )
            return
        self._owners = [*self._owners[-15:], (token, thread)]

    def _open(self, schedule: Schedule | None, call: Call) -> Run:
        self._end_run()
        num_steps = schedule.num_steps if schedule is not None else call.num_steps
        assert num_steps is not None  # _locate has made sure
        levels = schedule.levels[schedule.begin :] if schedule is not None else ()
        sigmas = tuple(level.sigma for level in levels if level is not None)
        scheduler = self._new_scheduler(num_steps, sigmas if len(sigmas) == num_steps else None)
        run = self._runs[get_ident()] = Run(scheduler, schedule, self._adapters[call.component].prediction)
        return run

    def _count_foreign(self) -> None:
        """A call that is not part of a run we can follow is computed, counted and reported, never cached."""
        if self._pipeline is None:
            raise RunError(
                "cannot tell which step this call is: enable the pipeline instead of its transformer, or open "
                "`session.run(num_steps=...)` around the loop."
            )
        self.foreign_calls += 1


def _per_granularity(what: str, given: Any, build: Callable[[Any], Any], default: str) -> dict[Granularity, Any]:
    if isinstance(given, Mapping):
        table = {parse_granularity(key): value for key, value in given.items()}
        return {g: build(table.get(g, default)) for g in Granularity}
    return {g: build(default if given is None else given) for g in Granularity}


def enable(
    target: Any,
    policies: Any,
    *,
    rule: Any = "unanimous",
    basis: Any = "residual",
    forecast: Any = "hold",
    samples: str = "worst",
    adapter: ModelAdapter | None = None,
    trace: str | Path | None = None,
) -> Session:
    """Cache the transformer(s) of a diffusers pipeline, or one bare transformer.

    policies: one policy or spec ("easycache:threshold=0.05"), or several. rule: how their votes become a verdict, by
    name or a function. basis and forecast: how a skipped output is rebuilt, one for all or a mapping by granularity.
    samples: "worst" lets the fastest-changing sample of a batch decide, "mean" pools them as the published rules do.
    adapter: for a transformer class that no plugin describes. trace: a JSON-lines file to write while running.

    Returns the `Session`. Raises `ConfigurationError` for a bad argument and `AttachError` for a target that cannot be
    attached to; nothing is attached then.
    """
    if samples not in ("worst", "mean"):
        raise ConfigurationError(f"`samples` must be 'worst' or 'mean', got {samples!r}.")
    bases = _per_granularity("basis", basis, lambda spec: plugins.build("basis", spec, Basis), "residual")
    forecasters = _per_granularity("forecast", forecast, lambda s: plugins.build("forecaster", s, Forecaster), "hold")
    plan = Plan(
        policies=plugins.build_policies(policies),
        rule=plugins.build_rule(rule),
        bases=bases,
        forecasters=forecasters,
        signals=plugins.all_signals(),
        samples=samples,  # type: ignore[arg-type]
        plugins=plugins.manager().list_name_plugin(),
    )
    return Session(target, plan, None if adapter is None else check_adapter(adapter), trace)
