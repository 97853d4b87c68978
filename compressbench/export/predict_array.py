"""python predict.py inputs.npy: prints the top class of each input. Needs onnxruntime, numpy."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(__file__).parent
about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
inputs = np.load(sys.argv[1]).astype(np.float32).reshape(-1, *about["input"]["shape"][1:])
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(None, {"input": inputs})[0]
odds = np.exp(logits - logits.max(1, keepdims=True))
for row in odds / odds.sum(1, keepdims=True):
    print(f"{row.max():.4f} {about['classes'][row.argmax()]}")
