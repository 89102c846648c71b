"""Groups of operators in TVM's own schedules: as they come, or from MetaSchedule's design space.

The space is MetaSchedule's for LLVM (Shao et al. 2022, "Tensor Program Optimization with
Probabilistic Programs"): its schedule rules, mutators and post-processing, for one thread, with the
layout of constants free. TVM's own drivers that reuse traces (evolutionary, replay-trace) are not
used: they copy modules through `ffi.ToJSONGraph`, which ends the process on any expression in
apache-tvm 0.27.0.post1 with apache-tvm-ffi 0.1.15.post2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..codegen.tensorir_blocks import BlockModule, memory_shape
from ..errors import TargetError
from .tvm_bridge import first_lines, host_target, import_tvm, parse

PREPROC = "meta_schedule.layout_rewrite_preproc"
"""The annotation of a block that only brings a constant into another layout."""
VECTOR_ELEMENTS = 64
UNROLL_STEPS = (0, 16, 64, 512)


class Space:
    """MetaSchedule's design space of a module: sketches, whose decisions are open, and moves."""

    def __init__(self, blocks: BlockModule, seed: int):
        """Raises TargetError when TVM is missing, too old, or has no schedule for the module."""
        tvm = import_tvm()
        try:
            from tvm.s_tir import Schedule
            from tvm.s_tir import meta_schedule as ms
            from tvm.s_tir.schedule import Trace
        except ImportError as error:
            raise TargetError(f"this TVM has no MetaSchedule: {first_lines(error)}") from error
        self.schedule, self.trace = Schedule, Trace
        function = parse(blocks.text)[blocks.name]
        if blocks.free_layouts:
            function = function.with_attr("layout_free_buffers", blocks.free_layouts)
        self.module = tvm.IRModule({blocks.name: function})
        try:
            rules = [r for r in ms.ScheduleRule.create("llvm")
                     if not isinstance(r, ms.schedule_rule.ParallelizeVectorizeUnroll)]
            # Vectors and unrolling without threads, before the last rule as in TVM's own list.
            rules.insert(len(rules) - 1, ms.schedule_rule.ParallelizeVectorizeUnroll(
                max_jobs_per_core=-1, max_vectorize_extent=VECTOR_ELEMENTS,
                unroll_max_steps=list(UNROLL_STEPS), unroll_explicit=True))
            # The mutators that copy the module are left out, as is the one for threads.
            self.mutators = [ms.mutator.MutateTileSize(), ms.mutator.MutateUnroll()]
            self.chances = [0.9, 0.1]
            self.steps = list(ms.Postproc.create("llvm"))
            generator = ms.space_generator.PostOrderApply(
                sch_rules=rules, postprocs=self.steps,
                mutator_probs=dict(zip(self.mutators, self.chances, strict=True)))
            # The constructor in Python would first make all tensor intrinsics, of which these
            # rules use none: two minutes where many Python modules are loaded.
            context = tvm.get_global_func("s_tir.meta_schedule.TuneContext")(
                self.module, tvm.target.Target(tuning_target()), generator, None, blocks.name,
                1, seed + 1, None)
            tvm.get_global_func("s_tir.meta_schedule.TuneContextInitialize")(context)
            self.sketches = [s.trace for s in context.generate_design_space()]
            self.context = context  # rules and mutators refer to it
        except Exception as error:
            raise TargetError(f"MetaSchedule cannot take the group: {first_lines(error)}"
                              ) from error

    def sampled(self, sketch: int, seed: int) -> tuple[Any, Any] | None:
        """A schedule of a sketch with decisions drawn anew; as `scheduled`."""
        return self.scheduled(self.trace(self.sketches[sketch].insts, {}), seed)

    def scheduled(self, trace: Any, seed: int = 0) -> tuple[Any, Any] | None:
        """(schedule, its trace before post-processing), or None where TVM refuses it."""
        schedule = self.schedule(self.module, seed=seed + 1)
        try:
            trace.apply_to_schedule(schedule, remove_postproc=True)
            return self._finished(schedule)
        except Exception:  # decisions that do not fit together
            return None

    def recorded(self, trace: list) -> tuple[Any, Any] | None:
        """The schedule of a trace in JSON (`as_json`); as `scheduled`."""
        schedule = self.schedule(self.module, seed=1)
        try:
            self.trace.apply_json_to_schedule(trace, schedule)
            return self._finished(schedule)
        except Exception:  # of another version of TVM or of the module
            return None

    def _finished(self, schedule: Any) -> tuple[Any, Any] | None:
        plain = schedule.trace.simplified(remove_postproc=True)
        schedule.enter_postproc()
        return (schedule, plain) if all(s.apply(schedule) for s in self.steps) else None


class BlockFunction:
    """A compiled module of blocks. `schedule` of None is the loops as they come."""

    def __init__(self, blocks: BlockModule, schedule: Any = None):
        """Raises TargetError when TVM is missing or refuses."""
        tvm = import_tvm()
        self.blocks, self.packing = blocks, {}
        module = parse(blocks.text)
        if schedule is not None:
            self.packing = _packing(schedule)
            module = tvm.s_tir.transform.RemoveWeightLayoutRewriteBlock(
                skip_tensor_rewrite=True)(schedule.mod)
        try:
            self.executable = tvm.compile(module, target=host_target())
            self.function = self.executable[blocks.name]
        except Exception as error:
            raise TargetError(f"TVM cannot compile the group: {first_lines(error)}") from error

    def arguments(self, inputs: Sequence[np.ndarray]) -> list[Any]:
        """TVM's tensors for the module's inputs in order, constants in their layout, and for its
        outputs."""
        made = []
        for k, (value, array) in enumerate(zip(self.blocks.inputs, inputs, strict=True)):
            array = np.asarray(array, value.dtype.numpy).reshape(memory_shape(value))
            pack = self.packing.get(k)
            made.append(_shaped(array) if pack is None else pack(_shaped(array)))
        for value in self.blocks.outputs:
            made.append(_shaped(np.zeros(memory_shape(value), value.dtype.numpy)))
        return made

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for contents of the module's inputs."""
        arguments = self.arguments(inputs)
        self.function(*arguments)
        results = arguments[len(self.blocks.inputs):]
        return [np.asarray(t.numpy()).astype(v.dtype.numpy).reshape(
                    memory_shape(v) if v.rank else ())
                for t, v in zip(results, self.blocks.outputs, strict=True)]

    def timer(self, inputs: Sequence[np.ndarray], seconds: float, repeat: int = 1,
              ) -> Callable[[], float]:
        """A function that runs for about so long, `repeat` times, and gives the least seconds of
        one run."""
        arguments = self.arguments(inputs)
        evaluator = self.executable.jit().time_evaluator(
            self.blocks.name, import_tvm().cpu(), number=1, repeat=repeat,
            min_repeat_ms=int(seconds * 1000))
        return lambda: float(evaluator(*arguments).min)


def tuning_target() -> dict[str, Any]:
    """This processor for MetaSchedule, which asks how many cores code may use."""
    return {**host_target(), "num-cores": 1}


def _packing(schedule: Any) -> dict[int, Callable[[Any], Any]]:
    """What brings constants into the layouts that a schedule reads: by number of the parameter."""
    from tvm.tirx import IndexMap

    found: dict[int, Callable[[Any], Any]] = {}
    (name,) = (v.name_hint for v in schedule.mod.get_global_vars())
    params = [str(p.name) for p in schedule.mod[name].params]
    for reference in schedule.get_child_blocks(schedule.get_sblock("root", name)):
        block = schedule.get(reference)
        if PREPROC in block.annotations:
            store = block.body
            found[params.index(str(store.value.source.name))] = IndexMap(
                [v.var for v in block.iter_vars], list(store.indices), None).map_tensor
    return found


def _shaped(array: np.ndarray) -> Any:
    """A TVM tensor of the array's shape."""
    return import_tvm().runtime.tensor(np.ascontiguousarray(array))

