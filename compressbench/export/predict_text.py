"""python predict.py "some text": prints the top three classes. Needs onnxruntime, tokenizers."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = Path(__file__).parent
about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(folder / about["input"]["tokenizer"]))
inputs = np.array([tokenizer.encode(" ".join(sys.argv[1:])).ids], np.int64)
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(None, {"input": inputs})[0][0]
probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
for label in np.argsort(-probabilities, kind="stable")[:3]:
    print(f"{probabilities[label]:.4f} {about['classes'][label]}")
