"""The face: enable caching on a pipeline or a transformer, run it, read what happened, take it off again."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any

from torch import Tensor

from mixcache import plugins, trace
from mixcache.adapter import ModelAdapter, adapter_for, check_adapter
from mixcache.attach import Attachment, Forward, block_hook, check_compiled, repack, root_hook, transformers_of
from mixcache.basis import Streams
from mixcache.bounds import Bound
from mixcache.calibration import Calibrations
from mixcache.calls import Layout, ModelCall, Produce, Walk, guided, guided_in_one_batch
from mixcache.errors import ConfigurationError
from mixcache.plan import Plan, make_plan
from mixcache.points import Granularity, Point, Prediction
from mixcache.report import Report, Tally
from mixcache.runs import RUNS_KEPT, Run, Runs
from mixcache.scheduler import CacheScheduler, drive
from mixcache.steps import Call, Place, guidance_of
from mixcache.trace import Record


class Session:
    """mixcache on one pipeline or transformer. Made by `mixcache.enable`; a context manager that disables on leaving.

    Every run has its own memory; every thread its own run. `records`: the trace of the last 100 runs at least.
    """

    def __init__(self, target: Any, plan: Plan, adapter: ModelAdapter | None, trace_file: str | Path | None) -> None:
        self.records: list[Record] = []
        self._tally = Tally()
        self._pipeline = target if hasattr(target, "components") and hasattr(target, "scheduler") else None
        models = transformers_of(target)
        for model in models.values():
            check_compiled(model, inside=plan.uses(Granularity.BLOCK))
        adapters = plugins.models().values()
        self._adapters = {
            name: adapter if adapter is not None else adapter_for(model, adapters) for name, model in models.items()
        }
        known = ChainMap(*(self._adapters[name].tables(model) for name, model in models.items()))
        self.plan = plan = plan.calibrated(Calibrations(known, tuple(models.values())))
        self._runs = Runs(plan, self._pipeline, self._adapters, self._keep)
        # line by line: what was recorded survives whatever happens to the process
        self._trace = None if trace_file is None else open(trace_file, "w", 1, encoding="utf-8")  # noqa: SIM115
        self.notes: set[str] = set()
        self._layouts: dict[int, Layout] = {}
        self._walks: dict[int, Walk] = {}
        self._attachments: list[Attachment] = []
        try:
            for name, model in models.items():
                self._attachments.append(Attachment(model, root_hook(name, self._forward, self._runs.end)))
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
        self._runs.end_all()
        if self._trace is not None:
            self._trace.close()
            self._trace = None

    @property
    def enabled(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._attachments)

    def report(self) -> Report:
        """What happened so far: reuse by granularity, evaluations saved, reasons, predicted errors, cache bytes."""
        runs = self._runs
        return Report.of(
            self._tally,
            runs=runs.count,
            calls=runs.calls,
            peak_bytes=runs.peak_bytes,
            foreign_calls=runs.foreign_calls,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        """What a user who expected more reuse should know."""
        unvisited = [
            (policy.policy_name(), granularity)
            for policy in self.plan.policies
            for granularity in policy.granularities
            if self._runs.count and granularity not in self._tally.counts
        ]
        why = {Granularity.CFG: ": the model's guidance is embedded, off, or makes no second branch"}
        silent = {f"{name!r} decided nothing at {g.value!r}{why.get(g, '')}" for name, g in unvisited}
        return tuple(sorted(self.notes | silent))

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
        number or one an evaluation; with it the bound is a certificate. Without, `safety` times the rates of change
        that were seen stand for it and the bound is an estimate. guidance: the scale, where the pipeline tells none.
        See `mixcache.bounds` for the recursion and what it covers. Raises `ConfigurationError` for a bad argument.
        """
        ledgers = self._runs.ledgers
        if not self.plan.audit:
            return Bound(kind="none", why="the errors were not measured; enable(..., audit=True)")
        if not -len(ledgers) <= run < len(ledgers):
            raise ConfigurationError(f"`bound(run=...)` must be one of the {len(ledgers)} runs kept, got {run!r}.")
        return ledgers[run].bound(lipschitz, guidance, safety)

    def save_trace(self, path: str | Path) -> None:
        """Write all records so far as JSON lines."""
        trace.write(path, self.records)

    def run(
        self, num_steps: int, prediction: Prediction = "flow", noise_scheduler: Any = None
    ) -> AbstractContextManager[Run]:
        """Open a run of `num_steps` evaluations for a denoising loop of one's own (or around a pipeline call).

        noise_scheduler: the one that the loop steps with, its timesteps set, for `bound()`; it is copied.

        Inside, `run.step(i, sigma=...)` and `run.branch(name)` say where a call stands. Raises `ConfigurationError`
        for a count below 1 and `RunError` if this thread has a run open.
        """
        return self._runs.explicit(num_steps, prediction, noise_scheduler)

    def _keep(self, record: Record) -> None:
        self._tally.add(record)
        if self.records and self.records[0].run <= record.run - 2 * RUNS_KEPT:
            self.records[:] = [kept for kept in self.records if kept.run > record.run - RUNS_KEPT]
        self.records.append(record)
        if self._trace is not None:
            self._trace.write(record.to_json() + "\n")

    def _forward(self, model: Any, forward: Forward, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of a transformer: place it in its run and let the cache scheduler decide about it.

        The points of the call nest: STEP around CFG around the spans of blocks, which `_block` visits.
        """
        found = self._runs.locate(call)
        if found is None:
            return forward(*args, **kwargs)
        run, place = found
        model_call = ModelCall(model, forward, args, kwargs, self._adapters[call.component])
        latent = model_call.adapter.latent(model, model_call.arguments)
        point = place.point(call.component if len(self._adapters) > 1 else "")
        reuses = run.scheduler.reuses
        produce = self._nest(run, place, point, model_call, latent)
        (output,) = produce()
        if place.ordinal == 0:
            run.leading = (place.step, output, run.scheduler.reuses == reuses)
        if run.ledger is not None:
            adapter, true = model_call.adapter, output
            if run.scheduler.reuses > reuses:
                true = model_call.truth(exact=not self.plan.uses(Granularity.BLOCK))
            doubled = adapter.branches == "doubled" and self._doubled(run, place, model_call, latent)
            branches = adapter.doubled_order if doubled else (place.branch,)
            guidance = guidance_of(self._pipeline, call.component, model)
            run.ledger.note(place.step, branches, guidance, latent=latent, used=output, true=true)
        if model_call.output is output:
            run.templates[call.component] = model_call.result
            return model_call.result
        return repack(output, run.templates.get(call.component), model_call.arguments.get("return_dict"))

    def _nest(self, run: Run, place: Place, point: Point, call: ModelCall, latent: Tensor) -> Produce:
        """The call's points, each around the next, where a policy decides: STEP around CFG around spans of blocks."""
        produce: Produce = call.compute
        if self.plan.uses(Granularity.BLOCK):
            produce = self._spanned(run.scheduler, point, call, produce)
        if self.plan.uses(Granularity.CFG):
            if call.adapter.branches == "doubled":
                if self._doubled(run, place, call, latent):
                    produce = guided_in_one_batch(run.scheduler, point, call, latent, produce)
            elif place.ordinal > 0 and place.branch != "cond" and run.leading is not None:
                step, output, exact = run.leading
                leading = (output, exact) if step == place.step else None
                produce = guided(run.scheduler, point, leading, place.ordinal == 1, produce)
        if self.plan.uses(Granularity.STEP):
            inner = produce
            return lambda: drive(run.scheduler.visit(point, (latent,)), inner)
        return produce

    def _doubled(self, run: Run, place: Place, call: ModelCall, latent: Tensor) -> bool:
        """Whether one call holds all guidance branches: the pipeline says so, else its parts have the same latents."""
        told = getattr(self._pipeline, "do_classifier_free_guidance", None)
        if told is not None:
            return bool(told)
        scale = getattr(self._pipeline, "guidance_scale", None)
        if isinstance(scale, (int, float)) and scale <= 1:
            return False
        if self._pipeline is None and place.branch != "cond_uncond":
            return False
        if run.doubled is None or run.doubled[0] != latent.shape[0]:  # read from the device once a run
            run.doubled = latent.shape[0], call.repeats(latent)
        return run.doubled[1]

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
        policies = [policy for policy in self.plan.policies if Granularity.BLOCK in policy.granularities]
        reads = self.plan.reads(Granularity.BLOCK)
        layout = self._layouts[id(model)] = Layout.of(model, self._adapters[component], policies, reads)
        for index, block in layout.modules(model):
            check_compiled(block, inside=False)
            self._attachments.append(Attachment(block, block_hook(self._block, index)))


def enable(
    target: Any,
    policies: Any,
    *,
    rule: Any = "unanimous",
    basis: Any = None,
    forecast: Any = None,
    samples: str = "worst",
    max_cache_bytes: int | None = None,
    offload: str | None = None,
    audit: bool = False,
    budget: float | None = None,
    on_error: str = "raise",
    group: Any = None,
    adapter: ModelAdapter | None = None,
    trace: str | Path | None = None,
) -> Session:
    """Cache the transformer(s) of a diffusers pipeline, or one bare transformer.

    policies: one policy or spec ("easycache:threshold=0.05"), or several. rule: how their votes become a verdict, by
    name or a function. basis and forecast: how a skipped output is rebuilt, one for all or a mapping by granularity;
    by default as the policy's algorithm was published, which mostly is "residual" and "hold".
    samples: "worst" lets the fastest-changing sample of a batch decide, "mean" pools them as the published rules do.
    max_cache_bytes: the most that one run's cache may hold; points for which there is no room are computed, and the
    report says so. offload: "cpu" keeps the cache in main memory, at the price of a transfer for every reuse.
    audit: compute beside every reuse what was skipped, to record its true error; the run goes on with what was rebuilt.
    budget: adds the guard `ErrorBudget(total=budget)` wherever the policies decide. on_error: "compute" computes where
    a plugin fails, and the report says so; "raise" lets the run fail.
    group: the torch.distributed process group over which the model is sharded; its ranks decide by the worst of their
    readings, so all alike. Without it every rank decides alone, as data-parallel replicas should.
    adapter: for a transformer class that no plugin describes. trace: a JSON-lines file to write while running.

    Returns the `Session`. Raises `ConfigurationError` for a bad argument and `AttachError` for a target that cannot be
    attached to; nothing is attached then.
    """
    plan = make_plan(
        policies,
        rule=rule,
        basis=basis,
        forecast=forecast,
        samples=samples,
        max_cache_bytes=max_cache_bytes,
        offload=offload,
        audit=audit,
        budget=budget,
        on_error=on_error,
        group=group,
    )
    return Session(target, plan, None if adapter is None else check_adapter(adapter), trace)
