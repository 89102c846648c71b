"""Compiled WebGPU models in Python, on wgpu-py: the whole graph on the device, one read-back.

The plan is that of `codegen.wgsl_program`. Launches are encoded in order; what the host has to
know on the way (a condition, a size that data tells) ends the encoding so far and reads it.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError, InputError, SmeltError, TargetError, UsageError
from . import abi
from .artifact import WEIGHTS, Artifact, open_artifact
from .module import TensorSpec, as_array
from .webgpu_sizes import place, size_of

PLAN = "plan.json"
VERSION = 1
UNIFORM_BYTES = 256
"""Distance between the uniforms of launches: what every adapter takes as an offset."""
LLVMPIPE_ROUNDS = 65535
"""Loop iterations after which Mesa's processor emulation ends the loops of an invocation."""


@functools.cache
def open_device() -> Any:
    """The device that all models of the process run on. Raises TargetError, which says what is
    missing."""
    try:
        import wgpu
    except ImportError:
        raise TargetError("A webgpu model needs the Python package wgpu to run here: install "
                          "smelt[webgpu].") from None
    try:
        adapter = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
        limits = {n: adapter.limits[n] for n in ("max-storage-buffer-binding-size",
                                                 "max-buffer-size")}
        return adapter.request_device_sync(required_limits=limits)
    except Exception as error:  # wgpu raises what its backend says
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TargetError(f"No WebGPU adapter is usable here ({reason[0].rstrip('.')}): install a "
                          f"Vulkan driver, for example mesa-vulkan-drivers.") from error


class WebGpuModule:
    """A compiled model on the process's device.

    `path` is an artifact of the webgpu target, folder or zip file; for `verify` see
    `artifact.open_artifact`. Raises ArtifactError, or TargetError when wgpu or an adapter is
    missing.
    """

    def __init__(self, path: str | Path | Artifact, verify: bool | None = None):
        artifact = path if isinstance(path, Artifact) else open_artifact(path, verify)
        self._artifact = artifact
        self._plan = _read_plan(artifact)
        signature = artifact.manifest["signature"]
        self.inputs = [_spec(t) for t in signature["inputs"]]
        self.outputs = [_spec(t) for t in signature["outputs"]]
        self._ranges: dict[str, list[int | None]] = signature.get("sizes", {})
        self._device = open_device()
        self._emulated = "llvmpipe" in self.isa
        self._lock = threading.Lock()
        self._closed = False
        self._arena: Any = None
        self._prepared: tuple[Any, _Prepared] | None = None
        self._make_pipelines()

    # What the model is --------------------------------------------------------------------------

    @property
    def manifest(self) -> dict[str, Any]:
        """The artifact's manifest.json."""
        return self._artifact.manifest

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def isa(self) -> str:
        """The adapter that runs it."""
        return str(self._device.adapter.info.get("device", "webgpu"))

    def save(self, path: str | Path) -> Path:
        """Writes a copy of the artifact: a zip file if `path` ends in ".zip", else a folder."""
        return self._artifact.save(path)

    def close(self) -> None:
        """Frees the model's memory on the device; running it afterwards raises UsageError."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for buffer in (self._arena, *self._weights):
                    if buffer is not None:
                        buffer.destroy()
                self._artifact.close()

    def __enter__(self) -> WebGpuModule:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Running ------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Runs the model on arrays, by position or by name.

        Arrays are numpy's or have `__dlpack__`. Returns one array for one output, else a tuple.
        Raises InputError for inputs that do not fit.
        """
        results = self._run(self._by_name(args, named))
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs the model on arrays by name; returns its outputs by name."""
        names = (spec.name for spec in self.outputs)
        return dict(zip(names, self._run(self._by_name((), inputs))))

    def _by_name(self, args: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        takes = ", ".join(map(str, self.inputs)) or "no inputs"
        if len(args) > len(self.inputs):
            raise InputError(f"The model takes {len(self.inputs)} inputs, but {len(args)} were "
                             f"given: it takes {takes}.")
        values = dict(zip((spec.name for spec in self.inputs), args))
        for name, value in named.items():
            if all(name != spec.name for spec in self.inputs):
                raise InputError(f'The model has no input "{name}": it takes {takes}.')
            if name in values:
                raise InputError(f'Input "{name}" was given twice.')
            values[name] = value
        for spec in self.inputs:
            if spec.name not in values:
                raise InputError(f'Input "{spec.name}" is missing: the model takes {takes}.')
        return [values[spec.name] for spec in self.inputs]

    def _run(self, values: Sequence[Any]) -> list[np.ndarray]:
        arrays = [_checked(as_array(v, s), s) for v, s in zip(values, self.inputs)]
        sizes = self._bind(arrays)
        with self._lock:
            if self._closed:
                raise UsageError("The model is closed: load it again.")
            key = tuple(a.shape for a in arrays)
            if self._prepared is None or self._prepared[0] != key:
                self._prepared = key, self._prepare(sizes)
            return _Run(self, self._prepared[1], dict(sizes)).outputs(arrays)

    def _bind(self, arrays: Sequence[np.ndarray]) -> dict[str, int]:
        """The named sizes of these inputs. Raises InputError when they do not fit."""
        sizes: dict[str, int] = {}
        later = []
        for spec, tensor, array in zip(self.inputs, self._plan["inputs"], arrays):
            if array.ndim != len(spec.shape):
                raise InputError(f'Input "{spec.name}" has {array.ndim} axes, but must be {spec}.')
            for axis, (d, n) in enumerate(zip(tensor["shape"], array.shape)):
                if isinstance(d, str) and d not in sizes:
                    sizes[d] = n
                    low, high = self._ranges.get(d, (0, None))
                    if n < (low or 0) or (high is not None and n > high):
                        span = f"at least {low}" if high is None else f"in {low}..{high}"
                        raise InputError(f'Input "{spec.name}": axis {axis} is {n} but must be '
                                         f"{span}.")
                else:
                    later.append((spec, axis, d, n))
        for spec, axis, d, n in later:
            wanted = size_of(d, sizes)
            if n != wanted:
                raise InputError(f'Input "{spec.name}": axis {axis} is {n} but must be {wanted}.')
        for condition, message in self._plan["conditions"]:
            if not size_of(condition, sizes):
                raise InputError(f"{message[:1].upper()}{message[1:]}.")
        return sizes

    # Preparing ----------------------------------------------------------------------------------

    def _make_pipelines(self) -> None:
        import wgpu

        device, plan = self._device, self._plan
        compute, usage = wgpu.ShaderStage.COMPUTE, wgpu.BufferUsage
        kinds = ["uniform", "storage", *("read-only-storage" for _ in plan["weights"])]
        self._layout = device.create_bind_group_layout(entries=[
            {"binding": k, "visibility": compute,
             "buffer": {"type": kind, "has_dynamic_offset": kind == "uniform"}}
            for k, kind in enumerate(kinds)])
        layout = device.create_pipeline_layout(bind_group_layouts=[self._layout])
        self._pipelines = []
        for name in plan["shaders"]:
            code = self._artifact.file(f"shaders/{name}.wgsl").read_text()
            module = device.create_shader_module(label=name, code=code)
            self._pipelines.append(device.create_compute_pipeline(
                layout=layout, compute={"module": module, "entry_point": "main"}))
        self._weights = []
        for start, count in plan["weights"]:
            self._weights.append(self._buffer(count, usage.STORAGE | usage.COPY_DST))
            if count:
                data = np.memmap(self._artifact.file(WEIGHTS), np.uint8, "r", start, (count,))
                device.queue.write_buffer(self._weights[-1], 0, data)

    def _buffer(self, count: int, usage: int) -> Any:
        most = self._device.limits["max-storage-buffer-binding-size"]
        if count > most:
            raise TargetError(f"The model needs {count >> 20} MiB in one buffer, but this adapter "
                              f"binds {most >> 20} MiB: run it on another one.")
        return self._device.create_buffer(size=max(count, 64), usage=usage)

    def _prepare(self, sizes: dict[str, int]) -> _Prepared:
        """The arena for these sizes."""
        import wgpu

        plan, usage = self._plan, wgpu.BufferUsage
        amounts = None
        if plan["offsets"] is None:
            amounts = [size_of(m["bytes"], sizes) for m in plan["memory"]]
            offsets, total = place(amounts, [(m["first"], m["last"]) for m in plan["memory"]])
        else:
            offsets, total = plan["offsets"], plan["arena"]
        if self._arena is None or self._arena.size < total:
            if self._arena is not None:
                self._arena.destroy()
            self._arena = self._buffer(total, usage.STORAGE | usage.COPY_SRC | usage.COPY_DST)
        return _Prepared(offsets)


class _Prepared:
    """What stays the same while sizes do: places in the arena, and uniforms on the device."""

    def __init__(self, offsets: Sequence[int]):
        self.offsets = offsets
        self.uniforms: Any = None
        self.bytes = b""
        self.group: Any = None


class _Run:
    """One run: encodes the steps of the plan and submits them."""

    def __init__(self, module: WebGpuModule, prepared: _Prepared, sizes: dict[str, int]):
        self.m = module
        self.device = module._device
        self.prepared = prepared
        self.sizes = sizes
        self.launches: list[tuple[int, tuple[int, ...]]] = []
        self.uniforms = bytearray()
        self.late: list[dict[str, Any]] = []

    def outputs(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        plan = self.m._plan
        for array, tensor in zip(arrays, plan["inputs"]):
            self._write(tensor["place"], array)
        self._steps(plan["steps"])
        self._submit()
        for step in self.late:
            self._step(step)
        results = []
        for spec, tensor in zip(self.m.outputs, plan["outputs"]):
            shape = tuple(size_of(d, self.sizes) for d in tensor["shape"])
            results.append(self._read(tensor["place"], abi.numpy_dtype(spec.dtype), shape))
        return results

    # Memory -------------------------------------------------------------------------------------

    def _write(self, k: int, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if data.size % 4:
            data = np.concatenate([data, np.zeros(-data.size % 4, np.uint8)])
        if data.size:
            self.device.queue.write_buffer(self.m._arena, self.prepared.offsets[k], data)

    def _read(self, k: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not count:
            return np.zeros(shape, dtype)
        data = self.device.queue.read_buffer(self.m._arena, self.prepared.offsets[k],
                                             -(-count // 4) * 4)
        return np.frombuffer(data, np.uint8, count).view(dtype).reshape(shape).copy()

    def _known(self, value: Mapping[str, Any]) -> int:
        """A number that decides what is launched next."""
        if "size" in value:
            return size_of(value["size"], self.sizes)
        self._submit()
        return int(self._read(value["place"], abi.numpy_dtype(value["dtype"]), (1,))[0])

    # Steps --------------------------------------------------------------------------------------

    def _steps(self, steps: Sequence[dict[str, Any]]) -> None:
        for k, step in enumerate(steps):
            after = steps[k + 1] if k + 1 < len(steps) else {}
            if step.get("late") or after.get("late"):
                self.late.append(step)
            else:
                self._step(step)

    def _step(self, step: dict[str, Any]) -> None:
        getattr(self, f"_{step['do']}")(step)

    def _launch(self, step: dict[str, Any]) -> None:
        groups = tuple(size_of(g, self.sizes) for g in step["groups"])
        if min(groups) <= 0:
            return
        if self.m._emulated and size_of(step["rounds"], self.sizes) > LLVMPIPE_ROUNDS:
            raise TargetError(f"A shader of this model loops more than {LLVMPIPE_ROUNDS} times, "
                              f"where {self.m.isa} stops: run it on a GPU.")
        words = [(self.prepared.offsets[a["arena"]] if "arena" in a else a["weights"]) // 4
                 for a in step["at"]]
        words += [size_of(e, self.sizes) for e in step["sizes"]]
        data = np.asarray(words or [0], np.int64).astype(np.int32).tobytes()
        self.launches.append((step["shader"], groups))
        self.uniforms += data + bytes(-len(data) % UNIFORM_BYTES)

    def _assign(self, step: dict[str, Any]) -> None:
        values = [size_of(e, self.sizes) for e in step["values"]]
        self.sizes.update(zip(step["names"], values))

    def _bind(self, step: dict[str, Any]) -> None:
        self._submit()
        names = step["names"]
        found = self._read(step["from"], abi.numpy_dtype(step["dtype"]), (len(names),))
        self.sizes.update(zip(names, (int(n) for n in found)))
        if min(found, default=0) < 0:
            raise InputError(f"{step['origin'] or 'the model'}: the data asks for a negative size.")

    def _require(self, step: dict[str, Any]) -> None:
        if not size_of(step["condition"], self.sizes):
            raise InputError(f"{step['message'][:1].upper()}{step['message'][1:]}.")

    def _branch(self, step: dict[str, Any]) -> None:
        self._steps(step["then" if self._known(step["condition"]) else "else"])

    def _repeat(self, step: dict[str, Any]) -> None:
        limit = None if step["limit"] is None else self._known(step["limit"])
        count = 0
        while limit is None or count < limit:
            if step["condition"] is not None and not self._known(step["condition"]):
                break
            if step["counter"] is not None:
                self._submit()
                self._write(step["counter"], np.asarray([count], np.int64))
            self._steps(step["body"])
            count += 1

    def _submit(self) -> None:
        """Runs the launches encoded so far."""
        if not self.launches:
            return
        group = self._bind_group()
        encoder = self.device.create_command_encoder()
        work = encoder.begin_compute_pass()
        for k, (shader, groups) in enumerate(self.launches):
            work.set_pipeline(self.m._pipelines[shader])
            work.set_bind_group(0, group, [k * UNIFORM_BYTES])
            work.dispatch_workgroups(*groups)
        work.end()
        self.device.queue.submit([encoder.finish()])
        self.launches, self.uniforms = [], bytearray()

    def _bind_group(self) -> Any:
        """The bindings with these uniforms, which are written when they are not there already."""
        import wgpu

        p, data = self.prepared, bytes(self.uniforms)
        if p.group is None or p.uniforms.size < len(data):
            usage = wgpu.BufferUsage.UNIFORM | wgpu.BufferUsage.COPY_DST
            p.uniforms, p.bytes = self.device.create_buffer(size=len(data), usage=usage), b""
            buffers = [(p.uniforms, UNIFORM_BYTES), (self.m._arena, self.m._arena.size),
                       *((w, w.size) for w in self.m._weights)]
            p.group = self.device.create_bind_group(layout=self.m._layout, entries=[
                {"binding": k, "resource": {"buffer": b, "offset": 0, "size": n}}
                for k, (b, n) in enumerate(buffers)])
        if p.bytes != data:
            self.device.queue.write_buffer(p.uniforms, 0, data)
            p.bytes = data
        return p.group


def _read_plan(artifact: Artifact) -> dict[str, Any]:
    try:
        plan = json.loads(artifact.file(PLAN).read_text())
    except (OSError, ValueError, SmeltError) as error:
        raise ArtifactError(f"The artifact {artifact.path} has no usable plan ({error}): compile "
                            f"the model again.") from error
    if plan.get("version") != VERSION:
        raise ArtifactError(f"The artifact {artifact.path} has a plan of version "
                            f"{plan.get('version')}, not {VERSION}: compile the model again.")
    return plan


def _spec(tensor: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(int(d) if str(d).isdecimal() else str(d) for d in tensor["shape"])
    return TensorSpec(tensor["name"], tensor["dtype"], shape)


def _checked(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """The array in native byte order. Raises InputError when its type or numbers do not fit."""
    if array.dtype != abi.numpy_dtype(spec.dtype):
        raise InputError(f'Input "{spec.name}" must be {spec.dtype}, but is an array of '
                         f"{array.dtype}.")
    if spec.dtype == "i64" and array.size and (
            int(array.max()) >= 1 << 31 or int(array.min()) < -(1 << 31)):
        raise InputError(f'Input "{spec.name}" holds numbers of more than 32 bits, which WebGPU '
                         f"does not compute with.")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
