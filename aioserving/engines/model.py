"""A model that workers of an engine score with: what crosses to them, and what they do with it.

    model = pin("127.0.0.1:8500", "digits")       # on the driver: asks for the version and the signature
    model.score(batch)                            # in a worker: opens a client first, one for each process

A `PinnedModel` holds settings and no connection, so that it can be pickled. Its version is found once, on the
driver: every row of the run is scored by it, whatever is rolled out meanwhile. Scoring changes nothing
anywhere, so a task that the engine runs again gives the same rows again; what the first run had got is the
engine's to drop. Servers may have been asked twice then, rows are never there twice.

What is left to the engine's own module: how its data become Arrow tables, and where workers are.
"""

from __future__ import annotations

import atexit
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from aioserving._types import Array
from aioserving.blocking import Client
from aioserving.dtypes import DataType
from aioserving.errors import InvalidInputError, ServingError
from aioserving.inference import CLASSIFY, REGRESS, check_signature
from aioserving.jobs.columns import ColumnMapping, Decoder, ExampleMapping, make_mapping
from aioserving.jobs.errors import BadRows, ColumnError
from aioserving.jobs.inference import infer, output_specs
from aioserving.jobs.readers.base import require_pyarrow
from aioserving.prediction import PredictResult
from aioserving.scoring import BlockingScoring, Scoring
from aioserving.signature import ModelMetadata, Signature, TensorSpec

if TYPE_CHECKING:
    from aioserving.targets import Targets

__all__ = ["ClientOptions", "PinnedModel", "close_clients", "pin"]

#: Arguments of `Client` beside its targets, or what gives them in each worker.
ClientOptions = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

#: Arguments of `Client` that are secrets, or hold them.
_SECRET = ("credentials", "tls")

# Clients of this process, by the model that they were opened for.
_clients: dict[str, Client] = {}
_owner = os.getpid()
_lock = threading.Lock()


def pin(
    targets: Targets,
    model: str,
    *,
    version: int | None = None,
    version_label: str | None = None,
    signature_name: str | None = None,
    method: Literal["predict", "classify", "regress"] = "predict",
    inputs: Mapping[str, str | Sequence[str]] | None = None,
    decode: Mapping[str, Decoder] | None = None,
    outputs: Sequence[str] | Mapping[str, str] | None = None,
    strings: Literal["binary", "utf8"] = "binary",
    error_column: str | None = None,
    batch_size: int = 256,
    max_in_flight: int | None = 4,
    outage: float = 300.0,
    options: ClientOptions | None = None,
) -> PinnedModel:
    """A model as workers use it, with the version that is served now.

    Called on the driver, which asks a server for the version and the signature.

    Args:
        targets: the servers, as for `Client`, by names that the workers know them by, too.
        model: name of the model.
        version: number of the version; by default the one that the servers answer with now.
        version_label: or its label, as it points now.
        signature_name: signature that is called.
        method: how: ``"classify"`` and ``"regress"`` are for serialized tf.Examples in a column of bytes, or
            for columns that become their features, as for `aioserving.jobs`. Their outputs are ``classes``
            and ``scores``, lists, and ``value``.
        inputs: columns by the model's input where names differ, as for `aioserving.jobs`.
        decode: functions by input that make arrays of what is in a column, as for `aioserving.jobs`.
        outputs: the model's outputs that become columns, or new names by output; all by default.
        strings: what strings of the model become: bytes, or text.
        error_column: a column for what is wrong with a row, whose outputs are null then; by default such a
            row ends the task.
        batch_size: rows of a call.
        max_in_flight: calls at a time of one process; None finds the number anew for each block of rows.
        outage: seconds for which servers that do not answer are waited for, before the task fails.
        options: further arguments of `Client`, or a function without arguments that gives them in each
            worker. Secrets are only taken from a function, which reads them where it runs, so that they do
            not travel with the tasks: ``lambda: {"credentials": StaticToken(os.environ["TOKEN"])}``.

    Raises:
        ValueError: a setting is out of range, or `options` has secrets.
        ColumnError: an output's name or type cannot be a column.
        InvalidInputError: there is no such output, or the signature is not for this method.
        RPCError: no server says which version and signature there are.
    """
    if version is not None and version_label is not None:
        raise ValueError("give version or version_label, not both")
    if batch_size < 1 or (max_in_flight is not None and max_in_flight < 1):
        raise ValueError(f"{batch_size=} and {max_in_flight=} have to be at least 1")
    if method not in ("predict", "classify", "regress"):
        raise ValueError(f"method is 'predict', 'classify' or 'regress', not {method!r}")
    if strings not in ("binary", "utf8"):
        raise ValueError(f"strings is 'binary' or 'utf8', not {strings!r}")
    require_pyarrow()
    if not callable(options):
        held = [name for name in _SECRET if (options or {}).get(name) not in (None, True, False)]
        if held:
            raise ValueError(
                f"options has {held[0]!r}, which would travel with every task: give a function that makes it "
                "in the worker, from its environment or a file there"
            )
    settings = {
        "targets": targets,
        "options": options,
        "method": method,
        "inputs": dict(inputs or {}),
        "decode": dict(decode or {}),
        "strings": strings,
        "error_column": error_column,
        "batch_size": batch_size,
        "max_in_flight": max_in_flight,
        "outage": outage,
    }
    with _open_client(targets, options) as client:
        found = client.get_model_metadata(model, version=version, version_label=version_label)
    signature = found.signature(signature_name)
    if isinstance(outputs, str):
        outputs = (outputs,)
    names = dict(outputs) if isinstance(outputs, Mapping) else {name: name for name in outputs or ()}
    if method == "predict":
        signature.check_outputs(names)
    else:
        check_signature(signature, CLASSIFY if method == "classify" else REGRESS, method.capitalize())
    specs = _outputs_of(signature, method)
    unknown = [name for name in names if name not in specs]
    if unknown:
        raise InvalidInputError(
            f"{method} has no output {unknown[0]!r}; it has {', '.join(specs)}",
            model=model,
            method=method.capitalize(),
        )
    names = names or {name: name for name in specs}
    if len(set(names.values())) < len(names):
        raise ColumnError(f"two outputs would be one column: {names}", model=model, signature=signature.name)
    return PinnedModel(uuid.uuid4().hex, found.serialized, signature.name, names, settings)


def _outputs_of(
    signature: Signature, method: Literal["predict", "classify", "regress"]
) -> Mapping[str, TensorSpec]:
    """What a call gives, by name."""
    if method == "predict":
        return signature.outputs
    return {spec.name: spec for spec in output_specs(method)}


def _open_client(targets: Targets, options: ClientOptions | None) -> Client:
    given = options() if callable(options) else options
    return Client(targets, **dict(given or {}))


def close_clients() -> None:
    """Close the clients that this process has opened to score; the next block of rows opens them again.

    Processes do so when they end; one that goes on to do other things may call it when a run is over.
    """
    with _lock:
        clients = [client for _, client in sorted(_clients.items())] if _owner == os.getpid() else []
        _clients.clear()
    for client in clients:
        client.close()


atexit.register(close_clients)


class PinnedModel:
    """One version of a model, to score with in any process; made by `pin`.

    It can be pickled: with it go settings and the signature, and no connection.

    Attributes:
        name: the model's.
        version: number of the version.
        signature: what is called.
        outputs: names of columns by the model's outputs.
    """

    def __init__(
        self,
        key: str,
        metadata: bytes,
        signature_name: str,
        outputs: Mapping[str, str],
        settings: Mapping[str, Any],
    ) -> None:
        self._given = (key, metadata, signature_name, dict(outputs), dict(settings))
        self._key = key
        self._settings = dict(settings)
        found = ModelMetadata.from_response(metadata)
        self.name = found.name
        self.version = found.version
        self.signature: Signature = found.signature(signature_name)
        self.outputs: Mapping[str, str] = dict(outputs)
        self._specs = _outputs_of(self.signature, settings["method"])
        #: By schema, what was made of it before: a worker meets one, or a few.
        self._mappings: dict[Any, ColumnMapping | ExampleMapping] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return PinnedModel, self._given

    def __repr__(self) -> str:
        outputs = ", ".join(self.outputs.values())
        return f"<PinnedModel {self.name} version {self.version}, {self.signature.name}: {outputs}>"

    # -- on the driver --------------------------------------------------------------------------------

    def output_fields(self) -> list[Any]:
        """The columns that scoring adds, as `pyarrow.Field`s; lists for outputs with inner dimensions.

        Raises:
            ColumnError: an output's rank is not known, it has no row for each row, or no Arrow type.
        """
        pyarrow = require_pyarrow()
        fields = [
            pyarrow.field(column, self._type(self._specs[name])) for name, column in self.outputs.items()
        ]
        if self._settings["error_column"] is not None:
            fields.append(pyarrow.field(self._settings["error_column"], pyarrow.string()))
        return fields

    def output_schema(self, schema: Any) -> Any:
        """The schema of rows of `schema` when they are scored; refuses rows that cannot be.

        Raises:
            ColumnError: the model's inputs have no columns, or not of their types; or an output has the name
                of a column that is there.
        """
        pyarrow = require_pyarrow()
        self._mapping(schema)
        fields = self.output_fields()
        for field in fields:
            if field.name in schema.names:
                raise self._refusal(
                    f"there is a column {field.name!r} already: name the output's with "
                    f"outputs={{...: 'another'}}"
                )
        return pyarrow.schema([*schema, *fields])

    def _refusal(self, details: str) -> ColumnError:
        return ColumnError(details, model=self.name, signature=self.signature.name)

    def _mapping(self, schema: Any) -> ColumnMapping | ExampleMapping:
        found = self._mappings.get(schema)
        if found is None:
            found = make_mapping(
                self.signature,
                schema,
                method=self._settings["method"],
                inputs=self._settings["inputs"],
                decode=self._settings["decode"],
            )
            if len(self._mappings) >= 64:
                self._mappings.clear()
            self._mappings[schema] = found
        return found

    def _type(self, spec: TensorSpec) -> Any:
        pyarrow = require_pyarrow()
        if spec.shape is None:
            raise self._refusal(f"output {spec.name!r} is of any shape: leave it out with outputs=")
        if not spec.shape:
            raise self._refusal(
                f"output {spec.name!r} is one value for all rows of a call: leave it out with outputs="
            )
        if spec.data_type == DataType.DT_STRING:
            kind = pyarrow.string() if self._settings["strings"] == "utf8" else pyarrow.binary()
        elif spec.dtype.kind == "V" or spec.dtype.name.startswith(("bfloat", "float8", "float4")):
            kind = pyarrow.float32()
        else:
            try:
                kind = pyarrow.from_numpy_dtype(spec.dtype)
            except (pyarrow.ArrowNotImplementedError, TypeError) as error:
                raise self._refusal(f"output {spec.name!r} is {spec}, which Arrow has no type for") from error
        for _ in spec.shape[1:]:
            kind = pyarrow.list_(kind)
        return kind

    # -- in a worker ----------------------------------------------------------------------------------

    def client(self) -> Client:
        """The client that this process has for the model; opened when it is first asked for.

        A process that was forked from one that had it opens its own.
        """
        global _owner
        with _lock:
            if _owner != os.getpid():
                _clients.clear()  # they are the parent's, and stay open there
                _owner = os.getpid()
            found = _clients.get(self._key)
            if found is None:
                found = _clients[self._key] = _open_client(
                    self._settings["targets"], self._settings["options"]
                )
            return found

    def score(self, rows: Any) -> Any:
        """`rows` with the model's outputs as further columns, in the same order.

        Args:
            rows: a `pyarrow.RecordBatch` or `pyarrow.Table`.

        Returns:
            A `pyarrow.Table`.

        Raises:
            BadRows, RPCError: a row cannot be scored, and there is no `error_column`.
            ColumnError: the columns do not fit the model's inputs.
            RPCError: servers do not answer for longer than `outage`, or fail otherwise.
        """
        pyarrow = require_pyarrow()
        table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_batches([rows])
        schema = self.output_schema(table.schema)
        parts = []
        for batch in table.combine_chunks().to_batches():
            found = self._columns(batch)
            parts.append(pyarrow.RecordBatch.from_arrays([*batch.columns, *found], schema=schema))
        return pyarrow.Table.from_batches(parts, schema=schema)

    def _columns(self, batch: Any) -> list[Any]:
        """The columns that scoring adds to a batch."""
        pyarrow = require_pyarrow()
        mapping = self._mapping(batch.schema)
        rows = batch.num_rows
        told: dict[int, str] = {}
        sent = np.arange(rows)
        arrays: Mapping[Any, Array] = {}
        try:
            arrays = mapping.inputs(batch) if rows else {}
        except BadRows as bad:
            if self._settings["error_column"] is None:
                raise
            told.update(bad.rows)
            sent = np.delete(sent, list(told))
            if len(sent):
                arrays = mapping.inputs(batch.take(pyarrow.array(sent)))
        outputs, answered = self._call(arrays, sent, told) if len(sent) else ({}, sent)
        place = None
        if len(answered) < rows:
            # Rows without an answer are nulls.
            order = np.full(rows, -1)
            order[answered] = np.arange(len(answered))
            place = pyarrow.array(order, mask=order < 0)
        columns = []
        for name, column_field in zip(self.outputs, self.output_fields(), strict=False):
            parts = [_to_arrow(part, column_field.type) for part in outputs.get(name, ())]
            array = pyarrow.concat_arrays(parts) if parts else pyarrow.array([], column_field.type)
            columns.append(array if place is None else array.take(place))
        if self._settings["error_column"] is not None:
            columns.append(pyarrow.array([told.get(row) for row in range(rows)], pyarrow.string()))
        return columns

    def _call(
        self, arrays: Mapping[Any, Array], sent: Array, told: dict[int, str]
    ) -> tuple[dict[str, list[Array]], Array]:
        """Outputs of each call by name, and the rows that they are of; what was refused goes to `told`."""
        parts: dict[str, list[Array]] = {name: [] for name in self.outputs}
        answered = []
        with self._scoring(arrays) as results:
            for batch in results:
                for bad in batch.errors:
                    told[int(sent[bad.row])] = str(bad.error)
                if len(batch):
                    answered.append(sent[batch.rows])
                    for name, array in parts.items():
                        array.append(self._checked(name, batch.outputs[name], len(batch)))
        return parts, np.concatenate(answered) if answered else np.empty(0, np.int64)

    def _scoring(self, arrays: Mapping[Any, Array]) -> BlockingScoring:
        """A run over what is sent, not begun."""
        settings, client = self._settings, self.client()
        limits: dict[str, Any] = {
            "batch_size": settings["batch_size"],
            "max_in_flight": settings["max_in_flight"],
            "on_error": "raise" if settings["error_column"] is None else "collect",
            "outage": settings["outage"],
        }
        which: dict[str, Any] = {"version": self.version, "signature_name": self.signature.name}
        if settings["method"] == "predict":
            return client.model(self.name, **which).score(arrays, output_filter=list(self.outputs), **limits)
        model = client._client.model(self.name, **which)

        async def call(examples: Any) -> PredictResult:
            return await infer(model, settings["method"], list(examples))

        return BlockingScoring(client._run, Scoring(arrays, call, name=self.name, **limits))

    def _checked(self, name: str, array: Array, rows: int) -> Array:
        spec = self._specs[name]
        if not array.ndim or len(array) != rows or (spec.shape is not None and array.ndim != len(spec.shape)):
            raise ServingError(
                f"output {name!r} of model {self.name!r} came with the shape {array.shape} for {rows} rows, "
                f"{spec} was expected"
            )
        return array


def _to_arrow(array: Array, kind: Any) -> Any:
    """An output as a pyarrow Array of nested lists."""
    pyarrow = require_pyarrow()
    leaf, depth = kind, 0
    while pyarrow.types.is_list(leaf):
        leaf, depth = leaf.value_type, depth + 1
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind not in "OSU" and flat.dtype != leaf.to_pandas_dtype():
        flat = flat.astype(leaf.to_pandas_dtype())
    if pyarrow.types.is_string(leaf):
        found = pyarrow.array([_text(value) for value in flat.tolist()], leaf)
    else:
        found = pyarrow.array(flat.tolist() if flat.dtype.kind in "OSU" else flat, leaf)
    for axis in range(depth, 0, -1):
        count = int(np.prod(array.shape[:axis]))
        offsets = np.arange(count + 1, dtype=np.int32) * array.shape[axis]
        found = pyarrow.ListArray.from_arrays(pyarrow.array(offsets, pyarrow.int32()), found)
    return found.cast(kind)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
