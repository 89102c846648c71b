"""Concatenations and slices as views: what is copied into a window of a larger tensor is written
there in the first place, and what is copied out of one is read there.

A tensor that a kernel only copies into its output (a part of a concatenation) disappears: every
kernel that reads or writes it takes the output in its stead. So does a tensor that a kernel only
copies out of another (a slice). Copies that are left, because an access is not proven to stay in
its row, or because a tensor is a part of two others, stay where they are, part by part.

Launches are visited from the last to the first, so that a concatenation of concatenations is one
tensor before the inner ones are looked at, and a growing chain of them (DenseNet, Huang et al.
2017) becomes slices of its last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..ir.expr import evaluate, floordiv, free_vars, simplify_dim, wrap
from ..ir.kernel.nodes import Buffer, Kernel, Stmt
from ..ir.program import Branch, Copy, Launch, Program, Repeat, Step, Storage
from .kernel.simplify import simplify
from .plan import touched
from .schedule.placement import (
    Unplaceable,
    Window,
    avoids,
    copies_of,
    placed,
    window_of,
    without,
)

GROWTH = 1.05
"""How much more memory may be alive at once than without views."""


def place_views(program: Program) -> list[str]:
    """Makes tensors windows of others, and takes out the copies. Returns a sentence for each
    tensor that could be one. To be run before kernels write over their inputs (`in_place`)."""
    return _Views(program).run()


@dataclass(eq=False)
class _Use:
    """A step that touches a storage, in its list of steps. `time` is the position in the program
    of the step, or of the control flow around it."""

    step: Step
    steps: list[Step]
    position: int
    time: int

    def writes(self, storage: Storage) -> bool:
        """Whether the step may write a storage."""
        if isinstance(self.step, Launch):
            outputs = self.step.args[len(self.step.args) - self.step.kernel.outputs:]
            return any(s.root() is storage for s in outputs)
        if isinstance(self.step, Copy):
            return self.step.target.root() is storage
        return isinstance(self.step, Repeat) and storage in touched(self.step)


@dataclass(eq=False)
class _Region:
    """A window of a storage, the launches that write it, and the one whose copies it spared."""

    window: Window
    writers: set[Step]
    joined_by: Launch


@dataclass(eq=False)
class _Views:
    program: Program
    uses: dict[Storage, list[_Use]] = field(default_factory=dict)
    launches: dict[Kernel, int] = field(default_factory=dict)
    regions: dict[Storage, list[_Region]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gone: set[Step] = field(default_factory=set)
    limit: float = 0.0

    def run(self) -> list[str]:
        order: list[_Use] = []
        for k, step in enumerate(self.program.steps):
            self._note_uses(step, self.program.steps, k, k, order)
        self.limit = GROWTH * self._peak({})
        for use in reversed(order):
            assert isinstance(use.step, Launch)
            self._visit(use)
        for steps in {id(u.steps): u.steps for u in order}.values():
            steps[:] = [s for s in steps if s not in self.gone]
        return list(reversed(self.notes))

    def _note_uses(self, step: Step, steps: list[Step], position: int, time: int,
                   order: list[_Use]) -> None:
        use = _Use(step, steps, position, time)
        for storage in dict.fromkeys(touched(step)):
            self.uses.setdefault(storage, []).append(use)
        if isinstance(step, Launch):
            order.append(use)
            self.launches[step.kernel] = self.launches.get(step.kernel, 0) + 1
        inner = [step.then, step.orelse] if isinstance(step, Branch) else [
            step.body] if isinstance(step, Repeat) else []
        for body in inner:
            for k, s in enumerate(body):
                self._note_uses(s, body, k, time, order)

    # Launches --------------------------------------------------------------------------------

    def _visit(self, use: _Use) -> None:
        launch = use.step
        assert isinstance(launch, Launch)
        count = len(launch.args) - launch.kernel.outputs
        for storage in dict.fromkeys(s.root() for s in launch.args[count:]):
            if launch not in self.gone:
                self._slice(use, storage)
        if launch in self.gone or launch.kernel.outputs != 1:
            return
        output = launch.kernel.params[-1]
        parts = [s for s in dict.fromkeys(s.root() for s in launch.args[:-1])
                 if s.role == "temporary" and copies_of(
                     launch.kernel, _params(launch, s), [output], into=True)]
        for part in parts:
            self._part(use, part, parts)

    def _part(self, use: _Use, part: Storage, parts: list[Storage]) -> None:
        """Makes an input of a launch a window of its output; `parts` are all that may become
        one."""
        launch = use.step
        assert isinstance(launch, Launch)
        target = launch.args[-1]
        whole, output = target.root(), launch.kernel.params[-1]
        around = self.uses[part]
        if whole.role not in ("temporary", "output") or not any(u.writes(part) for u in around):
            return
        if not all(_beside(u, use) and (u.position < use.position or not u.writes(part))
                   for u in around):
            return
        regions = self.regions.get(whole, [])
        known = {x for r in regions for x in (*r.writers, r.joined_by)}
        if not all(u.steps is use.steps and (u.position >= use.position or bool(regions)) and (
                u.position <= use.position or not u.writes(whole) or u.step in known)
                   for u in self.uses[whole]):
            return
        buffers = _params(launch, part)
        kernel, copies = _copying(launch.kernel, buffers, [output], into=True)
        for guess in _guesses(launch, part, [target]) if copies else ():
            window = window_of(kernel, copies, guess, True, target.type.numel)
            if window is not None and avoids(kernel, output, copies, window):
                break
        else:
            return
        if not all(r.window.holds(window) if r.writers == {launch} else r.window.apart(window)
                   for r in regions):
            return
        writers = dict.fromkeys(u.step for u in around if u.writes(part))
        what = " and ".join(dict.fromkeys(_title(x) for x in writers))
        if self._move(use, part, whole, window, without(kernel, copies, buffers),
                      f"what {what} gives is", parts):
            self.regions[whole] = [*regions, _Region(window, set(writers), launch)]

    def _slice(self, use: _Use, part: Storage) -> None:
        """Makes an output of a launch a window of one of its inputs."""
        launch = use.step
        assert isinstance(launch, Launch)
        around = self.uses[part]
        buffers = _params(launch, part)
        if part.role != "temporary" or part in self.regions or len(buffers) != 1 \
                or len(around) == 1 or not all(
                    _beside(u, use) and (u is use) == u.writes(part) for u in around):
            return
        for whole in dict.fromkeys(s.root() for s in launch.args):
            if whole is part or whole.role == "dynamic":
                continue
            kernel, copies = _copying(launch.kernel, buffers, _params(launch, whole), into=False)
            sources = [s for s in launch.args if s.root() is whole]
            for guess in _guesses(launch, part, sources) if copies else ():
                window = window_of(kernel, copies, guess, False, whole.type.numel)
                if window is not None:
                    if self._keeps(whole, window, use):
                        self._move(use, part, whole, window, without(kernel, copies, buffers),
                                   "the slice is", [part])
                    return

    def _keeps(self, whole: Storage, window: Window, use: _Use) -> bool:
        """Whether the elements in a window of a storage stay what they are from a step on."""
        for u in self.uses[whole]:
            if not u.writes(whole) or (u.steps is use.steps and u.position < use.position):
                continue
            written = [r.window for r in self.regions.get(whole, []) if u.step in r.writers]
            if not written or not all(window.apart(w) for w in written):
                return False
        return True

    def _move(self, use: _Use, part: Storage, whole: Storage, window: Window,
              rest: Kernel, what: str, parts: list[Storage]) -> bool:
        """Exchanges the part for the whole in every launch, when all kernels can do with that and
        memory does not grow when all the parts are; `rest` is what is left of the kernel that
        copied it. Notes what becomes of it as `what`."""
        launch = use.step
        assert isinstance(launch, Launch)
        if self._peak(dict.fromkeys(parts, whole)) > max(self.limit, self._peak({})):
            self.notes.append(f"{_title(launch)}: {what} copied, because memory would grow")
            return False
        try:
            found = [(u.step, self._placed(u.step, part, whole, window))
                     for u in self.uses[part] if u is not use and isinstance(u.step, Launch)]
        except Unplaceable as error:
            self.notes.append(f"{_title(launch)}: {what} copied, because {error}")
            return False
        self.notes.append(f"{_title(launch)}: {what} in place")
        for step, kernel in found:
            step.sizes = tuple(kernel.sizes)
            step.args = tuple(whole if s.root() is part else s for s in step.args)
            self._exchange(step, kernel)
        self._uncopied(launch, part, rest)
        merged = dict.fromkeys([*self.uses.pop(part), *self.uses[whole]])
        self.uses[whole] = [u for u in merged if u.step not in self.gone]
        return True

    def _placed(self, launch: Launch, part: Storage, whole: Storage, window: Window) -> Kernel:
        kernel = launch.kernel
        new = {b: Buffer(b.name, b.dtype, (whole.type.numel,), b.space)
               for b in _params(launch, part)}
        if any(b.rank != 1 or b.strides is not None or b.lanes > 1
               or b.dtype is not whole.type.dtype for b in new):
            raise Unplaceable(f"{kernel.name} sees no flat tensor")
        if tuple(launch.sizes) != tuple(kernel.sizes):
            raise Unplaceable(f"{kernel.name} has other names for sizes")
        known = set(kernel.sizes)
        sizes = [v for v in free_vars(wrap(whole.type.numel)) if v not in known]
        result = placed(kernel, new, window)
        name = kernel.name if self.launches[kernel] == 1 else self._fresh(kernel.name)
        return replace(result, name=name, sizes=(*kernel.sizes, *sizes))

    def _uncopied(self, launch: Launch, part: Storage, rest: Kernel) -> None:
        """Leaves out the copies of a part."""
        spared = wrap(part.type.numel) * (2 * part.type.dtype.itemsize)
        if not rest.outputs or not rest.body.body:
            self.gone.add(launch)
            return
        launch.args = tuple(s for s in launch.args if s.root() is not part)
        self._exchange(launch, replace(rest, bytes=simplify_dim(
            wrap(rest.bytes) - spared)))

    def _exchange(self, launch: Launch, kernel: Kernel) -> None:
        self.launches[launch.kernel] -= 1
        self.launches[kernel] = self.launches.get(kernel, 0) + 1
        launch.kernel = kernel

    def _fresh(self, name: str) -> str:
        taken = {k.name for k in self.launches}
        return next(n for k in range(2, len(taken) + 3) if (n := f"{name}_{k}") not in taken)

    # Memory ----------------------------------------------------------------------------------

    def _peak(self, moved: dict[Storage, Storage]) -> int:
        """The bytes of temporaries that are alive at once, at most, when some storages have been
        moved into others. Open sizes count as 64, or as what they may be."""
        spans: dict[Storage, tuple[int, int]] = {}
        for storage, uses in self.uses.items():
            owner = moved.get(storage, storage)
            if owner.role == "temporary" and uses:
                first, last = min(u.time for u in uses), max(u.time for u in uses)
                low, high = spans.get(owner, (first, last))
                spans[owner] = min(low, first), max(high, last)
        changes = [0] * (len(self.program.steps) + 1)
        for storage, (first, last) in spans.items():
            size = self._bytes(storage)
            changes[first] += size
            changes[last + 1] -= size
        peak = alive = 0
        for change in changes:
            alive += change
            peak = max(peak, alive)
        return peak

    def _bytes(self, storage: Storage) -> int:
        sizes: dict[str, int] = {}
        for v in storage.type.symbols:
            low, high = self.program.symbols.get(v.name, (0, None))
            sizes[v.name] = max(low, 64) if high is None else max(low, min(high, 64))
        return evaluate(storage.type.numel, sizes) * storage.type.dtype.itemsize


def _title(launch: Step) -> str:
    assert isinstance(launch, Launch)
    return launch.kernel.origin or launch.kernel.name


def _beside(use: _Use, other: _Use) -> bool:
    """Whether a use is a launch in the same list of steps."""
    return isinstance(use.step, Launch) and use.steps is other.steps


def _copying(kernel: Kernel, part: list[Buffer], whole: list[Buffer],
             into: bool) -> tuple[Kernel, frozenset[Stmt]]:
    """The kernel without loops of no round, and its copies; see `copies_of`."""
    if copies_of(kernel, part, whole, into):
        kernel = simplify(kernel)
        return kernel, copies_of(kernel, part, whole, into)
    return kernel, frozenset()


def _params(launch: Launch, storage: Storage) -> list[Buffer]:
    return [b for b, s in zip(launch.kernel.params, launch.args, strict=True)
            if s.root() is storage]


def _guesses(launch: Launch, part: Storage, wholes: list[Storage]) -> Iterator[Window]:
    """How rows of one tensor may lie in rows of another: rows are what trailing axes hold, the
    longest first."""
    count = part.type.numel
    yield Window(1, count, count)
    paces = [n for s in wholes for n in _trailing(s)]
    for storage in dict.fromkeys(s for s in launch.args if s.root() is part):
        for block in _trailing(storage):
            rows = simplify_dim(floordiv(wrap(count), wrap(block)))
            for whole in dict.fromkeys(paces):
                if whole > block and rows != 1:
                    yield Window(rows, block, whole)


def _trailing(storage: Storage) -> list[int]:
    """The numbers of elements that trailing axes of known sizes hold, largest first."""
    found = [1]
    for d in reversed(storage.type.shape):
        if not isinstance(d, int) or not d:
            break
        found.append(found[-1] * d)
    return list(dict.fromkeys(reversed(found)))
