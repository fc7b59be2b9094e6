"""Which models a server is to serve, as data: read, check, compare and change a ModelServerConfig.

The same message is the content of a ``--model_config_file`` and what `AsyncClient.reload_config` sends.
Everything here is a function of its arguments; sending it, and waiting for what comes of it, is
`reload`'s. What a server refuses, or hangs on, was read from its source and from recordings of it
(``server_core.cc``, ``model_service_impl.cc``); it is told before it happens:

    a problem      the server would refuse the config: `InvalidConfigError` lists all of them, with lines
    a warning      the server may refuse it, or would hang on it: `ConfigWarning`
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from aioserving.errors import ConfigProblem, InvalidConfigError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from aioserving.messages import ModelConfig, ModelServerConfig

__all__ = [
    "ConfigDiff",
    "ConfigWarning",
    "FieldChange",
    "ModelConfigs",
    "ModelLike",
    "check_config",
    "diff_configs",
    "kept_versions",
    "label_steps",
    "read_config",
    "with_labels",
    "with_models",
    "without_models",
    "write_config",
]

#: What stands for one model.
ModelLike: TypeAlias = "ModelConfig | Mapping[str, Any] | Message"

#: What stands for the config of a server: models, the whole message, its text, or the path of a file.
ModelConfigs: TypeAlias = "ModelServerConfig | Message | str | os.PathLike[str] | Iterable[ModelLike]"

#: Platform of a model that names none: the only one that the real server knows by default.
PLATFORM: Final = "tensorflow"

_SERVER_CONFIG: Final = "tensorflow.serving.ModelServerConfig"
_ABSOLUTE: Final = re.compile(r"/|[a-zA-Z][0-9a-zA-Z.]*://")
_INTEGER: Final = re.compile(r"-?[0-9]+\Z")
_TOKEN: Final = re.compile(
    r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[A-Za-z_][\w.]*|[^\s\w"'#]|[\w.+-]+"""
)


class ConfigWarning(UserWarning):
    """A server may refuse a config, or would wait on it without end."""


# -- reading and writing ------------------------------------------------------------------------------------


def read_config(source: ModelConfigs, *, check: bool = True) -> ModelServerConfig:
    """The config that `source` stands for, read as strictly as the server reads a ``--model_config_file``.

    A model without a platform gets ``"tensorflow"``: the server would keep a config without one, and
    refuse every later reload because of it.

    Args:
        source: models (`ModelConfig`s, messages or dicts of their fields), a ModelServerConfig, its text
            format, or the path of a file with that text. An empty text serves nothing.
        check: refuse what the server would refuse; else only what is no config at all.

    Returns:
        A config of its own: changing it changes nothing of `source`.

    Raises:
        DecodeError: the text is none: an unknown field or a wrong type; with line and column.
        InvalidConfigError: the server would refuse the config; with the lines, if it came as text.
        OSError: the file cannot be read.
        TypeError: `source` is nothing of the above.
    """
    from aioserving.messages import ModelConfig, ModelServerConfig

    text: str | None = None
    if isinstance(source, (str, os.PathLike)):
        config = ModelServerConfig.from_text(source)
        if check:
            text = _text_of(source)
    else:
        message: Any = getattr(source, "pb", source)
        full_name = getattr(getattr(message, "DESCRIPTOR", None), "full_name", None)
        if full_name == _SERVER_CONFIG:
            config = ModelServerConfig(message).copy()
        elif full_name == "tensorflow.serving.ModelConfigList":
            config = ModelServerConfig(model_config_list=message)
        elif (
            full_name is not None or isinstance(source, (bytes, Mapping)) or not isinstance(source, Iterable)
        ):
            raise TypeError(
                "config must be a list of ModelConfig, a ModelServerConfig, its text or the path of a "
                f"file, got {type(source).__name__}"
            )
        else:
            config = ModelServerConfig(model_config_list=[ModelConfig(item) for item in source])
    if check:
        problems = [problem for problem in check_config(config, text=text) if problem.refused]
        if problems:
            raise InvalidConfigError(problems)
    for model in config.pb.model_config_list.config:
        if not model.model_platform and not model.model_type:
            model.model_platform = PLATFORM
    return config


def write_config(path: str | os.PathLike[str], config: ModelConfigs) -> ModelServerConfig:
    """Write a ``--model_config_file``, in one step: a server that polls it never reads half of it.

    The new file takes the old one's place and mode. (A single file that is mounted into a container
    keeps showing the old one there; mount its folder.)

    Args:
        path: the file; a symbolic link is followed.
        config: as for `read_config`.

    Returns:
        The config as it was written.

    Raises:
        InvalidConfigError: the server would refuse the config; nothing is written.
        OSError: the file cannot be written; the old one stays.
    """
    checked = read_config(config)
    target = os.path.realpath(path)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=os.path.dirname(target))
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(checked.to_text())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return checked


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode & 0o7777
    except FileNotFoundError:
        return 0o644


def _text_of(source: str | os.PathLike[str]) -> str:
    """The text itself, which `from_text` has accepted before."""
    from aioserving.messages._formats import is_file_name

    if isinstance(source, str) and not is_file_name(source):
        return source
    with open(source, encoding="utf-8") as file:
        return file.read()


# -- checking -----------------------------------------------------------------------------------------------


def check_config(
    config: ModelConfigs,
    *,
    old: ModelServerConfig | None = None,
    text: str | None = None,
    look: bool = False,
) -> list[ConfigProblem]:
    """What a server would say of a config, as far as that is certain; and what looks wrong.

    Args:
        config: as for `read_config`.
        old: the config in force, if it is known: changes that the server refuses are problems, too.
        text: the text that the config was read from, for line numbers.
        look: whether this process sees the server's files: base paths are then looked at.

    Returns:
        The problems, those that the server refuses first; empty if all is well.

    Raises:
        DecodeError, OSError, TypeError: as `read_config`.
    """
    if text is None and isinstance(config, (str, os.PathLike)):
        text = _text_of(config)
    given = read_config(config, check=False)
    custom = given.pb.WhichOneof("config") == "custom_model_config"
    places = _places(text) if text is not None else []
    found = [
        *([ConfigProblem("a custom_model_config: only servers built for it take one")] if custom else []),
        *_check_models(given.pb.model_config_list.config, places),
        *_check_changes(given, old, places),
    ]
    if look:
        found += _check_paths(given, old, places)
    return sorted(found, key=lambda problem: not problem.refused)


class _Place(dict[str, tuple[int, int]]):
    """Line and column of the fields of one ModelConfig in a text, by name; ``""`` is where it starts."""


def _problem(
    model: Any, what: str, places: Sequence[_Place], index: int, name: str, *, refused: bool
) -> ConfigProblem:
    line = column = None
    if index < len(places):
        line, column = places[index].get(name, places[index][""])
    return ConfigProblem(what, model=model.name, refused=refused, line=line, column=column)


def _check_models(models: Iterable[Any], places: Sequence[_Place]) -> Iterator[ConfigProblem]:
    first: dict[str, int] = {}
    for index, model in enumerate(models):

        def at(field: str, what: str, *, refused: bool = True, index: int = index, model: Any = model) -> Any:
            return _problem(model, what, places, index, field, refused=refused)

        if model.name in first:
            before = first[model.name]
            where = f", first in line {places[before]['name'][0]}" if "name" in _get(places, before) else ""
            yield at("name", f"named twice{where}")
        first.setdefault(model.name, index)
        if not _ABSOLUTE.match(model.base_path):
            yield at(
                "base_path",
                f"base_path must be absolute or a URI such as 's3://bucket/model', got {model.base_path!r}"
                if model.base_path
                else "has no base_path",
            )
        if model.model_type and model.model_platform:
            yield at("model_type", "has a model_type (deprecated) and a model_platform; leave out model_type")
        elif model.model_type > 1:
            yield at("model_type", f"model_type {model.model_type} is not supported; use model_platform")
        if model.model_platform and model.model_platform != PLATFORM:
            advice = (
                f": write {PLATFORM!r}"
                if model.model_platform.lower() == PLATFORM
                else ", unless it was built so"
            )
            yield at(
                "model_platform",
                f"the server knows no platform {model.model_platform!r}{advice}. After a refused reload, "
                "reload once without this model",
                refused=False,
            )
        if not model.name:
            yield at("", "has an empty name: no request can reach it", refused=False)
        if model.HasField("logging_config"):
            yield at("logging_config", "the standard server has no request logger", refused=False)
        yield from _check_labels(model, at)


def _check_labels(model: Any, at: Any) -> Iterator[ConfigProblem]:
    policy = model.model_version_policy
    specific = set(policy.specific.versions) if policy.HasField("specific") else None
    served = (
        None if policy.HasField("specific") or policy.HasField("all") else max(1, policy.latest.num_versions)
    )
    if served is not None and len(versions := set(model.version_labels.values())) > served:
        yield at(
            "version_labels",
            f"labels are on {len(versions)} versions, {sorted(versions)}, but the policy serves only "
            f"{'the latest' if served == 1 else f'the {served} latest'}: name the versions ('specific')",
            refused=False,
        )
    for label, version in sorted(model.version_labels.items()):
        if specific is not None and version not in specific:
            yield at(
                "version_labels",
                f"label {label!r} is for version {version}, not one of the policy's: {sorted(specific)}",
                refused=False,
            )
        if not label or "/" in label or ":" in label:
            yield at("version_labels", f"REST cannot name the label {label!r}", refused=False)


def _check_changes(
    new: ModelServerConfig, old: ModelServerConfig | None, places: Sequence[_Place]
) -> Iterator[ConfigProblem]:
    """What is wrong with a change from `old`; of a model that is new to the server it may be None."""
    before = {model.name: model for model in old.pb.model_config_list.config} if old is not None else {}
    for index, model in enumerate(new.pb.model_config_list.config):

        def at(field: str, what: str, *, refused: bool, index: int = index, model: Any = model) -> Any:
            return _problem(model, what, places, index, field, refused=refused)

        known = before.get(model.name)
        if known is None:
            if (
                model.model_version_policy.HasField("specific")
                and not model.model_version_policy.specific.versions
            ):
                yield at(
                    "model_version_policy",
                    "its policy serves no version ('specific' without versions): a reload that adds it "
                    "would never end, and block every later one",
                    refused=False,
                )
            continue
        if _platform(known) != _platform(model):
            yield at(
                "model_platform",
                f"the platform of a served model cannot change, from {_platform(known)!r} to "
                f"{_platform(model)!r}; reload once without the model",
                refused=True,
            )
        if known.base_path.rstrip("/") != model.base_path.rstrip("/"):
            yield at(
                "base_path",
                f"base_path changes from {known.base_path!r}: versions with a number that was there before "
                "are not loaded again; use new numbers, or reload once without the model",
                refused=False,
            )


def _check_paths(
    new: ModelServerConfig, old: ModelServerConfig | None, places: Sequence[_Place]
) -> Iterator[ConfigProblem]:
    """Base paths that a reload would wait for without end, as this machine sees them."""
    known = {model.name for model in old.pb.model_config_list.config} if old is not None else set()
    for index, model in enumerate(new.pb.model_config_list.config):
        path = model.base_path.removeprefix("file://")
        if model.name in known or not path.startswith("/"):
            continue
        # A server in a container has files of its own. Where not even the parent is here, this is no
        # place to tell from.
        if not os.path.isdir(os.path.dirname(path.rstrip("/"))):
            continue
        wanted = set(model.model_version_policy.specific.versions)
        try:
            there = {int(name) for name in os.listdir(path) if _INTEGER.match(name)}
        except FileNotFoundError:
            near = difflib.get_close_matches(
                os.path.basename(path), os.listdir(os.path.dirname(path.rstrip("/")) or "/"), n=1
            )
            what = f"base_path {model.base_path!r} does not exist" + (f"; is it {near[0]!r}?" if near else "")
        except OSError:
            continue
        else:
            if there & wanted or (there and not wanted):
                continue
            what = (
                f"base_path {model.base_path!r} has no version in it"
                if not there
                else (f"base_path {model.base_path!r} has versions {sorted(there)}, none of {sorted(wanted)}")
            )
        yield _problem(
            model,
            f"{what}: a reload that adds the model would wait for one without end, and block later ones",
            places,
            index,
            "base_path",
            refused=False,
        )


def _platform(model: Any) -> str:
    return model.model_platform or PLATFORM


def _get(places: Sequence[_Place], index: int) -> _Place:
    return places[index] if index < len(places) else _Place()


def _places(text: str) -> list[_Place]:
    """Where each model, and each of its fields, stands in a text that protobuf has accepted."""
    starts = [0]
    starts += [match.end() for match in re.finditer("\n", text)]
    places: list[_Place] = []
    open_: list[str] = []  # names of the fields that are open, "[" for a list
    name = ""
    line = 0
    for token in _TOKEN.finditer(text):
        value = token[0]
        while line + 1 < len(starts) and starts[line + 1] <= token.start():
            line += 1
        here = line + 1, token.start() - starts[line] + 1
        path = [part for part in open_ if not part.startswith("[")]
        if value in ("{", "<"):
            open_.append(open_[-1][1:] if open_ and open_[-1].startswith("[") else name)
            if [part for part in open_ if not part.startswith("[")] == ["model_config_list", "config"]:
                places.append(_Place({"": here}))
        elif value == "[":
            open_.append(f"[{name}")
        elif value in ("}", ">", "]"):
            open_.pop()
        elif value[0].isalpha() or value[0] == "_":
            name = value
            if path == ["model_config_list", "config"]:
                places[-1].setdefault(name, here)
    return places


# -- comparing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of a model, by its dotted name, before and after; None where it is not set."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {_shown(self.old)} -> {_shown(self.new)}"


@dataclass(frozen=True, slots=True)
class ConfigDiff:
    """What a reload from one config to another changes; true if anything does. `print` it."""

    #: Models that only the new config has.
    added: tuple[ModelConfig, ...] = ()
    #: Models that only the old config has: a reload unloads them.
    removed: tuple[ModelConfig, ...] = ()
    #: What changes of the others, by model.
    changed: Mapping[str, tuple[FieldChange, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        lines = [f"+ {model.name}: {model.base_path}{_policy(model)}" for model in self.added]
        lines += [f"- {model.name}: {model.base_path}{_policy(model)}" for model in self.removed]
        for name, changes in self.changed.items():
            lines += [f"~ {name}: {change}" for change in changes]
        return "\n".join(lines) or "no changes"


def diff_configs(old: ModelConfigs, new: ModelConfigs) -> ConfigDiff:
    """What changes from `old` to `new`; the order of models means nothing.

    Args:
        old: as for `read_config`.
        new: as for `read_config`.

    Raises:
        DecodeError, InvalidConfigError, OSError, TypeError: as `read_config`.
    """
    before = {model.name: model for model in read_config(old).model_config_list}
    after = {model.name: model for model in read_config(new).model_config_list}
    changed = {
        name: tuple(_field_changes(before[name].to_dict(), model.to_dict()))
        for name, model in after.items()
        if name in before and before[name] != model
    }
    return ConfigDiff(
        tuple(model for name, model in after.items() if name not in before),
        tuple(model for name, model in before.items() if name not in after),
        changed,
    )


def _field_changes(old: Any, new: Any, prefix: str = "") -> Iterator[FieldChange]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before or {}, Mapping) and isinstance(after or {}, Mapping):
            yield from _field_changes(before or {}, after or {}, f"{prefix}{name}.")
        else:
            yield FieldChange(f"{prefix}{name}", before, after)


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value)


def _policy(model: ModelConfig) -> str:
    policy = {
        name: value for name, value in model.model_version_policy.to_dict().items() if value is not None
    }
    return "".join(f", {name} {value}" for name, value in policy.items())


# -- changing -----------------------------------------------------------------------------------------------


def with_models(config: ModelConfigs, models: Iterable[ModelLike]) -> ModelServerConfig:
    """A copy of `config` with `models` added, each in the place of a model of its name if there is one.

    Raises:
        DecodeError, InvalidConfigError, OSError, TypeError: as `read_config`.
    """
    result = read_config(config)
    new = read_config(list(models))
    for model in new.model_config_list:
        for index, present in enumerate(result.model_config_list):
            if present.name == model.name:
                result.model_config_list[index] = model
                break
        else:
            result.model_config_list.append(model)
    return result


def without_models(config: ModelConfigs, names: Iterable[str]) -> ModelServerConfig:
    """A copy of `config` without the models called `names`.

    Raises:
        ValueError: `config` has no such model; the message names the nearest.
        DecodeError, InvalidConfigError, OSError, TypeError: as `read_config`.
    """
    result = read_config(config)
    for name in [names] if isinstance(names, str) else names:
        del result.model_config_list[_index(result, name)]
    return result


def with_labels(config: ModelConfigs, model: str, labels: Mapping[str, int | None]) -> ModelServerConfig:
    """A copy of `config` with version labels of one model set; its other labels stay.

    A version that the model's policy names one by one (``specific``) is added to it, so that it is
    served.

    Args:
        config: as for `read_config`.
        model: name of the model.
        labels: version by label; None takes the label away.

    Raises:
        ValueError: `config` has no such model; the message names the nearest.
        TypeError: a version is no number.
        DecodeError, InvalidConfigError, OSError: as `read_config`.
    """
    result = read_config(config)
    changed = result.model_config_list[_index(result, model)]
    for label, version in labels.items():
        if version is None:
            changed.version_labels.pop(label, None)
            continue
        changed.version_labels[label] = version
        policy = changed.pb.model_version_policy
        if policy.HasField("specific") and version not in policy.specific.versions:
            policy.specific.versions.append(version)
    return result


def _index(config: ModelServerConfig, name: str) -> int:
    names = [model.name for model in config.model_config_list]
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        raise ValueError(
            f"the config has no model {name!r}"
            + (
                f"; did you mean {near[0]!r}?"
                if near
                else f": it has {', '.join(map(repr, names)) or 'none'}"
            )
        )
    return names.index(name)


def label_steps(
    old: ModelServerConfig | None,
    new: ModelServerConfig,
    available: Mapping[str, Iterable[int]],
) -> list[ModelServerConfig]:
    """The reloads, one after the other, that lead to `new` without a label on a version that is not there.

    A server takes a label only for a version that is available when the reload arrives, before it loads
    anything; and it replaces all labels at once. So labels that are not ready stay where they were, and
    the versions they are on stay served, until a first reload has brought the new versions.

    A version that is available though the config in force does not ask for it is on its way out, and is
    loaded anew if it is asked for meanwhile. So it is not ready either.

    Args:
        old: the config in force; None if it is not known: labels that are not ready are then missing
            between the two reloads.
        new: where to get.
        available: the versions that are available now, by model; a model that is not in it is left alone.

    Returns:
        ``[new]``, or ``[first, new]``; wait until the labelled versions are available between the two.
    """
    first = new.copy()
    before = {model.name: model for model in old.model_config_list} if old is not None else {}
    moved = False
    for model in first.model_config_list:
        if model.name not in available:
            continue
        present = before.get(model.name)
        ready = set(available[model.name])
        if old is not None:
            ready = kept_versions(present, ready)
        waiting = {label: version for label, version in model.version_labels.items() if version not in ready}
        if not waiting:
            continue
        moved = True
        for label in waiting:
            at = present.version_labels.get(label) if present is not None else None
            if at in ready:
                model.version_labels[label] = at
            else:
                del model.version_labels[label]
        _serve_also(model, ready, waiting.values())
    return [first, new] if moved else [new]


def kept_versions(model: ModelConfig | None, available: Collection[int]) -> set[int]:
    """Those of the versions that are available which a server goes on serving.

    Args:
        model: what the config in force says of the model; None if it does not name it.
        available: the versions that are available.
    """
    if model is None:
        return set()
    policy = model.pb.model_version_policy
    if policy.HasField("all"):
        return set(available)
    if policy.HasField("specific"):
        return set(policy.specific.versions).intersection(available)
    return set(sorted(available)[-max(1, policy.latest.num_versions) :])


def _serve_also(model: ModelConfig, ready: set[int], labelled: Iterable[int]) -> None:
    """Let the policy of a first reload keep what is served, and bring what is to have a label."""
    policy = model.pb.model_version_policy
    if policy.HasField("all"):
        return
    versions = sorted({*policy.specific.versions, *ready, *labelled})
    policy.specific.versions[:] = versions
