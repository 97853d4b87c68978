"""Every architecture of the zoo, and what is expected of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RIGHT, REFUSED, EITHER = "right", "refused", "either"
HERE = "tests.zoo.architectures"


@dataclass(frozen=True)
class Entry:
    """One architecture.

    `expected`: it must come out right, must be refused before training, or may do either. `cut`
    names layers that must lose channels where channels are pruned.
    """

    name: str
    target: str
    expected: Literal["right", "refused", "either"] = "right"
    cut: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def _entries(module: str, /, expected: Any = RIGHT, **cut: str) -> list[Entry]:
    """Entries of one module: class name -> names of layers that must be cut, by spaces."""
    return [
        Entry(name, f"{HERE}.{module}.{name}", expected, tuple(layers.split()))
        for name, layers in cut.items()
    ]


ZOO = [
    *_entries(
        "residual",
        BasicResNet="0.0 1.a.0 2.a.0 2.b.0 3.a.0", BottleneckResNet="0.0 1.a.0 1.b.0 1.c.0",
        ResNeXt="0.0 1.a.0 1.b.0 1.c.0", RegNet="0.0 1.a.0 1.b.0 2.b.0 1.gate.reduce",
        SqueezeExciteResNet="0.0 1.a.0 1.b.0 1.gate.reduce", PreActivation="stem convs.0 convs.2",
        PaddingShortcut="", DenseNet="layers.0.2 layers.1.2 layers.2.2 transition.2",
        DualPath="", RepVGG="stem.0 big.0.0 big.1.0", HighResolution="stem.0 down.0 fine.a.0",
        StochasticDepth="stem.0 blocks.0.0.0", LayerDrop="stem.0 blocks.0.0.0",
        ReZero="stem.0 a.0",
    ),
    *_entries(
        "mobile",
        VGG="features.0.0 features.1.0 features.3.0 classifier.1",
        MobileNetV1="0.0 1.0 2.0 4.0", MobileNetV2="0.0 1.expand.0 2.expand.0 2.project.0 4.0",
        MobileNetV3="0.0 1.expand.0 2.expand.0 3.0 5",
        EfficientNet="0.0 1.expand.0 2.expand.0 2.project.0 4.0",
        ShuffleNetV1="last.0", ShuffleNetV2="branches.0.0.0 last.0",
        GhostNet="stem.0 first.0.0 first.1.0", SqueezeNet="stem squeeze left right",
        Inception="stem.0 one.0 two.0.0 two.1.0 three.0 three.2 four.1.0",
        NASNet="first.separable.2", CrossStage="stem.0 skip.0 block.0.0 join.0",
        AllConvolutional="0 2",
    ),
    *_entries(
        "dense_prediction",
        UNet="one.0 two.0 bottom.0 up_two dec_two.0 up_one dec_one.0",
        FeaturePyramid="one.0 two.0 three.0", Hourglass="stem.0 down.1.0",
        Decoder="stem.0 embed up last.0", PixelShuffle="stem.0 last.0",
        SpacePyramid="stem.0 branches.0.0 pooled.1 project.0", MaskTimesMap="stem.0 a.0 last.0",
        BlockAttention="shared.0 last.0", EfficientChannelAttention="stem.0 last.0",
        NonLocal="", SelectiveKernel="", FlattenedBranches="stem.0 a.0 b.0 fc1",
        InputAgain="stem.0 last.0",
    ),
    *_entries("transformers", VisionTransformer="mlp.fc1"),
    *_entries(
        "encoders",
        AlibiEncoder="mlp.fc1", RelativeEncoder="mlp.fc1", InfinityMaskEncoder="mlp.fc1",
        SmallestMaskEncoder="mlp.fc1", FilledMaskEncoder="mlp.fc1", Llama="mlp.gate mlp.up",
        GroupedQueryEncoder="", LinearEncoder="mlp.fc1", TorchAttentionEncoder="mlp.fc1",
        MixtureOfExperts="mlp.experts.0.fc1", TorchEncoder="encoder.layers.0.linear1",
        Windows="mlp.fc1", CoAtNet="stem.0.0 mlp.fc1", LearntQueries="fc1",
        ConvolutionalTokens="",
    ),
    *_entries(
        "mixers",
        Mixer="tokens.0 channels.0", GatedPerceptron="", PoolFormer="fc1", ConvNeXt="up",
        GlobalResponse="", ConvMixer="0", AffineMixer="up", FourierMixer="up",
    ),
    *_entries(
        "sequences",
        LSTMClassifier="", GRUClassifier="", CellLoop="",
        TemporalConvolutions="blocks.0.conv", WaveNet="", GatedConvolutions="",
        KeywordSpotting="layers.0 layers.6", StatisticsPooling="a fc1",
    ),
    *_entries(
        "norms",
        WeightStandardization="last.0", GroupNormNet="stem.0 last.0",
        InstanceNormNet="stem.0 last.0", NoAffineNet="stem.0 a.0 last.0",
        ResponseNormNet="last.0", NewWeightNorm="last.0", PReLUNet="stem.0 a.0 last.0",
        ReflectionPads="stem.0 a.1 last.0", CircularPads="stem.0 a last.0", Maxout="last.0",
        BilinearPooling="stem.0", GramMatrix="stem.0", SqueezeByMatmul="fc1", Highway="",
        Modulated="stem.0 last.0", Conv3dNet="a b",
    ),
    *_entries(
        "norms", EITHER,
        NoStatisticsNet="", OldWeightNorm="", OldSpectralNorm="", NewSpectralNorm="",
        Orthogonal="", FunctionalWeights="",
    ),
    *_entries(
        "usage",
        Plain="stem.0 a.0 last.0", AsymmetricPads="a.0 b.0", MinusOnePad="stem.0 a.0 last.0",
        Slices="", AuxiliaryHead="a.0 last.0", FrozenStem="a.0 last.0",
        UnusedLayers="stem.0 a.0 last.0", TiedWeights="stem.0 last.0",
        CalledTwice="stem.0 last.0", TwoNames="stem.0 a.0 last.0",
        ReusedActivation="stem.0 last.0",
        DoubleProduct="stem.0 a.0 last.0", GatedDepth="stem.0",
    ),
    *_entries(
        "usage", EITHER,
        TupleInTraining="", TupleAlways="", DictOutput="", WhollyFrozen="", BatchLoop="",
        StaticBatch="", DoublePrecision="", BrainFloat="", ItemInForward="", NumpyInForward="",
        RandomInUse="", ReservedName="", scripted="", compiled="",
    ),
    *_entries(
        "usage", REFUSED,
        DataBranch="", TwoInputs="", NumpyFunctions="", Conditional="",
    ),
    *_entries("constructors", EITHER, PickyConstructor=""),
    *_entries("constructors", REFUSED, OpaqueConstructor=""),
]  # fmt: skip

SMALLER = {"_target_": f"{HERE}.usage.Plain", "width": 10}  # the student in a distillation


def config_of(entry: Entry) -> dict[str, Any]:
    """The section `model` of a run."""
    return {"_target_": entry.target, **entry.options, "student": dict(SMALLER)}
