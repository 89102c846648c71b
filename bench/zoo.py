"""Models of well-known shapes with random weights, exported from transformers' configurations.

    python bench/zoo.py FOLDER [--only resnet18,bert_base]

Seeds are fixed, so that the same versions of torch and transformers give the same models. Needs
`pip install 'smelt[zoo]'`. Weights are random but behave: batch norms get statistics of the data.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

IMAGE = (1, 3, 224, 224)
TOKENS = 128


@dataclass(frozen=True)
class Zoo:
    """One model: `make` gives the torch module, `inputs` its example inputs by name."""

    make: Callable[[], Any]
    inputs: Callable[[np.random.Generator], dict[str, np.ndarray]]


def images(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"pixels": rng.standard_normal(IMAGE, np.float32)}


def sentence(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"tokens": rng.integers(1, 30000, (1, TOKENS)),
            "mask": np.ones((1, TOKENS), np.int64)}


def sound(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"mel": rng.standard_normal((1, 80, 3000), np.float32)}


def prompt(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"tokens": rng.integers(1, 30000, (1, TOKENS))}


def one_token(rng: np.random.Generator) -> dict[str, np.ndarray]:
    past = {f"past_{kind}{layer}": rng.standard_normal((1, 12, TOKENS, 64), np.float32)
            for layer in range(12) for kind in "kv"}
    return {"tokens": rng.integers(1, 30000, (1, 1)), **past}


def _classifier(kind: str, **settings: Any) -> Callable[[], Any]:
    """An image classifier of transformers as a module from pixels to logits."""
    def make() -> Any:
        import torch
        import transformers

        config = getattr(transformers, f"{kind}Config")(num_labels=1000, **settings)
        model = getattr(transformers, f"{kind}ForImageClassification")(config)

        class Classifier(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, pixels):
                return self.model(pixels).logits

        return Classifier()
    return make


def _bert(**settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import torch
        import transformers

        class Encoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = transformers.BertModel(transformers.BertConfig(**settings))

            def forward(self, tokens, mask):
                found = self.model(tokens, attention_mask=mask)
                return found.last_hidden_state, found.pooler_output

        return Encoder()
    return make


def _whisper() -> Any:
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = WhisperEncoder(WhisperConfig())  # the defaults are whisper-tiny

        def forward(self, mel):
            return self.model(mel).last_hidden_state

    return Encoder()


def _llama(past: bool) -> Callable[[], Any]:
    """A decoder of 110 million parameters (the shape of llama2.c's largest)."""
    def make() -> Any:
        import torch
        from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                             num_attention_heads=12, vocab_size=32000,
                             max_position_embeddings=1024, tie_word_embeddings=True)

        class Decoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = LlamaForCausalLM(config)

            def forward(self, tokens, *caches):
                cache = DynamicCache(config=config)
                for layer in range(len(caches) // 2):
                    cache.update(caches[2 * layer], caches[2 * layer + 1], layer)
                found = self.model(tokens, cache=cache, use_cache=True)
                new = [t for layer in cache.layers for t in (layer.keys, layer.values)]
                return (found.logits, *new)

        return Decoder()
    return make


MODELS: dict[str, Zoo] = {
    "resnet18": Zoo(_classifier("ResNet", depths=[2, 2, 2, 2], layer_type="basic",
                                hidden_sizes=[64, 128, 256, 512]), images),
    "resnet50": Zoo(_classifier("ResNet"), images),
    "mobilenet_v2": Zoo(_classifier("MobileNetV2"), images),
    "efficientnet_b0": Zoo(_classifier("EfficientNet", image_size=224, width_coefficient=1.0,
                                       depth_coefficient=1.0, hidden_dim=1280), images),
    "convnext_tiny": Zoo(_classifier("ConvNext"), images),
    "vit_s16": Zoo(_classifier("ViT", hidden_size=384, num_attention_heads=6,
                               intermediate_size=1536), images),
    "minilm_l6": Zoo(_bert(hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                           intermediate_size=1536), sentence),
    "bert_base": Zoo(_bert(), sentence),
    "whisper_tiny": Zoo(_whisper, sound),
    "llama_110m_prefill": Zoo(_llama(past=False), prompt),
    "llama_110m_decode": Zoo(_llama(past=True), one_token),
}


def build(name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The torch module in evaluation mode, and inputs for it."""
    import torch

    entry = MODELS[name]
    torch.manual_seed(0)
    module = entry.make().eval()
    inputs = entry.inputs(np.random.default_rng(0))
    calibrate(module, inputs)
    return module, inputs


def calibrate(module: Any, inputs: dict[str, np.ndarray]) -> None:
    """Where there are batch norms, draws weights as for training (He et al. 2015) and gives the
    norms the statistics of the inputs, so that activations keep a usual size."""
    import torch

    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.reset_parameters()
        norm.momentum = 1.0
        norm.train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight)
    with torch.no_grad():
        module(*map(torch.from_numpy, inputs.values()))
    module.eval()


def export(name: str, folder: Path) -> Path:
    """Writes `folder`/name.onnx and name.npz (inputs as in_*, torch's results as out_*)."""
    import torch

    module, inputs = build(name)
    tensors = tuple(map(torch.from_numpy, inputs.values()))
    with torch.no_grad():
        outputs = module(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    path = folder / f"{name}.onnx"
    partial = folder / f"{name}.onnx.partial"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, tensors, dynamo=True, optimize=True, verbose=False,
                                    input_names=list(inputs))
    assert program is not None
    program.save(partial)
    arrays = {f"in_{k}": a for k, a in inputs.items()}
    arrays |= {f"out_{k}": t.numpy() for k, t in enumerate(outputs)}
    np.savez(folder / f"{name}.npz", **arrays)
    os.replace(partial, path)
    return path


def export_all(folder: Path, names: list[str]) -> list[tuple[str, Path, dict[str, np.ndarray]]]:
    """(name, file, inputs) of the models, exported where they are not in `folder` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in track(names, "exporting", console=Console(stderr=True)):
        path = folder / f"{name}.onnx"
        if not path.exists():
            export(name, folder)
        with np.load(folder / f"{name}.npz") as arrays:
            found.append((name, path, {k[3:]: arrays[k] for k in arrays.files
                                       if k.startswith("in_")}))
    return found


def main(
    folder: Annotated[Path, typer.Argument(help="Where models go.")],
    only: Annotated[str, typer.Option(help="Names of models; all when empty.")] = "",
) -> None:
    """Exports the models that are not in the folder yet."""
    names = [n for n in only.split(",") if n] or list(MODELS)
    for _, path, _ in export_all(folder, names):
        print(path, f"{path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    typer.run(main)
