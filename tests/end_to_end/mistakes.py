"""Command lines with a mistake, and what is said of each."""

from __future__ import annotations

PRUNE, QUANTIZE = "recipe.stages.prune", "recipe.stages.quantize"


MISTAKES = [
    (["recipe=prune_then_quantt"], "recipe=prune_then_quantt: .* mean prune_then_quant?"),
    (["model=resnet21"], "model=resnet21: no such option; did you mean resnet20?"),
    (["recipe=null"], "must be a string"),
    (
        ["recipe=recalibrate_then_quant", "model=mlp"],
        "recipe.stages.recalibrate: .*no BatchNorm with running statistics; leave the stage out",
    ),
    ([f"{PRUNE}.batchnorm=moved"], "batchnorm must be shift, measure or keep, got 'moved'"),
    (["sotre"], "unknown command 'sotre'; did you mean 'store'?"),
    (["-m", "fronts"], "unknown command 'fronts'; did you mean 'front'?"),
    (["recipe=prune", "store"], "the command 'store' must come first: compressbench store"),
    (["seed=???"], "seed: Missing mandatory value"),
    (["seed=${sed}"], "seed: Interpolation key 'sed' not found"),
    (["seed=-1"], r"seed must be an integer in \[0, 4294967295\], got -1"),
    (
        ["recipe=quantize", f"{QUANTIZE}.calibration_images=0"],
        "calibration_images must be .* got 0",
    ),
    (
        ["recipe=quantize", f"{QUANTIZE}.granularity=group", f"{QUANTIZE}.group_size=16"],
        r"group_size=16 does not divide the input channels of entries\.0\.0 \(1\); add a rule",
    ),
    (["recipe=quantize", f"{QUANTIZE}.granularity=group"], "group_size must be an integer"),
    (
        ["recipe=quantize", QUANTIZE + ".rules=[{layers: entires.*, bits: 4}]"],
        r"rules\[0\]\.layers=entires\.\* matches no layer to quantize; the nearest name is entries",
    ),
    (["recipe=quantize", f"+{QUANTIZE}.widths.clasifier=4"], "nearest name is classifier"),
    (
        ["recipe=prune_2_4", f"{PRUNE}.layers=[entries.0.0]"],
        "2:4 does not fit entries.0.0: 4 does not",
    ),
    (["recipe=prune_channels", f"{PRUNE}.macs=2x"], "one target must be .* got sparsity and macs"),
    (
        ["recipe=prune_channels_2x", f"{PRUNE}.macs=half"],
        "macs must be an integer above 0, a share",
    ),
    (["recipe=lottery_ticket", "recipe.stages.train.keep_epoch=null"], "set keep_epoch of an"),
    (["recipe=prune_2_4", f"{PRUNE}.sparsity=0.5"], "pattern=2:4 is a target of its own"),
    ([f"{PRUNE}.pattern=4:2", f"{PRUNE}.sparsity=null"], r"0 < N < M, such as .* got '4:2'"),
    ([f"{PRUNE}.layers=[clasifier]"], "layers: no .* 'clasifier'; the nearest name is classifier"),
    ([f"{PRUNE}.skip=[clasifier]"], "skip: no .* 'clasifier'; the nearest name is classifier"),
    (
        [f"{PRUNE}.scope=erk", f"{PRUNE}.threshold=0.1", f"{PRUNE}.sparsity=null"],
        "scope=erk needs",
    ),
    (
        [f"criterion@{PRUNE}.criterion=apoz", f"{PRUNE}.criterion.images=0"],
        "images must be an integer of at least 1, got 0",
    ),
    (
        ["recipe=quant_then_prune", f"criterion@{PRUNE}.criterion=sparsegpt"],
        "this criterion updates weights",
    ),
    (
        ["recipe=distill", "recipe.stages.distill.model=mlp"],
        "distill.model='mlp' is not a model: .* model@recipe.stages.distill.model=NAME",
    ),
    (["model.checkpoint=5"], "model.checkpoint must be a path or null, got 5"),
    (["model.checkpoint=a.pt"], "model.checkpoint=a.pt: no such file"),
    (["name=null"], "name must be text, got None"),
    (["recipe.stages.train.warmup=abc"], "warmup must be a number"),
    (["recipe.stages.train.label_smoothing=2"], "label_smoothing must be a number"),
    (
        ["recipe.stages.train.optimizer.lr=-1"],
        "train: optimizer.lr must be .* at least 0, got -1",
    ),
    (["model.width=0"], r"model: width must be an integer in \[1, 16384\], got 0"),
    (["dataset.metric=recall"], "metric must be one of accuracy"),
    (["dataset=cifar10"], "dataset.root is not set"),
    (["dataset=cifar10", "dataset.root=nowhere"], "dataset.root=nowhere: no train.parquet there"),
    (["dataset=images", "dataset.train=none.parquet"], "none.parquet: no such file"),
    (["tracking=server", "tracking.url=ftp://host"], "tracking.url must start with http"),
    (["trainer=gpu"], "trainer.accelerator=gpu: torch sees no CUDA"),
    (["--config-dir=nowhere"], "nowhere' not found"),
]
