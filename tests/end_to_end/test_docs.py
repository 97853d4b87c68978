"""Every command of README, CONTRIBUTING and docs/ can be planned; the pages say what is there."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from compressbench.core.errors import UserError
from compressbench.models.resnet import ResNet
from compressbench.results.sweep_file import write_sweep
from compressbench.search import command as search_command
from compressbench.store.entries import Store
from tests.end_to_end.documented import (
    PAGES,
    README,
    ROOT,
    anchors,
    arguments,
    blocks,
    commands,
    examples,
    kind,
    links,
    named_files,
    write_named_files,
)
from tests.end_to_end.running import QUIET, environment, run_here
from tests.sample_sweep import make_sweep
from tests.sample_texts import write_news

PLANNED = "the workers would start now"
LIBRARIES = {"model=timm": "timm", "model=my_vit": "transformers", "dataset=ag_news": "tokenizers"}
OURS = [command for command in commands() if arguments(command) is not None]
OTHERS = [command for command in commands() if arguments(command) is None]
STUDIES = sorted((ROOT / "experiments").glob("*/README.md"))


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, image: str, label: str, seed: int) -> None:
    """Forty images of ten classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [{"bytes": png(1000 * seed + row)} for row in range(40)]
    pq.write_table(pa.table({image: values, label: [row % 10 for row in range(40)]}), path)


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """The folder of a reader who has all that the commands ask for."""
    folder = tmp_path_factory.mktemp("reader")
    write_named_files(folder)
    for seed, split in enumerate(("train", "test")):
        write_parquet(folder / "data" / "cifar10" / f"{split}.parquet", "img", "label", seed)
    for seed, name in enumerate("ab"):
        write_parquet(folder / f"{name}.parquet", "image", "name", seed)
    for row in range(40):
        path = folder / "data" / "images" / "train" / f"class{row % 2}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(row))
    (folder / "data" / "pictures").mkdir()
    for row in range(8):
        (folder / "data" / "pictures" / f"{row}.png").write_bytes(png(5000 + row))
    numbers = np.arange(80, dtype=np.float32).reshape(40, 2)
    np.savez(folder / "arrays.npz", inputs=numbers, targets=numbers[:, 0])
    (folder / "data" / "ag_news").mkdir()
    write_news(folder / "data" / "ag_news" / "train.csv", 80)
    save_file(ResNet((3, 32, 32), 10).state_dict(), folder / "resnet20.safetensors")
    for name in ("first", "NAME"):
        sweep = folder / "sweeps" / name
        sweep.mkdir(parents=True)
        write_sweep(make_sweep(sweep, name=name), sweep)
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text(recipe_of_a_plan(folder))
    return folder


def recipe_of_a_plan(folder: Path) -> str:
    """A recipe.yaml that is planned when it is replayed."""
    given = ["--cfg", "job", "--resolve", "plan=true", "recipe=quantize", *QUIET]
    composed = yaml.safe_load(run_here(given, folder, folder / "store").out)
    return yaml.safe_dump(
        {name: part for name, part in composed.items() if name != "search"}, sort_keys=False
    )


@pytest.fixture
def keys(tmp_path) -> list[str]:
    """The keys of a store with two entries, in `tmp_path / "store"`."""
    store = Store(tmp_path / "store")
    for sparsity in (0.5, 0.6):
        parts = {"kind": "stage", "stage": "Prune", "config": {"sparsity": sparsity}}
        store.get_or_build(parts, lambda folder: (folder / "x").write_bytes(b"x") and {})
    return list(store.all_keys())


def filled_in(given: list[str], keys: list[str]) -> list[str]:
    """The arguments with the reader's own files in the place of words in capitals."""
    dataset = next((a.partition("=")[2] for a in given if a.startswith("dataset=")), "")
    values = {
        "FOLDER": f"data/{dataset}",
        "FILE": "arrays.npz",
        "RUN": "run",
        "KEY": keys[0],
        "OTHER": keys[1],
    }
    found = [a for a in given if a != "model.checkpoint=FILE"]  # replaces training
    for word, value in values.items():
        found = [re.sub(rf"\b{word}\b", value, argument) for argument in found]
    return found


def without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep is checked and laid out as far as the moment in which its workers start."""

    def stop(*positional: object, **named: object) -> None:
        raise UserError(PLANNED)

    idle = lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # noqa: E731
    monkeypatch.setattr(search_command, "call_worker", idle)
    monkeypatch.setattr(search_command, "supervise", stop)


def quantized_run(folder: Path) -> Path:
    """`folder`, with a run in `run` whose results are in its `store`."""
    given = ["recipe=quantize", "model=mlp", "trainer=debug", "tracking=none", "hydra.run.dir=run"]
    assert run_here(given, folder, folder / "store").code == 0
    return folder


@pytest.mark.parametrize("command", OURS)
def test_a_command_can_be_planned(reader, tmp_path, monkeypatch, keys, command):
    for argument, library in LIBRARIES.items():
        if argument in command:
            pytest.importorskip(library)
    monkeypatch.syspath_prepend(reader)
    given, what = filled_in(arguments(command) or [], keys), kind(command)
    if what in ("recipe", "own code", "grid"):
        given = [*given, *{"plan=true", "trainer.threads=1"}.difference(given)]
    if what == "search":
        without_workers(monkeypatch)
        given = [a for a in given if not a.startswith(("tracking=", "search.name="))]
        given += ["tracking=none", f"search.folder={tmp_path / 'sweeps'}"]
    folder = quantized_run(tmp_path) if what == "explain" else reader
    done = run_here(given, folder, tmp_path / "store")
    if what == "search":
        assert (done.code, done.err) == (1, f"compressbench: {PLANNED}\n")
    else:
        assert done.code == 0, done.err
    if what in ("recipe", "own code", "grid", "replay"):
        assert "nothing was run" in done.out
    assert not (reader / "runs").exists()


@pytest.mark.parametrize("command", OTHERS)
def test_a_command_of_another_program_is_there(command):
    program, *rest = shlex.split(command)
    if program == "pip":
        assert re.fullmatch(r"install -e \.(\[\w+\])?", " ".join(rest))
    elif program == "sphinx-build":
        assert rest[-2] == "docs"
    else:
        assert shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.command)
def test_an_error_reads_as_documented(tmp_path, example):
    done = run_here(arguments(example.command) or [], tmp_path, tmp_path / "store")
    assert (done.err.strip(), done.code) == (example.error, example.code)


PYTHON = [(page.name, block) for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_is_python(page, block):
    compile(block, page, "exec")


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "python.md"], ids=lambda page: page.name)
def test_the_first_python_block_runs(tmp_path, page):
    script = tmp_path / "quickstart.py"
    script.write_text(blocks(page, "python")[0])
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment(tmp_path / "store"),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "quantize" in done.stdout


def test_the_site_builds_without_a_warning(tmp_path):
    for library in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(library)
    (command,) = (shlex.split(c) for c in OTHERS if c.startswith("sphinx-build"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *command[1:-1], str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    index = (tmp_path / "site" / "index.html").read_text()
    assert 'src="_images/flow.svg"' in index


@pytest.mark.parametrize("page", [*PAGES, *STUDIES], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def names_in_tables(page: str) -> set[str]:
    """Names in the first cells of the tables of a page."""
    text = (ROOT / "docs" / page).read_text()
    return {name for cell in re.findall(r"^\| ([^|]*)", text, re.M)
            for name in re.findall(r"`([^`]+)`", cell)}  # fmt: skip


@pytest.mark.parametrize(
    ("group", "page"),
    [
        ("recipe", "quickstart.md"), ("model", "data.md"), ("dataset", "data.md"),
        *((group, "methods.md") for group in ("criterion", "quantizer", "trained_quantizer",
                                              "sensitivity", "loss", "sampler")),
    ],
)  # fmt: skip
def test_every_choice_of_a_group_is_in_a_table(group, page):
    names = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
    assert names <= names_in_tables(page)


def test_every_figure_and_every_extra_is_in_a_table():
    source = (ROOT / "compressbench" / "measure" / "figures.py").read_text()
    figures = set(re.findall(r'"((?:size|compute|latency|val)/\w+)"', source))
    assert len(figures) >= 10
    assert figures <= names_in_tables("runs.md")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) <= names_in_tables("quickstart.md")


def test_every_study_is_a_page_and_every_package_is_described():
    for study in STUDIES:
        page = ROOT / "docs" / "experiments" / f"{study.parent.name}.md"
        assert f"../../experiments/{study.parent.name}/README.md" in page.read_text()
    described = set(re.findall(r"\| `(\w+)/` \|", (ROOT / "CONTRIBUTING.md").read_text()))
    packages = {path.parent.name for path in (ROOT / "compressbench").glob("*/__init__.py")}
    assert packages <= described


def test_named_files_are_there():
    assert {"my_models.py", "my_conf/model/tiny.yaml", "my_conf/recipe/mine.yaml",
            "my_conf/model/my_vit.yaml", "my_conf/model/my_net.yaml", "my_nets.py",
            "late_weights.py",
            "my_conf/criterion/late.yaml"} == set(named_files())  # fmt: skip
