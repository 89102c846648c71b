"""Models compiled for CUDA in Python."""

from __future__ import annotations

from pathlib import Path

from ..artifact import Artifact
from ..module import Module


class CudaModule(Module):
    """A model whose kernels run on a GPU, or emulated on the CPU: the interface of `Module`, which
    its library shares. Arrays are copied to the device and back in each call; states are kept by
    the host.

    `path` is an artifact for cuda:sm_80 and so on, or for cuda:emulated. Raises ArtifactError, and
    TargetError when there is no driver or the device does not run the model's code.
    """

    def __init__(self, path: str | Path | Artifact, verify: bool | None = None):
        super().__init__(path, threads=1, verify=verify)

    @property
    def device(self) -> str:
        """What the driver calls the hardware."""
        return self._c.smelt_model_device(self._library.model).decode(errors="replace")
