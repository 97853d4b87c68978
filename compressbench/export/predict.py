"""python predict.py image.png: prints the top three classes. Needs onnxruntime, numpy, pillow."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder = Path(__file__).parent
about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
_, channels, height, width = about["input"]["shape"]
image = Image.open(sys.argv[1]).convert("L" if channels == 1 else "RGB").resize((width, height))
pixels = np.asarray(image, np.float32).reshape(height, width, channels) / 255
inputs = (pixels - np.float32(about["input"]["mean"])) / np.float32(about["input"]["std"])
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(None, {"input": inputs.transpose(2, 0, 1)[None]})[0][0]
probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
for label in np.argsort(-probabilities, kind="stable")[:3]:
    print(f"{probabilities[label]:.4f} {about['classes'][label]}")
