"""Does every architecture come out right, or is it refused in one line before training?

python experiments/model_zoo/study.py [--random 500] [--names A,B] [--recipes qat,prune] [--again]

Runs recipes at debug size on the architectures of tests/zoo, or on random networks of its grammar,
each run in a process of its own with a time limit, and judges every stage from outside
(tests/zoo/judge.py). Rows go to results.csv as they come; rows of the same code are not computed
again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib
import multiprocessing
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(ROOT))

from tests.zoo.catalogue import Entry, config_of  # noqa: E402 - found from here on

DIRECT = "channels alone"  # the stage on a random model, without training and file
GRAMMAR = ("quantize", "prune", "prune_channels", "prune_then_quant")


@dataclass(frozen=True)
class Row:
    """How one architecture ended with one recipe."""

    architecture: str
    recipe: str
    expected: str
    ended: str
    text: str
    cut: str
    warnings: str
    seconds: float
    code: str

    @property
    def good(self) -> bool:
        return self.ended == self.expected or (
            self.ended in ("right", "refused") and self.expected == "either"
        )


@dataclass(frozen=True)
class Task:
    name: str
    model: Mapping[str, Any]
    recipe: str
    expected: str
    cut: Sequence[str] = ()


def tasks(chosen: argparse.Namespace) -> Iterator[Task]:
    """Recipe by recipe, so that the first table is soon there."""
    from tests.zoo.catalogue import ZOO
    from tests.zoo.grammar import config_of_seed
    from tests.zoo.running import RECIPES

    recipes = chosen.recipes.split(",") if chosen.recipes else [DIRECT, *RECIPES]
    names = set(chosen.names.split(",")) if chosen.names else None
    if chosen.random:
        seeds = range(chosen.first, chosen.first + chosen.random)
        for seed in seeds:
            for recipe in recipes if chosen.recipes else GRAMMAR:
                yield Task(f"random {seed}", config_of_seed(seed), recipe, "either")
        return
    for recipe in recipes:
        for entry in reversed(ZOO):  # the odd ones first
            alone = recipe == DIRECT and entry.expected != "right"  # planning would refuse it
            if not alone and (names is None or entry.name in names):
                yield _task(entry, recipe)


def _task(entry: Entry, recipe: str) -> Task:
    """Without layers that must be cut, a model whose channels cannot be pruned may be refused, and
    one without features to compare with those of the student, which is the same for all.
    """
    channels = recipe in ("prune_channels", DIRECT)
    open_end = entry.expected == "right" and (
        (channels and not entry.cut) or recipe == "distill_mixed"
    )
    expected = "either" if open_end else entry.expected
    return Task(entry.name, config_of(entry), recipe, expected, entry.cut if channels else ())


def run_task(task: Task, store: Path, code: str, limit: int) -> Row:
    """Run one task in a forked process, not longer than `limit` seconds."""
    began = time.monotonic()
    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe(duplex=False)
    process = fork.Process(target=_child, args=(task, store, sending))
    process.start()
    sending.close()
    ended: tuple[str, str, str, str] = ("timeout", f"after {limit} s", "", "")
    if receiving.poll(limit):
        try:
            ended = receiving.recv()
        except EOFError:
            ended = ("crash", "the process died", "", "")
    process.kill()
    process.join()
    seconds = round(time.monotonic() - began, 1)
    kind, text, cut, warned = ended
    return Row(
        task.name, task.recipe, task.expected, kind, text[:600], cut, warned[:400], seconds, code
    )


def _child(task: Task, store: Path, sending: Connection) -> None:
    from tests.zoo.running import cut_channels, run_recipe

    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - until the process ends
    try:
        if task.recipe == DIRECT:
            ended = cut_channels(task.model)
        else:
            ended = run_recipe(task.model, task.recipe, store)
        kind, text = ended.kind, ended.text
        missing = [name for name in task.cut if name not in ended.cut]
        if kind == "right" and missing:
            kind, text = "uncut", f"not cut: {', '.join(missing)}"
        cut = " ".join(f"{name}{left}" for name, left in ended.cut.items())
        sending.send((kind, text, cut, " | ".join(ended.warnings)))
    except Exception as error:  # noqa: BLE001 - what it is goes into the table
        place = traceback.extract_tb(error.__traceback__)[-1]
        own = [
            f for f in traceback.extract_tb(error.__traceback__) if "compressbench" in f.filename
        ]
        where = own[-1] if own else place
        first = re.sub(r"\x1b\[\d*m", "", str(error).strip().partition("\n")[0])  # colours
        text = f"{type(error).__name__}: {first} ({Path(where.filename).name}:{where.lineno})"
        sending.send(("crash", text, "", ""))
    os._exit(0)


def load_libraries() -> None:
    """Import what a run imports, so that forked processes need not."""
    from tests.zoo.catalogue import SMALLER

    with tempfile.TemporaryDirectory() as store:
        fork = multiprocessing.get_context("fork")
        receiving, sending = fork.Pipe(duplex=False)
        process = fork.Process(target=_imports, args=(SMALLER, Path(store), sending))
        process.start()
        names = receiving.recv()
        process.join()
    for name in names:
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(name)


def _imports(model: Mapping[str, Any], store: Path, sending: Connection) -> None:
    from tests.zoo.running import run_recipe

    before = set(sys.modules)
    run_recipe({**model, "student": model}, "quantize", store)
    sending.send([name for name in sys.modules if name not in before and name != "__mp_main__"])
    os._exit(0)


def digest_of_code() -> str:
    """Of the package and of the zoo."""
    found = hashlib.sha256()
    for folder in ("compressbench", "conf", "tests/zoo"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                found.update(path.read_bytes())
    return found.hexdigest()[:10]


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as lines:
        return [Row(**{**r, "seconds": float(r["seconds"])}) for r in csv.DictReader(lines)]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def table(rows: Sequence[Row]) -> str:
    """Recipes and how many architectures came out right, were refused, and anything else."""
    lines = ["| recipe | right | refused in one line before training | anything else |",
             "|---|---|---|---|"]  # fmt: skip
    for recipe in dict.fromkeys(row.recipe for row in rows):
        kinds = Counter(row.ended for row in rows if row.recipe == recipe)
        other = sum(kinds.values()) - kinds["right"] - kinds["refused"]
        lines.append(f"| {recipe} | {kinds['right']} | {kinds['refused']} | {other} |")
    return "\n".join(lines)


def failures(rows: Sequence[Row]) -> str:
    return "\n".join(
        f"- {row.architecture}, {row.recipe}: {row.ended} (expected {row.expected}): {row.text}"
        for row in rows if not row.good
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--random", type=int, default=0, help="random networks instead of the zoo")
    parser.add_argument("--first", type=int, default=0, help="seed of the first random network")
    parser.add_argument("--names", default="", help="only these architectures")
    parser.add_argument("--recipes", default="", help="only these recipes")
    parser.add_argument("--limit", type=int, default=120, help="seconds a run may take")
    parser.add_argument("--again", action="store_true", help="run all, and not what is missing")
    parser.add_argument("--failed", action="store_true", help="run again what was not good")
    parser.add_argument("--store", type=Path, help="keep trained models here")
    parser.add_argument("--results", type=Path, help="the file of the rows")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    path = chosen.results or HERE / ("random.csv" if chosen.random else "results.csv")
    code = digest_of_code()
    done = {(row.architecture, row.recipe): row for row in read_rows(path)}
    load_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        store = chosen.store or Path(scratch)
        for task in tasks(chosen):
            key = (task.name, task.recipe)
            known = done.get(key)
            if known and not chosen.again and (known.good if chosen.failed else known.code == code):
                continue
            done[key] = run_task(task, store, code, chosen.limit)
            write_rows(path, [*done.values()])
            row = done[key]
            print(f"{row.architecture:24} {row.recipe:17} {row.ended:8} {row.seconds:5.1f} s "
                  f"{'' if row.good else row.text}", flush=True)  # fmt: skip
    print(table([*done.values()]), failures([*done.values()]), sep="\n\n")


if __name__ == "__main__":
    main()
