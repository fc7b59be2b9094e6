"""The checks of `doctor` in their order, each with a deadline; what follows a failed one is left out.

This machine comes first (`surroundings`), then for each target the way to the server (`probing`), then the
server and the model, by the client itself. Nothing here writes: each check is given to `tell` as it is done.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aioserving import errors
from aioserving.cli import probing, surroundings
from aioserving.cli.findings import Check, Finding, error, note, ok, skipped, warning
from aioserving.cli.probing import Place, TLSFiles
from aioserving.dtypes import type_info
from aioserving.errors import UnsupportedTypeError
from aioserving.histogram import Histogram, duration_text
from aioserving.signature import ModelMetadata, Signature, TensorSpec
from aioserving.targets import Target, parse_targets

if TYPE_CHECKING:
    from aioserving.client import AsyncClient
    from aioserving.status import ModelStatus

__all__ = ["Patient", "examine", "examine_here", "similar_names"]

#: What is asked for where no model is named: that it is not there is an answer, too.
_NOBODY: Final = "aioserving-doctor"

#: gRPC's own limit of received messages, in bytes, for servers and clients that do not set another.
_GRPC_LIMIT: Final = 4 * 1024 * 1024

#: Protobuf's limit of a message, which is the real server's, and this client's.
_MAXIMUM: Final = 2**31 - 1

#: Calls by which the round trip is measured.
_ROUND_TRIPS: Final = 20

#: Names that models have if nobody gave them one: by the server's flag, by its Docker image.
_DEFAULT_NAMES: Final = ("default", "model")

#: What is looked at between a target's name and the first call, in order.
_WAY: Final = ("resolve", "connect", "tls", "protocol", "call")
_MODEL: Final = ("model", "metadata", "messages")


@dataclass(frozen=True)
class Patient:
    """What is examined, and with what."""

    targets: Sequence[str]
    #: Makes a client of one target: ``client(target, timeout)``.
    client: Callable[[str, float], AsyncClient]
    #: None: no TLS.
    tls: TLSFiles | None = None
    model: str | None = None
    version: int | None = None
    label: str | None = None
    signature: str | None = None
    #: Whether calls carry credentials.
    credentials: bool = False
    #: Seconds that each check may take.
    timeout: float = 5.0
    #: Other names that the model may have been meant by.
    known_models: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)


async def _timed(
    name: str, timeout: float, work: Callable[[], Awaitable[Sequence[Finding]]], fix: str = ""
) -> Check:
    """A check that ends in time, and with a finding whatever happens in it."""
    began = time.perf_counter()
    try:
        findings = await asyncio.wait_for(work(), timeout)
    except (asyncio.TimeoutError, TimeoutError):
        text = f"no result within {duration_text(timeout)}"
        findings = [
            error(text, fix or "is the network slow, or something in it silent? --check-timeout gives more")
        ]
    except OSError as problem:
        findings = [error(f"{type(problem).__name__}: {problem}", fix or "see the message")]
    return Check(name, tuple(findings), time.perf_counter() - began)


async def examine_here(patient: Patient, tell: Callable[[Check], None]) -> list[Check]:
    """Look at this machine."""

    async def now(findings: list[Finding]) -> list[Finding]:
        return findings

    environ = patient.environ
    found = []
    steps: list[tuple[str, Callable[[], Awaitable[Sequence[Finding]]], float]] = [
        (
            "versions",
            lambda: now(
                surroundings.versions(
                    surroundings.installed(), implementation=surroundings.protobuf_implementation()
                )
            ),
            patient.timeout,
        ),
        # A cold file cache is slow, and says nothing about servers.
        ("import", surroundings.import_costs, max(patient.timeout, 30.0)),
        ("variables", lambda: now(surroundings.variables(environ)), patient.timeout),
        ("clock", lambda: now(surroundings.clock()), patient.timeout),
    ]
    for name, work, timeout in steps:
        check = await _timed(name, timeout, work)
        tell(check)
        found.append(check)
    return found


async def examine(patient: Patient, target: str, tell: Callable[[Check], None]) -> list[Check]:
    """Look at one target, the server there, and the model.

    Returns:
        The checks, in order; those that a failed one made pointless are `Level.SKIPPED`.
    """
    found: list[Check] = []

    def done(*checks: Check) -> None:
        for check in checks:
            found.append(check)
            tell(check)

    after = ("proxy", *_WAY, "health", *_MODEL, "round trip")
    try:
        parsed = parse_targets(target)
    except ValueError as problem:
        done(Check("target", (error(str(problem), "write HOST:PORT, unix:PATH or dns:///HOST:PORT"),)))
        done(*skipped(after, "the target makes no sense"))
        return found
    way = [await _way(patient, item, done) for item in parsed]
    if not all(way):
        done(*skipped((*(("call",)), "health", *_MODEL, "round trip"), "there is no connection"))
        return found
    client = patient.client(target, patient.timeout)
    try:
        await _serving(patient, client, done)
    finally:
        # It has nothing under way that is worth waiting for.
        await asyncio.wait_for(client.aclose(grace=0), patient.timeout)
    return found


async def _way(patient: Patient, target: Target, done: Callable[..., None]) -> bool:
    """The steps up to HTTP/2; whether all went well."""
    timeout = patient.timeout
    done(Check("proxy", tuple(surroundings.proxies(target, patient.environ))))
    places: list[Place] = []

    async def resolve() -> Sequence[Finding]:
        findings, found = await probing.resolve(target, patient.environ)
        places.extend(found)
        return findings

    check = await _timed(
        "resolve",
        timeout,
        resolve,
        "the name server does not answer: is there a network, or a VPN to switch on?",
    )
    done(check)
    if check.failed or not places:
        done(*skipped(_WAY[1:4], "there is no address to connect to"))
        return not check.failed
    good: list[Place] = []

    async def connect() -> Sequence[Finding]:
        findings, found = await probing.connect(places, timeout, target)
        good.extend(found)
        return findings

    # The addresses have their own deadlines, and what is found out about them takes a moment longer.
    check = await _timed("connect", timeout + 1.0, connect)
    done(check)
    if not good:
        done(*skipped(_WAY[2:4], "nothing accepts a connection"))
        return False
    # Of a name that stands for a fleet every address counts; of others gRPC takes the first.
    chosen = good if target.to_resolve else good[:1]
    files = patient.tls
    name = (files.server_name if files else None) or target.server_name or target.host or "localhost"
    if files is None:
        done(Check("tls", (ok("not asked for"),)))
    else:
        check = await _timed(
            "tls", timeout + 2.5, lambda: _each(chosen, lambda place: probing.tls(place, files, name))
        )
        done(check)
        if check.failed:
            done(*skipped(_WAY[3:4], "there is no TLS"))
            return False
    check = await _timed(
        "protocol",
        timeout,
        lambda: _each(chosen, lambda place: probing.protocol(place, files, patient.model, name)),
        "the connection is taken and nobody answers: is the server stopped, or a firewall in between?",
    )
    done(check)
    return not check.failed


async def _each(
    places: Sequence[Place], work: Callable[[Place], Awaitable[Sequence[Finding]]]
) -> Sequence[Finding]:
    """What is found at each place, once."""
    found = await asyncio.gather(*(work(place) for place in places))
    return list(dict.fromkeys(finding for findings in found for finding in findings))


# -- the server and the model -------------------------------------------------------------------------------


async def _serving(patient: Patient, client: AsyncClient, done: Callable[..., None]) -> None:
    timeout = patient.timeout
    # The client gives up a little earlier than the check, with a better text.
    outer = timeout + 1.0
    statuses: list[ModelStatus] = []
    check = await _timed("call", outer, lambda: _call(patient, client, statuses))
    done(check)
    if check.failed:
        done(*skipped(("health", *_MODEL, "round trip"), "a call fails"))
        return
    done(await _timed("health", outer, lambda: _health(client, timeout)))
    if patient.model is None:
        done(*skipped(_MODEL, "no model is named; --model NAME looks at one"))
    else:
        await _about_model(patient, client, statuses[0] if statuses else None, done)
    done(await _timed("round trip", outer, lambda: _round_trip(patient, client)))


async def _call(patient: Patient, client: AsyncClient, statuses: list[ModelStatus]) -> Sequence[Finding]:
    """Whether a call comes back: with the credentials, from a server of this kind."""
    began = time.perf_counter()
    try:
        statuses.append(await client.get_model_status(patient.model or _NOBODY, timeout=patient.timeout))
    except errors.NotFoundError:
        pass  # an answer like another
    except errors.RPCError as problem:
        return [_failed_call(problem, patient)]
    except errors.DecodeError as problem:
        return [
            error(
                f"the answer is none of TensorFlow Serving: {problem}", "is it another kind of gRPC server?"
            )
        ]
    taken = duration_text(time.perf_counter() - began)
    known = ", and takes the credentials" if patient.credentials else ""
    return [ok(f"the server answers a call in {taken}{known}")]


def _failed_call(problem: errors.RPCError, patient: Patient) -> Finding:
    details = " ".join(problem.details.split()) or problem.code
    if isinstance(problem, errors.UnauthenticatedError):
        if patient.credentials:
            return error(
                f"the server refuses the credentials: {details}",
                "is the token expired, or for another server?",
            )
        return error(
            f"the server wants credentials: {details}",
            "give --token-file FILE, AIOSERVING_TOKEN or --api-key",
        )
    if isinstance(problem, errors.PermissionDeniedError):
        return error(
            f"the server knows who calls, and does not allow it: {details}",
            "have the server's administrator allow it, or use other credentials",
        )
    if isinstance(problem, errors.UnimplementedError):
        return error(
            f"a gRPC server answers, and is not TensorFlow Serving: {details}",
            "is that the right port? other servers (Triton, TorchServe) speak gRPC, too, and not this one",
        )
    if isinstance(problem, errors.DeadlineExceededError):
        return error(
            f"no answer to a call within {duration_text(patient.timeout)}, though HTTP/2 is answered",
            "is the server out of threads or loading, or does a proxy in between let no gRPC through?",
        )
    if isinstance(problem, errors.ResourceExhaustedError):
        return error(
            f"the server is full: {details}",
            "fewer calls at a time (PoolOptions.max_in_flight), or more servers",
        )
    return error(f"a call fails: {problem.code}: {details}", "see the server's log")


async def _health(client: AsyncClient, timeout: float) -> Sequence[Finding]:
    """What the standard health service says, which few servers of this kind have switched on."""
    loop = asyncio.get_running_loop()
    from aioserving.pool import Place as ModelPlace

    try:
        answer, _ = await client._ask(
            "/grpc.health.v1.Health/Check", b"", loop.time() + timeout, ModelPlace(""), ()
        )
    except errors.UnimplementedError:
        return [ok("no health service (--enable_grpc_healthcheck_service), which this client does not need")]
    except errors.NotFoundError:
        return [ok("the health service does not tell of the whole server, which this client does not need")]
    except errors.RPCError as problem:
        return [note(f"the health service fails: {problem.code}: {problem.details}")]
    # HealthCheckResponse: field 1, an enum; 1 is SERVING.
    if answer == b"\x08\x01":
        return [ok("the health service says SERVING")]
    return [
        warning(
            f"the health service does not say SERVING ({answer.hex() or 'UNKNOWN'})",
            "load balancers that ask it send no calls there; is the server starting, or shutting down?",
        )
    ]


async def _about_model(
    patient: Patient, client: AsyncClient, status: ModelStatus | None, done: Callable[..., None]
) -> None:
    model = patient.model or ""
    outer = patient.timeout + 1.0
    check = await _timed("model", 2 * outer, lambda: _model(patient, client, status))
    done(check)
    if check.failed:
        done(*skipped(_MODEL[1:], "the model cannot be called"))
        return
    found: list[ModelMetadata] = []

    async def metadata() -> Sequence[Finding]:
        try:
            read = await client.get_model_metadata(
                model, version=patient.version, version_label=patient.label, timeout=patient.timeout
            )
            signature = read.signature(patient.signature)
        except errors.SignatureNotFoundError as problem:
            return [error(problem.details, "name one that it has with --signature")]
        except errors.VersionLabelNotFoundError as problem:
            return [
                error(
                    f"no label {patient.label!r}: {problem.details}",
                    f"'aioserving labels {model} NAME=VERSION' sets one",
                )
            ]
        except errors.RPCError as problem:
            return [error(f"{problem.code}: {problem.details}", "see the server's log")]
        except errors.DecodeError as problem:
            return [
                error(
                    f"the signatures cannot be read: {problem}", "please report it, with the server's version"
                )
            ]
        found.append(read)
        return [ok(f"version {read.version}: {_signature(signature)}"), *_callable(signature)]

    check = await _timed("metadata", outer, metadata)
    done(check)
    if check.failed or not found:
        done(*skipped(_MODEL[2:], "the signature is not known"))
        return
    done(Check("messages", tuple(message_sizes(found[0].signature(patient.signature)))))


def _signature(signature: Signature) -> str:
    def side(specs: Mapping[str, TensorSpec]) -> str:
        return ", ".join(f"{spec.name}: {spec}" for spec in specs.values()) or "nothing"

    return f"{signature.name} takes {side(signature.inputs)}, gives {side(signature.outputs)}"


def _callable(signature: Signature) -> Iterator[Finding]:
    """What of a signature this client, or any, cannot send."""
    for what, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs.values():
            if spec.kind != "dense":
                yield warning(
                    f"{what} {spec.name!r} is a {spec.kind} tensor, which Predict cannot carry",
                    "export a signature with dense tensors",
                )
                continue
            try:
                _ = spec.dtype
            except UnsupportedTypeError as problem:
                yield warning(f"{what} {spec.name!r}: {problem}", "pip install 'aioserving[dtypes]'")


async def _model(patient: Patient, client: AsyncClient, status: ModelStatus | None) -> Sequence[Finding]:
    """Whether the model, and the version, can be called."""
    model = patient.model or ""
    if status is None:
        near = await _find_similar(patient, client, model)
        fix = f"did you mean {' or '.join(map(repr, near))}?" if near else (
            "is it spelled as in the server's --model_name or configuration? a server cannot list its models"
        )  # fmt: skip
        return [error(f"the server knows no model {model!r}", fix)]
    text = ", ".join(map(str, status)) or "no versions"
    failed = [item for item in status.failed if item.ended]
    findings: list[Finding] = []
    if patient.version is not None:
        wanted = [item for item in status if item.version == patient.version]
        if not wanted:
            has = ", ".join(str(item.version) for item in status) or "none"
            return [
                error(
                    f"there is no version {patient.version} of {model!r}; it has {has}",
                    "load it, or ask for another",
                )
            ]
        if not wanted[0].available:
            return [error(f"{model!r}: {wanted[0]}", _load_fix(model, wanted[0].error))]
    if not status.available:
        if failed:
            return [error(f"{model!r} failed to load: {text}", _load_fix(model, failed[0].error))]
        if any(not item.ended for item in status):
            return [
                error(
                    f"{model!r} is loading: {text}", f"'aioserving wait {model}' waits until it is available"
                )
            ]
        return [error(f"{model!r} was unloaded: {text}", "load it again: 'aioserving reload CONFIG_FILE'")]
    findings.append(ok(f"{model}: {text}"))
    if failed:
        findings.append(
            warning(
                f"a version failed to load: {', '.join(map(str, failed))}", _load_fix(model, failed[0].error)
            )
        )
    return findings


def _load_fix(model: str, reason: str | None) -> str:
    if reason and "NOT_FOUND" in reason:
        return "does its base path hold a folder per version, with a saved_model.pb that the server may read?"
    return f"see the server's log; after repair, reload it or start the server again ({model})"


def similar_names(name: str, known: Sequence[str] = ()) -> list[str]:
    """Names that may have been meant by one that a server does not know, the likelier first.

    A server cannot be asked for its models; so these are tried one by one: other ways of writing, names with
    one letter too many or two in the wrong order, and the names that servers give if nobody else does.
    """
    found: list[str] = list(known)
    base = name.strip()
    found += [base, base.rstrip("/").rpartition("/")[2], base.partition(":")[0], base.partition("/")[0]]
    words = [base, base.replace("-", "_"), base.replace("_", "-"), base.replace(" ", "_")]
    found += [form for word in words for form in (word, word.lower(), word.capitalize(), word.upper())]
    found += [base.removesuffix("s"), f"{base}s", base.removesuffix("_model"), f"{base}_model"]
    if len(base) <= 24:
        found += [base[:at] + base[at + 1] + base[at] + base[at + 2 :] for at in range(len(base) - 1)]
        found += [base[:at] + base[at + 1 :] for at in range(len(base))]
    found += _DEFAULT_NAMES
    return [item for item in dict.fromkeys(found) if item and item != name]


async def _find_similar(patient: Patient, client: AsyncClient, model: str) -> list[str]:
    found: list[str] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + patient.timeout / 2
    for name in similar_names(model, patient.known_models):
        if loop.time() > end or len(found) == 3:
            break
        try:
            if (await client.get_model_status(name, timeout=patient.timeout)).available:
                found.append(name)
        except errors.NotFoundError:
            continue
        except errors.RPCError:
            break
    return found


# -- sizes and times ----------------------------------------------------------------------------------------


def _bytes_per_row(specs: Mapping[str, TensorSpec]) -> tuple[int, bool]:
    """Bytes that one row of all these tensors has, and whether that is a guess (open sizes count as 1)."""
    total, guessed = 0, False
    for spec in specs.values():
        try:
            size = type_info(spec.data_type).item_size
        except UnsupportedTypeError:
            continue
        shape = spec.shape
        if not size or shape is None or any(dim == -1 for dim in shape[1:]):
            guessed = True
        total += max(size, 1) * math.prod(max(dim, 1) for dim in (shape or ())[1:])
    return total, guessed


def _size_text(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1024
    return f"{size:.3g} GiB"


def message_sizes(signature: Signature) -> list[Finding]:
    """What a signature's tensors weigh, beside the limits of messages on both sides."""
    findings = [
        ok(
            "limits: 2 GiB in this client, both ways, and in TensorFlow Serving; 4 MiB in what sets none, "
            "such as a server or proxy in Python"
        )
    ]
    for what, whose, specs in (
        ("a request", "server or proxy", signature.inputs),
        ("an answer", "client of another kind", signature.outputs),
    ):
        row, guessed = _bytes_per_row(specs)
        if not row:
            continue
        about = "at least " if guessed else ""
        rows = _GRPC_LIMIT // row
        text = f"a row of {what} has {about}{_size_text(row)}"
        if row > _MAXIMUM:
            findings.append(
                error(f"{text}, more than any message can have (2 GiB)", "cut the tensor into several calls")
            )
        elif row > _GRPC_LIMIT:
            findings.append(
                warning(f"{text}, more than gRPC's 4 MiB", f"raise the limit of every {whose} in between"
                        " (grpc.max_receive_message_length)")
            )  # fmt: skip
        else:
            findings.append(ok(f"{text}: {rows:,} rows reach 4 MiB, {_MAXIMUM // row:,} reach 2 GiB"))
    return findings


async def _round_trip(patient: Patient, client: AsyncClient) -> Sequence[Finding]:
    """How long a call takes that has nothing to do."""
    histogram = Histogram()
    loop = asyncio.get_running_loop()
    end = loop.time() + patient.timeout / 2
    for _ in range(_ROUND_TRIPS):
        began = time.perf_counter()
        try:
            await client.get_model_status(patient.model or _NOBODY, timeout=patient.timeout)
        except errors.NotFoundError:
            pass
        except errors.RPCError as problem:
            return [error(f"of {histogram.count + 1} calls one failed: {problem.code}: {problem.details}",
                          "is the network, or the server, unsteady?")]  # fmt: skip
        histogram.record(time.perf_counter() - began)
        if loop.time() > end:
            break
    median, worst = histogram.percentiles((0.5, 1.0))
    text = (
        f"{duration_text(histogram.minimum)} at best, {duration_text(median)} in the middle, "
        f"{duration_text(worst)} at worst, of {histogram.count} calls"
    )
    if median > 0.05:
        return [note(text, "far away: send several rows in a call, and several calls at a time")]
    return [ok(text)]
