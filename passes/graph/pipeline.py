"""The passes that every target runs before lowering."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from ...ir.graph.core import Graph
from .base import Pass, PassReport, Pipeline
from .canonicalise import Canonicalise
from .chain import Chain
from .cse import CommonSubexpressions
from .dce import DeadCode
from .decode_ahead import DecodeAhead
from .fold import Fold
from .fold_affine import FoldAffine
from .fuse import Fuse
from .integer_products import IntegerProducts
from .layout import ChannelsLast
from .plain_convolutions import PlainConvolutions
from .recognise import Recognise
from .reduce_precision import ReducePrecision
from .sink_transposes import SinkTransposes
from .store_weights import StoreWeights
from .zero_points import ZeroPoints


@dataclass(frozen=True)
class Options:
    """`passes` replaces the default pipeline (its text form). `channels_last` puts the spatial
    operators into that layout, makes integer products of those of dequantised operands, and lets
    them read 8-bit operands; `attention` makes one node of attention written out, and `chains` one
    of products and depthwise convolutions in a row, for targets with kernels for them; `low_bit`
    leaves weights of a few bits encoded, for targets whose products read them; `bf16` lets
    contractions take bf16 operands, but for those of the origins `keep`; `storage` is the type that
    constant weights of f32 are kept in ("" is theirs); `unsigned` makes signed left operands of
    8-bit products unsigned, for machines that multiply such with signed ones; `fuse` False leaves
    every node a kernel of its own."""

    passes: str = ""
    channels_last: bool = False
    attention: bool = False
    chains: bool = False
    low_bit: bool = False
    bf16: bool = False
    keep: tuple[str, ...] = ()
    storage: str = ""
    unsigned: bool = False
    fuse: bool = True


def default_pipeline(options: Options | None = None) -> Pipeline:
    """The pipeline for these options."""
    options = options or Options()
    if options.passes:
        return Pipeline.parse(options.passes)
    passes: list[Pass] = [DeadCode()]
    if options.channels_last:
        passes.append(IntegerProducts())
    passes += [Fold(), CommonSubexpressions(), Canonicalise(), Fold(), CommonSubexpressions(),
               Recognise(), FoldAffine()]
    if options.channels_last:
        passes += [ZeroPoints(options.unsigned), PlainConvolutions(), ChannelsLast()]
    passes += [SinkTransposes(), Canonicalise(), Fold(), CommonSubexpressions(), DeadCode(),
               Recognise(attention=options.attention), Canonicalise(interleave=True), DeadCode(),
               DecodeAhead(kernels=options.low_bit and options.fuse), DeadCode()]
    if options.bf16:
        passes += [ReducePrecision(options.keep), DeadCode()]
    if options.storage:
        passes += [StoreWeights(options.storage), DeadCode()]
    if options.fuse:
        passes.append(Fuse(prologue=options.bf16))
        if options.chains:
            passes.append(Chain())
    return Pipeline(tuple(passes))


def until(kind: type[Pass], options: Options) -> Pipeline:
    """The passes of the pipeline for these options that run before the first of a kind."""
    passes = default_pipeline(options).passes
    return Pipeline(tuple(takewhile(lambda p: not isinstance(p, kind), passes)))


def optimise(graph: Graph, options: Options | None = None) -> list[PassReport]:
    """Runs the default pipeline on a graph in place; returns what each pass did."""
    return default_pipeline(options).run(graph)
