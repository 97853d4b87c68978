"""The files of the config groups, and what they build."""

from pathlib import Path

import yaml

from compressbench.config.groups import config_folder
from compressbench.config.instantiate import instantiate
from compressbench.core.types import Context, Runtime
from compressbench.data.digits import Digits

CONF = config_folder()


FILES = sorted(p for p in CONF.glob("*/*.yaml"))


METHODS = ("criterion", "loss", "model", "quantizer", "trained_quantizer", "sensitivity", "stage",
           "dataset", "tracking", "sampler")  # fmt: skip


RESERVED = {"checkpoint", "student", "teacher", "model", "_target_", "_partial_", "defaults"}


GIVEN = {"input_shape", "num_classes", "seed", "number"}  # passed by us, never written


GIVEN_TO_MODELS = {"vocabulary", "pad"}


def read(path: Path) -> dict:
    """The YAML, on top of another of its group where its defaults name one."""
    config = yaml.safe_load(path.read_text()) or {}
    for base in [d for d in config.get("defaults", []) if isinstance(d, str) and d != "_self_"]:
        beneath = read(path.with_name(f"{base}.yaml"))
        defaults = [*beneath.get("defaults", []), *config["defaults"]]
        config = {**beneath, **config, "defaults": [d for d in defaults if isinstance(d, dict)]}
    return config


def of(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def plain(path: Path, **extra) -> dict:
    config = {k: v for k, v in read(path).items() if k not in RESERVED - {"_target_"}}
    return {**config, **extra}


def composed(path: Path) -> dict:
    """The YAML with the groups that its defaults list names put in."""
    config = plain(path)
    for entry in read(path).get("defaults", []):
        if isinstance(entry, dict) and "override" not in str(entry):
            ((group, option),) = entry.items()
            name, _, key = group.partition("@")
            option = str(option).replace("${optimizers@_global_}", "sgd")
            *parents, last = key.split(".")
            place = config
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = composed(CONF / name.strip("/") / f"{option}.yaml")
    return config


def context(tmp_path=Path("unused")) -> Context:
    return Context(Digits(), Runtime(), 0, tmp_path, instantiate)
