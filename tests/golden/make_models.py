# ruff: noqa
"""Makes the SavedModels under models/ (TensorFlow 2.21): python make_models.py OUT_DIR.

Kept as it ran when the recordings were made.
"""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import tensorflow as tf, numpy as np, shutil, sys

B = sys.argv[1]
shutil.rmtree(B, ignore_errors=True)


def p(n, v=1):
    return f"{B}/{n}/{v}"


S = tf.TensorSpec


def sig(fn, *specs):
    return tf.function(fn, input_signature=specs)


# identity over dtypes, unknown rank
DT = [
    "float32",
    "float64",
    "int32",
    "uint8",
    "int16",
    "int8",
    "string",
    "complex64",
    "int64",
    "bool",
    "bfloat16",
    "uint16",
    "complex128",
    "float16",
    "uint32",
    "uint64",
    "qint8",
    "quint8",
    "qint32",
    "qint16",
    "quint16",
    "float8_e5m2",
    "float8_e4m3fn",
    "int4",
    "uint4",
]


class M(tf.Module):
    pass


ok = []
m = M()
sigs = {}
for d in DT:
    dt = getattr(tf.dtypes, d, None) or getattr(tf.dtypes.experimental, d, None)
    if dt is None:
        print("no", d)
        continue
    try:
        f = tf.function(
            lambda x: {"y": tf.raw_ops.Identity(input=x)}, input_signature=[S(None, dt, name="x")]
        )
        f.get_concrete_function()
        setattr(m, "f_" + d, f)
        sigs[d] = f
        ok.append(d)
    except Exception as e:
        print("fail", d, str(e)[:200])
tf.saved_model.save(m, p("identity_any"), signatures=sigs)
print("identity_any", ok)
# static shapes
m = M()
sigs = {
    "serving_default": sig(lambda x: {"y": tf.identity(x)}, S([None, 3], tf.float32, name="x")),
    "fixed": sig(lambda x: {"y": tf.identity(x)}, S([2, 2], tf.int32, name="x")),
    "scalar": sig(lambda x: {"y": tf.identity(x)}, S([], tf.float32, name="x")),
    "dyn4": sig(lambda x: {"y": tf.identity(x)}, S([None, None, 2, None], tf.float32, name="x")),
}
for k, v in sigs.items():
    setattr(m, k, v)
tf.saved_model.save(m, p("identity_shaped"), signatures=sigs)
# multi in/out
m = M()
m.f = sig(
    lambda a, b: {"sum": a + b, "diff": a - b, "prod": a * b},
    S([None], tf.float32, name="a"),
    S([None], tf.float32, name="b"),
)
m.g = sig(
    lambda ids, name: {
        "joined": tf.strings.join([name, tf.strings.as_string(ids)], "-"),
        "n": tf.shape(ids)[0],
        "even": tf.equal(ids % 2, 0),
    },
    S([None], tf.int64, name="ids"),
    S([None], tf.string, name="name"),
)
tf.saved_model.save(m, p("multi_io"), signatures={"serving_default": m.f, "strings": m.g})
# only non default sig
m = M()
m.f = sig(lambda x: {"y": x * 2}, S([None], tf.float32, name="x"))
tf.saved_model.save(m, p("no_default"), signatures={"double": m.f})
# no sig at all
m = M()
m.v = tf.Variable(1.0)
tf.saved_model.save(m, p("no_sigs"))
# runtime errors
m = M()


@tf.function(input_signature=[S([None], tf.int32, name="x")])
def div(x):
    return {"y": tf.raw_ops.FloorDiv(x=100, y=x)}


@tf.function(input_signature=[S([None], tf.int32, name="x")])
def gather(x):
    return {"y": tf.gather(tf.constant([1.0, 2.0, 3.0]), x)}


@tf.function(input_signature=[S([], tf.string, name="msg"), S([], tf.bool, name="ok")])
def asrt(msg, ok):
    with tf.control_dependencies([tf.raw_ops.Assert(condition=ok, data=[msg], summarize=3)]):
        return {"y": tf.identity(msg)}


@tf.function(input_signature=[S(None, tf.float32, name="a"), S(None, tf.float32, name="b")])
def matmul(a, b):
    return {"y": tf.raw_ops.MatMul(a=a, b=b)}


@tf.function(input_signature=[S([None], tf.string, name="x")])
def tonum(x):
    return {"y": tf.strings.to_number(x)}


@tf.function(input_signature=[S([], tf.int32, name="n")])
def slow(n):
    x = tf.ones([400, 400])
    for i in tf.range(n):
        x = tf.matmul(x, x) * 1e-3
    return {"y": tf.reduce_sum(x)}


for f, k in (
    (div, "div"),
    (gather, "gather"),
    (asrt, "assert"),
    (matmul, "matmul"),
    (tonum, "tonum"),
    (slow, "slow"),
):
    setattr(m, "f" + k, f)
tf.saved_model.save(
    m,
    p("failing"),
    signatures={
        "serving_default": div,
        "div": div,
        "gather": gather,
        "assert": asrt,
        "matmul": matmul,
        "tonum": tonum,
        "slow": slow,
    },
)
# versions
for v in (1, 2, 3, 10):
    m = M()
    m.k = tf.Variable(float(v))
    m.f = sig(lambda x: {"y": x + m.k, "version": tf.constant(v, tf.int64)}, S([None], tf.float32, name="x"))
    tf.saved_model.save(m, p("versions", v), signatures={"serving_default": m.f})
# spec'd dims/metadata
# keras mnist
tf.keras.utils.set_random_seed(7)
km = tf.keras.Sequential(
    [
        tf.keras.Input((28, 28), name="image"),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(32, activation="relu"),
        tf.keras.layers.Dense(10, activation="softmax", name="probs"),
    ]
)
km.export(p("mnist"))
ws = [np.array(x) for x in km.get_weights()]


class W(tf.Module):
    def __init__(self):
        self.w = [tf.Variable(x) for x in ws]

    def net(self, x):
        return tf.nn.softmax(tf.nn.relu(x @ self.w[0] + self.w[1]) @ self.w[2] + self.w[3])

    @tf.function(input_signature=[S([None, 784], tf.float32, name="images")])
    def pred(self, images):
        return {"scores": self.net(images)}

    @tf.function(input_signature=[S([None], tf.string, name="inputs")])
    def cls(self, inputs):
        f = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([784], tf.float32)})
        v, i = tf.nn.top_k(self.net(f["x"]), 10)
        return {"classes": tf.strings.as_string(i), "scores": v}


w = W()
tf.saved_model.save(w, p("mnist_sm"), signatures={"predict_images": w.pred, "serving_default": w.cls})


class U(tf.Module):
    def __init__(self):
        self.k = km

    @tf.function(input_signature=[S([None, 784], tf.float32, name="images")])
    def pred(self, images):
        return {"scores": self.k(tf.reshape(images, [-1, 28, 28]))}


u = U()
tf.saved_model.save(u, p("uninit_vars"), signatures={"serving_default": u.pred})
# classify / regress through TF1 API with proper method names
import tensorflow.compat.v1 as tf1
from tensorflow.compat.v1.saved_model import signature_def_utils as sdu, utils


def tf1model(path, build):
    g = tf1.Graph()
    with g.as_default(), tf1.Session(graph=g) as s:
        sd = build()
        s.run(tf1.global_variables_initializer())
        b = tf1.saved_model.builder.SavedModelBuilder(path)
        b.add_meta_graph_and_variables(s, ["serve"], signature_def_map=sd, main_op=tf1.tables_initializer())
        b.save()


def cr():
    ser = tf1.placeholder(tf.string, [None], name="tf_example")
    f = tf1.parse_example(
        ser,
        {
            "age": tf1.FixedLenFeature([1], tf.float32),
            "w": tf1.FixedLenFeature([1], tf.float32, default_value=[2.0]),
            "tag": tf1.FixedLenFeature([1], tf.string, default_value=["none"]),
            "ids": tf1.VarLenFeature(tf.int64),
        },
    )
    age = f["age"]
    n = tf.shape(age)[0]
    sc = tf.concat([age * 0.1, 1 - age * 0.1, f["w"]], 1)
    cls = tf.tile(tf.constant([["young", "old", "weight"]]), [n, 1])
    bi = utils.build_tensor_info
    C = "tensorflow/serving/classify"
    R = "tensorflow/serving/regress"
    P = "tensorflow/serving/predict"
    mk = lambda i, o, mth: sdu.build_signature_def(
        {k: bi(v) for k, v in i.items()}, {k: bi(v) for k, v in o.items()}, mth
    )
    reg = age * 2 + f["w"]
    sq = tf.squeeze(reg, 1)
    idsum = tf.sparse.reduce_sum(f["ids"], 1)
    idsum.set_shape([None])
    return {
        "serving_default": mk({"inputs": ser}, {"classes": cls, "scores": sc}, C),
        "classes_only": mk({"inputs": ser}, {"classes": cls}, C),
        "scores_only": mk({"inputs": ser}, {"scores": sc}, C),
        "regress": mk({"inputs": ser}, {"outputs": reg}, R),
        "regress_1d": mk({"inputs": ser}, {"outputs": sq}, R),
        "reg_bad_dtype": mk({"inputs": ser}, {"outputs": idsum}, R),
        "reg_bad_rank": mk({"inputs": ser}, {"outputs": tf.concat([reg, reg], 1)}, R),
        "reg_bad_outname": mk({"inputs": ser}, {"out": reg}, R),
        "reg_bad_inname": mk({"examples": ser}, {"outputs": reg}, R),
        "reg_batch_mismatch": mk({"inputs": ser}, {"outputs": tf.concat([sq, sq], 0)}, R),
        "cls_bad_classes_dtype": mk({"inputs": ser}, {"classes": tf.cast(age, tf.int64), "scores": sc}, C),
        "cls_bad_scores_dtype": mk({"inputs": ser}, {"classes": cls, "scores": tf.cast(sc, tf.float64)}, C),
        "cls_1d": mk({"inputs": ser}, {"classes": cls[:, 0], "scores": sc[:, 0]}, C),
        "cls_scores_mismatch": mk({"inputs": ser}, {"classes": cls, "scores": sc[:, :2]}, C),
        "cls_batch_mismatch": mk({"inputs": ser}, {"scores": tf.concat([sc, sc], 0)}, C),
        "cls_no_outputs": mk({"inputs": ser}, {"foo": sc}, C),
        "cls_extra_output": mk({"inputs": ser}, {"scores": sc, "foo": sc}, C),
        "predict_parsed": mk({"examples": ser}, {"age": age, "tag": f["tag"], "idsum": idsum}, P),
        "predict_like_classify": mk({"inputs": ser}, {"classes": cls, "scores": sc}, P),
        "weird_method": mk({"inputs": ser}, {"outputs": reg}, "my/method"),
        "no_method": mk({"inputs": ser}, {"outputs": reg}, ""),
    }


tf1model(p("examples"), cr)


def spd():
    x = tf1.placeholder(tf.float32, [None, 2], name="x")
    sp = tf1.sparse_placeholder(tf.float32, name="sp")
    bi = utils.build_tensor_info
    return {
        "serving_default": sdu.build_signature_def(
            {"x": bi(x)}, {"y": bi(x * 2)}, "tensorflow/serving/predict"
        ),
        "dense_sparse": sdu.build_signature_def(
            {"sp": bi(sp)}, {"y": bi(tf1.sparse_tensor_to_dense(sp))}, "tensorflow/serving/predict"
        ),
        "missing_tensor": sdu.build_signature_def(
            {"x": tf1.saved_model.utils.build_tensor_info(x)}, {"y": bi(x)}, "tensorflow/serving/predict"
        ),
    }


try:
    tf1model(p("sparse"), spd)
except Exception as e:
    print("sparse", e)
# broken
os.makedirs(p("corrupt_pb"))
open(p("corrupt_pb") + "/saved_model.pb", "wb").write(b"this is not a proto\xff\xff\xff")
os.makedirs(p("empty_version_dir"))
os.makedirs(f"{B}/no_versions")
os.makedirs(f"{B}/non_numeric/abc")
shutil.copytree(p("versions", 3), p("missing_variables"))
shutil.rmtree(p("missing_variables") + "/variables")
shutil.copytree(p("versions", 3), p("mixed", 3))
os.makedirs(p("mixed", 4))
open(p("mixed", 4) + "/saved_model.pb", "wb").write(b"xx")
shutil.copytree(p("versions", 2), f"{B}/mixed/notaversion")
shutil.copytree(p("versions", 2), f"{B}/mixed/002")
# wrong tag
g = tf1.Graph()
with g.as_default(), tf1.Session(graph=g) as s:
    x = tf1.placeholder(tf.float32, [None], name="x")
    b = tf1.saved_model.builder.SavedModelBuilder(p("train_tag"))
    b.add_meta_graph_and_variables(
        s,
        ["train"],
        signature_def_map={
            "serving_default": sdu.build_signature_def(
                {"x": utils.build_tensor_info(x)},
                {"y": utils.build_tensor_info(x * 2)},
                "tensorflow/serving/predict",
            )
        },
    )
    b.save()

# defaults in SignatureDef
from tensorflow.core.protobuf import saved_model_pb2

shutil.copytree(p("multi_io"), p("defaults"))
sm = saved_model_pb2.SavedModel()
f = p("defaults") + "/saved_model.pb"
sm.ParseFromString(open(f, "rb").read())
sd = sm.meta_graphs[0].signature_def["serving_default"]
sd.defaults["b"].CopyFrom(tf.make_tensor_proto([10.0, 20.0], tf.float32, [2]))
open(f, "wb").write(sm.SerializeToString())
print("done")
