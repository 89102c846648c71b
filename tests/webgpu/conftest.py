"""Tests that run shaders need wgpu and an adapter, such as Mesa's lavapipe; others run anywhere.

wgpu compiles shaders by naga. Chromium's compiler, Tint, judges in a stricter way when threads of a
workgroup reach a barrier together, so every shader that a test runs is shown to it as well.
"""

from collections.abc import Callable, Iterator

import pytest
from node_process import NodeProcess

from smelt.errors import TargetError
from smelt.runtime.webgpu import open_device


@pytest.fixture(scope="session")
def tint() -> Iterator[Callable[[str], list[str]]]:
    """tint(WGSL text): the errors that Tint finds."""
    process = NodeProcess("tint.mjs")
    known: dict[str, list[str]] = {}

    def errors(code: str) -> list[str]:
        if code not in known:
            known[code] = process.ask(code=code)
        return known[code]

    yield errors
    process.close()


@pytest.fixture(scope="session")
def adapter(tint: Callable[[str], list[str]]) -> Iterator[object]:
    """The device that models run on, after Tint took their shaders."""
    pytest.importorskip("wgpu")
    try:
        device = open_device()
    except TargetError as error:
        pytest.skip(str(error))
    compile_shader = device.create_shader_module

    def checked(*, code: str, label: str = "", **more: object) -> object:
        problems = tint(code)
        assert not problems, f"Tint refuses the shader {label}: {problems[0]}\n{code}"
        return compile_shader(label=label, code=code, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "create_shader_module", checked)
        yield device
