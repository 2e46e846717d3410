"""Settings: everything that an operator can say about a process of Zerver, declared once.

Law: a setting is declared here or it does not exist: its names, its kind, its default and its one line of help. What is
read is a value that knows where it came from. What is wrong is found all at once, each with its place and its cure, and
no message repeats a secret. Pure: who has an environment and files brings their text.

A setting `trace.most_bytes` is the key `most_bytes` of the table `[trace]` in zerver.toml, and has one name in the
environment at least, the first one being its own. The command line wins over the environment, that over the file, and
that over the default. An empty variable is no value, unless the setting is a text: `ZERVER_TRACE_DB=` is no store.

An unknown key of the file is an error. An unknown `ZERVER_…` is a warning: environments are shared with strangers, as
Kubernetes, which sets `ZERVER_SERVICE_HOST` and `ZERVER_PORT=tcp://…` where there is a service called zerver.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final, Literal

import attrs

from zerver.core import units
from zerver.core.secret import MASK, Secret
from zerver.core.units import Kind
from zerver.errors import InvalidData

#: Where the file is, if it is not zerver.toml in the working directory; and how its name is said in messages.
CONFIG: Final = "ZERVER_CONFIG"
FILE: Final = "zerver.toml"

_HOLDS_PASSWORD: Final = (units.URL, units.JOURNAL)
_PREFIXES: Final = ("ZERVER_", "ZER_VER_")


@attrs.frozen
class _Declared:
    kind: Kind
    help: str
    names: tuple[str, ...]
    secret: bool


def _setting(kind: Kind, default: object, help: str, *names: str, secret: bool = False) -> Any:
    """One setting of a subject. names: in the environment, its own first."""
    return attrs.field(
        default=default,
        metadata={"setting": _Declared(kind, help, names, secret)},
        repr=(lambda value: repr(kind.show(value))) if kind in _HOLDS_PASSWORD else True,  # it may hold a password
    )


# ---- the schema -----------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class ServeSettings:
    """What `zerver serve` does. drain, journal_lease, journal_keep: seconds."""

    app: str = _setting(units.TEXT, "", "The app, as MODULE:APP, when the command line names none.", "ZERVER_APP")
    host: str = _setting(units.TEXT, "127.0.0.1", "Where to listen.", "ZERVER_HOST")
    port: int = _setting(units.count(0, 65535), 8000, "The port; 0 is any free one.", "ZERVER_PORT")
    workers: int = _setting(units.count(1, 1024), 1, "Processes that serve.", "ZERVER_WORKERS")
    drain: float = _setting(units.SECONDS, 10.0, "What runs may take after SIGTERM.", "ZERVER_DRAIN")
    tenants: str = _setting(units.TEXT, "", "A file that says what tenants may take.", "ZERVER_TENANTS")
    journal: str = _setting(
        units.JOURNAL, "", "What durable runs are kept in: sqlite:///FILE or postgresql://….", "ZERVER_JOURNAL"
    )
    journal_secrets: bool = _setting(
        units.FLAG, False, "Whether the journal may hold secret slots, in the clear.", "ZERVER_JOURNAL_SECRETS"
    )
    journal_keys: str = _setting(
        units.TEXT,
        "",
        "A file with the keys that the journal is encrypted with, one a line; empty: it is not.",
        "ZERVER_JOURNAL_KEYS",
    )
    journal_lease: float = _setting(
        units.at_least(units.SECONDS, 1.0),
        10.0,
        "After so long without a sign of life a process's runs are for others.",
        "ZERVER_JOURNAL_LEASE",
    )
    journal_keep: float = _setting(
        units.at_least(units.SECONDS, 0.0),
        7 * 86400.0,
        "How long runs that have ended stay in the journal; unresolved ones stay.",
        "ZERVER_JOURNAL_KEEP",
    )


@attrs.frozen(kw_only=True)
class WorkSettings:
    """How jobs are worked on, by `zerver work` and beside HTTP. queues: none means all. lease, keep: seconds."""

    seats: int = _setting(units.count(1, 10_000), 16, "Jobs that one process works on at once.", "ZERVER_WORK_SEATS")
    queues: tuple[str, ...] = _setting(
        units.NAMES, (), "The queues that it takes jobs from; empty: all of the app's.", "ZERVER_WORK_QUEUES"
    )
    lease: float = _setting(
        units.at_least(units.SECONDS, 1.0),
        10.0,
        "After so long without a sign of life a process's jobs are for others.",
        "ZERVER_WORK_LEASE",
    )
    keep: float = _setting(
        units.at_least(units.SECONDS, 0.0),
        7 * 86400.0,
        "How long jobs are kept that are done or cancelled; dead ones stay.",
        "ZERVER_WORK_KEEP",
    )
    jobs: str = _setting(
        units.JOURNAL, "", "Where `zerver jobs` looks for jobs; empty: where the app keeps them.", "ZERVER_JOBS"
    )


@attrs.frozen(kw_only=True)
class TraceSettings:
    """What is kept of runs that have ended. most_age: seconds. slow_ms: None for the moving p99 of the route."""

    db: str = _setting(
        units.TEXT, ".zerver/traces.db", "The file that kept runs go to; empty: there is none.", "ZERVER_TRACE_DB"
    )
    most_bytes: int = _setting(
        units.at_least(units.SIZE, 1024**2),
        512 * 1024**2,
        "What the file may grow to; the least wanted runs go first.",
        "ZERVER_TRACE_MOST_BYTES",
    )
    most_age: float = _setting(
        units.at_least(units.SECONDS, 1.0), 7 * 86400.0, "How long a run is kept at most.", "ZERVER_TRACE_MOST_AGE"
    )
    sample: float = _setting(
        units.SHARE, 0.001, "Which share of the runs without any trouble is kept.", "ZERVER_TRACE_SAMPLE"
    )
    slow_ms: float | None = _setting(
        units.at_least(units.MILLISECONDS, 1.0),
        None,
        "Runs that took longer are kept; by default those over the moving p99 of their route.",
        "ZERVER_TRACE_SLOW_MS",
    )
    hide: tuple[str, ...] = _setting(
        units.NAMES, (), "Slots, fields and headers to be masked beside those declared secret.", "ZERVER_TRACE_HIDE"
    )
    ring: int = _setting(
        units.count(1, 1_000_000), 1000, "How many of the last runs stay in memory.", "ZERVER_TRACE_RING"
    )
    debug_jobs: bool = _setting(
        units.FLAG,
        False,
        "Keep every run of a job, as if trace.sample were 1 for them.",
        "ZERVER_DEBUG_JOBS",
        "ZER_VER_DEBUG_JOBS",
    )


@attrs.frozen(kw_only=True)
class OtelSettings:
    """What goes to an OpenTelemetry collector. endpoint: "" for nothing. headers: names in lower case, and values.
    timeout, metrics_every: seconds.
    """

    endpoint: str = _setting(
        units.URL,
        "",
        "A collector that speaks OTLP over HTTP; empty: nothing is sent.",
        "ZERVER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    headers: Secret[tuple[tuple[str, str], ...]] | None = _setting(  # noqa: RUF009 - it makes an attrs.field
        units.HEADERS,
        None,
        "Headers for the collector, as name=value,name=value.",
        "ZERVER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_HEADERS",
        secret=True,
    )
    timeout: float = _setting(
        units.at_least(units.SECONDS, 0.1), 10.0, "What one export may take.", "ZERVER_OTLP_TIMEOUT"
    )
    metrics_every: float = _setting(
        units.SECONDS, 60.0, "How often metrics are sent; 0: never.", "ZERVER_OTLP_METRICS_EVERY"
    )
    service: str = _setting(
        units.TEXT, "", "The name of this service; by default the app's.", "ZERVER_SERVICE_NAME", "OTEL_SERVICE_NAME"
    )
    promote_queue_ms: float = _setting(
        units.MILLISECONDS,
        5.0,
        "A wait for a ticket or a turn that took longer has a span of its own.",
        "ZERVER_PROMOTE_QUEUE_MS",
        "ZER_VER_PROMOTE_QUEUE_MS",
    )
    promote_park_ms: float = _setting(
        units.MILLISECONDS,
        5.0,
        "The same of the time that a run was parked.",
        "ZERVER_PROMOTE_PARK_MS",
        "ZER_VER_PROMOTE_PARK_MS",
    )


@attrs.frozen(kw_only=True)
class MetricsSettings:
    """What is counted."""

    on: bool = _setting(units.FLAG, True, "Count, and answer /_zerver/metrics where the page is.", "ZERVER_METRICS")
    tenants: int = _setting(
        units.count(0, 1000), 0, "How many tenants are counted by name; the rest is `other`.", "ZERVER_METRICS_TENANTS"
    )


@attrs.frozen(kw_only=True)
class PageSettings:
    """The live page. mode: "auto" is on where only this machine can connect. token: None for one that is made up."""

    mode: Literal["auto", "on", "off"] = _setting(
        units.choice("auto", "on", "off"), "auto", "The live page; auto: on loopback addresses only.", "ZERVER_PAGE"
    )
    token: Secret[str] | None = _setting(  # noqa: RUF009 - it makes an attrs.field
        units.TOKEN,
        None,
        "What opens it; by default one is made up and printed.",
        "ZERVER_PAGE_TOKEN",
        secret=True,
    )
    hosts: tuple[str, ...] = _setting(
        units.NAMES, (), "Names under which it may be asked for from elsewhere, with the token.", "ZERVER_PAGE_HOSTS"
    )


@attrs.frozen(kw_only=True)
class LogSettings:
    """Log lines, on standard error."""

    form: Literal["off", "console", "json"] = _setting(
        units.choice("off", "console", "json"), "off", "For people, for programs, or not at all.", "ZERVER_LOG"
    )
    level: Literal["debug", "info", "warning", "error"] = _setting(
        units.choice("debug", "info", "warning", "error"),
        "info",
        "The least that is worth a line; runs that were done are `debug`.",
        "ZERVER_LOG_LEVEL",
    )


@attrs.frozen
class Setting:
    """One declared setting. key: as `trace.db`. names: in the environment, its own first, then other and older ones."""

    key: str
    kind: Kind
    default: Any
    names: tuple[str, ...]
    secret: bool
    help: str

    def show(self, value: Any) -> str:
        """A value of it as it is written; "" for none, and a mask for a secret."""
        if value is None:
            return ""
        return MASK if self.secret else self.kind.show(value)

    def plain(self, value: Any) -> Any:
        """A value of it as JSON may carry it: a number is a number, in the setting's own unit."""
        if self.secret or isinstance(value, str):
            return self.show(value) or None
        return list(value) if isinstance(value, tuple) else value


#: By the name of its table, what there is to be said about a subject.
SUBJECTS: Final[Mapping[str, type]] = {
    "serve": ServeSettings,
    "work": WorkSettings,
    "trace": TraceSettings,
    "otel": OtelSettings,
    "metrics": MetricsSettings,
    "page": PageSettings,
    "log": LogSettings,
}


def _declared() -> Iterator[Setting]:
    for subject, class_ in SUBJECTS.items():
        for field in attrs.fields(class_):
            said: _Declared = field.metadata["setting"]
            yield Setting(f"{subject}.{field.name}", said.kind, field.default, said.names, said.secret, said.help)


#: Every setting there is, by its key.
SETTINGS: Final[Mapping[str, Setting]] = {setting.key: setting for setting in _declared()}


# ---- what was read --------------------------------------------------------------------------


@attrs.frozen
class Origin:
    """Where a value came from. name: of the option, of the variable, or of the file; "" for a default."""

    source: Literal["default", "file", "environment", "option"] = "default"
    name: str = ""

    def __str__(self) -> str:
        return f"{self.source} {self.name}" if self.source == "environment" else self.name or self.source


@attrs.frozen(kw_only=True)
class Settings:
    """All settings. warnings: what was read and is probably not what was meant."""

    serve: ServeSettings = attrs.field(factory=ServeSettings)
    work: WorkSettings = attrs.field(factory=WorkSettings)
    trace: TraceSettings = attrs.field(factory=TraceSettings)
    otel: OtelSettings = attrs.field(factory=OtelSettings)
    metrics: MetricsSettings = attrs.field(factory=MetricsSettings)
    page: PageSettings = attrs.field(factory=PageSettings)
    log: LogSettings = attrs.field(factory=LogSettings)
    origins: Mapping[str, Origin] = attrs.field(factory=dict, repr=False)
    warnings: tuple[str, ...] = ()

    def get(self, key: str) -> Any:
        """A value by its key, as `trace.db`. Raises KeyError."""
        subject, _, name = SETTINGS[key].key.partition(".")
        return getattr(getattr(self, subject), name)

    def origin(self, key: str) -> Origin:
        """Where that value came from."""
        return self.origins.get(key, _DEFAULT)

    def said(self, key: str) -> bool:
        """Whether somebody has said it; otherwise it is the default."""
        return key in self.origins


_DEFAULT: Final = Origin()


# ---- reading --------------------------------------------------------------------------------


def read_settings(
    environ: Mapping[str, str],
    toml: str | None = None,
    *,
    file: str = FILE,
    given: Mapping[str, tuple[str, object]] | None = None,
) -> Settings:
    """The settings that an environment, the text of a file and a command line say.

    file: its name, for messages. given: by key, the option and what it says, as {"log.form": ("--log", "json")}; None
    for an option that was not given.

    Raises InvalidData, whose problems are all that is wrong.
    """
    reader = _Reader(environ, file)
    document = reader.document(toml)
    options = given or {}
    for setting in SETTINGS.values():
        reader.find(setting, options.get(setting.key, ("", None)), document)
    reader.look_for_strangers()
    if reader.problems:
        raise InvalidData(reader.problems)
    made: dict[str, Any] = {
        subject: class_(
            **{
                field.name: reader.values[key]
                for field in attrs.fields(class_)
                if (key := f"{subject}.{field.name}") in reader.values
            }
        )
        for subject, class_ in SUBJECTS.items()
    }
    return Settings(**made, origins=reader.origins, warnings=tuple(reader.warnings))


class _Reader:
    """One reading. What is wrong is noted, and the reading goes on."""

    def __init__(self, environ: Mapping[str, str], file: str) -> None:
        self.environ = environ
        self.file = file
        self.values: dict[str, Any] = {}
        self.origins: dict[str, Origin] = {}
        self.problems: list[tuple[str, str]] = []
        self.warnings: list[str] = []

    def document(self, toml: str | None) -> dict[str, object]:
        """What the file says, by key."""
        try:
            tables = tomllib.loads(toml or "")
        except RecursionError:
            self.problems.append((self.file, "is nested too deeply: there are tables, and their keys"))
            return {}
        except ValueError as error:  # TOMLDecodeError, and what Python says of a number with thousands of digits
            self.problems.append((self.file, f"is not TOML: {error}"))
            return {}
        said: dict[str, object] = {}
        for subject, table in tables.items():
            if subject not in SUBJECTS:
                self.problems.append((f"{self.file}: [{subject}]", f"is no table of ours: {_guess(subject, SUBJECTS)}"))
            elif not isinstance(table, dict):
                self.problems.append((f"{self.file}: {subject}", f"is no table: write [{subject}], its keys below it"))
            else:
                said |= {f"{subject}.{name}": value for name, value in table.items()}
        for key in said.keys() - SETTINGS.keys():
            subject = key.partition(".")[0]
            near = [known for known in SETTINGS if known.startswith(f"{subject}.")]
            self.problems.append((f"{self.file}: {key}", f"is unknown: {_guess(key, near)}"))
        self.problems.sort()  # as sets have no order
        return said

    def find(self, setting: Setting, option: tuple[str, object], document: Mapping[str, object]) -> None:
        """The word that counts."""
        name, said = option
        if said is not None:
            self._take(setting, said, Origin("option", name), name)
            return
        present = [name for name in setting.names if self._counts(setting, self.environ.get(name))]
        self._warn_of_two(setting, present)
        if present:
            self._take(setting, self.environ[present[0]], Origin("environment", present[0]), present[0])
        elif setting.key in document:
            self._take(setting, document[setting.key], Origin("file", self.file), f"{self.file}: {setting.key}")

    def look_for_strangers(self) -> None:
        """Warn of variables that look like ours."""
        known = {CONFIG, *(name for setting in SETTINGS.values() for name in setting.names)}
        for name in sorted(self.environ):
            if name.startswith(_PREFIXES) and name not in known:
                self.warnings.append(f"{name} is no setting: {_guess(name, known)}")

    def _counts(self, setting: Setting, text: str | None) -> bool:
        return text is not None and (bool(text.strip()) or (setting.kind.blank and not setting.secret))

    def _warn_of_two(self, setting: Setting, present: list[str]) -> None:
        """Of two names of one setting that say different things the first one counts, and both should be the same."""
        for name in present[1:]:
            if name.startswith(_PREFIXES) and self.environ[name] != self.environ[present[0]]:
                self.warnings.append(f"{name} says something else than {present[0]}, which counts: remove it")

    def _take(self, setting: Setting, said: object, origin: Origin, where: str) -> None:
        try:
            value = setting.kind.read(said)
        except ValueError:
            self.problems.append((where, f"{_shown(setting, said)}: give {setting.kind.wanted}{_why(said)}"))
            return
        self.values[setting.key] = Secret(value) if setting.secret else value
        self.origins[setting.key] = origin


def _shown(setting: Setting, said: object) -> str:
    """What was written, if it may be repeated."""
    if setting.secret or setting.kind in _HOLDS_PASSWORD:
        return "makes no sense"
    text = repr(said)
    return f"is {text if len(text) <= 60 else text[:59] + '…'}"


def _why(said: object) -> str:
    if isinstance(said, str) and said.startswith("tcp://"):
        return " (Kubernetes has set it for a service of this name: say enableServiceLinks: false)"
    return ""


def _guess(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]}?" if close else "remove it"
