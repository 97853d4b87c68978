"""Configs, recipes and checkpoints of a stranger, each made to run code of his or to get out of its
bounds. Every payload would leave the file `marker` behind.
"""

from __future__ import annotations

from tests.faults.payload import PLANTED, Payload
from tests.faults.payload_files import of_files, recipes


def _command(name: str, *arguments: str) -> Payload:
    return Payload(name, arguments)


SYSTEM = "{_target_: os.system, command: 'touch {marker}'}"
PLACES = {
    "model": ("+model.norm",),
    "dataset": ("+dataset.norm",),
    "tracking": ("+tracking.norm",),
    "stage": ("+recipe.stages.train.norm",),
    "option": ("recipe.stages.train.epochs",),
    "optimizer": ("recipe.stages.train.optimizer.lr",),
    "criterion": ("recipe.stages.prune.criterion",),
    "activation": ("recipe.stages.quantize.activation",),
    "list": ("recipe.stages.prune.skip",),
    "deep": ("recipe.stages.prune.skip",),
    "sampler": ("search.sampler",),
}


def _places() -> list[Payload]:
    shapes = {"list": f"[{SYSTEM}]", "deep": f"[[{{a: [{SYSTEM}]}}]]"}
    return [
        Payload(
            f"os.system in {name}",
            (*(("-m", "search=prune_quant") if name == "sampler" else ()),
             f"{place}={shapes.get(name, SYSTEM)}"),
        )
        for name, (place,) in PLACES.items()
    ]  # fmt: skip


TARGETS = (
    "os.system",
    "posix.system",
    "subprocess.call",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "runpy.run_path",
    "importlib.import_module",
    "pickle.load",
    "torch.load",
    "torch.hub.load",
    "numpy.load",
    "functools.partial",
    "operator.methodcaller",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "planted.touch",
    "hydra_plugins.compressbench_pareto.pareto.ParetoSweeper",
    "compressbench.cli.main.main",
    "compressbench.search.worker.main",
    "compressbench.config.boundary.freeze",
    "compressbench.models.mlp.nn.Linear",
    "compressbench.models.mlp.Mlp.__init__",
    "compressbench.models.checkpoint.load_checkpoint_",
    "compressbench.data.files.writing",
    "compressbench.data.files.os.system",
    "compressbench.data.files.Path",
    "compressbench.data.tensor_cache._write",
    "compressbench.training.fits.checkpoints.save_checkpoint",
    "compressbench.tracking.trackers.os.system",
    "compressbench.tracking.trackers.Path",
    "compressbench.models..os.system",
    "compressbench.models.",
    ".models.mlp.Mlp",
    "compressbench.models.mlp .Mlp",
    "compressbench.modelsx.mlp.Mlp",
    "torch.optim.lr_scheduler.LambdaLR",
    "torch.optim.swa_utils.AveragedModel",
    "torch.optim.optimizer.functools.partial",
    "torch.optim.sgd.torch.load",
    "torch.optim.optimizer.register_optimizer_step_pre_hook",
)


SPECIAL = (
    _command("arguments by position", "+model._args_=[os.system]"),
    _command("a partial", "model._target_=os.system", "+model._partial_=true"),
    _command("not recursive", "model._target_=os.system", "+model._recursive_=false"),
    _command("a list as target", "model._target_=[os.system]"),
    _command("a dict as target", "model._target_={a: os.system}"),
    _command("a target by interpolation", "+a=1", "model._target_=${oc.decode:os.system}"),
    _command("a target by a key", "name=os.system", "model._target_=${name}"),
    _command("a made-up section", f"+model.x=${{oc.create:{SYSTEM}}}"),
    _command("logging of a job", "+hydra.callbacks.x={_target_: planted.touch}"),
    _command("a launcher of another class", "hydra.launcher._target_=os.system", "-m", "seed=1,2"),
    _command("a sweeper of another class", "hydra.sweeper._target_=os.system", "-m", "seed=1,2"),
    _command("another config", "--config-dir=conf", "--config-name=evil"),
    _command("another config, shortened", "--config-di=conf", "--config-na=evil"),
    _command("another folder", "--config-path={folder}/conf"),
    _command("a run of a stranger again", "--experimental-rerun={folder}/run"),
)


def _in_a_file(name: str, text: str, *more: str, **files: str) -> Payload:
    """A YAML of a config folder, chosen on the command line."""
    return Payload(
        name,
        ("--config-dir=conf", *(more or ("+extra=evil",))),
        {"conf/extra/evil.yaml": text, "planted.py": PLANTED, "conf/planted.py": PLANTED}
        | {f"conf/{path.replace('__', '/')}.yaml": content for path, content in files.items()},
    )


ALLOWED = "COMPRESSBENCH_ALLOW: 'shutil.*'"
COPY = "{_target_: shutil.copyfile, src: '{folder}/planted.py', dst: '{marker}'}"
HANDLER = "{class: logging.FileHandler, filename: '{marker}'}"
FACTORY = "{(): planted.touch}"


def _global(section: str) -> str:
    lines = "".join(f"  {line}\n" for line in section.splitlines())
    return f"# @package _global_\ntracking: {COPY}\nhydra:\n{lines}"


def _logging(handler: str) -> str:
    return (
        f"version: 1\nhandlers:\n  h: {handler}\nroot: {{level: INFO, handlers: [h]}}\n"
        "disable_existing_loggers: false"
    )


def _nested(name: str, section: str) -> str:
    return f"{name}:\n" + "".join(f"  {line}\n" for line in section.splitlines())


HYDRA = {
    "the list": f"job:\n  env_set:\n    {ALLOWED}",
    "the path of children": "job:\n  env_set: {PYTHONPATH: '{folder}'}",
    "a preloaded library": "job:\n  env_set: {LD_PRELOAD: '{folder}/evil.so'}",
    "variables by copy": "job:\n  env_copy: [HOME]",
    "the working folder": "job:\n  chdir: true",
    "the name of a job": "job:\n  name: evil",
    "the search path": "searchpath: ['file://{folder}/other']",
    "a package on the search path": "searchpath: ['pkg://planted']",
    "callbacks": "callbacks:\n  evil: {_target_: planted.touch}",
    "a callback of ours": "callbacks:\n  evil: {_target_: compressbench.models.mlp.Mlp}",
    "a launcher": "launcher: {_target_: planted.touch}",
    "a sweeper": "sweeper: {_target_: planted.touch}",
    "options of a sweeper": "sweeper: {params: {seed: '1,2'}}",
    "logging to a file": _nested("job_logging", _logging(HANDLER)),
    "logging by a factory": _nested("job_logging", _logging(FACTORY)),
    "logging of Hydra to a file": _nested("hydra_logging", _logging(HANDLER)),
    "logging of Hydra by a factory": _nested("hydra_logging", _logging(FACTORY)),
    "verbose": "verbose: true",
    "the run folder": "run: {dir: '{folder}/elsewhere'}",
    "the sweep folder": "sweep: {dir: '{folder}/elsewhere'}",
    "files beside the run": "output_subdir: elsewhere",
    "the mode": "mode: MULTIRUN",
    "the text of the help": "help: {template: evil}",
    "the text of Hydra's help": "hydra_help: {template: evil}",
    "overrides of the task": "overrides: {task: ['model._target_=os.system']}",
    "overrides of Hydra": "overrides: {hydra: ['hydra.job.chdir=true']}",
    "aliases": "aliases: {evil: hydra.job.chdir=true}",
    "new keys": "evil: 1",
}


def _hydra() -> list[Payload]:
    of_a_model = "model: {_target_: compressbench.models.mlp.Mlp}\n"
    of_a_model = _global(HYDRA["the list"]) + of_a_model
    return [
        *(_in_a_file(f"hydra sets {name}", _global(text)) for name, text in HYDRA.items()),
        _in_a_file("a package of its own", f"# @package hydra.job\nenv_set: {{{ALLOWED}}}"),
        _in_a_file(
            "a launcher in the defaults",
            "# @package _global_\ndefaults:\n  - override /hydra/launcher: evil\n",
            hydra__launcher__evil="_target_: planted.touch",
        ),
        _in_a_file(
            "logging in the defaults",
            "# @package _global_\ndefaults:\n  - override /hydra/job_logging: evil\n",
            hydra__job_logging__evil=_logging(FACTORY),
        ),
        _in_a_file(
            "a group moved into hydra",
            "# @package _global_\ndefaults:\n  - /dataset@hydra.job: evil\n",
            dataset__evil=f"env_set: {{{ALLOWED}}}",
        ),
        _in_a_file(
            "a group moved by the command line", "x: 1", "+extra@hydra.job.env_set=other",
            extra__other=ALLOWED,
        ),
        _in_a_file(
            "a file in the place of the basic launcher", "{}", "-m", "seed=1,2",
            hydra__launcher__basic="_target_: planted.touch",
        ),
        _in_a_file(
            "a launcher chosen by its name", "{}", "-m", "seed=1,2", "hydra/launcher=mine",
            hydra__launcher__mine="_target_: planted.touch",
        ),
        _in_a_file(
            "a file in the place of Hydra's own", "{}", "seed=1",
            hydra__config=f"job: {{env_set: {{{ALLOWED}}}}}",
        ),
        _in_a_file(
            "one of two in a grid", "{}", "-m", "model=mlp,evil", model__evil=of_a_model,
        ),
        _in_a_file(
            "one of many in a grid", "{}", "-m", "model=glob([ml*,ev*])", model__evil=of_a_model,
        ),
        _in_a_file(
            "one of two in a search", "{}", "-m", "search=prune_quant", "model=mlp,evil",
            model__evil=of_a_model,
        ),
        _in_a_file(
            "a folder on the search path", _global(HYDRA["the list"]), "+extra=evil",
            "hydra.searchpath=[file://{folder}/conf]",
        ),
        Payload(
            "a folder on the search path alone",
            ("+extra=evil", "hydra.searchpath=[file://{folder}/conf]"),
            {"conf/extra/evil.yaml": _global(HYDRA["the list"])},
        ),
    ]  # fmt: skip


PAYLOADS = [
    *_places(),
    *SPECIAL,
    *_hydra(),
    *recipes(),
    *of_files(),
]
