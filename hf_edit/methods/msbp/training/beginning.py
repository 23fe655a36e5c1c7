"""Where training begins: how large the steps are before anything is learned."""

from __future__ import annotations

from collections.abc import Sequence

from hf_edit.errors import ComputationError
from hf_edit.methods.msbp.probe import Probe
from hf_edit.methods.msbp.stream import Step, Stream
from hf_edit.methods.msbp.training.config import HypernetConfig
from hf_edit.methods.training.texts import Text


def untrained(stream: Stream, texts: Sequence[Text], config: HypernetConfig, probe: Probe) -> list[float]:
    """eta of each step, and the batch learned with it in `stream`, as without a network.

    eta is given, or what the step takes at use: the smallest that takes away its share of the loss, and for the last
    step the smallest that reaches the target loss. A step that is refused gets the mean of the others.

    Raises:
        ComputationError: all are refused.
    """
    sizes: list[float] = []
    for number in range(config.steps):
        captured = stream.captured(texts)
        proposals = stream.proposals(number, captured)
        last = number == config.steps - 1
        sizes.append(config.step_size or probe.step_size(texts, captured, proposals, last=last))
        stream.take(Step(captured, proposals, sizes[-1]))
    taken = [size for size in sizes if size]
    if not taken:
        raise ComputationError(
            "No step size lowers the loss of the first batch.", "Set step_size, or train on other edits or layers."
        )
    return [size or sum(taken) / len(taken) for size in sizes]
