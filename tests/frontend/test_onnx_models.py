"""Trained models, imported and interpreted.

`data/NAME*.npz` hold inputs (in_*) and what ONNX Runtime gave.
"""

import numpy as np
import pytest
from trained_models import models_folder

from smelt.frontend.onnx.loader import load_model
from smelt.ir.graph.interpreter import interpret

NAMES = ["mnist8", "super_resolution", "ultraface_rfb320", "yolox_nano", "ppocr_v3_det",
         "silero_vad_16k_op15", "gtcrn_stream", "resnet8", "ad01_fp32", "shufflenet_v2_int8",
         "vit_track", "stories260k_kv"]

# The rank of values in this model depends on the length of its input.
SHAPES = {"silero_vad_16k_op15": {"input": ["batch", 576]}}

# f32 sums of some hundred terms in another order; relative to the largest output.
TOLERANCE = 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_models_agree_with_onnx_runtime(name: str):
    folder = models_folder()
    graph = load_model(folder / f"{name}.onnx", shapes=SHAPES.get(name))
    files = [p for p in sorted((folder / "data").glob(f"{name}*.npz"))
             if p.stem in (name, f"{name}_real")]
    assert files
    for file in files:
        data = np.load(file)
        inputs = {k[3:]: data[k] for k in data if k.startswith("in_")}
        wanted = [data[k] for k in data if k.startswith("out_")]
        for mine, theirs in zip(interpret(graph, inputs), wanted, strict=True):
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
            scale = np.abs(theirs.astype(np.float64)).max(initial=0.0)
            np.testing.assert_allclose(mine.astype(np.float64), theirs, rtol=0,
                                       atol=TOLERANCE * scale)
