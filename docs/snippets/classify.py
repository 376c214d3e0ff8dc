"""python classify.py model.onnx photo.jpg    (pip install onnxruntime numpy pillow)"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, picture = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
image = np.asarray(ImageOps.exif_transpose(Image.open(picture)).convert("RGB"))[None]  # uint8 (1, H, W, 3)
logits, maps = session.run(["logits", "maps"], {"image": image})

powers = np.exp(logits[0] - logits[0].max())
probabilities = powers / powers.sum()  # softmax; of independent labels 1 / (1 + exp(-logits))
top = int(logits[0].argmax())
names = json.loads(session.get_modelmeta().custom_metadata_map.get("class_names", "[]"))
print(f"class {top}, probability {probabilities[top]:.4f}")
print("maps", " x ".join(map(str, maps.shape)))
if names:
    print("name", names[top])
