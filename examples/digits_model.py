"""Train a classifier of handwritten digits and export it as a SavedModel.

    python examples/digits_model.py FOLDER VERSION

The data are scikit-learn's 1,797 real digits of 8x8 pixels. Version 1 is a logistic regression, version 2
a neural network with one hidden layer. Images come as float32 (-1, 64) with pixels from 0 to 16.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def train(version: int) -> list[tuple[Any, Any]]:
    """Layers of (weights, biases): the odd half of the data trains the model, the even half it never sees."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    images, labels = images[1::2] / 16, labels[1::2]
    if version == 1:
        linear = LogisticRegression(max_iter=2000).fit(images, labels)
        return [(linear.coef_.T, linear.intercept_)]
    network = MLPClassifier((128,), alpha=0.1, max_iter=400, random_state=7).fit(images, labels)
    return list(zip(network.coefs_, network.intercepts_, strict=True))


def export(folder: Path, version: int) -> None:
    """Write ``folder/version``, under another name first, so that no server ever sees half a model."""
    import tensorflow as tf

    layers = [(tf.constant(w, tf.float32), tf.constant(b, tf.float32)) for w, b in train(version)]

    def classify(images: Any) -> dict[str, Any]:
        values = images / 16
        for index, (weights, biases) in enumerate(layers):
            values = values @ weights + biases
            if index < len(layers) - 1:
                values = tf.nn.relu(values)
        return {"scores": tf.nn.softmax(values), "digit": tf.argmax(values, axis=1)}

    module = tf.Module()
    module.classify = tf.function(
        classify, input_signature=[tf.TensorSpec([None, 64], tf.float32, name="images")]
    )
    temporary = folder / f".{version}.partial"
    tf.saved_model.save(module, str(temporary), signatures={"serving_default": module.classify})
    temporary.rename(folder / str(version))


if __name__ == "__main__":
    export(Path(sys.argv[1]), int(sys.argv[2]))
