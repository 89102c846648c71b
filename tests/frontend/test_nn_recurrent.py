"""LSTM, GRU and RNN against ONNX Runtime (tolerance 1e-5 on states of order 1)."""

import numpy as np
import pytest
from frontend.ort_peer import check, model, seeded

from smelt.errors import ModelError
from smelt.frontend.onnx.loader import load_model

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, WIDTH = 6, 3, 4


@pytest.fixture
def random(request):
    return seeded(request.node.name)


def layer(random, op: str, direction: str = "forward", *, hidden: int = 5, bias: bool = True,
          initial: bool = True, lengths: tuple[int, ...] = (), peepholes: bool = False,
          **attrs) -> None:
    """Compares a layer, its sizes of steps and batch known and named."""
    d, g = 2 if direction == "bidirectional" else 1, GATES[op]

    def normal(*shape: int) -> np.ndarray:
        # Small enough that states do not grow without bound under unbounded activations.
        return random.standard_normal(shape, np.float32) * np.float32(0.4)

    state = [normal(d, BATCH, hidden) if initial else None for _ in range(2)]
    inputs = [normal(STEPS, BATCH, WIDTH), normal(d, g * hidden, WIDTH),
              normal(d, g * hidden, hidden), normal(d, 2 * g * hidden) if bias else None,
              np.array(lengths, np.int32) if lengths else None, state[0]]
    if op == "LSTM":
        inputs += [state[1], normal(d, 3 * hidden) if peepholes else None]
    while inputs[-1] is None:
        inputs.pop()
    check(op, inputs, {"hidden_size": hidden, "direction": direction, **attrs},
          outputs=3 if op == "LSTM" else 2, opset=14, constants=[1, 2, 3, 7],
          names={0: "TB-", 4: "B", 5: "-B-", 6: "-B-"})


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_directions(random, op, direction):
    layer(random, op, direction)
    layer(random, op, direction, lengths=(6, 2, 4))
    layer(random, op, direction, lengths=(0, 2, 6), bias=False, initial=False)


@pytest.mark.parametrize("op", GATES)
def test_sizes_and_clipping(random, op):
    layer(random, op, hidden=20)
    layer(random, op, clip=0.3)


def test_lstm_options(random):
    layer(random, "LSTM", "bidirectional", peepholes=True, clip=0.4)
    layer(random, "LSTM", input_forget=1, peepholes=True)
    layer(random, "LSTM", "bidirectional",
          activations=["HardSigmoid", "LeakyRelu", "Affine", "Sigmoid", "Softsign", "ScaledTanh"],
          activation_alpha=[0.3, 0.1, 0.9, 0.7], activation_beta=[0.4, 0.1, 0.8])


def test_gru_options(random):
    layer(random, "GRU", "bidirectional", linear_before_reset=1, lengths=(6, 2, 4))
    layer(random, "GRU", linear_before_reset=1, bias=False)
    layer(random, "GRU", activations=["HardSigmoid", "Elu"], activation_alpha=[0.5, 0.6])
    layer(random, "GRU", activations=["Sigmoid", "Softplus"])


@pytest.mark.parametrize("name", ["Relu", "Softsign"])
def test_rnn_activations(random, name):
    layer(random, "RNN", activations=[name])
    layer(random, "RNN", activations=["ThresholdedRelu"], activation_alpha=[0.2])


def test_refuses(random):
    def load(**attrs):
        normal = random.standard_normal
        inputs = [normal((6, 3, 4), np.float32), normal((1, 20, 4), np.float32),
                  normal((1, 20, 5), np.float32)]
        return load_model(model("LSTM", inputs, {"hidden_size": 5, **attrs}, opset=14))

    with pytest.raises(ModelError, match="direction"):
        load(direction="sideways")
    with pytest.raises(ModelError, match="activation"):
        load(activations=["Sigmoid", "Tanh", "Nonsense"])
    with pytest.raises(ModelError, match="directions"):
        load(direction="bidirectional")
