"""Recipes, checkpoints and data of a stranger."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.end_to_end.running import composed
from tests.faults.payload import PLANTED, QUIET, Payload, Pickled


def _recipe(**sections: Any) -> str:
    config = composed("recipe=baseline", "name=x", *QUIET)
    return yaml.safe_dump({**{k: v for k, v in config.items() if k != "search"}, **sections})


_TOUCH = {"_target_": "os.system", "command": "touch {marker}"}
RECIPES = {
    "a tag of YAML": "!!python/object/apply:os.system ['touch {marker}']",
    "a tag inside": _recipe() + "\nx: !!python/name:os.system",
    "a module by tag": _recipe() + "\nx: !!python/module:planted",
    "a model": _recipe(model=_TOUCH),
    "a dataset": _recipe(dataset=_TOUCH),
    "a tracker": _recipe(tracking=_TOUCH),
    "a stage": _recipe(recipe={"stages": {"train": _TOUCH}}),
    "an option": _recipe(model={"_target_": "compressbench.models.mlp.Mlp", "hidden": _TOUCH}),
    "an alias": _recipe() + "\na: &a [1]\nb: *a",
    "an interpolation": _recipe(name="${oc.env:HOME}"),
    "an old name of a target": _recipe(model={"_target_": "compressbench.trackers.os.system"}),
}


def recipes() -> list[Payload]:
    return [
        Payload(f"replay: {name}", ("replay", "recipe.yaml"),
                {"recipe.yaml": text, "planted.py": PLANTED})
        for name, text in RECIPES.items()
    ]  # fmt: skip


def _plain(marker: Path) -> bytes:
    return pickle.dumps(Pickled(marker))


def _torch(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": Pickled(marker)}, file)
    return file.getvalue()


def _old_torch(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"a": Pickled(marker)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _tar(marker: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(_plain(marker))
            tar.addfile(info, io.BytesIO(_plain(marker)))
    return file.getvalue()


def _script(marker: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl", "m/version"):
            archive.writestr(name, _plain(marker))
    return file.getvalue()


def _numpy(marker: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Pickled(marker)], dtype=object), allow_pickle=True)
    return file.getvalue()


def of_files() -> list[Payload]:
    student = "model@recipe.stages.distill.model=small_cnn"
    found = [
        Payload(f"checkpoint {kind} {suffix}", (f"++model.checkpoint=weights{suffix}",),
                binaries={f"weights{suffix}": content})
        for suffix in (".pt", ".pth", ".bin", ".safetensors", ".pkl", "")
        for kind, content in (("pickle", _plain), ("torch", _torch), ("old torch", _old_torch),
                              ("tar", _tar), ("script", _script))
    ]  # fmt: skip
    found += [
        Payload("the checkpoint of a teacher",
                ("recipe=distill", student, "++recipe.stages.distill.model.checkpoint=t.pt"),
                binaries={"t.pt": _torch}),
    ]  # fmt: skip
    found += [
        Payload(f"data {suffix}", ("dataset=images", f"dataset.train=data{suffix}"),
                binaries={f"data{suffix}": content})
        for suffix, content in ((".npy", _numpy), (".npz", _script), (".pkl", _plain),
                                (".pt", _torch), (".parquet", _plain))
    ]  # fmt: skip
    found.append(
        Payload("rows by file", ("dataset=images", "dataset.train=x.parquet",
                                 "+dataset.rows=rows.npy"),
                binaries={"x.parquet": _plain, "rows.npy": _numpy}))  # fmt: skip
    return found
