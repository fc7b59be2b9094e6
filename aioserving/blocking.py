"""The same client without asyncio: `Client` for scripts, notebooks and threads.

Every method runs `AsyncClient`'s on the event loop that all blocking clients share; see
`aioserving.shared_loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from aioserving._types import DEFAULT, Inputs, Metadata, Timeout
from aioserving.balancing import BalancingOptions
from aioserving.circuit import CircuitOptions
from aioserving.client import DEFAULT_RETRY, AsyncClient, ClientStats, Model
from aioserving.health import ClientHealth, HealthOptions
from aioserving.hedging import HedgingPolicy
from aioserving.inference import ClassifyResult, MultiInferenceResult, RegressResult, Tasks
from aioserving.observers import Observer
from aioserving.pool import PoolOptions
from aioserving.prediction import PredictResult
from aioserving.resolver import ResolverOptions
from aioserving.retry import RetryPolicy
from aioserving.security import TLS, Credentials
from aioserving.shared_loop import OnSharedLoop
from aioserving.signature import ModelMetadata
from aioserving.status import ModelStatus, VersionStatus
from aioserving.targets import Targets
from aioserving.tf_examples import Context, Examples
from aioserving.transport import ChannelOptions, Compression

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from aioserving.batching import BlockingBatchedModel
    from aioserving.configuration import ModelConfigs, ModelLike
    from aioserving.messages import ModelServerConfig, View
    from aioserving.reload import ReloadResult
    from aioserving.scoring import BlockingScoring, Items, OnError, Source
    from aioserving.transport import ChannelCredentials

__all__ = ["BlockingModel", "Client"]

T = TypeVar("T")


class Client(OnSharedLoop[AsyncClient]):
    """A client of TensorFlow Serving for plain, blocking code.

    ```python
    with Client("127.0.0.1:8500") as client:
        result = client.predict("digits", {"images": images})
    ```

    May be used from any number of threads, and where an event loop is running already (notebooks).
    Ctrl-C stops the call that it interrupts, and leaves the client usable. Methods, arguments and errors
    are those of `AsyncClient`.

    Args:
        targets: ``"host:port"``, ``"unix:///path"``, or several of them that serve the same models, also as
            a mapping to weights; ``"dns:///name:port"`` for every address of a name, kept up to date. See
            `aioserving.targets`.
        timeout: seconds that a call may take when it says nothing else; None for no limit. It is one
            deadline for everything: waiting, all attempts, and the server's own work.
        tls: TLS, with the system's authorities if True; see `TLS`. None for plaintext.
        credentials: what calls carry to say who makes them: a token, a key, or a scheme of one's own; see
            `aioserving.security`. (Channel credentials of grpc's own are taken, too.)
        metadata: gRPC metadata sent with every call.
        max_message_size: largest message, in bytes, sent or received; None for what the server and
            protobuf take, 2 GiB.
        retry: which failures are tried again, and how often; None for never.
        hedging: when a call that is late is sent a second time; None for never.
        balancing: which endpoint takes a call: settings, or the name of a policy.
        health: when an endpoint gets no calls for a while.
        circuit: when nothing is sent any more because nothing answers.
        pool: number of connections and calls in flight.
        resolver: how often names are looked up.
        channel_options: gRPC channel arguments, over this library's own.
        observers: functions that are told what the client decides; see `aioserving.events`.

    Raises:
        ValueError: a target is malformed or there is none; or credentials would go out in plaintext.
    """

    def __init__(
        self,
        targets: Targets,
        *,
        timeout: float | None = 60.0,
        tls: TLS | bool | None = None,
        credentials: Credentials | ChannelCredentials | None = None,
        metadata: Metadata = (),
        max_message_size: int | None = None,
        retry: RetryPolicy | None = DEFAULT_RETRY,
        hedging: HedgingPolicy | None = None,
        balancing: BalancingOptions | str | None = None,
        health: HealthOptions | None = None,
        circuit: CircuitOptions | None = None,
        pool: PoolOptions | None = None,
        resolver: ResolverOptions | None = None,
        channel_options: ChannelOptions = (),
        observers: Iterable[Observer] = (),
    ) -> None:
        super().__init__(
            AsyncClient(
                targets,
                timeout=timeout,
                tls=tls,
                credentials=credentials,
                metadata=metadata,
                max_message_size=max_message_size,
                retry=retry,
                hedging=hedging,
                balancing=balancing,
                health=health,
                circuit=circuit,
                pool=pool,
                resolver=resolver,
                channel_options=channel_options,
                observers=observers,
            )
        )

    # -- life ---------------------------------------------------------------------------------------

    def close(self, grace: float | None = None) -> None:
        """Let running calls end and close every connection; new calls are refused from now on.

        Safe to call again.

        Args:
            grace: seconds given to running calls before they are cancelled (their callers get a
                `ClientClosedError`); None gives them the time that their own deadlines allow.
        """
        self._close(lambda: self._client.aclose(grace))

    def stats(self) -> ClientStats:
        """Endpoints, connections, calls in flight and totals, at this moment."""
        return self._client.stats()

    def health(self) -> ClientHealth:
        """How every endpoint is, as far as the client knows at this moment; nothing is asked."""
        return self._client.health()

    def wait_ready(
        self, *models: str, every_endpoint: bool = False, timeout: Timeout = DEFAULT
    ) -> ClientHealth:
        """Connect, and wait until calls can be made.

        Args:
            models: models that must be available, too.
            every_endpoint: wait for every endpoint instead of any one.
            timeout: seconds to wait; the client's own setting if not given.

        Returns:
            How every endpoint is.

        Raises:
            DeadlineExceededError: not in time; the message tells what was still to come.
        """
        return self._run(self._client.wait_ready(*models, every_endpoint=every_endpoint, timeout=timeout))

    def add_targets(self, targets: Targets) -> None:
        """Let further endpoints take part, or give those that do another weight.

        They get few calls at first, and their share within seconds.

        Args:
            targets: as for the constructor, except for names (``dns:``), which only it takes.

        Raises:
            ValueError: a target is malformed.
        """
        self._run(_on_loop(self._client.add_targets, targets))

    def remove_targets(self, targets: Targets) -> None:
        """Let endpoints get no more calls; those under way end.

        Raises:
            ValueError: a target is malformed, or none of this client's.
        """
        self._run(_on_loop(self._client.remove_targets, targets))

    # -- calls --------------------------------------------------------------------------------------

    @overload
    def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        output_filter: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> PredictResult: ...

    @overload
    def predict(
        self,
        model: Message | View,
        *,
        timeout: Timeout = DEFAULT,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> PredictResult: ...

    def predict(
        self,
        model: str | Message | View,
        inputs: Inputs | None = None,
        *,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        output_filter: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> PredictResult:
        """Run a model on `inputs`.

        Inputs are checked against the signature before anything is sent: names, dtypes and shapes. The
        signature is fetched once per model, version and signature, and again when the server's answers
        come from another version.

        Args:
            model: name of the model; or a ready PredictRequest, which is sent as it is.
            inputs: arrays (or lists, scalars, strings) by input name; or the one value of a signature
                with a single input. Arrays are cast only where numpy calls it ``same_kind``; lists and
                scalars take the signature's dtype.
            version: version number; the newest available one if neither it nor a label is given.
            version_label: label that the server's configuration gives a version.
            signature_name: key of the signature; ``serving_default`` if not given.
            output_filter: names of the outputs to return; all if not given.
            timeout: seconds until the call fails; the client's own setting if not given, None for no
                limit. The sooner of it and an ambient `anyio.fail_after` travels to the server.
            validate: False sends `inputs`, a mapping, as they are, and asks for no metadata.
            compression: ``"gzip"`` or ``"deflate"`` for this request; see `aioserving.transport.compressed`.
            metadata: gRPC metadata of this call.

        Returns:
            Arrays by output name, read-only; `PredictResult.model_spec` tells the version.

        Raises:
            InvalidInputError: `inputs` do not fit the signature.
            ModelNotFoundError: unknown model, or (`VersionNotFoundError`) version.
            SignatureNotFoundError: the model has no such signature.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            DecodeError: the answer is no PredictResponse.
            RPCError: any other gRPC status; see `aioserving.errors`.
        """
        # The overloads above say which arguments go together.
        predict: Callable[..., Coroutine[Any, Any, PredictResult]] = self._client.predict
        return self._run(
            predict(
                model,
                inputs,
                version=version,
                version_label=version_label,
                signature_name=signature_name,
                output_filter=output_filter,
                timeout=timeout,
                validate=validate,
                compression=compression,
                metadata=metadata,
            )
        )

    @overload
    def classify(
        self,
        model: str,
        examples: Examples,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> ClassifyResult: ...

    @overload
    def classify(
        self,
        model: Message | View,
        *,
        timeout: Timeout = DEFAULT,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> ClassifyResult: ...

    def classify(
        self,
        model: str | Message | View,
        examples: Examples | None = None,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> ClassifyResult:
        """Classify examples.

        Which features the model requires is known to the server alone; that the signature can classify
        (one input, ``inputs``, and the outputs for it) is checked before anything is sent.

        Args:
            model: name of the model; or a ready ClassificationRequest, which is sent as it is.
            examples: a dict of columns, a DataFrame or Table, a list of dicts, a dict of one example,
                `tf.Example` messages, views or bytes; see `aioserving.tf_examples.serialize_examples`.
            context: features of every example that has none of that name: a dict or a `tf.Example`.
            version: version number; the newest available one if neither it nor a label is given.
            version_label: label that the server's configuration gives a version.
            signature_name: key of the signature; ``serving_default`` if not given.
            timeout: seconds until the call fails; the client's own setting if not given, None for no
                limit. The sooner of it and an ambient `anyio.fail_after` travels to the server.
            validate: False checks neither signature nor serialized examples, and asks for no metadata.
            compression: ``"gzip"`` or ``"deflate"`` for this request; see `aioserving.transport.compressed`.
            metadata: gRPC metadata of this call.

        Returns:
            ``result[0].label``, ``.score``, ``.top(3)`` for each example; ``result.scores`` and
            ``result.labels``, arrays of (examples, classes).

        Raises:
            InvalidInputError: examples are none, ragged or of mixed types; or the signature does not fit.
            InvalidArgumentError: the model cannot parse the examples: a feature that it requires is
                missing, or has another type or length.
            ModelNotFoundError: unknown model, or (`VersionNotFoundError`) version.
            SignatureNotFoundError: the model has no such signature.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            DecodeError: the answer is no ClassificationResponse.
            RPCError: any other gRPC status; see `aioserving.errors`.
        """
        # The overloads above say which arguments go together.
        classify: Callable[..., Coroutine[Any, Any, ClassifyResult]] = self._client.classify
        return self._run(
            classify(
                model,
                examples,
                context=context,
                version=version,
                version_label=version_label,
                signature_name=signature_name,
                timeout=timeout,
                validate=validate,
                compression=compression,
                metadata=metadata,
            )
        )

    @overload
    def regress(
        self,
        model: str,
        examples: Examples,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> RegressResult: ...

    @overload
    def regress(
        self,
        model: Message | View,
        *,
        timeout: Timeout = DEFAULT,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> RegressResult: ...

    def regress(
        self,
        model: str | Message | View,
        examples: Examples | None = None,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> RegressResult:
        """Find a number for each of the examples.

        Which features the model requires is known to the server alone; that the signature can regress
        (one input, ``inputs``, and the outputs for it) is checked before anything is sent.

        Args:
            model: name of the model; or a ready RegressionRequest, which is sent as it is.
            examples: a dict of columns, a DataFrame or Table, a list of dicts, a dict of one example,
                `tf.Example` messages, views or bytes; see `aioserving.tf_examples.serialize_examples`.
            context: features of every example that has none of that name: a dict or a `tf.Example`.
            version: version number; the newest available one if neither it nor a label is given.
            version_label: label that the server's configuration gives a version.
            signature_name: key of the signature; ``serving_default`` if not given.
            timeout: seconds until the call fails; the client's own setting if not given, None for no
                limit. The sooner of it and an ambient `anyio.fail_after` travels to the server.
            validate: False checks neither signature nor serialized examples, and asks for no metadata.
            compression: ``"gzip"`` or ``"deflate"`` for this request; see `aioserving.transport.compressed`.
            metadata: gRPC metadata of this call.

        Returns:
            A sequence of the numbers; ``result.values``, a float32 array of (examples,).

        Raises:
            InvalidInputError: examples are none, ragged or of mixed types; or the signature does not fit.
            InvalidArgumentError: the model cannot parse the examples: a feature that it requires is
                missing, or has another type or length.
            ModelNotFoundError: unknown model, or (`VersionNotFoundError`) version.
            SignatureNotFoundError: the model has no such signature.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            DecodeError: the answer is no RegressionResponse.
            RPCError: any other gRPC status; see `aioserving.errors`.
        """
        # The overloads above say which arguments go together.
        regress: Callable[..., Coroutine[Any, Any, RegressResult]] = self._client.regress
        return self._run(
            regress(
                model,
                examples,
                context=context,
                version=version,
                version_label=version_label,
                signature_name=signature_name,
                timeout=timeout,
                validate=validate,
                compression=compression,
                metadata=metadata,
            )
        )

    @overload
    def multi_inference(
        self,
        model: str,
        tasks: Tasks,
        examples: Examples,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> MultiInferenceResult: ...

    @overload
    def multi_inference(
        self,
        model: Message | View,
        *,
        timeout: Timeout = DEFAULT,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> MultiInferenceResult: ...

    def multi_inference(
        self,
        model: str | Message | View,
        tasks: Tasks | None = None,
        examples: Examples | None = None,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> MultiInferenceResult:
        """Run several signatures of one model on the same examples, in one run of its graph.

        What the server is certain to refuse (no tasks, a signature used twice, another model, a signature
        that cannot classify or regress) is refused before anything is sent.

        Args:
            model: name of the model; or a ready MultiInferenceRequest, which is sent as it is.
            tasks: ``("classify", signature_name)`` and ``("regress", signature_name)`` pairs (None for
                ``serving_default``), or `InferenceTask`s, of which method and signature count.
            examples: a dict of columns, a DataFrame or Table, a list of dicts, a dict of one example,
                `tf.Example` messages, views or bytes; see `aioserving.tf_examples.serialize_examples`.
            context: features of every example that has none of that name: a dict or a `tf.Example`.
            version: version number; the newest available one if neither it nor a label is given.
            version_label: label that the server's configuration gives a version.
            timeout: seconds until the call fails; the client's own setting if not given, None for no
                limit. The sooner of it and an ambient `anyio.fail_after` travels to the server.
            validate: False checks neither tasks nor serialized examples, and asks for no metadata.
            compression: ``"gzip"`` or ``"deflate"`` for this request; see `aioserving.transport.compressed`.
            metadata: gRPC metadata of this call.

        Returns:
            A `ClassifyResult` or `RegressResult` for each task, in order.

        Raises:
            InvalidInputError: examples are none, ragged or of mixed types; or tasks do not fit.
            InvalidArgumentError: the model cannot parse the examples: a feature that it requires is
                missing, or has another type or length.
            ModelNotFoundError: unknown model, or (`VersionNotFoundError`) version.
            SignatureNotFoundError: the model has no such signature.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            DecodeError: the answer is no MultiInferenceResponse.
            RPCError: any other gRPC status; see `aioserving.errors`.
        """
        # The overloads above say which arguments go together.
        multi_inference: Callable[..., Coroutine[Any, Any, MultiInferenceResult]] = (
            self._client.multi_inference
        )
        return self._run(
            multi_inference(
                model,
                tasks,
                examples,
                context=context,
                version=version,
                version_label=version_label,
                timeout=timeout,
                validate=validate,
                compression=compression,
                metadata=metadata,
            )
        )

    def get_model_metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ModelMetadata:
        """Ask the server for a model's signatures.

        Args:
            model: name of the model.
            version: version number; the newest available one if neither it nor a label is given.
            version_label: label that the server's configuration gives a version.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of this call.

        Returns:
            The signatures with their inputs' and outputs' names, dtypes and shapes.

        Raises:
            ModelNotFoundError: unknown model, or (`VersionNotFoundError`) version.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            RPCError: any other gRPC status.
        """
        return self._run(
            self._client.get_model_metadata(
                model, version=version, version_label=version_label, timeout=timeout, metadata=metadata
            )
        )

    def get_model_status(
        self,
        model: str,
        *,
        version: int | None = None,
        target: str | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ModelStatus:
        """Ask a server which versions of a model it has seen, and how each is.

        Versions that were unloaded stay in the list, as ``END``. (The server ignores a version label
        here, so there is no such argument.)

        Args:
            model: name of the model.
            version: ask for this version only.
            target: which of the client's targets to ask; any one if not given.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of this call.

        Returns:
            A sequence, highest version first, of `VersionStatus`: ``version``, ``state``, ``error``.

        Raises:
            ModelNotFoundError: the server never saw such a model, or (`VersionNotFoundError`) version.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            RPCError: any other gRPC status.
        """
        return self._run(
            self._client.get_model_status(
                model, version=version, target=target, timeout=timeout, metadata=metadata
            )
        )

    def wait_until_available(
        self,
        model: str,
        *,
        version: int | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> VersionStatus:
        """Wait until a version of `model` can serve, on every one of the client's targets.

        Waits for the servers themselves to come up, too.

        Args:
            model: name of the model.
            version: the version to wait for; any if not given.
            timeout: seconds to wait; the client's own setting if not given.
            metadata: gRPC metadata of the calls.

        Returns:
            The status of the version that is available, the highest if there are several.

        Raises:
            DeadlineExceededError: not available in time; the message tells the last state seen.
            ModelLoadError: loading it failed, so that waiting longer is no use; the message tells why.
        """
        return self._run(
            self._client.wait_until_available(model, version=version, timeout=timeout, metadata=metadata)
        )

    def reload_config(
        self,
        config: ModelConfigs,
        *,
        old: ModelConfigs | None = None,
        wait: bool = False,
        check: bool = True,
        metric_names: Sequence[str] = (),
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ReloadResult:
        """Replace the list of models that a server serves.

        The new list replaces the old one: models that it leaves out are unloaded. To change one thing,
        use `add_models`, `remove_models` or `set_labels`. The server answers when every newly named model
        has a version available; of changes to models that were there before (a version policy) it answers
        at once. Labels can only point at versions that are available already. With `wait` the call
        returns when the versions that the config names are available, and labels are set in a second
        step, once their versions are.

        A base path that does not exist, or has no version in it, blocks the server's reloads for good;
        only this call's wait ends with its deadline. A server that polls its ``--model_config_file``
        undoes the reload at the next poll: use `write_config` there.

        With several endpoints it is sent to every one of them, one after the other.

        Args:
            config: the models: `ModelConfig`s, dicts of their fields, or a `ModelServerConfig`; or its
                text, or the path of a ``--model_config_file``. A model without a platform gets
                ``"tensorflow"`` (the server would keep a config without one and refuse every later
                reload).
            old: the config in force, likewise, if this client did not apply it: labels that move then stay
                where they are until their new versions are available.
            wait: return when every version that the config names, by policy or label, is available, and
                at least one of every model.
            check: refuse what the server would refuse before anything is sent.
            metric_names: metrics of the server whose growth during the reload to report.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of the call.

        Returns:
            The config as it was sent; with `wait`, how every model is on every server.

        Warns:
            ConfigWarning: the server may refuse the config, or would wait on it without end.

        Raises:
            InvalidConfigError: the server would refuse the config; nothing was sent.
            InvalidArgumentError: the server refuses the config.
            FailedPreconditionError: a label points at a version that is not available.
            UnknownError: models that were added failed to load; the message says which and why.
            ModelLoadError: with `wait`: versions failed to load; it lists which and why.
            DeadlineExceededError: models were not available in time, the message says which; the server
                goes on loading them.
            DecodeError: a text is no config; with line and column.
            OSError: a file cannot be read.
            RPCError: any other gRPC status.
        """
        return self._run(
            self._client.reload_config(
                config,
                old=old,
                wait=wait,
                check=check,
                metric_names=metric_names,
                timeout=timeout,
                metadata=metadata,
            )
        )

    def add_models(
        self,
        models: ModelLike | Iterable[ModelLike],
        *,
        config: ModelConfigs | None = None,
        wait: bool = True,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ReloadResult:
        """Serve further models beside those that are served; one of a name that is there is replaced.

        The server cannot be asked for its config, so this changes the one that this client applied last,
        or `config`. What others changed in the meantime is lost.

        Args:
            models: one model, or several.
            config: the config in force, as for `reload_config`, if this client did not apply it.
            wait: return when the added models are available.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of the calls.

        Returns:
            The new config; with `wait`, how the added models are on every server.

        Raises:
            ValueError: this client applied no config yet, and none is given.
            ModelLoadError: with `wait`: versions failed to load; it lists which and why.
            RPCError: as `reload_config`.
        """
        return self._run(
            self._client.add_models(models, config=config, wait=wait, timeout=timeout, metadata=metadata)
        )

    def remove_models(
        self,
        names: str | Iterable[str],
        *,
        config: ModelConfigs | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ReloadResult:
        """Stop serving models; the others stay. The server unloads them after it has answered.

        Args:
            names: name of the model, or several.
            config: the config in force, as for `reload_config`, if this client did not apply it.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of the calls.

        Returns:
            The new config.

        Raises:
            ValueError: this client applied no config yet and none is given; or it has no such model.
            RPCError: as `reload_config`.
        """
        return self._run(self._client.remove_models(names, config=config, timeout=timeout, metadata=metadata))

    def set_labels(
        self,
        model: str,
        labels: Mapping[str, int | None],
        *,
        config: ModelConfigs | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ReloadResult:
        """Point version labels of a model at versions, loading these first where they are not.

        A label can only point at a version that is available. So this is two reloads where it has to be:
        the first loads the version while the label, and the version that it is on, stay; the second moves
        the label. Requests that name the label are answered throughout.

        Args:
            model: name of the model.
            labels: version by label; None takes the label away. Other labels stay.
            config: the config in force, as for `reload_config`, if this client did not apply it.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of the calls.

        Returns:
            The new config, and how the model is on every server.

        Raises:
            ValueError: this client applied no config yet and none is given; or it has no such model.
            ModelLoadError: a version failed to load; the label is where it was.
            DeadlineExceededError: a version was not available in time; the label is where it was.
            RPCError: as `reload_config`.
        """
        return self._run(
            self._client.set_labels(model, labels, config=config, timeout=timeout, metadata=metadata)
        )

    @property
    def config(self) -> ModelServerConfig | None:
        """A copy of the config that this client applied last; None if it did not yet."""
        return self._client.config

    def model(
        self,
        name: str,
        *,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
    ) -> BlockingModel:
        """A handle bound to one model, with the same methods less the arguments that it fixes.

        Args:
            name: name of the model.
            version: version number that the handle's calls ask for.
            version_label: label that they ask for.
            signature_name: signature that they use.
        """
        return BlockingModel(
            self,
            self._client.model(
                name, version=version, version_label=version_label, signature_name=signature_name
            ),
        )


class BlockingModel:
    """One model as a `Client` sees it: its methods with the model's name and version filled in.

    Made by `Client.model`; light, and valid as long as its client is.
    """

    __slots__ = ("_client", "_model")

    def __init__(self, client: Client, model: Model) -> None:
        self._client = client
        self._model = model

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._model!r}>"

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._model.name

    def predict(
        self,
        inputs: Inputs,
        *,
        output_filter: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> PredictResult:
        """Run the model on `inputs`; see `AsyncClient.predict`."""
        return self._client._run(
            self._model.predict(
                inputs,
                output_filter=output_filter,
                timeout=timeout,
                validate=validate,
                compression=compression,
                metadata=metadata,
            )
        )

    def classify(
        self,
        examples: Examples,
        *,
        context: Context | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> ClassifyResult:
        """Classify examples; see `AsyncClient.classify`."""
        return self._client._run(
            self._model.classify(
                examples,
                context=context,
                timeout=timeout,
                validate=validate,
                compression=compression,
                metadata=metadata,
            )
        )

    def regress(
        self,
        examples: Examples,
        *,
        context: Context | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> RegressResult:
        """Find a number for each of the examples; see `AsyncClient.regress`."""
        return self._client._run(
            self._model.regress(
                examples,
                context=context,
                timeout=timeout,
                validate=validate,
                compression=compression,
                metadata=metadata,
            )
        )

    def multi_inference(
        self,
        tasks: Tasks,
        examples: Examples,
        *,
        context: Context | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> MultiInferenceResult:
        """Run several signatures of the model on the same examples; see `AsyncClient.multi_inference`."""
        return self._client._run(
            self._model.multi_inference(
                tasks,
                examples,
                context=context,
                timeout=timeout,
                validate=validate,
                compression=compression,
                metadata=metadata,
            )
        )

    def batched(
        self,
        *,
        max_batch_size: int = 128,
        max_batch_bytes: int | None = 32 * 1024 * 1024,
        max_delay: float = 0.002,
        max_in_flight: int = 2,
        allowed_batch_sizes: Sequence[int] = (),
        max_waiting: int = 10_000,
        shared_outputs: Literal["refuse", "broadcast"] = "refuse",
        pad_axis: int | None = None,
        pad_value: float | bytes = 0,
        pad_inputs: Sequence[str] = (),
        length_input: str | None = None,
        mask_input: str | None = None,
        cut_outputs: Sequence[str] = (),
    ) -> BlockingBatchedModel:
        """A handle whose concurrent `predict` calls are sent together; see `aioserving.batching`.

        Nothing waits for company while nothing is under way, so a lonely caller loses no time. Share one
        handle among all callers, and close it, or use it as a context manager.

        Args:
            max_batch_size: rows that a batch may have; the server's own setting if it batches, too.
            max_batch_bytes: bytes of inputs beyond which no further caller is taken into a batch, where all
                rows are of one size; None for no limit.
            max_delay: seconds that a caller may wait for others while there is room for another batch.
            max_in_flight: batches under way at a time.
            allowed_batch_sizes: sizes that batches are filled up to, ascending; any size if not given.
            max_waiting: callers that may wait; the next one is refused.
            shared_outputs: what becomes of outputs without a batch axis: ``"refuse"`` them, or
                ``"broadcast"`` them to every caller.
            pad_axis: axis, 1 or more, along which inputs may differ in size; None if they may not.
            pad_value: what shorter inputs are filled up with.
            pad_inputs: inputs that are filled up; all whose signature leaves that axis open if not given.
            length_input: input that is told the true size of every row.
            mask_input: input that is told, by 1 and 0, which values are true.
            cut_outputs: outputs that have that axis too, and are cut back to the caller's own size.

        Raises:
            ValueError: a setting is out of range, or two do not go together.
        """
        from aioserving.batching import BlockingBatchedModel

        return BlockingBatchedModel(
            self._client._run,
            self._model.batched(
                max_batch_size=max_batch_size,
                max_batch_bytes=max_batch_bytes,
                max_delay=max_delay,
                max_in_flight=max_in_flight,
                allowed_batch_sizes=allowed_batch_sizes,
                max_waiting=max_waiting,
                shared_outputs=shared_outputs,
                pad_axis=pad_axis,
                pad_value=pad_value,
                pad_inputs=pad_inputs,
                length_input=length_input,
                mask_input=mask_input,
                cut_outputs=cut_outputs,
            ),
        )

    def score(
        self,
        source: Source,
        *,
        batch_size: int = 256,
        max_in_flight: int | None = None,
        ordered: bool = True,
        on_error: OnError = "raise",
        outage: float = 300.0,
        items: Items | None = None,
        keep: Sequence[str] = (),
        first_row: int = 0,
        output_filter: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> BlockingScoring:
        """Run the model on any number of rows, in batches, in bounded memory; see `aioserving.scoring`.

        Use the result as a context manager, and iterate over it for a `ScoredBatch` each: ``index``,
        ``start``, ``stop``, ``inputs``, ``outputs``.

        Args:
            source: iterable (or async iterable) of rows or batches, arrays and memory maps, a dict of
                columns, a DataFrame, an Arrow table or reader.
            batch_size: rows of a call.
            max_in_flight: batches that are held at a time; found while it runs if not given.
            ordered: give batches in the order of the source, not as they are done.
            on_error: what becomes of rows that the server refuses: ``"raise"`` the error, ``"skip"`` them,
                or ``"collect"`` them in ``batch.errors``.
            outage: seconds for which servers that do not answer are waited for.
            items: whether `source` gives ``"rows"`` or ``"batches"``, where that cannot be told.
            keep: columns that are not sent, and come back in ``batch.kept``.
            first_row: number of the first row of `source`.
            output_filter: names of the outputs to ask for; all if not given.
            timeout: seconds until a call fails; the client's own setting if not given.
            validate: False does not check inputs against the signature.
            compression: ``"gzip"`` or ``"deflate"`` for the requests.
            metadata: gRPC metadata of the calls.

        Raises:
            ValueError: a setting is out of range.
            TypeError: `source` is nothing of the above.
        """
        from aioserving.scoring import BlockingScoring

        return BlockingScoring(
            self._client._run,
            self._model.score(
                source,
                batch_size=batch_size,
                max_in_flight=max_in_flight,
                ordered=ordered,
                on_error=on_error,
                outage=outage,
                items=items,
                keep=keep,
                first_row=first_row,
                output_filter=output_filter,
                timeout=timeout,
                validate=validate,
                compression=compression,
                metadata=metadata,
            ),
        )

    def get_model_metadata(self, *, timeout: Timeout = DEFAULT, metadata: Metadata = ()) -> ModelMetadata:
        """Ask the server for the model's signatures; see `AsyncClient.get_model_metadata`."""
        return self._client._run(self._model.get_model_metadata(timeout=timeout, metadata=metadata))

    def get_model_status(
        self,
        *,
        target: str | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ModelStatus:
        """Ask a server how the model's versions are; see `AsyncClient.get_model_status`."""
        return self._client._run(
            self._model.get_model_status(target=target, timeout=timeout, metadata=metadata)
        )

    def wait_until_available(self, *, timeout: Timeout = DEFAULT, metadata: Metadata = ()) -> VersionStatus:
        """Wait until the model can serve; see `AsyncClient.wait_until_available`."""
        return self._client._run(self._model.wait_until_available(timeout=timeout, metadata=metadata))


async def _on_loop(function: Callable[[Targets], None], targets: Targets) -> None:
    function(targets)
