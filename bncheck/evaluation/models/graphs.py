"""Models that are graphs: TorchScript archives and exported programs, which bring their own code."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bncheck.checkpoints import read_checkpoint
from bncheck.errors import BncheckError, UsageError
from bncheck.evaluation.models.devices import prepared
from bncheck.evaluation.models.exported import fixed_batch_size, input_tensors
from bncheck.evaluation.models.foreign import foreign_code
from bncheck.evaluation.models.runnable import Runnable
from bncheck.evaluation.statistics import batchnorm_layers

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

    from bncheck.checkpoints.sources import Source


def described(runnable: Runnable, source: Source) -> Runnable:
    """The same with what the reader finds in the graph. One that it cannot read runs all the same."""
    try:
        return replace(runnable, described=read_checkpoint(source).layers)
    except BncheckError as error:
        said = f"eps, momentum and mode of its layers are not known: {error.message}"
        return replace(runnable, notes=(*runnable.notes, said))


def script(path: Path, device: torch.device, dtype: torch.dtype | None) -> Runnable:
    """The module of a TorchScript archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is old
        with foreign_code(
            f"{path} cannot be loaded", "Script or trace it again with the torch that is installed here."
        ):
            module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    made, input_dtype = prepared(module, device, dtype, str(path))
    if dtype and input_dtype is None:
        raise UsageError(f"{path} is a frozen graph: its numbers cannot be cast to {dtype}", "Leave out --dtype.")
    return Runnable(
        module=made,
        source=str(path),
        artefact="torchscript",
        device=device,
        dtype=input_dtype,
        modes_are_stored=True,
        can_set_mode=reads_mode(module),
        can_hook=False,
        layers=batchnorm_layers(made),
    )


def reads_mode(module: Any) -> bool:
    """Whether the graph of a ScriptModule asks for `training`: a traced or frozen one has its modes as constants.

    A call of batch_norm with a constant mode is one that eval() does not change, except where it has no running
    statistics: weights are standardised like that.
    """
    graph = module.inlined_graph
    asks = any(node.s("name") == "training" for node in graph.findAllNodes("prim::GetAttr"))
    baked = any(
        node.inputsAt(5).node().kind() == "prim::Constant" and node.inputsAt(3).node().kind() == "prim::GetAttr"
        for node in graph.findAllNodes("aten::batch_norm")
    )
    return asks and not baked


def exported(path: Path, program: ExportedProgram, device: torch.device, dtype: torch.dtype | None) -> Runnable:
    """The module of an exported program, whose operators have their modes as constants."""
    with foreign_code(f"{path} cannot be run", "Export it again with the torch that is installed here."):
        module = program.module()
    made, own_dtype = prepared(module, device, dtype, str(path))
    wanted = next((tensor.dtype for tensor in input_tensors(program) if tensor.is_floating_point()), own_dtype)
    return Runnable(
        module=made,
        source=str(path),
        artefact="exported",
        device=device,
        dtype=dtype or wanted,
        modes_are_stored=True,
        can_set_mode=False,
        can_hook=False,
        fixed_batch_size=fixed_batch_size(program),
        layers=batchnorm_layers(made),
        program=program,
    )
