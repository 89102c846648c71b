"""Compiled CPU models in Python: a thin layer over the C interface."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import config
from ..errors import ArtifactError, InputError, UsageError
from . import abi, arrays
from .artifact import Artifact, open_artifact
from .dlpack import from_dlpack
from .library import Library, TensorSpec, decode, encode


def _close_session(library: Library, session: int) -> None:
    # The argument keeps the library loaded until here, in whatever order a cycle is collected.
    with library.counting:
        library.c.smelt_session_close(session)


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


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class Session:
    """Runs a model. Sessions of one model share its weights and may run at the same time.

    Calls on one session from several threads run one after another.
    """

    def __init__(self, library: Library, threads: int | None):
        self._library = library
        self._c = c = library.c
        handle = ctypes.c_void_p()
        count = config.num_threads() if threads is None else _thread_count(threads)
        with library.counting:
            abi.check(c, c.smelt_session_open(library.model, count, ctypes.byref(handle)))
        assert handle.value
        self._handle: int = handle.value
        self._close = weakref.finalize(self, _close_session, library, self._handle)
        self._close.atexit = False
        self._lock = threading.Lock()
        self._run_arrays = c.smelt_run_arrays
        self._position = {spec.name: i for i, spec in enumerate(library.inputs)}
        self._links: dict[str, str] = {}
        self._outputs = (abi.Tensor * max(len(library.outputs), 1))()
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
        self._names_in = [inputs[i].name for i in self._visible_in]
        self._names_out = [outputs[i].name for i in self._visible_out]
        self._dtypes_out = [abi.numpy_dtype(outputs[i].dtype) for i in self._visible_out]
        self._made: list[Callable[[], np.ndarray]] = []
        self._unmade = list(range(len(self._visible_out)))
        self._call = self._prepared()

    def _prepared(self) -> int | None:
        """The address of what a call on plain arrays hands to C; None where C cannot read them."""
        layout = arrays.layout()
        if layout is None:
            return None
        inputs = (abi.Tensor * max(len(self._library.inputs), 1))()
        given, returned = self._visible_in, self._visible_out
        elements = [id(abi.numpy_dtype(self._library.inputs[i].dtype)) for i in given]
        call = arrays.Call(
            ctypes.addressof(layout),
            self._handle,
            ctypes.addressof(inputs),
            ctypes.addressof(self._outputs),
            (ctypes.c_int32 * len(given))(*given),
            (ctypes.c_int32 * len(returned))(*returned),
            (ctypes.c_void_p * len(given))(*elements),
            len(given),
            len(returned),
        )
        self._call_memory = layout, inputs, call  # to live as long as the address
        return ctypes.addressof(call)

    # --- running ----------------------------------------------------------------------------

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Runs the model on arrays, by position or by name.

        Arrays are numpy's or have `__dlpack__`; contiguous ones are read in place. Returns one
        array for one output, else a tuple. Raises InputError for inputs that do not fit.
        """
        if named or len(args) != len(self._names_in):
            results = self._run_named(args, named)
        else:
            results = self._run(args)
        return results[0] if len(results) == 1 else results

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs the model on arrays by name; returns its outputs by name."""
        try:
            args = tuple([inputs[name] for name in self._names_in])
        except KeyError:
            args = None
        if args is None or len(inputs) != len(args):
            results = self._run_named((), inputs)
        else:
            results = self._run(args)
        return dict(zip(self._names_out, results))

    def _run_named(
        self, args: Sequence[Any], named: Mapping[str, Any]
    ) -> tuple[np.ndarray, ...]:
        values = self._by_name(args, named)
        if len(values) == len(self._visible_in):
            return self._run(tuple([values[i] for i in self._visible_in]))
        with self._lock:  # a value for a state
            return self._run_general(values)

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

    def _run(self, args: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
        with self._lock:
            results = self._run_plain(args)
            if results is not None:
                return results
            args = tuple([self._plain(i, value) for i, value in zip(self._visible_in, args)])
            results = self._run_plain(args)
            if results is not None:
                return results
            return self._run_general(dict(zip(self._visible_in, args)))

    def _run_plain(self, args: tuple[Any, ...]) -> tuple[np.ndarray, ...] | None:
        """One call of C on contiguous arrays of the inputs' own dtypes; None for any other values.

        Arrays for outputs are made on the guess that sizes are those of the last run.
        """
        code = arrays.OTHER_ARRAYS
        for _ in range(2):
            call = self._call
            if call is None:
                return None
            results = tuple([make() for make in self._made])
            code = self._run_arrays(call, id(args), id(results))
            if not code:
                return self._with_copies(results) if self._unmade else results
            if code != arrays.OTHER_OUTPUTS:
                break
            self._read_shapes()
        if code > 0:
            abi.check(self._c, code)
        return None

    def _run_general(self, values: dict[int, Any]) -> tuple[np.ndarray, ...]:
        """A run on values by input position, states among them."""
        c, handle = self._c, self._open()
        specs = self._library.inputs
        given = {i: self._plain(i, value) for i, value in values.items()}
        inputs = (abi.Tensor * max(len(specs), 1))()
        for i, array in given.items():
            inputs[i] = _described(array, specs[i])
        abi.check(c, c.smelt_set_shapes(handle, inputs, len(specs)))
        self._read_shapes()
        results = tuple([make() for make in self._made])
        outputs = self._outputs
        ctypes.memset(outputs, 0, ctypes.sizeof(outputs))
        made = [i for k, i in enumerate(self._visible_out) if k not in self._unmade]
        for i, array in zip(made, results):
            outputs[i] = _described(array, self._library.outputs[i])
        abi.check(c, c.smelt_run(handle, inputs, len(specs), outputs, len(self._library.outputs)))
        return self._with_copies(results)

    def _plain(self, index: int, value: Any) -> np.ndarray:
        """The value as a contiguous array in native byte order; of the input's dtype if it is equal
        to it. Raises InputError for what is no element type."""
        spec = self._library.inputs[index]
        array = as_array(value, spec)
        dtype = abi.numpy_dtype(spec.dtype)
        if array.dtype != dtype and abi.dtype_name(array.dtype) is None:
            raise InputError(
                f'Input "{spec.name}" must be {spec.dtype}, but is an array of {array.dtype}.'
            )
        native = array.dtype.newbyteorder("=")
        if not array.flags.c_contiguous or array.dtype != native:
            array = np.array(array, native, order="C")
        # numpy has several objects of one dtype, such as those of int64 and long long.
        return array.view(dtype) if array.dtype == dtype and array.dtype is not dtype else array

    def _read_shapes(self) -> None:
        """What arrays the next run makes: those of outputs whose shapes are known before it."""
        self._made, self._unmade = [], []
        for k, i in enumerate(self._visible_out):
            rank = len(self._library.outputs[i].shape)
            shape = tuple(self._c.smelt_output_shape(self._handle, i)[:rank])
            if min(shape, default=0) < 0:
                self._unmade.append(k)
            else:
                self._made.append(partial(np.empty, shape, self._dtypes_out[k]))

    def _with_copies(self, results: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """All results: those that a run left in the session's memory become arrays of their own."""
        whole = list(results)
        for k in self._unmade:
            i = self._visible_out[k]
            whole.insert(k, _copied(self._outputs[i], self._library.outputs[i].dtype))
        return tuple(whole)

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
            array = start = None
            if initial is not None and input in self._position:
                index = self._position[input]
                array = self._plain(index, initial)
                start = ctypes.byref(_described(array, self._library.inputs[index]))
            abi.check(c, c.smelt_link_state(self._handle, encode(output), encode(input), start))
            del array  # copied
            self._links[input] = output
            self._set_visible()

    def unlink_state(self, input: str) -> None:
        """Ends the link of an input."""
        with self._lock:
            abi.check(self._c, self._c.smelt_unlink_state(self._open(), encode(input)))
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
            code = self._c.smelt_state(self._open(), encode(input), ctypes.byref(tensor))
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
            self._call = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _described(array: np.ndarray, spec: TensorSpec) -> abi.Tensor:
    """The array for C; lives no longer than the array."""
    same = array.dtype == abi.numpy_dtype(spec.dtype)
    name = spec.dtype if same else abi.dtype_name(array.dtype)
    assert name is not None
    shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
    return abi.Tensor(_address(array), shape, abi.DTYPES[name], array.ndim)


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
        try:
            library = Library(artifact)
        except BaseException:
            if artifact is not path:
                artifact.close()
            raise
        super().__init__(library, threads)
        self._link_declared()

    @property
    def manifest(self) -> dict[str, Any]:
        """The artifact's manifest.json."""
        return self._artifact.manifest

    @property
    def name(self) -> str:
        return decode(self._c.smelt_model_name(self._library.model))

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
    if artifact.manifest.get("target", "") == "webgpu":
        from .webgpu import WebGpuModule

        return WebGpuModule(artifact)
    try:
        if artifact.manifest.get("target", "").startswith("cuda:"):
            from .cuda.module import CudaModule

            return CudaModule(artifact)
        return Module(artifact, threads)
    except BaseException:
        artifact.close()
        raise
