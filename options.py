"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .compilation import PRECISIONS

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file, or a .pt2 file of "
                                       "torch.export.")]
Either = Annotated[Path, typer.Argument(metavar="MODEL", help="A model or a compiled model.")]
Target = Annotated[str, typer.Option("--target", "-t", help="What to compile for; "
                                     "`smelt targets` lists them.")]
Shapes = Annotated[list[str] | None, typer.Option(
    "--shape", metavar="NAME=1x3xHxW", help="Another shape of an input; names are open sizes.")]
Dims = Annotated[list[str] | None, typer.Option(
    "--dim", metavar="N=1", help="A number for a named size.")]
Seed = Annotated[int, typer.Option("--seed", help="Of random inputs.")]
Inputs = Annotated[list[str] | None, typer.Option(
    "--input", "-i", metavar="[NAME=]FILE", help="npy, npz, json or a picture.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to run on.")]
Optimize = Annotated[int, typer.Option("--optimize", "-O", min=0, max=3,
                                       help="The C compiler's level.")]
Precision = Annotated[str, typer.Option(
    "--precision", metavar="|".join(PRECISIONS), help="What products of f32 matrices and "
    "convolutions with constant weights, and those of attention, take; sums stay f32. With storage "
    "only the weights are rounded, to take half the memory: they are widened as they are read.")]
Accuracy = Annotated[float | None, typer.Option(
    "--accuracy", min=0, help="The least cosine to f32 of any output, on random inputs with bf16 "
    "(0.999 by default; 0 measures nothing), on the data with int8 (none by default): products "
    "that it takes more bits for are found and keep them.")]
Sort = Annotated[str, typer.Option(
    "--sort", metavar="time|lost|program", help="What profiled kernels are sorted by: their time, "
    "the time above their limit, or the order they run in.")]
