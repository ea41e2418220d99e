"""Divides every timm architecture into blocks and writes what came out as a table.

    python tests/sweep/block_sweep.py --table docs/benchmarks/blocks.md

Networks are built on PyTorch's meta device: no weights, no arithmetic, a few minutes for all.
The exit status is 1 if any architecture breaks a rule that is not listed as an exception.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch

from biotune_optuna.errors import ModelError
from biotune_optuna.models.blocks import model_blocks, output_layers
from biotune_optuna.page.parts import Code, Heading, Markdown, Table, Text, markdown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from biotune_optuna.models.blocks import Block

COMMAND = "python tests/sweep/block_sweep.py --table docs/benchmarks/blocks.md"
CLASSES = 10
FINE = 64
OUT_OF_ORDER = "blocks not in execution order"
# Families whose forward pass interleaves what their modules keep apart.
KNOWN_OUT_OF_ORDER = frozenset({"coat", "efficientvim", "gemma4_vit", "vision_transformer_relpos"})


@dataclass(frozen=True)
class Row:
    """What the sweep found out about one architecture."""

    name: str
    family: str
    blocks: int = 0
    fine: int = 0
    largest: float = 0.0  # share of the parameters in the largest block
    partition: bool = False
    whole_layers: bool = False
    in_order: bool = False
    head_resets: bool = False
    refused: str = ""

    @property
    def faults(self) -> tuple[str, ...]:
        """Rules that the architecture's blocks break; none for a model that is refused."""
        if self.refused:
            return ()
        checks = {
            "no partition of all tensors": self.partition,
            "a layer is cut in two": self.whole_layers,
            "not 4 to 16 blocks": 4 <= self.blocks <= 16,
            OUT_OF_ORDER: self.in_order,
            "head cannot be re-initialised": self.head_resets,
        }
        return tuple(fault for fault, good in checks.items() if not good)


def examine(name: str) -> Row:
    """Builds one architecture on the meta device and checks its blocks."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=CLASSES).eval()
    family = type(model).__module__.rpartition(".")[2]
    try:
        blocks = model_blocks(model)
    except ModelError as error:
        return Row(name, family, refused=str(error))
    lists = [blocks, model_blocks(model, FINE), model_blocks(model, 4)]
    total = sum(block.n_parameters for block in blocks)
    return Row(
        name=name,
        family=family,
        blocks=len(blocks),
        fine=len(lists[1]),
        largest=max(block.n_parameters for block in blocks) / total,
        partition=all(is_partition(model, found) for found in lists),
        whole_layers=all(keeps_layers_whole(found) for found in lists),
        in_order=is_in_order(model, blocks),
        head_resets=all(
            hasattr(layer, "reset_parameters") for layer in output_layers(model).values()
        )
        and bool(output_layers(model)),
    )


def is_partition(model: nn.Module, blocks: Sequence[Block]) -> bool:
    """Whether each parameter and buffer is in exactly one block and block names are unique."""
    parameters = [name for block in blocks for name in block.parameter_names]
    buffers = [name for block in blocks for name in block.buffer_names]
    return (
        sorted(parameters) == sorted(name for name, _ in model.named_parameters())
        and sorted(buffers) == sorted(name for name, _ in model.named_buffers())
        and len({block.name for block in blocks}) == len(blocks)
        and all(block.n_parameters for block in blocks)
    )


def keeps_layers_whole(blocks: Sequence[Block]) -> bool:
    """Whether the tensors of each layer are all in one block."""
    owner: dict[str, str] = {}
    return all(
        not layer or owner.setdefault(layer, block.name) == block.name
        for block in blocks
        for name in block.parameter_names + block.buffer_names
        for layer in [name.rpartition(".")[0]]
    )


def is_in_order(model: nn.Module, blocks: Sequence[Block]) -> bool:
    """Whether every layer of a block is entered before any layer of a later block."""
    place = {
        name.rpartition(".")[0]: index
        for index, block in enumerate(blocks)
        for name in block.parameter_names + block.buffer_names
    }
    entered: list[str] = []

    def record(path: str) -> None:
        if path not in seen:
            seen.add(path)
            entered.append(path)

    seen: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: record(path))
        for path, module in model.named_modules()
        if path in place and path
    ]
    size = timm.data.resolve_model_data_config(model)["input_size"]
    with torch.no_grad():
        model(torch.zeros(1, *size, device="meta"))
    for handle in handles:
        handle.remove()
    order = [place[path] for path in entered]
    return order == sorted(order)


def is_accepted(row: Row) -> bool:
    """Whether a row keeps every rule or is an exception that is known and explained."""
    if row.refused:
        return row.name.endswith("_enc")  # encoders without a classifier
    return not row.faults or (row.faults == (OUT_OF_ORDER,) and row.family in KNOWN_OUT_OF_ORDER)


def sweep(names: Iterable[str], jobs: int) -> list[Row]:
    """Examines architectures in parallel; rows in the order of the names."""
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(examine, names, chunksize=8))


def table(rows: Sequence[Row]) -> str:
    """The sweep as a page of documentation."""
    good = [row for row in rows if not row.faults and not row.refused]
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row.family].append(row)
    large = sum(row.largest > 0.8 for row in rows)
    by_family: list[tuple[str, ...]] = []
    for family, members in sorted(families.items()):
        found = [row for row in members if not row.refused]
        spans = _span(r.blocks for r in found), _span(r.fine for r in found)
        by_family.append((Markdown(family), str(len(members)), *spans))
    return markdown(
        [
            Markdown("---\norphan: true\n---"),
            Heading("Blocks of every timm architecture", 1),
            Markdown(
                f"All {len(rows)} architectures of timm {timm.__version__}, built with {CLASSES} "
                f"classes; {len(good)} keep every rule: the blocks are a partition of all "
                "parameters and buffers, cut no layer in two, are 4 to 16 in number, stand in "
                "execution order (every layer of a block is entered before any layer of a later "
                f"one), and the classifier can be re-initialised. In {large} one block holds over "
                "80 % of the parameters."
            ),
            Text("Command that made this page:"),
            Code(f"$ {COMMAND}", "console"),
            Heading("Exceptions"),
            Table(("family", "architectures", "what"), _exceptions(rows), words=3),
            Text(
                "Blocks out of execution order are still a valid partition: every recipe trains as "
                "it says. What a frozen prefix puts out is then cached only where the check at "
                "set-up finds it equal."
            ),
            Heading("Block counts by family"),
            Markdown("*finest* is the longest list that `max_blocks=64` gives."),
            Table(("family", "architectures", "blocks", "finest"), by_family),
        ]
    )


def _exceptions(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        for what in (f"refused: {row.refused}",) if row.refused else row.faults:
            found[row.family, what].append(row.name)
    return [
        (Markdown(family), Markdown(", ".join(f"`{name}`" for name in names)), Markdown(what))
        for (family, what), names in sorted(found.items())
    ] or [("none", "", "")]


def _span(counts: Iterable[int]) -> str:
    values = sorted(set(counts))
    if len(values) > 1:
        return f"{values[0]}–{values[-1]}"
    return str(values[0]) if values else "–"


def main() -> int:
    """Runs the sweep from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="markdown file to write")
    parser.add_argument("--filter", default="", help="architectures such as 'resnet*'")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    rows = sweep(timm.list_models(arguments.filter), arguments.jobs)
    text = table(rows)
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text(text, encoding="utf-8")
    print(text if not arguments.table else f"wrote {arguments.table}")
    broken = [row for row in rows if not is_accepted(row)]
    for row in broken:
        print(f"{row.name}: {', '.join(row.faults) or row.refused}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
