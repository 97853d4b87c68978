"""The commands, examples, named files and Python blocks of the README and of docs/."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SUBCOMMANDS = ("doctor", "store", "front", "sync", "replay", "explain")
LONG_TRIALS = 10  # a sweep of more is planned, not run
_SPACE = re.compile(r"=.*\b(interval|choice|range)\(|^search[.=]")
_READERS_OWN = re.compile(r"\b(FOLDER|FILE|RUN|NAME|KEY|OTHER)\b|\w\.(parquet|safetensors)\b")


@dataclass(frozen=True)
class Example:
    """A command and what it is documented to print on standard error, and to exit with."""

    command: str
    error: str
    code: int


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def lines() -> list[str]:
    """Every line of a bash block, as a reader would paste it, once."""
    joined = [block.replace("\\\n", " ") for page in PAGES for block in blocks(page, "bash")]
    found = [" ".join(line.split()) for block in joined for line in block.splitlines()]
    return list(dict.fromkeys(line for line in found if line))


def commands() -> list[str]:
    """The single commands of those lines, once."""
    parts = [part.strip() for line in lines() for part in line.split("&&")]
    return list(dict.fromkeys(parts))


def arguments(command: str) -> list[str] | None:
    """What compressbench is called with; None for a command of another program."""
    words = shlex.split(command)
    if words[:2] == ["python", "run.py"]:
        return words[2:]
    return words[1:] if words[0] == "compressbench" else None


def kind(command: str) -> str:
    """What a command does: the kinds differ in the path that they take through the program."""
    given = arguments(command)
    if given is None:
        return shlex.split(command)[0]
    if given[0] in SUBCOMMANDS:
        return given[0]
    if "--help" in given:
        return "help"
    if "-m" in given:
        return "search" if any(map(_SPACE.search, given)) else "grid"
    return "own code" if "--allow" in given else "recipe"


def needs_own_files(command: str) -> bool:
    """Whether a reader has to put something of theirs into the command."""
    return _READERS_OWN.search(command) is not None


def runnable() -> list[str]:
    """The lines that run as they stand, in a folder with the named files and nothing else."""
    return [line.rpartition("pip install -e . && ")[2] for line in lines() if _runs(line)]


def _runs(line: str) -> bool:
    parts = [part.strip() for part in line.removeprefix("pip install -e . && ").split("&&")]
    trials = re.search(r"search\.n_trials=(\d+)", line)
    return (
        all(arguments(part) is not None for part in parts)
        and not needs_own_files(line)
        and "tracking.url" not in line
        and (trials is None or int(trials[1]) <= LONG_TRIALS)
    )


def one_of_each_kind() -> list[str]:
    """The first runnable line of each kind, but grids: several recipes, one after another."""
    first: dict[str, str] = {}
    for line in runnable():
        first.setdefault(kind(line.split(" && ")[0]), line)
    first.pop("grid")
    return list(first.values())


def named_files() -> dict[str, str]:
    """Name -> content of each file that a page tells the reader to write."""
    pattern = re.compile(r"^\*\*([\w./]+)\*\*\n\n```\w+\n(.*?)^```", re.M | re.S)
    return {name: text for page in PAGES for name, text in pattern.findall(page.read_text())}


def write_named_files(folder: Path) -> None:
    """Write them as the reader would."""
    for name, text in named_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def examples() -> list[Example]:
    """The commands of console blocks, with their output and the exit code named above them."""
    found = []
    for page in PAGES:
        before, *rest = re.split(r"^```console\n", page.read_text(), flags=re.M)
        for part in rest:
            code = int(re.findall(r"exit code (\d+)", before)[-1])
            block, _, before = part.partition("```")
            for example in block.split("$ ")[1:]:
                command, _, output = example.partition("\n")
                found.append(Example(command, output.strip(), code))
    return found


def links(page: Path) -> list[tuple[str, str]]:
    """(path, anchor) of each link to a file of the repository."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target for target in targets if not re.match(r"https?:", target)]
    return [(target.partition("#")[0], target.partition("#")[2]) for target in local]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
