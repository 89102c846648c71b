"""Compiled CPU models in Python: a thin layer over the C interface."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import config
from ..errors import ArtifactError, InputError, UsageError
from . import abi
from .artifact import WEIGHTS, Artifact, open_artifact
from .dlpack import from_dlpack

LIBRARY = "model.so"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: sizes are numbers or expressions of named sizes, such as "N"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


def _close_library(library: ctypes.CDLL, model: int, artifact: Artifact) -> None:
    library.smelt_close(model)
    try:
        from _ctypes import dlclose  # not on Windows
    except ImportError:
        pass
    else:
        dlclose(library._handle)
    artifact.close()


def _close_session(library: _Library, session: int) -> None:
    # The argument keeps the library loaded until here, in whatever order a cycle is collected.
    library.c.smelt_session_close(session)


class _Library:
    """An open model: the library of an artifact, with the weights. Goes with its last user."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        path = artifact.file(LIBRARY)
        try:
            self.c = ctypes.CDLL(str(path))
            abi.declare(self.c)
        except (OSError, AttributeError) as error:
            target = artifact.manifest.get("target", "another target")
            raise ArtifactError(
                f"The artifact {artifact.path}, made for {target}, cannot be loaded on this "
                f"machine ({error}): compile the model for it."
            ) from error
        handle = ctypes.c_void_p()
        weights = artifact.folder / WEIGHTS
        programs = self.c.smelt_linked_programs()
        abi.check(
            self.c,
            self.c.smelt_open_program(programs, os.fsencode(weights), ctypes.byref(handle)),
        )
        assert handle.value
        self.model: int = handle.value
        # Not when the interpreter ends: sessions may still run in other threads then.
        weakref.finalize(self, _close_library, self.c, self.model, artifact).atexit = False
        self.inputs = [
            _spec(self.c.smelt_input_info(self.model, i).contents)
            for i in range(self.c.smelt_input_count(self.model))
        ]
        self.outputs = [
            _spec(self.c.smelt_output_info(self.model, i).contents)
            for i in range(self.c.smelt_output_count(self.model))
        ]


# Names are any texts that Python can hold, lone surrogates included.
def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def _spec(info: abi.TensorInfo) -> TensorSpec:
    texts = [_decode(info.dims[i]) for i in range(info.rank)]
    shape = tuple(int(text) if text.isdecimal() else text for text in texts)
    return TensorSpec(_decode(info.name), abi.DTYPE_NAMES[info.dtype], shape)


def as_array(value: Any, spec: TensorSpec) -> np.ndarray:
    """The value as an array, without a copy if it is one or has `__dlpack__`.

    Numbers and lists become arrays of the input's dtype if they are of its kind.
    """
    if isinstance(value, np.ndarray):
        return np.asarray(value)  # the plain array of a subclass
    if isinstance(value, np.generic):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        try:
            return from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f'Input "{spec.name}" cannot be read through DLPack: {error}.') from (
                error
            )
    if not isinstance(value, (bool, int, float, list, tuple)):
        raise InputError(
            f'Input "{spec.name}" must be a numpy array or have __dlpack__, but is '
            f"{type(value).__name__}."
        )
    dtype = abi.numpy_dtype(spec.dtype)
    try:
        array = np.asarray(value)
        whole = array.dtype.kind in "iu"  # numpy refuses numbers out of range itself
        if array.size and not (whole or np.can_cast(array.dtype, dtype, "same_kind")):
            return array  # refused by its dtype
        return np.asarray(value, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f'Input "{spec.name}" must be {spec.dtype}: {error}.') from error


# The quickest way to a C-contiguous array's address; it refuses arrays that are read-only, empty or
# strided, and types that numpy lends no buffer of (those of ml_dtypes).
_lend: Any = ctypes.c_char.from_buffer
_address_of = ctypes.addressof
_REFUSED = (TypeError, ValueError, BufferError)


def _address(array: np.ndarray) -> int:
    try:
        return _address_of(_lend(array))
    except _REFUSED:
        return array.__array_interface__["data"][0]


def _text_shape(spec: TensorSpec) -> bool:
    return any(isinstance(size, str) for size in spec.shape)


class Session:
    """Runs a model. Sessions of one model share its weights and may run at the same time.

    Calls on one session from several threads run one after another.
    """

    def __init__(self, library: _Library, threads: int | None):
        self._library = library
        self._c = c = library.c
        handle = ctypes.c_void_p()
        count = config.num_threads() if threads is None else _thread_count(threads)
        abi.check(c, c.smelt_session_open(library.model, count, ctypes.byref(handle)))
        assert handle.value
        self._handle: int = handle.value
        self._close = weakref.finalize(self, _close_session, library, self._handle)
        self._close.atexit = False
        self._lock = threading.Lock()
        self._smelt_run = c.smelt_run
        inputs, outputs = library.inputs, library.outputs
        self._position = {spec.name: i for i, spec in enumerate(inputs)}
        self._links: dict[str, str] = {}
        # The tensors of the C call, and a view of their words: data is the first of three.
        self._in = (abi.Tensor * max(len(inputs), 1))()
        self._out = (abi.Tensor * max(len(outputs), 1))()
        words = ctypes.sizeof(abi.Tensor) // ctypes.sizeof(ctypes.c_void_p)
        self._words = words
        self._in_words = (ctypes.c_void_p * (words * len(self._in))).from_buffer(self._in)
        self._out_words = (ctypes.c_void_p * (words * len(self._out))).from_buffer(self._out)
        self._in_shapes: list[Any] = [None] * len(inputs)
        self._out_shapes: list[Any] = [None] * len(outputs)
        self._set_visible()

    # --- signature --------------------------------------------------------------------------

    @property
    def inputs(self) -> list[TensorSpec]:
        """What a call takes, in order: the model's inputs without linked states."""
        return [self._library.inputs[i] for i in self._visible_in]

    @property
    def outputs(self) -> list[TensorSpec]:
        """What a call returns, in order: the model's outputs without linked states."""
        return [self._library.outputs[i] for i in self._visible_out]

    @property
    def threads(self) -> int:
        """Threads that a run uses; may be set."""
        return self._c.smelt_threads(self._open())

    @threads.setter
    def threads(self, count: int) -> None:
        with self._lock:
            abi.check(self._c, self._c.smelt_set_threads(self._open(), _thread_count(count)))

    def _open(self) -> int:
        if not self._close.alive:
            raise UsageError("The session is closed: open another one.")
        return self._handle

    def _set_visible(self) -> None:
        fed = set(self._links.values())
        inputs, outputs = self._library.inputs, self._library.outputs
        self._visible_in = [i for i, s in enumerate(inputs) if s.name not in self._links]
        self._visible_out = [i for i, s in enumerate(outputs) if s.name not in fed]
        # A state whose size changes from run to run changes other shapes with it.
        self._steady = not any(_text_shape(s) for s in inputs if s.name in self._links)
        self._forget()

    def _forget(self) -> None:
        """The next run is prepared anew."""
        self._expected: list[tuple[np.dtype, tuple[int, ...], int]] | None = None
        self._results: list[tuple[tuple[int, ...], np.dtype, int]] = []

    # --- running ----------------------------------------------------------------------------

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Runs the model on arrays, by position or by name.

        Arrays are numpy's or have `__dlpack__`; contiguous ones are read in place. Returns one
        array for one output, else a tuple. Raises InputError for inputs that do not fit.
        """
        if named or len(args) != len(self._visible_in):
            results = self._run_named(args, named)
        else:
            results = self._run(args)
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs the model on arrays by name; returns its outputs by name."""
        results = self._run_named((), inputs)
        names = (self._library.outputs[i].name for i in self._visible_out)
        return dict(zip(names, results))

    def _run_named(self, args: Sequence[Any], named: Mapping[str, Any]) -> list[np.ndarray]:
        values = self._by_name(args, named)
        if len(values) > len(self._visible_in):  # a value for a state
            return self._run_slowly(values)
        return self._run([values[i] for i in self._visible_in])

    def _by_name(self, args: Sequence[Any], named: Mapping[str, Any]) -> dict[int, Any]:
        """Values by input position; checks that all are there, once."""
        specs = self._library.inputs
        if len(args) > len(self._visible_in):
            raise InputError(
                f"The model takes {len(self._visible_in)} inputs, but {len(args)} were given: "
                f"it takes {self._signature()}."
            )
        values = dict(zip(self._visible_in, args))
        for name, value in named.items():
            position = self._position.get(name)
            if position is None:
                raise InputError(
                    f'The model has no input "{name}": it takes {self._signature()}.'
                )
            if position in values:
                raise InputError(f'Input "{name}" was given twice.')
            values[position] = value
        missing = [specs[i].name for i in self._visible_in if i not in values]
        if missing:
            raise InputError(
                f'Input "{missing[0]}" is missing: the model takes {self._signature()}.'
            )
        return values

    def _signature(self) -> str:
        return ", ".join(str(self._library.inputs[i]) for i in self._visible_in) or "no inputs"

    def _run(self, args: Sequence[Any]) -> list[np.ndarray]:
        """A run like the last one only writes pointers; any other one is prepared."""
        expected = self._expected
        if expected is None:
            return self._run_slowly(dict(zip(self._visible_in, args)))
        with self._lock:
            words = self._in_words
            for value, (dtype, shape, word) in zip(args, expected):
                if type(value) is not np.ndarray or value.dtype != dtype or value.shape != shape:
                    break
                try:
                    words[word] = _address_of(_lend(value))
                except _REFUSED:
                    interface = value.__array_interface__
                    if interface["strides"] is not None:
                        break
                    words[word] = interface["data"][0]
            else:
                if self._expected is expected:
                    return self._finish()
        return self._run_slowly(dict(zip(self._visible_in, args)))

    def _run_slowly(self, values: dict[int, Any]) -> list[np.ndarray]:
        specs = self._library.inputs
        with self._lock:
            self._open()
            self._forget()
            arrays: dict[int, np.ndarray] = {}
            for i, tensor in enumerate(self._in[: len(specs)]):
                if i in values:
                    arrays[i] = self._set_input(i, tensor, as_array(values[i], specs[i]))
                else:
                    tensor.data = None  # a state
            c = self._c
            abi.check(c, c.smelt_set_shapes(self._handle, self._in, len(specs)))
            self._set_outputs()
            results = self._finish()
            if self._steady and arrays.keys() == set(self._visible_in):
                words = self._words
                self._expected = [
                    (arrays[i].dtype, arrays[i].shape, words * i) for i in self._visible_in
                ]
        return results

    def _set_input(self, index: int, tensor: abi.Tensor, array: np.ndarray) -> np.ndarray:
        """Describes an array to C; returns the array, contiguous and in native byte order."""
        spec = self._library.inputs[index]
        name = abi.dtype_name(array.dtype)
        if array.dtype == abi.numpy_dtype(spec.dtype):
            name = spec.dtype
        if name is None:
            raise InputError(
                f'Input "{spec.name}" must be {spec.dtype}, but is an array of {array.dtype}.'
            )
        native = array.dtype.newbyteorder("=")
        if not array.flags.c_contiguous or array.dtype != native:
            array = np.array(array, native, order="C")
        shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
        self._in_shapes[index] = shape
        tensor.data = _address(array)
        tensor.shape = shape
        tensor.dtype = abi.DTYPES[name]
        tensor.rank = array.ndim
        return array

    def _set_outputs(self) -> None:
        """Reads the shapes that the outputs will have; a run allocates those that are known."""
        c = self._c
        self._results = []
        fed = set(self._links.values())
        for i, (tensor, spec) in enumerate(zip(self._out, self._library.outputs)):
            rank = len(spec.shape)
            shape = tuple(c.smelt_output_shape(self._handle, i)[:rank])
            tensor.data = None
            tensor.dtype = abi.DTYPES[spec.dtype]
            tensor.rank = rank
            if spec.name in fed or any(size < 0 for size in shape):
                tensor.shape = None
                continue
            # Set, so that C checks it at each run.
            self._out_shapes[i] = (ctypes.c_int64 * max(rank, 1))(*shape)
            tensor.shape = self._out_shapes[i]
            self._results.append((shape, abi.numpy_dtype(spec.dtype), self._words * i))

    def _finish(self) -> list[np.ndarray]:
        """Runs on inputs and shapes that are set."""
        words = self._out_words
        results = []
        for shape, dtype, word in self._results:
            array = np.empty(shape, dtype)
            words[word] = _address(array)
            results.append(array)
        library = self._library
        code = self._smelt_run(
            self._handle, self._in, len(library.inputs), self._out, len(library.outputs)
        )
        if code:
            abi.check(self._c, code)
        if len(results) != len(self._visible_out):
            placed = {word // self._words: a for (_, _, word), a in zip(self._results, results)}
            return [placed[i] if i in placed else self._copy(i) for i in self._visible_out]
        return results

    def _copy(self, index: int) -> np.ndarray:
        """An output that lies in the session's memory, as an array of its own."""
        tensor = self._out[index]
        return _copied(tensor, self._library.outputs[index].dtype)

    # --- states -----------------------------------------------------------------------------

    def link_state(self, output: str, input: str, initial: Any = None) -> None:
        """Feeds an output of each run to an input of the next; calls no longer show either.

        `initial` is the value before the first run. Without it the state starts as zeros, and its
        named sizes are what the other inputs say, or 0 where they say nothing. A value given to
        the input by name counts for that run instead of the state.
        """
        c = self._c
        with self._lock:
            self._open()
            start = None
            array = shape = None
            if initial is not None and input in self._position:
                tensor = abi.Tensor()
                spec = self._library.inputs[self._position[input]]
                index = self._position[input]
                array = self._set_input(index, tensor, as_array(initial, spec))
                shape = self._in_shapes[index]
                start = ctypes.byref(tensor)
            abi.check(c, c.smelt_link_state(self._handle, _encode(output), _encode(input), start))
            del array, shape  # copied
            self._links[input] = output
            self._set_visible()

    def unlink_state(self, input: str) -> None:
        """Ends the link of an input."""
        with self._lock:
            abi.check(self._c, self._c.smelt_unlink_state(self._open(), _encode(input)))
            del self._links[input]
            self._set_visible()

    def reset_states(self) -> None:
        """Puts every state back to its initial value."""
        with self._lock:
            self._c.smelt_reset_states(self._open())

    def state(self, input: str) -> np.ndarray | None:
        """A copy of the state of an input; None if it is zeros of a shape not yet known."""
        tensor = abi.Tensor()
        with self._lock:
            code = self._c.smelt_state(self._open(), _encode(input), ctypes.byref(tensor))
            abi.check(self._c, code)
            spec = self._library.inputs[self._position[input]]
            if spec.shape and not tensor.shape:
                return None
            return _copied(tensor, spec.dtype)

    def _link_declared(self) -> None:
        """Links the states that the manifest declares: pairs [output, input]."""
        artifact = self._library.artifact
        try:
            for output, input in artifact.manifest.get("states", ()):
                self.link_state(output, input)
        except (InputError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"The artifact {artifact.path} declares states that its model does not have "
                f"({error}): compile it again."
            ) from error

    def close(self) -> None:
        """Frees the session's memory and threads; running it afterwards raises UsageError."""
        with self._lock:
            self._close()
            self._forget()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _copied(tensor: abi.Tensor, dtype: str) -> np.ndarray:
    array = np.empty(tensor.shape[: tensor.rank], abi.numpy_dtype(dtype))
    if array.nbytes and tensor.data:
        ctypes.memmove(_address(array), tensor.data, array.nbytes)
    elif array.nbytes:
        array.view(np.uint8)[...] = 0
    return array


def _thread_count(threads: int) -> int:
    if not isinstance(threads, int) or not 0 < threads < 2**31:
        raise UsageError(f"The number of threads is {threads!r}: use a whole number of 1 or more.")
    return threads


class Module(Session):
    """A compiled model, and its first session.

    `path` is an artifact for a CPU target, folder or zip file; `threads` is by default what
    SMELT_NUM_THREADS says, else the CPUs open to the process; for `verify` see
    `artifact.open_artifact`. States that the manifest declares are linked. Raises ArtifactError.
    """

    def __init__(
        self, path: str | Path | Artifact, threads: int | None = None, verify: bool | None = None
    ):
        artifact = path if isinstance(path, Artifact) else open_artifact(path, verify)
        self._artifact = artifact
        super().__init__(_Library(artifact), threads)
        self._link_declared()

    @property
    def manifest(self) -> dict[str, Any]:
        """The artifact's manifest.json."""
        return self._artifact.manifest

    @property
    def name(self) -> str:
        return _decode(self._c.smelt_model_name(self._library.model))

    @property
    def isa(self) -> str:
        """The instruction set of the variant that runs here."""
        return self._c.smelt_model_isa(self._library.model).decode()

    def session(self, threads: int | None = None) -> Session:
        """Another session, for another thread, with states of its own; shares the weights."""
        session = Session(self._library, threads)
        session._link_declared()
        return session

    def save(self, path: str | Path) -> Path:
        """Writes a copy of the artifact: a zip file if `path` ends in ".zip", else a folder."""
        return self._artifact.save(path)


def load(path: str | Path, threads: int | None = None, verify: bool | None = None) -> Any:
    """Opens a compiled model by the target that it is made for: a `Module`, or the class for that
    target with the same interface."""
    artifact = open_artifact(path, verify)
    target = artifact.manifest.get("target", "")
    if target == "webgpu":
        from .webgpu import WebGpuModule

        return WebGpuModule(artifact)
    if target.split(":")[0] != "cpu":
        artifact.close()
        raise ArtifactError(f"{path} is made for {target or 'no target'}, not for a CPU.")
    if artifact.manifest.get("library", LIBRARY) not in artifact.manifest["files"]:
        artifact.close()
        raise ArtifactError(
            f"{path} is source code for {target}: build it into a program, or compile the model "
            f"for cpu to run it here."
        )
    return Module(artifact, threads)
