"""Source digests: they change with every file of the closure, and with nothing else."""

import shutil
import sys

import pytest

from compressbench.core.errors import UserError
from compressbench.store import sources
from compressbench.store.sources import library_versions, source_digest, versions

FILES = {
    "shop/__init__.py": "VALUE = 1\n",
    "shop/net.py": "from . import blocks\nfrom shop.deep.inner import f\nraise ImportError\n",
    "shop/blocks.py": "def f():\n    from .lazy import g\n    import helper_of_shop\n",
    "shop/lazy.py": "from ..outside import x\n",
    "shop/unrelated.py": "x = 1\n",
    "shop/deep/__init__.py": "",
    "shop/deep/inner.py": "import shop.alias as a\nfrom shop.stars import *\n",
    "shop/alias.py": "import json, math\n",
    "shop/stars/__init__.py": "__all__ = ['one']\n",
    "shop/stars/one.py": "x = 1\n",
    "helper_of_shop.py": "import numpy\nimport space_of_shop.part\n",
    "space_of_shop/part.py": "import shop.net\n",
    "other_of_shop.py": "import shop.net\n",
    "broken_of_shop.py": "def (:\n",
}
REACHED = {
    "shop/__init__.py",
    "shop/net.py",
    "shop/blocks.py",
    "shop/lazy.py",
    "shop/deep/__init__.py",
    "shop/deep/inner.py",
    "shop/alias.py",
    "shop/stars/__init__.py",
    "shop/stars/one.py",
    "helper_of_shop.py",
    "space_of_shop/part.py",
}


def write(root):
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The files above, in the current folder, found as a script's own modules are."""
    root = tmp_path / "a folder é"
    write(root)
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend("")
    return root


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith(".py")])
def test_digest_changes_with_each_file_of_the_closure_alone(shop, name):
    before = source_digest(["shop.net.Net"])
    (shop / name).write_text(FILES[name] + "# one more line\n")
    assert (source_digest(["shop.net.Net"]) != before) == (name in REACHED)


def test_nothing_is_imported(shop):
    source_digest(["shop.net.Net.method"])
    assert not [name for name in sys.modules if "shop" in name.split(".")[0]]


def test_digest_does_not_depend_on_the_place(shop, tmp_path, monkeypatch):
    before = source_digest(["shop.net.Net"])
    shutil.move(shop, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert source_digest(["shop.net.Net"]) == before


def test_digest_is_of_the_set_of_files(shop):
    assert source_digest(["shop.net.A", "shop.unrelated"]) == source_digest(
        ["shop.unrelated", "shop.net.B"]
    )
    assert source_digest(["shop.net"]) != source_digest(["shop.net", "shop.unrelated"])


def test_a_module_added_where_a_name_was_counts(shop):
    (shop / "user_of_shop.py").write_text("from shop import extra\n")
    before = source_digest(["user_of_shop"])
    (shop / "shop/extra.py").write_text("")
    assert source_digest(["user_of_shop"]) != before


def test_a_file_that_does_not_parse_counts_as_bytes(shop):
    before = source_digest(["broken_of_shop.Net"])
    (shop / "broken_of_shop.py").write_text("def (::\n")
    assert source_digest(["broken_of_shop.Net"]) != before


def test_users_model_depends_on_what_it_imports_from_us(shop, monkeypatch):
    """And not on torch: libraries count by version, elsewhere in the key."""
    import compressbench.store.sources as module

    (shop / "model_of_shop.py").write_text("import torch\nfrom compressbench.core import errors\n")
    finder = module._Finder()
    files = module._follow(["model_of_shop"], finder)
    assert set(files) == {
        "model_of_shop", "compressbench", "compressbench.core", "compressbench.core.errors",
    }  # fmt: skip


def test_an_installed_library_counts_as_its_record(shop, tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    (site / "lib_of_shop").mkdir(parents=True)
    (site / "lib_of_shop/__init__.py").write_text("import shop.net\n")
    (site / "lib_of_shop-1.dist-info").mkdir()
    record = site / "lib_of_shop-1.dist-info/RECORD"
    record.write_text("lib_of_shop/__init__.py,sha256=abc,16\n")
    monkeypatch.syspath_prepend(str(site))
    before = source_digest(["lib_of_shop.Net"])
    (shop / "shop/net.py").write_text("")
    assert source_digest(["lib_of_shop.Net"]) == before
    record.write_text("lib_of_shop/__init__.py,sha256=xyz,16\n")
    assert source_digest(["lib_of_shop.Net"]) != before


def test_the_libraries_that_own_code_imports_have_versions(shop, tmp_path, monkeypatch):
    """Wherever it imports them: here in a module that it imports. Our own imports do not count."""
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "lib_of_shop.py").write_text("")
    (site / "lib-of-shop.dist-info").mkdir()
    record = site / "lib-of-shop.dist-info/RECORD"
    record.write_text("lib_of_shop.py,sha256=abc,16\n")
    monkeypatch.syspath_prepend(str(site))
    (shop / "model_of_shop.py").write_text("import part_of_shop, json, absent_of_shop\n")
    (shop / "part_of_shop.py").write_text(
        "import compressbench.core.errors, torch.nn\nfrom lib_of_shop import x\n"
    )
    before = library_versions(["model_of_shop.Net"])
    assert before.keys() == {"torch", "lib_of_shop"}
    assert before["torch"] == versions(["torch"])["torch"]
    record.write_text("lib_of_shop.py,sha256=xyz,16\n")
    after = library_versions(["model_of_shop.Net"])
    assert [before[n] == after[n] for n in ("torch", "lib_of_shop")] == [True, False]
    assert library_versions(["compressbench.models.mlp.Mlp"]) == {}


@pytest.mark.parametrize("target", ["math.sqrt", "sys.path", "collections.OrderedDict"])
def test_the_standard_library_has_a_digest(target):
    assert len(source_digest([target])) == 64


@pytest.mark.parametrize("target", ["no_such_module.Net", "", ".x", "__main__.Net"])
def test_an_unknown_target_is_refused(target):
    with pytest.raises(UserError, match="no module"):
        source_digest([target])


def test_versions():
    found = versions(["pytest", "no-such-distribution"])
    assert found == {"pytest": pytest.__version__, "no-such-distribution": "not installed"}


def test_sources_are_read_again_only_when_a_file_or_a_folder_changed(shop, monkeypatch):
    read = []
    real = sources._digest_of
    monkeypatch.setattr(sources, "_digest_of", lambda t: read.append(t) or real(t))
    first = [source_digest(["shop.net.Net"]) for _ in range(3)]
    assert len(set(first)) == len(read) == 1
    (shop / "shop" / "net.py").write_text(FILES["shop/net.py"] + "x = 1\n")
    assert source_digest(["shop.net.Net"]) != first[0]
    (shop / "shop" / "stars" / "two.py").write_text("x = 1\n")  # `import *` reaches it
    source_digest(["shop.net.Net"])
    assert len(read) == 3
