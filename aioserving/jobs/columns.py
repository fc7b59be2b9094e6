"""Columns of files as inputs of a model: which column goes where, and its values as arrays.

    mapping = make_mapping(signature, inputs.schema, inputs={"images": "pixels", "age": ["years"]})
    arrays = mapping.inputs(batch)      # a pyarrow.RecordBatch -> {"images": (n, 784) float32, "age": ...}

What can be known from the signature and the schema is refused when the mapping is made (`ColumnError`), what
is wrong with single rows when they come (`BadRows`, which has all of them): a null, a list of the wrong
length, a number that is out of range, a file that cannot be decoded.

    by name       a column goes to the input of its name
    explicit      ``{"images": "pixels"}``
    together      ``{"features": ["a", "b", "c"]}``: columns of single values, side by side
    the only one  a model that needs one input takes the only column there is, whatever its name

Types: a column's values go to the input as they are if the dtypes are equal, without a copy where Arrow and
numpy agree on their layout. Else they are cast where numpy calls it ``same_kind`` (float64 to float32, int64
to int32, integers to floats, bools to numbers), and a row with a value that would overflow is bad. Floats are
not made integers, nor text numbers. Strings become bytes. Times and decimals have no counterpart among a
model's types and are refused.

Shapes: lists, lists of fixed size, nested lists and tensors become the inner dimensions, in row-major order.
A flat list (or tensor) of as many values as the input has goes to an input of any rank, and a nested one to
a flat input. A single value also goes to an input of shape ``(-1, 1)``.

Where rows come from is `inputs`' business; how they are put into batches that of the job.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from aioserving._types import Array
from aioserving.errors import InvalidInputError
from aioserving.inference import CLASSIFY, REGRESS, check_signature
from aioserving.jobs.errors import BadRows, ColumnError
from aioserving.jobs.inputs import PARTITION_KEY
from aioserving.jobs.readers.base import require_pyarrow
from aioserving.signature import Signature, TensorSpec, _can_cast, _did_you_mean, _listed
from aioserving.tf_examples import serialize_examples

__all__ = ["ColumnMapping", "Decode", "Decoder", "ExampleMapping", "make_mapping"]

#: What has one row's array made of its value in a column: of bytes, or of what else Arrow holds.
Decoder: TypeAlias = "Callable[[Any], Any] | Decode"

#: Where the columns are that an input is made of.
Columns: TypeAlias = "str | Sequence[str]"


@dataclass(frozen=True)
class Decode:
    """How the values of a column become arrays, such as images.

    A function alone stands for ``Decode(function)``.

    Attributes:
        function: given a row's value, returns what the input has for that row. It runs in several threads.
        reads: ``"files"``: the column holds paths or fsspec URLs, and the function is given the bytes of the
            file; ``"values"``: it is given what is in the column; ``"auto"``: files if the column holds text.
        root: folder or URL that relative paths are below.
        storage_options: settings of the filesystem that the files are on.
        threads: how many rows are read and decoded at a time.
    """

    function: Callable[[Any], Any]
    reads: Literal["auto", "files", "values"] = "auto"
    root: str | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    threads: int = 4

    def __post_init__(self) -> None:
        if self.reads not in ("auto", "files", "values"):
            raise ValueError(f"reads is 'auto', 'files' or 'values', not {self.reads!r}")
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        # What a job notes of it, so that another function is noticed.
        for name in ("__module__", "__qualname__"):
            found = getattr(self.function, name, getattr(type(self.function), name))
            object.__setattr__(self, name, found)


def make_mapping(
    signature: Signature,
    schema: Any,
    *,
    method: Literal["predict", "classify", "regress"] = "predict",
    inputs: Mapping[str, Columns] | None = None,
    decode: Mapping[str, Decoder] | None = None,
) -> ColumnMapping | ExampleMapping:
    """What makes the inputs of a call of rows of `schema`.

    Args:
        signature: the model's.
        schema: a `pyarrow.Schema`.
        method: the call.
        inputs: the column of an input, or several to be put side by side, by the input's name; inputs that
            are not in it take the column of their name.
        decode: by input: what makes its arrays of a column's values, see `Decode`.

    Raises:
        ColumnError: the columns cannot be given to the inputs, whatever the rows.
    """
    if method == "predict":
        return ColumnMapping.build(signature, schema, inputs, decode)
    if decode:
        raise ColumnError(
            f"decode= is for predict: {method} takes tf.Examples",
            model=signature.model,
            signature=signature.name,
        )
    return ExampleMapping.build(signature, schema, inputs, method=method)


# -- predict ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where the values of one input come from."""

    spec: TensorSpec
    columns: tuple[str, ...]
    #: Whether several columns are put side by side.
    together: bool
    decode: Decode | None
    #: Values of a row in the columns: sizes, None where rows may differ.
    inner: tuple[int | None, ...]


class ColumnMapping:
    """Makes the inputs of Predict of a batch of rows; see the module.

    Attributes:
        signature: the model's.
        columns: names of the columns that are needed.
    """

    def __init__(self, signature: Signature, sources: Sequence[_Source]) -> None:
        self.signature = signature
        self.columns: tuple[str, ...] = tuple(
            dict.fromkeys(name for source in sources for name in source.columns)
        )
        self._sources = tuple(sources)

    def __repr__(self) -> str:
        told = ", ".join(f"{source.spec.name} from {', '.join(source.columns)}" for source in self._sources)
        return f"<ColumnMapping to {_path(self.signature)}: {told}>"

    @classmethod
    def build(
        cls,
        signature: Signature,
        schema: Any,
        explicit: Mapping[str, Columns] | None = None,
        decode: Mapping[str, Decoder] | None = None,
    ) -> ColumnMapping:
        """A mapping of the columns of `schema` to the inputs of `signature`; see `make_mapping`.

        Raises:
            ColumnError: they do not fit; the message names the input, the column, and what would fit.
        """
        given = dict(explicit or {})
        decoders = {
            name: one if isinstance(one, Decode) else Decode(one) for name, one in (decode or {}).items()
        }
        for what, names in (("inputs=", given), ("decode=", decoders)):
            for name in names:
                if name not in signature.inputs:
                    raise _refusal(
                        signature,
                        f"{what} names {name!r}, which is no input of {_path(signature)}"
                        f"{_did_you_mean(name, signature.inputs)}; it has {_listed(signature.inputs)}",
                    )
        taken = {column for columns in given.values() for column in _as_names(columns)}
        sources = []
        for name, spec in signature.inputs.items():
            columns = given.get(name)
            if columns is None:
                columns = _find(signature, spec, schema, given, taken)
                if columns is None:
                    continue  # the server has a default
            sources.append(_plan(signature, spec, schema, columns, decoders.get(name)))
        return cls(signature, sources)

    def inputs(self, batch: Any) -> dict[str, Array]:
        """Arrays by input name, with a row for each of `batch`.

        Args:
            batch: a `pyarrow.RecordBatch` that has the columns of the mapping.

        Raises:
            BadRows: some rows cannot be given to the model; it has all that are known to be.
            ColumnError: rows differ in a dimension that the model leaves open: they need calls of their own.
        """
        bad: dict[int, str] = {}
        arrays = {}
        for source in self._sources:
            found = self._array(source, batch, bad)
            if found is not None:
                arrays[source.spec.name] = found
        if bad:
            raise BadRows(bad, batch.num_rows)
        return arrays

    def _array(self, source: _Source, batch: Any, bad: dict[int, str]) -> Array | None:
        """The array of one input; None if some rows are bad, which are then in `bad`."""
        if source.decode is not None:
            return self._decoded(source, source.decode, batch.column(source.columns[0]), bad)
        if source.together:
            parts = [self._values(source, name, (), batch, bad) for name in source.columns]
            whole = [part for part in parts if part is not None]
            if len(whole) < len(parts):
                return None
            array: Array = np.stack(whole, axis=1)
            return array.reshape(len(array), *_own_shape(source.spec, (len(whole),)))
        name = source.columns[0]
        found = self._values(source, name, _levels(source), batch, bad)
        if found is None:
            return None
        inner = _own_shape(source.spec, found.shape[1:])
        if inner == found.shape[1:]:
            return found
        if math.prod(inner) != math.prod(found.shape[1:]):
            raise _refusal(
                self.signature,
                f"input {source.spec.name!r} of {_path(self.signature)} expects {source.spec}, the rows of "
                f"column {name!r} have the shape {found.shape[1:]}",
                source.spec.name,
                (name,),
            )
        return found.reshape(len(found), *inner)

    def _values(
        self, source: _Source, name: str, wanted: tuple[int | None, ...], batch: Any, bad: dict[int, str]
    ) -> Array | None:
        """The values of a column as an array of the input's dtype, with the column's own dimensions.

        Args:
            source: the input.
            name: of the column.
            wanted: sizes of the inner dimensions, None for one that all rows share, whatever it is.
            batch: the rows.
            bad: where bad rows are put.
        """
        column = batch.column(name)
        leaf, sizes = _flatten(column, wanted)
        if leaf is None:
            self._diagnose(source, name, wanted, column, bad)
            return None
        array = _to_numpy(leaf)
        dtype = source.spec.dtype
        if array.dtype != dtype:
            cast, wrong = _cast(array, dtype)
            if len(wrong):
                each = math.prod(sizes)
                for place in wrong.tolist():
                    bad.setdefault(
                        place // each,
                        f"column {name!r} for input {source.spec.name!r} holds {array[place]}, which is out "
                        f"of the range of {source.spec.type_name}",
                    )
                return None
            array = cast
        return array.reshape(len(column), *sizes)

    def _diagnose(
        self, source: _Source, name: str, wanted: tuple[int | None, ...], column: Any, bad: dict[int, str]
    ) -> None:
        """Find the rows for which `_flatten` gave up, and put them into `bad`.

        Raises:
            ColumnError: rows differ in a dimension that is open.
        """
        what = f"column {name!r} for input {source.spec.name!r}"
        owners = np.arange(len(column))  # the row that each element belongs to
        array = _plain(column)
        if _is_tensor(column.type):
            wanted = (math.prod(column.type.shape),)  # in which order does not matter here
        for depth, size in enumerate(wanted):
            for place in _null_places(array):
                bad.setdefault(int(owners[place]), f"{what} is null" if not depth else f"{what} holds a null")
            lengths = np.asarray(array.value_lengths().fill_null(0)).astype(np.int64)
            valid = np.ones(len(array), bool)
            valid[_null_places(array)] = False
            expected = size
            if expected is None and valid.any():
                expected = int(lengths[valid][0])
                odd = np.flatnonzero(valid & (lengths != expected))
                if len(odd):
                    raise _refusal(
                        self.signature,
                        f"input {source.spec.name!r} of {_path(self.signature)} takes rows of one length in "
                        f"a call; column {name!r} has {expected} values in one row and "
                        f"{int(lengths[odd[0]])} in another: pad them, or send them with batch_size=1",
                        source.spec.name,
                        (name,),
                    )
            for place in np.flatnonzero(valid & (lengths != expected)).tolist():
                bad.setdefault(
                    int(owners[place]),
                    f"{what} has {int(lengths[place])} values{' in a list' if depth else ''}, {expected} are "
                    f"expected for {source.spec}",
                )
            owners = np.repeat(owners, lengths)
            array = _plain(array.flatten())
        for place in _null_places(array):
            bad.setdefault(int(owners[place]), f"{what} {'holds a null' if wanted else 'is null'}")

    def _decoded(self, source: _Source, decode: Decode, column: Any, bad: dict[int, str]) -> Array | None:
        spec, name = source.spec, source.columns[0]
        what = f"column {name!r} for input {spec.name!r}"
        values = _plain(column).to_pylist()
        read = _file_reader(decode) if _reads_files(decode, column.type) else None

        def one(item: tuple[int, Any]) -> Array | None:
            row, value = item
            if value is None:
                bad[row] = f"{what} is null"
                return None
            try:
                array = np.asarray(decode.function(value if read is None else read(value)))
            except Exception as error:
                told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                shown = f" ({value})" if isinstance(value, str) else ""
                bad[row] = f"{what} cannot be decoded{shown}: {told}"
                return None
            return self._row(spec, array, row, what, bad)

        with ThreadPoolExecutor(min(decode.threads, len(values) or 1), "aioserving-decode") as pool:
            rows = [row for row in pool.map(one, enumerate(values)) if row is not None]
        if bad:
            return None
        if not rows:
            return np.empty((0, *(max(size, 0) for size in (spec.shape or (-1,))[1:])), spec.dtype)
        odd = next((row for row in rows if row.shape != rows[0].shape), None)
        if odd is not None:
            raise _refusal(
                self.signature,
                f"input {spec.name!r} of {_path(self.signature)} takes rows of one shape in a call; column "
                f"{name!r} was decoded to {rows[0].shape} in one row and {odd.shape} in another: decode to "
                "one shape, or send them with batch_size=1",
                spec.name,
                (name,),
            )
        return np.stack(rows)

    def _row(self, spec: TensorSpec, array: Array, row: int, what: str, bad: dict[int, str]) -> Array | None:
        """One decoded row as the input takes it."""
        wanted = f"{spec.type_name} {spec.shape[1:] if spec.shape is not None else 'of any shape'}"
        if not spec.fits((1, *array.shape)):
            bad[row] = f"{what} was decoded to {array.dtype} {array.shape}, {wanted} is expected"
            return None
        dtype = spec.dtype
        if array.dtype == dtype:
            return array
        if dtype.kind == "O" and array.dtype.kind in "SU":
            return array.astype(object)
        if dtype.kind == "O" or array.dtype.kind in "OSUVMm" or not _can_cast(array.dtype, dtype):
            bad[row] = f"{what} was decoded to {array.dtype} {array.shape}, {wanted} is expected"
            return None
        cast, wrong = _cast(array.reshape(-1), dtype)
        if len(wrong):
            bad[row] = (
                f"{what} was decoded to {array.reshape(-1)[wrong[0]]}, which is out of the range of {dtype}"
            )
            return None
        return cast.reshape(array.shape)


# -- making a mapping ---------------------------------------------------------------------------------


def _path(signature: Signature) -> str:
    return f"{signature.model}/{signature.name}" if signature.model else signature.name


def _refusal(
    signature: Signature, details: str, input: str | None = None, columns: tuple[str, ...] = ()
) -> ColumnError:
    return ColumnError(
        details, model=signature.model or None, signature=signature.name, input=input, columns=columns
    )


def _as_names(columns: Columns) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _find(
    signature: Signature, spec: TensorSpec, schema: Any, given: Mapping[str, Columns], taken: set[str]
) -> str | None:
    """The column of an input that none was named for; None if it may be left out."""
    if spec.name in schema.names:
        return spec.name
    if spec.default is not None:
        return None
    needed = [name for name, other in signature.inputs.items() if other.default is None and name not in given]
    others = [
        field.name
        for field in schema
        if field.name not in taken and not (field.metadata and PARTITION_KEY in field.metadata)
    ]
    if len(needed) == 1 and len(signature.inputs) == 1 and len(others) == 1:
        return str(others[0])
    raise _refusal(
        signature,
        f"there is no column for input {spec.name!r} of {_path(signature)}, which expects {spec}"
        f"{_did_you_mean(spec.name, schema.names)}; there are {_listed(schema.names) or 'none'}: name it, or "
        f"several to be put side by side, with inputs={{{spec.name!r}: ...}}",
        spec.name,
    )


def _plan(
    signature: Signature, spec: TensorSpec, schema: Any, columns: Columns, decode: Decode | None
) -> _Source:
    names = _as_names(columns)
    where = f"input {spec.name!r} of {_path(signature)}"
    together = not isinstance(columns, str)

    def refuse(why: str) -> ColumnError:
        return _refusal(signature, why, spec.name, names)

    if spec.kind != "dense":
        raise refuse(f"{where} is a {spec.kind} tensor, which Predict cannot take")
    if spec.shape == ():
        raise refuse(f"{where} expects {spec}, a single value for all rows: it cannot be given a column")
    if not names:
        raise refuse(f"{where}: no columns are named for it")
    for name in names:
        if schema.get_field_index(name) < 0:
            raise refuse(
                f"{where}: there is no column {name!r}{_did_you_mean(name, schema.names)}; there are "
                f"{_listed(schema.names) or 'none'}"
            )
    if decode is not None:
        if together:
            raise refuse(f"{where} is decoded, which takes one column, not {_listed(names)}")
        return _Source(spec, names, False, decode, ())
    inner: tuple[int | None, ...] = ()
    for name in names:
        kind = schema.field(name).type
        leaf, own = _shape_of(kind)
        got = f"{where} expects {spec}, column {name!r} is {_told(kind)}"
        problem = _unfit(leaf, spec)
        if problem:
            raise refuse(f"{got}{problem}")
        if together and own:
            raise refuse(f"{got}: several columns are put side by side only if each has one value in a row")
        if not together and not _shapes_fit(own, spec):
            raise refuse(got)
        inner = own
    if together:
        inner = (len(names),)
        if not _shapes_fit(inner, spec):
            raise refuse(f"{where} expects {spec}, {len(names)} columns are given for it: {_listed(names)}")
    return _Source(spec, names, together, None, inner)


def _shapes_fit(inner: tuple[int | None, ...], spec: TensorSpec) -> bool:
    """Whether rows of `inner` can be those of `spec`, for some sizes of what is not known."""
    if spec.shape is None:
        return True
    own = spec.shape[1:]
    if len(inner) == len(own) and all(a is None or b < 0 or a == b for a, b in zip(inner, own, strict=True)):
        return True
    if not inner:
        return bool(own) and all(size == 1 for size in own)
    if (len(inner) != 1 and len(own) != 1) or not own:
        return False
    # One of them is flat: it is the number of values that has to be the same.
    known = math.prod(size for size in own if size >= 0)
    open_ends = sum(size < 0 for size in own)
    if open_ends > 1:
        return False
    if None in inner:
        return True  # which the rows will show
    count = math.prod(size or 0 for size in inner)
    return count % known == 0 if open_ends and known else count == known


def _levels(source: _Source) -> tuple[int | None, ...]:
    """What sizes the lists of a row have to have."""
    shape = source.spec.shape
    inner = source.inner
    if shape is None:
        return inner
    own = shape[1:]
    if len(inner) == len(own):
        if all(a is None or b < 0 or a == b for a, b in zip(inner, own, strict=True)):
            return tuple(a if b < 0 else b for a, b in zip(inner, own, strict=True))
    elif inner == (None,) and all(size >= 0 for size in own):
        return (math.prod(own),)
    return inner


def _own_shape(spec: TensorSpec, inner: tuple[int, ...]) -> tuple[int, ...]:
    """The inner dimensions of an input, for rows of `inner` values."""
    if spec.shape is None:
        return inner
    own = spec.shape[1:]
    if len(own) == len(inner) and all(b in (a, -1) for a, b in zip(inner, own, strict=True)):
        return inner
    count, known = math.prod(inner), math.prod(size for size in own if size >= 0)
    return tuple(size if size >= 0 else count // known if known else 0 for size in own)


def _is_tensor(kind: Any) -> bool:
    """Whether it is pyarrow's type of tensors of one shape."""
    return hasattr(kind, "shape") and hasattr(kind, "value_type")


def _told(kind: Any) -> str:
    """A type as messages show it; in place of the name of an extension, what it holds."""
    if _is_tensor(kind):
        return f"a tensor of {kind.value_type} {tuple(kind.shape)}"
    text = str(kind)
    return text if len(text) <= 80 else text[:77] + "..."


def _shape_of(kind: Any) -> tuple[Any, tuple[int | None, ...]]:
    """The type of the single values in a column, and the sizes of what they are in."""
    pyarrow = require_pyarrow()
    types = pyarrow.types
    sizes: list[int | None] = []
    while True:
        if hasattr(kind, "storage_type"):
            if _is_tensor(kind):
                order = getattr(kind, "permutation", None)
                sizes += [kind.shape[axis] for axis in order] if order else list(kind.shape)
                return kind.value_type, tuple(sizes)
            kind = kind.storage_type
        elif types.is_dictionary(kind):
            kind = kind.value_type
        elif types.is_fixed_size_list(kind):
            sizes.append(kind.list_size)
            kind = kind.value_type
        elif types.is_list(kind) or types.is_large_list(kind):
            sizes.append(None)
            kind = kind.value_type
        else:
            return kind, tuple(sizes)


def _is_text(kind: Any) -> bool:
    types = require_pyarrow().types
    names = ("is_string", "is_large_string", "is_string_view")
    return any(getattr(types, name)(kind) for name in names if hasattr(types, name))


def _is_bytes(kind: Any) -> bool:
    types = require_pyarrow().types
    names = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(types, name)(kind) for name in names if hasattr(types, name))


def _unfit(leaf: Any, spec: TensorSpec) -> str:
    """Why values of an Arrow type cannot be an input's, as the end of a sentence; empty if they can."""
    types = require_pyarrow().types
    dtype = spec.dtype
    if _is_text(leaf) or _is_bytes(leaf):
        if dtype.kind == "O":
            return ""
        return (
            ": text is not made numbers; types= reads CSV and JSON as others, decode= makes arrays of bytes"
        )
    if types.is_null(leaf):
        return ": it has no value in any row that was looked at; say its type with types="
    if types.is_decimal(leaf):
        return ", which no model takes: read it as a float with types=, or cast it before"
    if types.is_temporal(leaf):
        return ", which no model takes: read it as a number or text with types=, or cast it before"
    if types.is_run_end_encoded(leaf) or types.is_nested(leaf):
        return ", which is no list or tensor of values"
    if dtype.kind == "O":
        return ": numbers are not made text"
    try:
        source = np.dtype(leaf.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        return ", which has no counterpart in numpy"
    if not _can_cast(source, dtype):
        return f": numpy calls the cast of {source} to {dtype} unsafe; cast it before, or with types="
    return ""


# -- values -------------------------------------------------------------------------------------------


def _plain(array: Any) -> Any:
    """A pyarrow Array without dictionaries, and without the name of an extension."""
    while True:
        if hasattr(array, "dictionary_decode"):
            array = array.dictionary_decode()
        elif hasattr(array, "storage"):
            array = array.storage
        else:
            return array


def _flatten(column: Any, wanted: tuple[int | None, ...]) -> tuple[Any, tuple[int, ...]]:
    """The single values of a column of lists, and the sizes that all lists of a level have.

    (None, ()) if there is a null, or a list that has not the size wanted or that of the others.
    """
    array = _plain(column)
    if _is_tensor(column.type):
        return _flatten_tensor(array, column.type)
    sizes = []
    for size in wanted:
        if array.null_count:
            return None, ()
        own = getattr(array.type, "list_size", None)
        if own is None:
            lengths = np.asarray(array.value_lengths())
            own = int(lengths[0]) if len(lengths) else (size or 0)
            if (lengths != own).any():
                return None, ()
        if size is not None and own != size:
            return None, ()
        sizes.append(own)
        array = _plain(array.flatten())
    if array.null_count:
        return None, ()
    return array, tuple(sizes)


def _flatten_tensor(array: Any, kind: Any) -> tuple[Any, tuple[int, ...]]:
    if array.null_count:
        return None, ()
    values = array.flatten()
    if values.null_count:
        return None, ()
    order = getattr(kind, "permutation", None)
    if not order or list(order) == list(range(len(kind.shape))):
        return values, tuple(kind.shape)
    # What is stored has its axes in another order than what is meant.
    stored = _to_numpy(values).reshape(len(array), *kind.shape)
    meant = stored.transpose(0, *(axis + 1 for axis in order))
    pyarrow = require_pyarrow()
    return pyarrow.array(np.ascontiguousarray(meant).reshape(-1)), tuple(meant.shape[1:])


def _null_places(array: Any) -> list[int]:
    if not array.null_count:
        return []
    found: list[int] = np.flatnonzero(np.asarray(array.is_null())).tolist()
    return found


def _to_numpy(array: Any) -> Array:
    """Single values, none of them null; strings as bytes."""
    pyarrow = require_pyarrow()
    if _is_text(array.type):
        large = pyarrow.types.is_large_string(array.type)
        array = array.cast(pyarrow.large_binary() if large else pyarrow.binary())
    values: Array = array.to_numpy(zero_copy_only=False)
    return values


def _cast(array: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """`array` as another dtype, and the places of values that are out of its range."""
    if dtype.kind in "iu" and array.dtype.kind in "iu" and not np.can_cast(array.dtype, dtype):
        info, source = np.iinfo(dtype), np.iinfo(array.dtype)
        wrong = np.zeros(array.shape, bool)
        if source.min < info.min:
            wrong |= array < info.min
        if source.max > info.max:
            wrong |= array > info.max
        return array.astype(dtype), np.flatnonzero(wrong)
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if array.dtype.kind == "f" and dtype.kind in "fV" and dtype.itemsize < array.dtype.itemsize:
        finite = np.isfinite(cast.astype(np.float32) if dtype.kind == "V" else cast)
        if not finite.all():
            return cast, np.flatnonzero(~finite & np.isfinite(array))
    return cast, np.empty(0, np.int64)


def _reads_files(decode: Decode, kind: Any) -> bool:
    if decode.reads == "auto":
        leaf = kind.value_type if require_pyarrow().types.is_dictionary(kind) else kind
        return _is_text(leaf)
    return decode.reads == "files"


def _file_reader(decode: Decode) -> Callable[[Any], bytes]:
    """What reads the file of a path."""
    from fsspec.core import url_to_fs

    def read(path: Any) -> bytes:
        name = path.decode() if isinstance(path, bytes) else str(path)
        if decode.root is not None and "://" not in name and not name.startswith("/"):
            name = posixpath.join(decode.root, name)
        fs, place = url_to_fs(name, **decode.storage_options)
        data: bytes = fs.cat_file(place)
        return data

    return read


# -- classify and regress -----------------------------------------------------------------------------


class ExampleMapping:
    """Makes the tf.Examples of Classify and Regress of a batch of rows.

    Of one column of bytes, which are serialized Examples already; or of several columns, each a feature of
    its name (see `aioserving.tf_examples.serialize_examples`).

    Attributes:
        signature: the model's.
        columns: names of the columns that are needed.
    """

    def __init__(self, signature: Signature, columns: Sequence[str], *, serialized: bool) -> None:
        self.signature = signature
        self.columns: tuple[str, ...] = tuple(columns)
        self._serialized = serialized

    def __repr__(self) -> str:
        what = "serialized in" if self._serialized else "with the features"
        return f"<ExampleMapping to {_path(self.signature)}: Examples {what} {', '.join(self.columns)}>"

    @classmethod
    def build(
        cls,
        signature: Signature,
        schema: Any,
        explicit: Mapping[str, Columns] | None = None,
        *,
        method: Literal["classify", "regress"] = "classify",
    ) -> ExampleMapping:
        """A mapping of the columns of `schema`.

        Args:
            signature: the model's, which has one input, ``inputs``.
            schema: a `pyarrow.Schema`.
            explicit: ``{"inputs": "column"}`` of serialized Examples, or ``{"inputs": ["a", "b"]}``, the
                features; by default the only column of bytes.
            method: the call.

        Raises:
            ColumnError: there is no such column, or the signature is not for this method.
        """
        try:
            check_signature(signature, CLASSIFY if method == "classify" else REGRESS, method.capitalize())
        except InvalidInputError as error:
            raise _refusal(signature, error.details) from error
        given = dict(explicit or {})
        columns = given.pop("inputs", None)
        if given:
            raise _refusal(
                signature,
                f"inputs= names {_listed(given)}: {method} has one input, 'inputs', which takes a column of "
                "serialized tf.Examples, or a list of columns that are their features",
            )
        if columns is None:
            found = [field.name for field in schema if _is_bytes(field.type)]
            if "inputs" in found:
                found = ["inputs"]
            if len(found) != 1:
                raise _refusal(
                    signature,
                    "which column has the serialized tf.Examples? There are "
                    f"{_listed(schema.names) or 'none'}: "
                    "say inputs={'inputs': 'column'}, or a list of columns that are their features",
                    "inputs",
                )
            columns = found[0]
        names = _as_names(columns)
        for name in names:
            if schema.get_field_index(name) < 0:
                raise _refusal(
                    signature,
                    f"there is no column {name!r}{_did_you_mean(name, schema.names)}; there are "
                    f"{_listed(schema.names) or 'none'}",
                    "inputs",
                    names,
                )
        serialized = isinstance(columns, str)
        if serialized and not _is_bytes(_shape_of(schema.field(names[0]).type)[0]):
            raise _refusal(
                signature,
                f"column {names[0]!r} is {_told(schema.field(names[0]).type)}, serialized tf.Examples are "
                f"bytes; if it is a feature, say inputs={{'inputs': [{names[0]!r}]}}",
                "inputs",
                names,
            )
        return cls(signature, names, serialized=serialized)

    def inputs(self, batch: Any) -> dict[None, Array]:
        """The serialized Examples, an array of bytes, under the name None.

        Raises:
            BadRows: a row has a null or a value that no feature holds.
        """
        rows = batch.num_rows
        found = np.empty(rows, object)
        if self._serialized:
            column = _plain(batch.column(self.columns[0]))
            places = _null_places(column)
            if places:
                raise BadRows(dict.fromkeys(places, f"column {self.columns[0]!r} is null"), rows)
            found[:] = column.to_pylist()
            return {None: found}
        if not rows:
            return {None: found}
        features = {name: _plain(batch.column(name)) for name in self.columns}
        try:
            found[:] = serialize_examples(features)
        except InvalidInputError:
            found[:] = self._row_by_row(features, rows)
        return {None: found}

    def _row_by_row(self, features: Mapping[str, Any], rows: int) -> list[bytes]:
        """Each row alone, to find those that cannot be."""
        bad: dict[int, str] = {}
        found = []
        for row in range(rows):
            try:
                found += serialize_examples({name: column.slice(row, 1) for name, column in features.items()})
            except InvalidInputError as error:
                bad[row] = error.details.replace(" of example 0", "")
        if bad:
            raise BadRows(bad, rows)
        return found
