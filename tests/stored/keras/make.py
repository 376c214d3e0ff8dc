"""Makes the files of this folder, and ``expected.json``, what Keras answers to the pictures of ``pictures``.

Needs TensorFlow with both Kerases: ``pip install tensorflow tf_keras``, then ``python make.py`` here. Not run by tests.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def pictures(shape, largest):
    """Two images (H, W, C) that need no file, in 0..largest."""
    count = 2 * int(np.prod(shape))
    return ((np.arange(count) * 37 % 256) / 255 * largest).reshape(2, *shape).astype("float32")


def shaken(model):
    """Weights as after a training: biases and running means are not 0, deviations not 1."""
    rng = np.random.default_rng(3)
    for variable in model.weights:
        name = getattr(variable, "path", variable.name).split("/")[-1].split(":")[0]
        if "float" not in str(variable.dtype):
            continue
        if name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif name in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif name == "alpha":
            variable.assign(rng.uniform(0.1, 0.4, variable.shape))
    return model


def flatten(keras):
    """Flatten, batch norm, dense; windows that do not fit; a size per channel."""
    L = keras.layers
    return keras.Sequential([
        keras.Input((11, 9, 3)), L.Rescaling(1 / 127.5, offset=-1),
        L.Conv2D(4, 3, strides=2, padding="same", activation="relu"), L.PReLU(shared_axes=[1, 2]),
        L.AveragePooling2D(3, 2, padding="same"), L.Flatten(), L.BatchNormalization(), L.Dropout(0.5),
        L.Dense(6, activation="elu"), L.Dense(3, activation="softmax"),
    ])  # fmt: skip


def transfer(keras):
    """A base in a model, frozen, with augmentation before it."""
    L = keras.layers
    inside = keras.Input((12, 12, 3))
    x = L.ZeroPadding2D(((0, 1), (0, 1)))(inside)
    x = L.Conv2D(4, 3, strides=2, use_bias=False, name="stem")(x)
    x = L.ReLU(6.0)(L.BatchNormalization(epsilon=0.01, name="stem_norm")(x))
    y = L.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    y = L.Conv2D(4, 1, name="project")(y)
    base = keras.Model(inside, L.Add()([x, y]), name="base")
    base.trainable = False
    base.get_layer("project").trainable = True
    image = keras.Input((12, 12, 3))
    x = keras.Sequential([L.RandomFlip("horizontal"), L.RandomRotation(0.1)], name="augmentation")(image)
    x = base(L.Rescaling(1 / 255)(x), training=False)
    x = L.Dropout(0.2)(L.GlobalAveragePooling2D()(x))
    return keras.Model(image, L.Dense(2, activation="softmax")(x))


def separable(keras):
    """Strides on an odd size, and a layer that is called twice."""
    L = keras.layers
    image = keras.Input((13, 13, 3))
    x = L.SeparableConv2D(4, 3, strides=2, padding="same", activation="swish")(image)
    x = L.MaxPooling2D(2, 2, padding="same")(x)
    twice = L.Conv2D(4, 3, padding="same", activation="hard_sigmoid")
    x = L.Concatenate()([twice(x), twice(twice(x))])
    return keras.Model(image, L.Dense(4, activation="sigmoid")(L.GlobalAveragePooling2D()(x)))


def arithmetic(keras):
    """BGR less a mean by functions, squeeze and excitation."""
    L = keras.layers
    image = keras.Input((8, 10, 3))
    x = image[:, :, :, ::-1] - np.array([103.939, 116.779, 123.68], "float32")
    x = L.Conv2D(4, 3)(x / 64.0)
    gate = L.Reshape((1, 1, 4))(L.GlobalAveragePooling2D()(x))
    gate = L.Conv2D(4, 1, activation="sigmoid")(L.Conv2D(2, 1, activation="relu")(gate))
    x = L.LeakyReLU()(L.Multiply()([x, gate]))
    return keras.Model(image, L.Dense(1, activation="sigmoid")(L.GlobalMaxPooling2D()(x)))


def any_size(keras):
    """Images of every size; norms over channels."""
    L = keras.layers
    image = keras.Input((None, None, 1))
    x = L.Conv2D(6, 3, padding="same", dilation_rate=2)(image)
    x = L.LayerNormalization(epsilon=1e-6)(x)
    x = L.Add()([x, L.Dense(6)(L.Dense(8, activation="gelu")(x))])
    return keras.Model(image, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


FILES = {
    "flatten": (flatten, 255),
    "transfer": (transfer, 255),
    "separable": (separable, 1),
    "arithmetic": (arithmetic, 255),
    "any_size": (any_size, 1),
}


def main():
    import keras
    import tf_keras

    expected = {}
    for version, library in (("keras2", tf_keras), ("keras3", keras)):
        for name, (build, largest) in FILES.items():
            library.backend.clear_session()  # names begin at the same number
            library.utils.set_random_seed(1)
            model = shaken(build(library))
            shape = [side or 14 for side in model.input_shape[1:]]
            answer = np.array(model(pictures(shape, largest), training=False))
            for suffix in ("keras", "h5"):
                file = f"{version}_{name}.{suffix}"
                model.save(HERE / file)
                expected[file] = {"shape": shape, "largest": largest, "output": np.float64(answer).tolist()}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
