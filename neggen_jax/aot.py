"""Compiles programs for chips that are not here.

With libtpu it is the compiler of TPUs that does, for the pod itself;
without, XLA compiles for as many virtual devices of the CPU, whose memory and
traffic only resemble a TPU's.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import pathlib
import re
import tempfile
from typing import Any

import jax
from jax.experimental import topologies

from neggen_jax import hlo
from neggen_jax.errors import InputError
from neggen_jax.roofline import Topology


@dataclasses.dataclass
class Phase:
    """One program, for one device.

    Attributes:
      counts: what it does, once; of a dispatch, one step.
      temporaries: bytes that it needs beside arguments and results.
      results: bytes of results that are not written over arguments.
      code: bytes of the program itself.
      largest: its largest arrays; see `hlo.Program.largest`.
      refused: what the compiler said if it does not fit; "" if it does.
      compiler: XLA's own "flops" and "bytes accessed", loops counted once.
    """

    counts: hlo.Counts
    temporaries: int
    results: int
    code: int
    largest: list[tuple[int, int, str, str]]
    refused: str = ""
    compiler: dict[str, float] = dataclasses.field(default_factory=dict)


def have_libtpu() -> bool:
    """Whether the compiler for TPUs is installed."""
    return importlib.util.find_spec("libtpu") is not None


def environment(chips: int) -> None:
    """Sets what must be set before JAX finds its devices.

    Args:
      chips: that programs are compiled for: without libtpu, there must be as
        many virtual devices.
    """
    quiet = {
        "JAX_PLATFORMS": "cpu",
        # There is no TPU here, so nobody is to look for one.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Another plan may be made beside this one.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # Kernels of this processor say nothing of the pod's.
        "NEGGEN_NATIVE": "0",
    }
    os.environ.update(quiet)
    if not have_libtpu():
        flag = f"--xla_force_host_platform_device_count={chips}"
        known = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{known} {flag}".strip()


def devices(topology: Topology) -> list[Any]:
    """The pod's devices, which nothing can run on; or as many virtual ones.

    Raises:
      InputError: if the compiler knows no such pod, or there are too few
        virtual devices.
    """
    if not have_libtpu():
        here = jax.devices("cpu")
        if len(here) < topology.chips:
            raise InputError(
                "There are fewer virtual devices than chips.",
                where=f"--topology={topology}",
                expected=topology.chips,
                found=len(here),
                fix="install requirements-tpu.txt",
            )
        return here[: topology.chips]
    # What is kept for devices that are not there could not be loaded.
    jax.config.update("jax_enable_compilation_cache", False)
    # A host holds four chips, or as few as there are.
    sides = [min(2, side) for side in topology.shape]
    bounds = tuple([*sides, 1] if len(sides) == 2 else [*sides[:2], 1])
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=str(topology),
            chips_per_host_bounds=bounds,
        )
    except Exception as error:
        raise InputError(
            "The compiler knows no such pod.",
            where=f"--topology={topology}",
            found=str(error).splitlines()[0],
        ) from error
    return list(found.devices)


class Compiler:
    """Compiles programs, and learns how arrays are padded on the chip."""

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}
        self._held: dict[tuple[str, tuple[int, ...]], int] = {}

    def add(self, name: str, jitted: Any, *arguments: Any) -> Any:
        """Compiles a program; returns its results' shardings, if it fits."""
        device = jax.tree.leaves(arguments)[0].sharding.mesh.devices.flat[0]
        lowered = jitted.trace(*arguments).lower(
            lowering_platforms=(device.platform,)
        )
        compiled, refused, memory = None, "", None
        with tempfile.TemporaryDirectory() as folder:
            # CPUs refuse nothing, and what is dumped is never cached.
            dump: dict[str, Any] = {
                "xla_dump_to": folder,
                "xla_dump_hlo_as_text": True,
            }
            try:
                compiled = lowered.compile(
                    dump if device.platform == "tpu" else None
                )
            except jax.errors.JaxRuntimeError as error:
                refused = str(error).splitlines()[0]
                if "RESOURCE_EXHAUSTED" not in refused:
                    raise
            # Of a program that was refused, this is all there is.
            text, report = _dumped(pathlib.Path(folder))
        temporaries = _temporaries(report)
        code = results = 0
        costs: Any = {}
        if compiled is not None:
            text, memory = compiled.as_text(), compiled.memory_analysis()
            costs = compiled.cost_analysis()
            # On TPUs this also counts memory on the core, the report does not.
            temporaries = temporaries or memory.temp_size_in_bytes
            code = memory.generated_code_size_in_bytes
            results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        program = hlo.Program(text)
        for array in program.parameters:
            self._held[array.dtype, array.dims] = array.bytes
        self.phases[name] = Phase(
            program.count(),
            temporaries,
            results,
            code,
            program.largest(2**20),
            refused,
            {k: costs[k] for k in ("flops", "bytes accessed") if k in costs},
        )
        return None if compiled is None else compiled.output_shardings

    def size(self, tree: Any, whole: bool = False) -> int:
        """Bytes of arrays on one device, padded as programs want them.

        Args:
          tree: of abstract arrays.
          whole: counts only those that every device holds whole.
        """
        total = 0
        for x in jax.tree.leaves(tree):
            if whole and not x.sharding.is_fully_replicated:
                continue
            dims = x.sharding.shard_shape(x.shape)
            dtype = _HLO_TYPES[x.dtype.name]
            bare = math.prod(dims) * x.dtype.itemsize
            total += self._held.get((dtype, dims), bare)
        return total


_HLO_TYPES = {
    "float32": "f32",
    "bfloat16": "bf16",
    "int32": "s32",
    "uint32": "u32",
    "bool": "pred",
}


def _dumped(folder: pathlib.Path) -> tuple[str, str]:
    """The optimised program, and the compiler's report on its memory."""

    def read(ending: str) -> str:
        files = sorted(folder.glob(f"*after_optimizations{ending}"))
        return files[-1].read_text() if files else ""

    return read(".txt"), read("-memory-usage-report.txt")


def _temporaries(report: str) -> int:
    """Bytes of main memory, of all the memory spaces that a report tells."""
    found = re.search(r"Memory Space: default.*\nTotal bytes: (\d+)", report)
    return int(found[1]) if found else 0
