"""Python source for typed access to models, made from their signatures; a function of what it is given.

`generate` gives a module with a class for each model and a method for each signature: a keyword for every
input, and a dataclass with an array for every output. The same signatures give the same text, whatever the
server, the day and the version, so that a difference is a change of the interface. The text is as ``ruff
format`` leaves it at any line length, and passes ``mypy --strict``.

Names of models, signatures and tensors may be any text. What is no name in Python, or means something else
where it would stand, becomes one that does not; the calls carry the real ones.
"""

from __future__ import annotations

import difflib
import keyword
import re
import shlex
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from aioserving.dtypes import DataType, type_info
from aioserving.errors import InvalidInputError, UnsupportedTypeError
from aioserving.inference import CLASSIFY, REGRESS, check_signature
from aioserving.signature import ModelMetadata, Signature, TensorSpec

__all__ = ["difference", "generate", "header_command"]

#: What Python numbers and strings an input takes beside arrays, by the kind of its numpy dtype.
_NESTED: Final = {
    "f": ("Floats", "float"),
    "i": ("Integers", "int"),
    "u": ("Integers", "int"),
    "b": ("Booleans", "bool"),
    "c": ("Complexes", "complex"),
    "O": ("Strings", "StringArray | str | bytes"),
}

#: Names that stand at the top of every module, whether it uses them or not: a model that gets an input more
#: does not rename others.
_MODULE_NAMES: Final = frozenset(
    {
        "Any",
        "CallOptions",
        "Context",
        "Examples",
        "Literal",
        "Sequence",
        "StringArray",
        "TYPE_CHECKING",
        "TypeAlias",
        "TypedDict",
        "Unpack",
        "aioserving",
        "annotations",
        "dataclass",
        "field",
        "np",
        "npt",
        *(name for name, _ in _NESTED.values()),
    }
)

#: Types whose names annotations in a class use: a method of that name would stand for it there.
_ANNOTATED: Final = frozenset({"bool", "bytes", "complex", "dict", "float", "int", "str", "tuple"})

#: Keywords of every call: the receiver, and what `CallOptions` has.
_CALL: Final = frozenset({"compression", "examples", "metadata", "options", "self", "timeout"})

#: Names that a dataclass would take for its own: the receiver, and a default value that every class has.
_FIELDS: Final = frozenset({"mro", "self"})

_KINDS: Final = {CLASSIFY: ("classify", "ClassifyResult"), REGRESS: ("regress", "RegressResult")}


# -- names --------------------------------------------------------------------------------------------------


def _identifier(name: str, fallback: str) -> str:
    """A Python identifier that looks like `name`, in the form that Python itself compares them in."""
    text = unicodedata.normalize("NFKC", name)
    text = "".join(character if f"_{character}".isidentifier() else "_" for character in text)
    # A leading underscore would hide a name, or have it mangled; those of this module begin with one.
    text = re.sub("__+", "_", text).strip("_")
    if not text:
        return fallback
    if not text.isidentifier():  # a digit first
        text = f"{fallback}_{text}"
    return text


def _names(originals: Iterable[str], fallback: str, taken: Collection[str]) -> dict[str, str]:
    """A different identifier for each of `originals`, none of them in `taken`.

    Names that can stay as they are do, whatever the others become.
    """
    used = set(taken)
    found: dict[str, str] = {}
    for exact in (True, False):
        for original in originals:
            name = _identifier(original, fallback)
            stays = name == original and name not in taken and not keyword.iskeyword(name)
            if original in found or exact != stays:
                continue
            if keyword.iskeyword(name) or name in used:
                name = _free(f"{name}_", name, used)
            found[original] = name
            used.add(name)
    return found


def _free(wanted: str, stem: str, used: Collection[str]) -> str:
    number = 1
    while wanted in used or keyword.iskeyword(wanted):
        number += 1
        wanted = f"{stem}_{number}"
    return wanted


def _class_name(name: str) -> str:
    """``half_plus_two`` as ``HalfPlusTwo``."""
    words = _identifier(name, "model").split("_")
    text = "".join(word[:1].upper() + word[1:] for word in words if word)
    # A letter such as an ideograph has no upper case, and some grow to two letters that are none alone.
    return text if text.isidentifier() else f"Model{text}"


# -- text ---------------------------------------------------------------------------------------------------


def _literal(text: str) -> str:
    """`text` as the formatter writes it: in the quotes of which it has fewer, double ones if in doubt."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    return quote + _one_line(text.replace("\\", "\\\\")).replace(quote, f"\\{quote}") + quote


def _one_line(text: str) -> str:
    """`text` with escapes for what cannot be seen."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _in_docstring(text: str) -> str:
    """`text` for a docstring: a name may have backslashes and quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _shown(name: str) -> str:
    """A name in single quotes, on one line, for a docstring."""
    return _in_docstring(repr(name))


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"    {line}" if line else "" for line in lines)


def _docstring(lines: Sequence[str]) -> list[str]:
    if len(lines) == 1:
        return [f'"""{lines[0]}"""']
    return [f'"""{lines[0]}', *lines[1:], '"""']


# -- what a signature becomes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    """One input or output, and its name in Python."""

    spec: TensorSpec
    name: str

    @property
    def kind(self) -> str:
        """Kind of the numpy dtype; empty if numpy alone has none for it."""
        info = type_info(self.spec.data_type)
        if info.extended:
            return ""
        if info.numpy_name == "object":
            return "O"
        return {"bool": "b", "float": "f", "int": "i", "uint": "u", "complex": "c"}[
            info.numpy_name.rstrip("0123456789")
        ]

    @property
    def array(self) -> str:
        """The type of its arrays."""
        if not self.kind:
            return "npt.NDArray[Any]"
        name = type_info(self.spec.data_type).numpy_name
        return f"npt.NDArray[np.{ {'object': 'object_', 'bool': 'bool_'}.get(name, name) }]"

    @property
    def taken(self) -> str:
        """The type of what may be given for it."""
        kind = self.kind
        if not kind:
            return self.array
        nested = _NESTED[kind][0]
        return nested if kind == "O" else f"{self.array} | {nested}"

    @property
    def text(self) -> str:
        """Dtype and shape, on one line."""
        spec = self.spec
        dtype = "bytes (object)" if self.kind == "O" else type_info(spec.data_type).numpy_name
        shape = "of any shape" if spec.shape is None else str(spec.shape)
        name = "" if self.name == spec.name else f", {spec.name!r} in the signature"
        return f"{dtype} {shape}{name}"


@dataclass(frozen=True)
class _Method:
    """One way to call a model: a method of its class."""

    name: str
    signature: Signature
    #: `CLASSIFY` or `REGRESS`; empty for Predict.
    kind: str = ""
    inputs: Sequence[_Tensor] = ()
    outputs: Sequence[_Tensor] = ()
    #: Outputs to ask for, where the signature has some that cannot be sent.
    output_filter: Sequence[str] = ()
    #: Name of its result's class.
    result: str = ""
    #: Name of the field that has the whole answer.
    response: str = ""


@dataclass(frozen=True)
class _Model:
    """One model: a class, or two."""

    metadata: ModelMetadata
    name: str
    methods: Sequence[_Method]
    #: What there is no method for, and why.
    left_out: Sequence[str] = field(default_factory=tuple)


def _sendable(spec: TensorSpec) -> bool:
    if spec.kind != "dense":
        return False
    try:
        type_info(spec.data_type)
    except UnsupportedTypeError:
        return False
    return True


def _why_not(spec: TensorSpec) -> str:
    if spec.kind != "dense":
        return f"is a {spec.kind} tensor"
    return f"has the dtype {spec.type_name}"


def _kind_of(signature: Signature) -> str:
    """The RPC that a signature declares, if it can be used so; else Predict's empty one."""
    if signature.method_name not in _KINDS:
        return ""
    return signature.method_name if _fits(signature, signature.method_name) else ""


def _fits(signature: Signature, kind: str) -> bool:
    try:
        check_signature(signature, kind, _KINDS[kind][0])
    except InvalidInputError:
        return False
    return True


def _second_kind(signature: Signature) -> str:
    """The RPC that a signature which declares Predict is meant for, too, by its tensors.

    TensorFlow 2 declares Predict for all. A vector of strings named ``inputs``, and the outputs of Classify
    or Regress by name and dtype, are no coincidence.
    """
    spec = signature.inputs.get("inputs")
    if spec is None or spec.data_type != DataType.DT_STRING or spec.shape not in (None, (-1,)):
        return ""
    wanted = {"classes": DataType.DT_STRING, "scores": DataType.DT_FLOAT, "outputs": DataType.DT_FLOAT}
    if any(output.data_type != wanted.get(name) for name, output in signature.outputs.items()):
        return ""
    return next((kind for kind in _KINDS if _fits(signature, kind)), "")


def _model(metadata: ModelMetadata, class_name: str, classes: set[str]) -> _Model:
    """Decide what the class of a model has; names of result classes are added to `classes`."""
    left_out: list[str] = []
    wanted: list[tuple[str, Signature, str]] = []
    for signature in metadata.signatures.values():
        kind = _kind_of(signature)
        wanted.append((signature.name, signature, kind))
        if not kind and (second := _second_kind(signature)):
            wanted.append((f"{signature.name}_examples", signature, second))
    possible = []
    for key, signature, kind in wanted:
        bad = [
            spec
            for spec in signature.inputs.values()
            if not _sendable(spec) and spec.default is None and not kind
        ]
        if bad:
            left_out.append(
                f"{_shown(signature.name)}: input {_shown(bad[0].name)} {_why_not(bad[0])}, "
                "which no call can carry."
            )
        else:
            possible.append((key, signature, kind))
    # The signatures' own names first: what is added to them gives way.
    reserved = _MODULE_NAMES | _ANNOTATED
    own = _names([key for key, signature, _ in possible if key == signature.name], "signature", reserved)
    added = [key for key, signature, _ in possible if key != signature.name]
    others = _names(added, "signature", reserved | set(own.values()))
    methods = []
    for key, signature, kind in possible:
        name = own[key] if key == signature.name else others[key]
        if kind:
            methods.append(_Method(name, signature, kind, result=f"aioserving.{_KINDS[kind][1]}"))
            continue
        stem = f"{class_name}{_class_name(name)}Result"
        result = stem if stem not in classes else _free(f"{stem}2", stem, classes)
        classes.add(result)
        inputs = _tensors(signature.inputs.values(), "input", _MODULE_NAMES | _CALL | {result})
        outputs = _tensors(signature.outputs.values(), "output", _MODULE_NAMES | _FIELDS)
        some = len(outputs) < len(signature.outputs)
        fields = {tensor.name for tensor in outputs}
        methods.append(
            _Method(
                name,
                signature,
                "",
                inputs,
                outputs,
                tuple(tensor.spec.name for tensor in outputs) if some else (),
                result,
                "response" if "response" not in fields else _free("response_", "response", fields),
            )
        )
    return _Model(metadata, class_name, methods, left_out)


def _tensors(specs: Iterable[TensorSpec], fallback: str, taken: Collection[str]) -> list[_Tensor]:
    usable = [spec for spec in specs if _sendable(spec)]
    names = _names([spec.name for spec in usable], fallback, taken)
    return [_Tensor(spec, names[spec.name]) for spec in usable]


# -- writing ------------------------------------------------------------------------------------------------


def header_command(
    models: Sequence[str], *, blocking: bool, version: int | None = None, label: str | None = None
) -> str:
    """The command line that a module says it was made by; without the server, which is not part of it."""
    parts = ["aioserving", "stubs", *models]
    if version is not None:
        parts += ["--version", str(version)]
    if label is not None:
        parts += ["--label", label]
    if blocking:
        parts.append("--blocking")
    return shlex.join(parts)


def generate(models: Sequence[ModelMetadata], *, command: str, blocking: bool = False) -> str:
    """A module with a class for each model.

    Args:
        models: what to make it from, in the order in which the classes are to stand.
        command: the command line that makes it, for its first lines.
        blocking: whether there is a second class for each, over the blocking client.

    Returns:
        The source, with a line break at its end.

    Raises:
        ValueError: there are no models, or one is there twice.
    """
    keys = [metadata.name for metadata in models]
    if not keys:
        raise ValueError("there is no model to make stubs for")
    if len(set(keys)) < len(keys):
        raise ValueError(f"a model is named twice: {', '.join(map(repr, keys))}")
    classes: set[str] = set(_MODULE_NAMES)
    found: list[_Model] = []
    names = []
    for metadata in models:
        stem = _class_name(metadata.name)
        name = stem
        number = 1
        while name in classes or f"Blocking{name}" in classes or keyword.iskeyword(name):
            number += 1
            name = f"{stem}{number}"
        classes.update((name, f"Blocking{name}"))
        names.append(name)
    for metadata, name in zip(models, names, strict=True):
        found.append(_model(metadata, name, classes))
    blocks: list[list[str]] = []
    for model in found:
        blocks += [_result(model, method) for method in model.methods if not method.kind]
        blocks.append(_class(model, blocking=False))
        if blocking:
            blocks.append(_class(model, blocking=True))
    lines = _head(found, command)
    for block in blocks:
        lines += ["", "", *block]
    return "\n".join(lines) + "\n"


def _head(models: Sequence[_Model], command: str) -> list[str]:
    methods = [method for model in models for method in model.methods]
    tensors = [tensor for method in methods for tensor in (*method.inputs, *method.outputs)]
    nested = sorted({_NESTED[tensor.kind] for method in methods for tensor in method.inputs if tensor.kind})
    predicts = any(not method.kind for method in methods)
    examples = any(method.kind for method in methods)
    what = ", ".join(_shown(model.metadata.name) for model in models)
    lines = _docstring(
        [
            f"Typed access to {'a model' if len(models) == 1 else 'models'} of TensorFlow Serving: {what}.",
            "",
            "Made from the signatures by::",
            "",
            f"    {_in_docstring(_one_line(command))}",
            "",
            "Do not change it: run that again when the signatures change. With ``--output FILE --check``, it",
            "only tells whether they have.",
        ]
    )
    lines += ["# ruff: noqa", "", "from __future__ import annotations", ""]
    if not methods:
        return [*lines, "import aioserving"]
    lines.append("from collections.abc import Sequence")
    if predicts:
        lines.append("from dataclasses import dataclass, field")
    used = ["TYPE_CHECKING", *(["Any"] if predicts else []), "Literal"]
    used += [*(["TypeAlias"] if predicts else []), "TypedDict"]
    lines += [f"from typing import {', '.join(used)}", ""]
    if any(tensor.kind for tensor in tensors):
        lines.append("import numpy as np")
    if tensors:
        lines.append("import numpy.typing as npt")
    lines += [*([""] if tensors else []), "import aioserving", "", "if TYPE_CHECKING:"]
    lines.append("    from typing_extensions import Unpack")
    if examples:
        lines += ["", "    from aioserving.tf_examples import Context, Examples"]
    if predicts:
        lines.append("")
        if "Strings" in dict(nested):
            lines.append('StringArray: TypeAlias = "npt.NDArray[np.object_ | np.str_ | np.bytes_]"')
        lines += [*(f'{name}: TypeAlias = "{kind} | Sequence[{name}]"' for name, kind in nested)]
        lines.append("_Inputs: TypeAlias = dict[str, Any]")
    return [
        *lines,
        "",
        "",
        "class CallOptions(TypedDict, total=False):",
        *_indented(
            [
                '"""What every call takes beside its inputs."""',
                "",
                "#: Seconds until the call fails; None for no limit. The client's own setting if not given.",
                "timeout: float | None",
                "#: gRPC metadata of the call.",
                "metadata: Sequence[tuple[str, str | bytes]]",
                "#: How the request is compressed.",
                'compression: Literal["gzip", "deflate"] | None',
            ]
        ),
    ]


def _result(model: _Model, method: _Method) -> list[str]:
    lines = [
        "@dataclass(frozen=True, eq=False)",
        f"class {method.result}:",
        *_indented(
            _docstring(
                [f"Outputs of signature {_shown(method.signature.name)} of {_shown(model.metadata.name)}."]
            )
        ),
        "",
    ]
    for tensor in method.outputs:
        lines += [f"    #: {tensor.text}", f"    {tensor.name}: {tensor.array}"]
    lines += [
        "    #: The answer as it came: version, attempts, protobuf.",
        f"    {method.response}: aioserving.PredictResult = field(repr=False)",
    ]
    return lines


def _class(model: _Model, *, blocking: bool) -> list[str]:
    name = f"Blocking{model.name}" if blocking else model.name
    client = "Client" if blocking else "AsyncClient"
    doc = [f"Model {_shown(model.metadata.name)}{', blocking' if blocking else ''}.", "", "Args:"]
    doc += [
        "    client: what its calls are made with.",
        "    version: version number to ask for; the newest available if neither it nor a label is given.",
        "    version_label: label of the version to ask for.",
    ]
    if model.left_out:
        doc += ["", "There are no methods for these signatures:", ""]
        doc += [f"- {text}" for text in model.left_out]
    lines = [f"class {name}:", *_indented(_docstring(doc)), ""]
    body = [
        "def __init__(",
        "    self,",
        f"    client: aioserving.{client},",
        "    *,",
        "    version: int | None = None,",
        "    version_label: str | None = None,",
        ") -> None:",
        "    self._client = client",
    ]
    for signature in {method.signature.name: method for method in model.methods}:
        attribute = _attribute(model, signature)
        body += [
            f"    self.{attribute} = client.model(",
            f"        {_literal(model.metadata.name)},",
            "        version=version,",
            "        version_label=version_label,",
            f"        signature_name={_literal(signature)},",
            "    )",
        ]
    body += ["", "def __repr__(self) -> str:", f'    return f"<{name} of {{self._client!r}}>"']
    for method in model.methods:
        body += ["", *_function(model, method, blocking=blocking)]
    return lines + list(_indented(body))


def _attribute(model: _Model, signature: str) -> str:
    """The attribute that has the handle of a signature."""
    order = list(dict.fromkeys(method.signature.name for method in model.methods))
    return f"_signature_{order.index(signature) + 1}"


def _function(model: _Model, method: _Method, *, blocking: bool) -> list[str]:
    define, wait = ("def", "") if blocking else ("async def", "await ")
    call = f"{wait}self.{_attribute(model, method.signature.name)}"
    signature = _shown(method.signature.name)
    if method.kind:
        verb = _KINDS[method.kind][0]
        what = "Classify examples" if method.kind == CLASSIFY else "Find a number for each example"
        return [
            f"{define} {method.name}(",
            "    self,",
            "    examples: Examples,",
            "    *,",
            "    context: Context | None = None,",
            "    **options: Unpack[CallOptions],",
            f") -> {method.result}:",
            *_indented(
                _docstring(
                    [
                        f"{what} with signature {signature}.",
                        "",
                        "Args:",
                        "    examples: dicts, a dict of columns, a table, or `tf.Example`s.",
                        "    context: features that all examples share.",
                        "    **options: see `CallOptions`.",
                        "",
                        "Raises:",
                        f"    aioserving.ServingError: see `aioserving.AsyncClient.{verb}`.",
                    ]
                )
            ),
            f"    return {call}.{verb}(",
            "        examples,",
            "        context=context,",
            "        **options,",
            "    )",
        ]
    required = [tensor for tensor in method.inputs if tensor.spec.default is None]
    optional = [tensor for tensor in method.inputs if tensor.spec.default is not None]
    lines = [f"{define} {method.name}(", "    self,"]
    if method.inputs:
        lines.append("    *,")
    lines += [f"    {tensor.name}: {tensor.taken}," for tensor in required]
    lines += [f"    {tensor.name}: {tensor.taken} | None = None," for tensor in optional]
    lines += ["    **options: Unpack[CallOptions],", f") -> {method.result}:"]
    doc = [f"Run signature {signature}.", "", "Args:"]
    doc += [f"    {tensor.name}: {_in_docstring(tensor.text)}." for tensor in required]
    doc += [
        f"    {tensor.name}: {_in_docstring(tensor.text)}; the server has a default." for tensor in optional
    ]
    doc += ["    **options: see `CallOptions`."]
    if method.outputs:
        doc += ["", "Returns:"]
        doc += [f"    {tensor.name}: {_in_docstring(tensor.text)}." for tensor in method.outputs]
    doc += ["", "Raises:", "    aioserving.ServingError: see `aioserving.AsyncClient.predict`."]
    lines += _indented(_docstring(doc))
    if required:
        lines.append("    _inputs: _Inputs = {")
        lines += [f"        {_literal(tensor.spec.name)}: {tensor.name}," for tensor in required]
        lines.append("    }")
    else:
        lines.append("    _inputs: _Inputs = {}")
    for tensor in optional:
        lines += [
            f"    if {tensor.name} is not None:",
            f"        _inputs[{_literal(tensor.spec.name)}] = {tensor.name}",
        ]
    lines += [f"    _response = {call}.predict(", "        _inputs,"]
    if method.output_filter:
        lines.append("        output_filter=[")
        lines += [f"            {_literal(name)}," for name in method.output_filter]
        lines.append("        ],")
    lines += ["        **options,", "    )", f"    return {method.result}("]
    lines += [f"        {tensor.name}=_response[{_literal(tensor.spec.name)}]," for tensor in method.outputs]
    lines += [f"        {method.response}=_response,", "    )"]
    return lines


def difference(old: str, new: str, name: str, limit: int = 40) -> list[str]:
    """What differs between a file and what it would be now, as a unified diff of at most `limit` lines."""
    lines = [
        line.rstrip("\n")
        for line in difflib.unified_diff(
            old.splitlines(keepends=True),
            new.splitlines(keepends=True),
            name,
            f"{name} (from the server)",
            n=1,
        )
    ]
    if len(lines) > limit:
        return [*lines[:limit], f"... and {len(lines) - limit} lines more"]
    return lines
