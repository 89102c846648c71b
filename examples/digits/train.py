"""Trains the digits example: a small convolutional network on scikit-learn's 8x8 digits.

    python examples/digits/train.py

Writes digits.onnx and digits_test.npz next to this file. Needs torch, scikit-learn and ONNX Runtime
(`pip install "smelt[examples]"`). Batch normalisation stays a node of its own, so that a compiler
has something to fold.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
SEED = 7
EPOCHS = 60
WANTED_ACCURACY = 0.98


class Digits(nn.Module):
    """[N, 1, 8, 8] pixels in 0..1 -> [N, 10] logits; 22,618 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * 2 * 2, 128)
        self.output = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = nn.functional.dropout(torch.relu(self.hidden(x.flatten(1))), 0.3, self.training)
        return self.output(x)


def dataset() -> list[np.ndarray]:
    """Training images, test images, training labels, test labels: 80/20, stratified."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    return train_test_split(
        images, digits.target, test_size=0.2, random_state=SEED, stratify=digits.target
    )


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Moves every image by up to one pixel each way: the data set is small."""
    dy, dx = torch.randint(-1, 2, (2, len(images)))
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    rows = (torch.arange(8) + 1 - dy[:, None])[:, :, None]
    columns = (torch.arange(8) + 1 - dx[:, None])[:, None, :]
    return padded[torch.arange(len(images))[:, None, None], 0, rows, columns][:, None]


def train(images: np.ndarray, labels: np.ndarray) -> Digits:
    torch.manual_seed(SEED)
    model = Digits()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    batches = -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=EPOCHS * batches)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(shifted(x[batch])), y[batch])
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3}: loss {total / len(x):.4f}")
    return model.eval()


def to_onnx(model: Digits) -> onnx.ModelProto:
    """The trained network in opset 17, with the batch size `N` left open."""
    weights = {
        name: value.numpy()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    norm = [f"norm1.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "conv1.weight"], ["c1"], **conv),
        node("BatchNormalization", ["c1", *norm], ["n1"], epsilon=model.norm1.eps),
        node("Relu", ["n1"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], **pool),
        node("Conv", ["p1", "conv2.weight", "conv2.bias"], ["c2"], **conv),
        node("Relu", ["c2"], ["r2"]),
        node("MaxPool", ["r2"], ["p2"], **pool),
        node("Flatten", ["p2"], ["flat"], axis=1),
        node("Gemm", ["flat", "hidden.weight", "hidden.bias"], ["h"], transB=1),
        node("Relu", ["h"], ["r3"]),
        node("Gemm", ["r3", "output.weight", "output.bias"], ["logits"], transB=1),
        node("Softmax", ["logits"], ["probability"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    # IR version 8 belongs to opset 17; the helper's default would shut out older runtimes.
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def main() -> None:
    train_images, test_images, train_labels, test_labels = dataset()
    model = train(train_images, train_labels)
    path = HERE / "digits.onnx"
    onnx.save(to_onnx(model), path)
    np.savez_compressed(
        HERE / "digits_test.npz", images=test_images, labels=test_labels.astype(np.int64)
    )

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (probability,) = session.run(None, {"image": test_images})
    with torch.no_grad():
        expected = torch.softmax(model(torch.from_numpy(test_images)), 1).numpy()
    difference = float(np.abs(probability - expected).max())
    accuracy = float((probability.argmax(1) == test_labels).mean())
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, test accuracy {accuracy:.2%} on {len(test_labels)} images")
    print(f"largest difference between ONNX Runtime and torch: {difference:.1e}")
    if accuracy < WANTED_ACCURACY or difference > 1e-5:
        raise SystemExit("the model is not good enough to be published")


if __name__ == "__main__":
    main()
