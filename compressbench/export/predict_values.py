"""python predict.py inputs.npy [answers.npy]: prints, and writes, what the model answers.

Inputs are those that the model was trained on: prepared numbers, pixels (uint8), or token ids.
Needs onnxruntime and numpy.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(__file__).parent
about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
task, given, output = about["task"], about["input"], about["output"]
inputs = np.load(sys.argv[1]).reshape(-1, *given["shape"][1:])
if "mean" in given and inputs.dtype == np.uint8:
    channels = (1, -1, *[1] * (inputs.ndim - 2))
    mean, std = (np.float32(given[name]).reshape(channels) for name in ("mean", "std"))
    inputs = (inputs / np.float32(255) - mean) / std
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
scores = session.run(None, {"input": inputs.astype(given["dtype"])})[0]
answers = {
    "regression": lambda: scores * np.float32(output["scale"]) + np.float32(output["offset"])
    if "scale" in output else scores,
    "multilabel": lambda: 1 / (1 + np.exp(-scores)),
    "segmentation": lambda: scores.argmax(1),
    "tokens": lambda: scores.argmax(-1),
    "language_model": lambda: scores.argmax(-1),
    "reconstruction": lambda: ((scores - inputs) ** 2).reshape(len(inputs), -1).mean(1),
}.get(task, lambda: scores)()  # fmt: skip
if len(sys.argv) > 2:
    np.save(sys.argv[2], answers)
for answer in answers:
    if task == "regression":
        print(", ".join(f"{n} {v:.4g}" for n, v in zip(about["classes"], answer, strict=True)))
    elif task == "multilabel":
        print(", ".join(n for n, v in zip(about["classes"], answer, strict=True) if v > 0.5) or "-")
    elif task in ("segmentation", "tokens"):
        numbers, counts = np.unique(answer, return_counts=True)
        print(", ".join(f"{about['classes'][n]} {c}" for n, c in zip(numbers, counts, strict=True)))
    elif task == "reconstruction":
        print(f"squared error {answer:.4g}")
    else:
        print(answer.tolist() if answer.size < 50 else f"answer {list(answer.shape)}")
