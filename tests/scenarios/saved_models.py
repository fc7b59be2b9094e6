"""SavedModels like those of the real server's own tests, built with TensorFlow in TF1 and TF2 style.

Each function writes one version folder. The arithmetic is the real test models': half_plus_two is
y = x/2 + 2, y2 = x/2 + 3, y3 = x2/2 + 3. Importing this module does not import TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "export_counter",
    "export_half_plus_three",
    "export_half_plus_two_tf1",
    "export_half_plus_two_tf2",
    "export_keras",
    "export_keras_mirrored",
    "export_product",
    "export_two_signatures",
]


def export_half_plus_two_tf1(folder: Path) -> None:
    """Signatures with method names of their own, variables, Examples parsed to feature columns."""
    import tensorflow.compat.v1 as tf1

    graph = tf1.Graph()
    with graph.as_default(), tf1.Session(graph=graph) as session:
        serialized = tf1.placeholder(tf1.string, name="tf_example")
        features = {
            "x": tf1.io.FixedLenFeature([1], tf1.float32),
            "x2": tf1.io.FixedLenFeature([1], tf1.float32, default_value=[0.0]),
        }
        columns = tf1.io.parse_example(serialized, features)
        for column in columns.values():
            column.set_shape([None, 1])
        x, x2 = (tf1.identity(columns[name], name=name) for name in ("x", "x2"))
        half, two, three = (tf1.Variable(value, use_resource=True) for value in (0.5, 2.0, 3.0))
        y, y2, y3 = half * x + two, half * x + three, half * x2 + three
        session.run(tf1.global_variables_initializer())
        _save_tf1(
            folder,
            session,
            {
                "serving_default": ("predict", {"x": x}, {"y": y}),
                "classify_x_to_y": ("classify", {"inputs": serialized}, {"scores": y}),
                "classify_x2_to_y3": ("classify", {"inputs": x2}, {"scores": y3}),
                "regress_x_to_y": ("regress", {"inputs": serialized}, {"outputs": y}),
                "regress_x_to_y2": ("regress", {"inputs": serialized}, {"outputs": y2}),
                "regress_x2_to_y3": ("regress", {"inputs": x2}, {"outputs": y3}),
            },
        )


def export_half_plus_two_tf2(folder: Path) -> None:
    """Every signature says that it is for Predict, and each has an input tensor of its own."""
    import tensorflow as tf

    def parsed(inputs: Any) -> Any:
        return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]

    column = [None, 1]
    made = {
        "serving_default": (lambda x: {"y": x / 2.0 + 2.0}, "x", column, tf.float32),
        "classify_x_to_y": (
            lambda inputs: {"scores": parsed(inputs) / 2.0 + 2.0},
            "inputs",
            [None],
            tf.string,
        ),
        "classify_x2_to_y3": (lambda inputs: {"scores": inputs / 2.0 + 3.0}, "inputs", column, tf.float32),
        "regress_x_to_y": (
            lambda inputs: {"outputs": parsed(inputs) / 2.0 + 2.0},
            "inputs",
            [None],
            tf.string,
        ),
        "regress_x_to_y2": (
            lambda inputs: {"outputs": parsed(inputs) / 2.0 + 3.0},
            "inputs",
            [None],
            tf.string,
        ),
        "regress_x2_to_y3": (lambda inputs: {"outputs": inputs / 2.0 + 3.0}, "inputs", column, tf.float32),
    }
    module = tf.Module()
    signatures = {
        name: tf.function(function, input_signature=[tf.TensorSpec(shape, dtype, name=argument)])
        for name, (function, argument, shape, dtype) in made.items()
    }
    for name, function in signatures.items():
        setattr(module, name, function)
    tf.saved_model.save(module, str(folder), signatures=signatures)


def export_half_plus_three(folder: Path) -> None:
    """TF1: a scalar x/2 + 3, and a signature that is called as the regress method is."""
    import tensorflow.compat.v1 as tf1

    graph = tf1.Graph()
    with graph.as_default(), tf1.Session(graph=graph) as session:
        x = tf1.placeholder(tf1.float32, [], name="x")
        serialized = tf1.placeholder(tf1.string, name="tf_example")
        column = tf1.io.parse_example(serialized, {"x": tf1.io.FixedLenFeature([1], tf1.float32)})["x"]
        _save_tf1(
            folder,
            session,
            {
                "serving_default": ("predict", {"x": x}, {"y": x / 2.0 + 3.0}),
                "tensorflow/serving/regress": (
                    "regress",
                    {"inputs": serialized},
                    {"outputs": column / 2.0 + 3.0},
                ),
            },
        )


def export_counter(folder: Path) -> None:
    """TF1: signatures without inputs around one reference variable; there is no ``serving_default``."""
    import tensorflow.compat.v1 as tf1

    graph = tf1.Graph()
    with graph.as_default(), tf1.Session(graph=graph) as session:
        counter = tf1.Variable(0.0, use_resource=False, name="counter")
        delta = tf1.placeholder(tf1.float32, name="delta")
        outputs = {
            "get_counter": counter,
            "incr_counter": tf1.assign_add(counter, 1.0),
            "reset_counter": tf1.assign(counter, 0.0),
            "incr_counter_by": tf1.assign_add(counter, delta),
        }
        session.run(tf1.global_variables_initializer())
        _save_tf1(
            folder,
            session,
            {
                name: ("predict", {"delta": delta} if name == "incr_counter_by" else {}, {"output": output})
                for name, output in outputs.items()
            },
        )


def export_product(folder: Path) -> None:
    """TF2: one function of a scalar, 3 * 2 * x, with its factors in variables."""
    import tensorflow as tf

    module = tf.Module()
    module.first, module.second = tf.Variable(3.0), tf.Variable(2.0)
    module.product = tf.function(lambda x: module.first * module.second * x)
    tf.saved_model.save(
        module, str(folder), signatures=module.product.get_concrete_function(tf.TensorSpec([], tf.float32))
    )


def export_two_signatures(folder: Path) -> None:
    """TF2: the default signature gives x, ``custom_signature_key`` gives 2 * x."""
    import tensorflow as tf

    scalar = [tf.TensorSpec([], tf.float32, name="x")]
    module = tf.Module()
    module.once = tf.function(lambda x: {"output": tf.identity(x)}, input_signature=scalar)
    module.twice = tf.function(lambda x: {"output": 2.0 * x}, input_signature=scalar)
    tf.saved_model.save(
        module,
        str(folder),
        signatures={"serving_default": module.once, "custom_signature_key": module.twice},
    )


def export_keras(folder: Path) -> None:
    """A Keras model of one dense layer, x + 1."""
    _sequential().export(str(folder), verbose=False)


def export_keras_mirrored(folder: Path) -> None:
    """The same model, made under a distribution strategy that keeps copies of its variables."""
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        _sequential().export(str(folder), verbose=False)


def _sequential() -> Any:
    from tensorflow import keras

    dense = keras.layers.Dense(1, kernel_initializer="ones", bias_initializer="ones")
    return keras.Sequential([keras.Input((1,), name="x"), dense])


def _save_tf1(
    folder: Path, session: Any, signatures: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]]
) -> None:
    """Write the session's graph with signatures of (method, inputs, outputs)."""
    import tensorflow.compat.v1 as tf1

    utils, definition = tf1.saved_model.utils, tf1.saved_model.signature_def_utils.build_signature_def
    builder = tf1.saved_model.Builder(str(folder))
    builder.add_meta_graph_and_variables(
        session,
        ["serve"],
        signature_def_map={
            key: definition(
                {name: utils.build_tensor_info(tensor) for name, tensor in inputs.items()},
                {name: utils.build_tensor_info(tensor) for name, tensor in outputs.items()},
                f"tensorflow/serving/{method}",
            )
            for key, (method, inputs, outputs) in signatures.items()
        },
    )
    builder.save()
