"""Tests that run shaders need wgpu and an adapter, such as Mesa's lavapipe; others run anywhere."""

import pytest

from smelt.errors import TargetError
from smelt.runtime.webgpu import open_device


@pytest.fixture(scope="session")
def adapter():
    """The device that models run on."""
    pytest.importorskip("wgpu")
    try:
        return open_device()
    except TargetError as error:
        pytest.skip(str(error))
