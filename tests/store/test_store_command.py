"""`compressbench store`, as the command line calls it."""

import subprocess
import sys

import pytest

from compressbench.cli.main import guard
from compressbench.cli.store import main
from compressbench.store.entries import Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "mein Spëicher"))
    store = Store.default()
    for sparsity in (0.5, 0.6):
        parts = {"kind": "stage", "stage": "Prune", "config": {"sparsity": sparsity}}
        store.get_or_build(parts, lambda folder: (folder / "x").write_bytes(b"x" * 1500) and {})
    for path in (store.root / "pins").glob("*/process-*"):
        path.unlink()
    return store


def run(*argv):
    return guard(lambda: main(list(argv)))


def test_list(store, capsys):
    key = next(store.all_keys())
    store.pin(key, "front of a sweep")
    assert run("list") == 0
    said = capsys.readouterr().out
    for key in store.all_keys():
        assert key[:12] in said
    assert "2 entries" in said
    assert "front of a sweep" in said
    assert "1.50 kB" in said
    assert "Prune" in said


def test_list_of_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "none"))
    assert run("list") == 0
    assert "0 entries" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_explain(store, capsys):
    a, b = store.all_keys()
    assert run("explain", a[:10], b[:10]) == 0
    said = capsys.readouterr().out
    assert "config.sparsity" in said
    assert "0.5" in said and "0.6" in said


def test_collect_pin_unpin(store, capsys):
    a, _ = store.all_keys()
    assert run("pin", a[:8].upper()) == 0
    assert run("collect", "--max-size", "1kB", "--dry-run") == 0
    assert "would remove 1 entries" in capsys.readouterr().out
    assert run("collect", "--max-size", "1kB") == 0
    assert "1 pinned or in use were skipped" in capsys.readouterr().out
    assert list(store.all_keys()) == [a]
    assert run("unpin", a) == 0
    assert run("collect", "--max-size", "0") == 0
    assert list(store.all_keys()) == []


def test_verify(store, capsys):
    assert run("verify") == 0
    assert "2 entries, all intact" in capsys.readouterr().out
    key = next(store.all_keys())
    (store.folder(key) / "x").write_bytes(b"y" * 1500)
    assert run("verify") == 3
    assert key[:12] in capsys.readouterr().err
    assert run("verify") == 0


@pytest.mark.parametrize("argv", [["pin", "zzz"], ["pin", ""], ["explain", "zz", "yy"]])
def test_a_users_mistake_is_one_line(store, capsys, argv):
    assert run(*argv) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["collect", "--max-size", "huge"], ["pin"], ["list", "--bad"]]
)
def test_wrong_usage(store, capsys, argv):
    assert run(*argv) == 2
    assert "usage:" in capsys.readouterr().err


def test_a_size_that_is_none_is_a_mistake_of_usage(store, capsys):
    assert main(["collect", "--max-size", "much"]) == 2
    assert "--max-size: must be a size such as 100kB" in capsys.readouterr().err


def test_the_command_loads_no_torch():
    code = (
        "import sys; from compressbench.cli.store import main; main(['list']); "
        "assert not {'torch', 'mlflow', 'hydra'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
