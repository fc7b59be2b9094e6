"""Export versions of the model ``double``: each answers ``y = 2 x``, but for the one that is wrong.

    python examples/repository/make_versions.py FOLDER 1 2 3:wrong 4

A process of its own, as TensorFlow has no business in the one that rolls versions out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorflow as tf


def export(folder: Path, version: int, factor: float) -> None:
    """A SavedModel that multiplies by `factor`, and says which version it is."""
    module = tf.Module()
    module.factor = tf.Variable(factor)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def run(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * module.factor, "version": tf.constant(version, tf.int64)}

    module.run = run
    tf.saved_model.save(module, str(folder / str(version)), signatures=run)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        number, _, wrong = argument.partition(":")
        export(Path(sys.argv[1]), int(number), 3.0 if wrong else 2.0)
