"""How far each layer is folded, for a number of cycles from frame to frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...errors import TargetError
from .assembly import converter_cycles
from .network import Choice, Layer, Network

Cost = Callable[[Layer, Choice], float]
"""What a folded layer takes of a device, as a share of all there is."""
UNEQUAL = 1.02
"""How much dearer a layer counts whose words are not as wide as those that it is given."""


class TooSlow(TargetError):
    """A layer that is too slow however far it is unfolded."""


def fold(network: Network, interval: int, cost: Cost) -> dict[Layer, Choice]:
    """The cheapest choices with which no layer takes more than `interval` cycles for a frame.
    Raises TooSlow naming the layer for which there is none."""
    chosen: dict[Layer, Choice] = {}
    for layer in network.layers:
        given = [chosen[w.source].output if w.source is not None else 0 for w in layer.inputs]

        def fits(choice: Choice, layer=layer, given=given) -> bool:
            if layer.as_given and given[0] not in (0, choice.inputs[0]):
                return False
            return all(not a or converter_cycles(w.elements, (a, b)) <= interval
                       for w, a, b in zip(layer.inputs, given, choice.inputs, strict=True))

        def price(choice: Choice, layer=layer, given=given) -> tuple:
            equal = all(a in (0, b) for a, b in zip(given, choice.inputs, strict=True))
            return cost(layer, choice) * (1 if equal else UNEQUAL), choice.cycles, choice.inputs

        quick = [c for c in layer.choices() if c.cycles <= interval]
        if not quick:
            least = min(c.cycles for c in layer.choices())
            raise TooSlow(f"{layer.origin}: the {layer.kind.replace('_', ' ')} takes at least "
                          f"{least} cycles for a frame, and {interval} are asked for: ask for "
                          f"fewer frames per second, or a faster clock")
        if layer.as_given:
            quick = [c for c in quick if fits(c)]
        chosen[layer] = min([c for c in quick if fits(c)] or quick, key=price)
    return chosen


def intervals(network: Network) -> list[int]:
    """The cycles from frame to frame that some folding has, ascending: those of the layers, from
    those of the layer that is slowest at its quickest."""
    every = [[c.cycles for c in layer.choices()] for layer in network.layers]
    least = max(min(cycles) for cycles in every)
    return sorted({n for cycles in every for n in cycles if n >= least} | {least})


def quickest(candidates: Iterable[int], accepts: Callable[[int], bool]) -> int | None:
    """The least interval that is accepted, where larger ones are too; None if none is."""
    found, rest = None, list(candidates)
    low, high = 0, len(rest)
    while low < high:
        middle = (low + high) // 2
        if accepts(rest[middle]):
            found, high = rest[middle], middle
        else:
            low = middle + 1
    return found
