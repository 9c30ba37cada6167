"""A model is called with any inputs, and its outputs are read, whatever their form."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from bncheck.errors import ModelError
from bncheck.evaluation.models.calls import call, outputs_of, predictions_of, scores_of


class ModelOutput(OrderedDict[str, Any]):
    """Like the outputs of transformers: a dict by name whose values are attributes, too."""


@dataclass
class Fields:
    hidden: torch.Tensor
    scores: torch.Tensor


Named = namedtuple("Named", ["logits", "aux_logits"])
ONE, TWO, THREE = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0, 0.0]]), torch.zeros(1, 2, 2, 2)
COUNTS = torch.tensor([4])
OUTPUTS: dict[str, tuple[Any, list[torch.Tensor], list[int] | None]] = {
    "a tensor": (ONE, [ONE], [1]),
    "a tuple": ((THREE, COUNTS, TWO, ONE), [THREE, TWO, ONE], [0]),
    "a dict": ({"b": ONE, "a": [THREE, TWO]}, [THREE, TWO, ONE], [0]),
    "transformers": (ModelOutput(hidden=TWO, logits=ONE, loss=None), [TWO, ONE], [1]),
    "torchvision": (Named(TWO, ONE), [TWO, ONE], [0]),
    "a dataclass": (Fields(THREE, ONE), [THREE, ONE], [1]),
    "boxes": ([{"boxes": THREE, "labels": COUNTS}], [THREE], None),
    "one score": (torch.zeros(4, 1), [torch.zeros(4, 1)], None),
    "nothing": (None, [], None),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_any_form_are_read(name: str) -> None:
    value, tensors, classes = OUTPUTS[name]
    assert [tensor.tolist() for tensor in outputs_of(value)] == [tensor.tolist() for tensor in tensors]
    predicted = predictions_of(value)
    assert (None if predicted is None else predicted.tolist()) == classes
    assert (scores_of(value) is None) == (classes is None)


def test_an_output_that_holds_itself_ends() -> None:
    value: list[Any] = [ONE]
    value.append(value)
    assert len(outputs_of(value)) > 1


class Sum(nn.Module):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        print("called")
        return one + other


def test_inputs_are_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    inputs: list[Any] = [(ONE, ONE), [ONE, ONE], {"other": ONE, "one": ONE}]
    assert [call(Sum(), given).tolist() for given in inputs] == [[[2.0, 4.0]]] * 3
    assert capsys.readouterr().out == ""
    with pytest.raises(ModelError, match=r"fails on a batch of \(1, 2\) and \(1, 2\) and \(1, 2\): TypeError"):
        call(Sum(), (ONE, ONE, ONE))
    with pytest.raises(ModelError, match=r"fails on a batch of \(1, 2\): TypeError: .* missing 1 required"):
        call(Sum(), ONE)


def test_interruption_is_not_an_error_of_the_model() -> None:
    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(Interrupted(), ONE)
