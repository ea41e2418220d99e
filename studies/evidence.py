"""The second evidence: BioTune beside its rivals at equal image passes, with several members each.

    python evidence.py report FOLDER ...          # or development; FOLDERs hold the data by name
    python evidence.py report FOLDER --repeats 3 --methods biotune full@budget linear-probe

See docs/benchmarks/protocol.md. The same command goes on where it stopped, and several share it.
After each cell the table is written anew. `--have TABLE` takes over the cells of a table that was
begun elsewhere. Other trials, or another effort, need another --name.
"""

import argparse
from pathlib import Path

from _had import take_over
from _sets import TASKS, like_tune, specs

from biotune_optuna import open_storage
from biotune_optuna.compare import Comparison, Contender, read_rows, run_comparison, write_csv
from biotune_optuna.effort import EFFORTS

BUDGET = [f"{name}@budget" for name in ("full", "single-block", "lora", "layer-decay", "lp-ft")]
METHODS = ["biotune", "linear-probe", "random", *BUDGET, "paper"]

parser = argparse.ArgumentParser()
parser.add_argument("group", choices=TASKS)
parser.add_argument("folders", nargs="+", type=Path)
parser.add_argument("--tasks", nargs="+", default=(), help="default: all of the group")
parser.add_argument("--methods", nargs="+", default=METHODS)
parser.add_argument("--repeats", type=int, default=8)
parser.add_argument("--effort", choices=EFFORTS, default="quick")
parser.add_argument("--trials", type=int, help="default: the effort's")
parser.add_argument("--made", type=Path, default=Path("evidence-data"), help="data made of others")
parser.add_argument("--have", type=Path, help="results to go on from, of an earlier database")
parser.add_argument("--storage", default="sqlite:///evidence.db")
parser.add_argument("--name", help="default: evidence-GROUP")
args = parser.parse_args()

name, effort = args.name or f"evidence-{args.group}", EFFORTS[args.effort]
paper = Contender(name="paper", kind="search", method="biotune", spec={"preset": "paper"})
plan = Comparison(
    tasks=specs(args.group, args.folders, args.made, epochs=effort.epochs, names=args.tasks),
    contenders=tuple(paper if one == "paper" else one for one in args.methods),
    repeats=args.repeats,
    **like_tune(effort, args.trials),
    name=name,
)
backend = open_storage(args.storage)
if args.have:
    take_over(args.have, plan, backend)


def tell(progress: object) -> None:
    print(progress, flush=True)
    if getattr(progress, "row", None):
        write_csv(read_rows(backend, name), f"{name}.csv")


write_csv(run_comparison(plan, storage=backend, tell=tell), f"{name}.csv")
print(f"{name}.csv")
