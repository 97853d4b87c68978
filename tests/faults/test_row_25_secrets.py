"""Rows 25 and 29: a password stands in no file, no message and no process list."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from compressbench.core.redact import redact
from compressbench.results.run_report import build_report
from tests.end_to_end.running import command, composed, environment, run_here
from tests.sample_steps import make_info, make_steps

CANARY = "can4ry5ecret"
DEAD = f"http://ann:{CANARY}@127.0.0.1:9/mlflow?token={CANARY}"
SMALL = ("model=mlp", "trainer=debug", "trainer.threads=1")


@pytest.mark.parametrize(
    ("value", "clean"),
    [
        ("postgresql+psycopg://me:pw@db:5432/x", "postgresql+psycopg://***@db:5432/x"),
        ("https://token@host", "https://***@host"),
        ("https://me:p%40ss@host", "https://***@host"),
        ("https://me:p@ss@host/a@b", "https://***@host/a@b"),
        ("https://me:pa/ss@host/db", "https://***@host/db"),
        ("https:/me:pw@host", "https:/***@host"),
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("see http://a:b@c/ and http://d:e@f/", "see http://***@c/ and http://***@f/"),
        ("https://h/p?token=abc&x=1", "https://h/p?token=***&x=1"),
        ("https://h/p?X-Amz-Signature=abc&x=1", "https://h/p?X-Amz-Signature=***&x=1"),
        ("got 'me:pw@db:5432/x'", "got '***@db:5432/x'"),
        ("host=db password=hunter2 dbname=x", "host=db password=*** dbname=x"),
        ("password='two words' port=1", "password='***' port=1"),
        ("PGPASSWORD=x AWS_SECRET_ACCESS_KEY=y", "PGPASSWORD=*** AWS_SECRET_ACCESS_KEY=***"),
        ("aws_secret_access_key = abc", "aws_secret_access_key = ***"),
        ("Authorization: Bearer abcdef", "Authorization: *** ***"),
        ("sent Bearer abcdef.ghi", "sent Bearer ***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("+model.hub_token=abc", "+model.hub_token=***"),
        ('{"password": "a b", "n": 1}', '{"password": "***", "n": 1}'),
        ({"password": "x", "tokens": 3}, {"password": "***", "tokens": 3}),
        ({"apiKey": "k", "password": 1234}, {"apiKey": "***", "password": "***"}),
        ({"a": [{"hub_token": "t"}]}, {"a": [{"hub_token": "***"}]}),
    ],
)
def test_row_25_a_secret_is_replaced(value, clean):
    assert redact(value) == clean
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "value",
    [
        "https://host:5000/a@b",
        "me@example.org",
        "git@github.com:a/b",
        "file:///a@b",
        "+sampler@search.sampler=tpe",
        "model@recipe.stages.distill.model=mlp",
        "recipe.stages.x.tokenizer=word",
        "max_tokens=512 keys=[1,2] key=3",
        "pad_token=[PAD]",
        "full_key: model.width",
        "--allow=mine.*",
        "a password must be given",
        {"pad_token": "[PAD]", "key": "abc", "class_token": True, "token": None, "tokenizer": "x"},
        {"entries.0.token": 4, "stage_key": "abc"},
    ],
)
def test_row_25_what_is_no_secret_stays(value):
    assert redact(value) == value


def test_row_25_the_value_of_a_secret_variable_is_replaced_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CANARY)
    monkeypatch.setenv("SSH_KEY_FILE", "/home/ann/key")
    assert redact(f"401 for {CANARY}!") == "401 for ***!"
    assert redact("/home/ann/key") == "/home/ann/key"


def test_row_25_the_report_of_a_run_has_no_credentials(tmp_path):
    text = json.dumps(build_report(make_info(tmp_path), make_steps(), "finished"))
    assert "s3cret" not in text
    assert "ann" not in text
    assert "https://***@logs.example:5000/mlflow" in text


def found_in(folder: Path) -> list[str]:
    """The files below a folder that contain the canary."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and CANARY.encode() in path.read_bytes()
    ]


def write_config(folder: Path, text: str) -> None:
    (folder / "extra").mkdir(parents=True)
    (folder / "extra" / "mine.yaml").write_text(text)


@pytest.mark.parametrize("how", ["typed", "file", "default", "nested", "copied"])
@pytest.mark.parametrize("name", ["MY_TOKEN", "aws_region", "Db_Password"])
def test_row_25_no_config_reads_a_variable_that_looks_like_a_secret(tmp_path, how, name):
    read = f"${{oc.env:{name}}}"
    text = {
        "typed": "",
        "file": f"# @package _global_\nname: '{read}'",
        "default": f"# @package _global_\nname: '${{oc.env:{name},none}}'",
        "nested": f"# @package _global_\nname: '${{oc.decode:\"{read}\"}}'",
        "copied": f"# @package _global_\nhydra: {{job: {{env_copy: [{name}]}}}}",
    }[how]
    write_config(tmp_path / "conf", text)
    mine = [f"name='{read}'"] if how == "typed" else ["--config-dir=conf", "+extra=mine"]
    done = run_here(
        [*SMALL, "recipe=baseline", "tracking=none", *mine],
        tmp_path, tmp_path / "store", **{name: CANARY},
    )  # fmt: skip
    assert done.code == 1
    assert (
        "is set by a file" in done.line if how == "copied" else "looks like a secret" in done.line
    )
    assert CANARY not in done.out + done.err
    assert found_in(tmp_path) == []
    assert not (tmp_path / "runs").exists()


def test_row_25_other_variables_are_read(tmp_path):
    write_config(tmp_path / "conf", "# @package _global_\nname: '${oc.env:HOME}-${oc.env:PWD}'")
    arguments = ["--config-dir=conf", "+extra=mine", "--cfg", "job", "--resolve"]
    done = run_here(arguments, tmp_path, tmp_path / "store", HOME="home", PWD="here")
    assert "name: home-here" in done.out, done.err


def test_row_25_what_is_printed_has_no_password(tmp_path, monkeypatch):
    def broken(*arguments: object, **options: object) -> None:
        try:
            raise ValueError(f"password={CANARY}")
        except ValueError as error:
            raise ZeroDivisionError(f"no answer from {DEAD}") from error

    shown = run_here(
        ["--cfg", "job", "tracking=server", f"tracking.url='{DEAD}'"], tmp_path, tmp_path / "store"
    )
    assert "http://***@127.0.0.1:9/mlflow?token=***" in shown.out
    monkeypatch.setattr("compressbench.engine.prepare.make_plan", broken)
    done = run_here([*SMALL, "recipe=baseline", "tracking=none"], tmp_path, tmp_path / "store")
    assert done.code == 70
    assert "ZeroDivisionError: no answer from http://***@127.0.0.1:9/" in done.err
    assert CANARY not in shown.out + shown.err + done.out + done.err


@pytest.mark.parametrize(
    "arguments",
    [
        [f"tracking.url='ftp://ann:{CANARY}@host'", "tracking=server"],
        ["-m", "search=prune_quant", f"search.storage=mysql://ann:{CANARY}@host/x"],
        ["-m", "search=prune_quant", f"search.storage=postgresql://ann:{CANARY}@127.0.0.1:9/x"],
        [f"+model.api_token={CANARY}"],
        [f"model.checkpoint=https://ann:{CANARY}@host/x.pt"],
    ],
)
def test_row_25_a_refusal_has_no_password(tmp_path, arguments):
    done = run_here([*SMALL, "recipe=baseline", *arguments], tmp_path, tmp_path / "store")
    assert done.code == 1, done.err
    assert CANARY not in done.out + done.err
    assert found_in(tmp_path) == []


def commands_below(process: int) -> Iterator[str]:
    """The command lines of all children of a process, and theirs."""
    own = Path(f"/proc/{process}/cmdline").read_text()
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            line = Path(f"/proc/{child}/cmdline").read_text()
            if line != own:  # a child that has just begun has its parent's
                yield line.replace("\0", " ")
            yield from commands_below(int(child))


def watched(arguments: list[str], folder: Path) -> tuple[int, str, set[str]]:
    """Run a command in a process of its own; exit code, output, and its children's commands."""
    seen: set[str] = set()
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(*arguments), cwd=folder, env=environment(folder / "store"), stdout=file,
            stderr=file,
        )  # fmt: skip
        while process.poll() is None:
            with contextlib.suppress(OSError):  # a child that has just ended
                seen.update(commands_below(process.pid))
            time.sleep(0.1)
    return process.returncode, log.read_text(), seen


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [
        ["-m", "recipe=baseline", "seed=0,1"],
        ["-m", "recipe=baseline", "search.n_trials=2",
         "recipe.stages.train.optimizer.lr=interval(0.01,0.1)"],
    ],
    ids=["grid", "search"],
)  # fmt: skip
def test_row_29_a_password_in_the_address_of_a_server_is_written_nowhere(tmp_path, kind):
    (tmp_path / "work").mkdir()
    arguments = [*kind, *SMALL, "tracking=server", f"tracking.url='{DEAD}'"]
    code, said, seen = watched(arguments, tmp_path / "work")
    assert code == 0, said
    assert any("compressbench.tracking" in line for line in seen)
    assert not [line for line in seen if CANARY in line]
    assert found_in(tmp_path) == []
    recipes = [p.read_text() for p in (tmp_path / "work").rglob("recipe.yaml")]
    assert recipes
    assert all("http://***@127.0.0.1:9/mlflow" in recipe for recipe in recipes)


@pytest.mark.long
def test_row_29_a_recipe_without_its_password_can_be_replayed(tmp_path):
    arguments = ["recipe=baseline", *SMALL, "tracking=server", f"tracking.url='{DEAD}'"]
    first = run_here(arguments, tmp_path, tmp_path / "store")
    assert first.code == 0, first.err
    (run,) = (tmp_path / "runs").glob("*/*")
    again = run_here(["replay", str(run / "recipe.yaml")], tmp_path, tmp_path / "store")
    assert again.code == 0, again.err
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in again.err
    assert "the same bytes" in again.out
    told = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": CANARY}
    quiet = run_here(["replay", str(run / "recipe.yaml")], tmp_path, tmp_path / "store", **told)
    assert quiet.code == 0
    assert "were not written down" not in quiet.err
    assert found_in(tmp_path) == []


def test_row_29_another_secret_that_was_not_written_down_is_asked_for(tmp_path):
    config = composed("recipe=baseline", "name=x", "model=mlp", "trainer=debug", "tracking=none")
    del config["search"]
    config["model"]["hub_token"] = "***"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    done = run_here(["replay", "recipe.yaml"], tmp_path, tmp_path / "store")
    assert done.code == 1
    assert "model.hub_token=*** was not written down; enter it there" in done.line
