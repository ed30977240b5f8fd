"""Read goatherd.toml, the environment and the flags into one frozen `Options` value.

The fields of `Options` are the only list of all options. A flag takes precedence over the environment, the environment
over goatherd.toml, and goatherd.toml over the default. The options of a store are part of its URI, so this module needs
no provider. `goatherd.config.values` parses the values.

Rules: a duration is a string with a unit; an unknown key is an error that names the most similar key; the reference
page docs/reference/configuration.md is generated from this module (tests/docs).
"""

# ruff: noqa: RUF009 (`_option` is `dataclasses.field` with its metadata in a fixed shape; it makes nothing shared)

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from goatherd.config import values
from goatherd.config.values import parse_duration
from goatherd.errors import ConfigurationError
from goatherd.telemetry import find_program
from goatherd.times import format_duration
from goatherd.wire.paths import DEFAULT_ORG

FILE_NAME = "goatherd.toml"
ENVIRONMENT_PREFIX = "GOATHERD_"
FILE_VARIABLE = "GOATHERD_CONFIG"
_SECTIONS: Final = frozenset(
    {"settings", "serve", "stores", "limits", "agent", "rotation", "controller", "audit", "web"}
)
_NAMES_OF_GOATDB: Final = {"cloud_config": "cloudConfig"}
_MAX_LINE: Final = 10_000
_MAX_DOTS: Final = 32
_QUOTED: Final = re.compile(r"\"[^\"]*\"|'[^']*'")


_TYPES: Final[Mapping[str, tuple[str, Any]]] = {
    "str": ("text", values.parse_string),
    "int": ("number", None),
    "bool": ("flag", values.parse_flag),
    "timedelta": ("time", parse_duration),
    "Path": ("path", values.parse_path),
    "tuple[str, ...]": ("list of texts", values.parse_strings),
    "Mapping[str, str]": ("table", None),
    "values.StoreEntry": ("table", None),
    "tuple[values.StoreEntry, ...]": ("list of tables", None),
}
"""For each type of an option: its form, as the reference page names it, and its parser if `parse` is not given."""


def _option(
    text: str, default: Any = None, *, parse: Callable[[object], Any] | None = None, form: str | None = None
) -> Any:
    """Declare an option. `parse` and `form` are needed only if they are not those of its type (`_TYPES`)."""
    return field(default=default, metadata={"parse": parse, "form": form, "help": text})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)  # both for 80 fields take a quarter of `pass`
class Options:
    """Every option with its value. A field's name begins with the section of its key in goatherd.toml, if it has one.

    Its metadata holds the type and the description.

    Attributes:
        origin: For each key that was given, the place: ``flag``, the environment variable, or the file and its line.
        file: The configuration file that was read, if there is one.
    """

    provider: str | None = _option("URI of the store and the secret that hold the identity.", form="URI")
    type: str | None = _option(
        'Source of the identity: "cloud" with `cloudConfig`, or "file" with `serve.settings`.',
        parse=values.parse_store_type,
    )
    cloud_config: Mapping[str, str] | None = _option(
        'With `type = "cloud"`: `provider`, `secretId` and the options of that provider. The option '
        "`provider` takes precedence.",
        parse=values.parse_cloud_config,
    )
    org: str = _option(
        "Organization, which replaces `{org}` in the secret's name.", DEFAULT_ORG, parse=values.parse_organization
    )
    nodes: tuple[str, ...] = _option(
        "URLs of the servers of the cluster; a `dns://` or `k8s-service://` URL discovers any number of servers.",
        (),
        parse=values.parse_nodes,
        form="list of URLs",
    )
    timeout: timedelta = _option(
        "Timeout of one request to a server.", timedelta(seconds=5), parse=values.parse_positive_duration
    )
    signers: tuple[str, ...] = _option(
        "URIs of the HSM and KMS keys that this machine may sign with, as the anchor or, in direct mode, as the root. "
        "No other signer is called.",
        (),
        form="list of URIs",
    )

    settings_refresh_interval: timedelta = _option(
        "How often a server reads the store, with a small jitter.",
        timedelta(seconds=30),
        parse=values.parse_positive_duration,
    )

    settings_last_known_good: Path | None = _option(
        "Path of a sealed copy of the identity, which a server needs to start while the store is unreachable. "
        "`{org}` is replaced by the organization."
    )
    settings_last_known_good_key: str | None = _option(
        "Source of the key that seals the copy: `file:/PATH`, `env:NAME` or `credential:NAME` (systemd), never "
        "the key itself.",
        parse=values.parse_key_source,
    )

    serve_data: Path | None = _option("Data directory of `goatherd serve`.")
    serve_settings: Path | None = _option("GoatDB settings.json to read the identity from instead of a store.")
    serve_host: str = _option("Address to listen on.", "127.0.0.1", parse=values.parse_bind_address)
    serve_port: int = _option("Port to listen on; 0 takes a free one.", 8080, parse=values.parse_port)
    serve_public_url: str | None = _option(
        "Public URL, at which browsers reach the application: the only origin that CORS headers allow. Default: "
        "`http://localhost` with the server's port.",
        parse=values.parse_public_url,
        form="URL",
    )
    serve_peers: tuple[str, ...] = _option(
        "URLs of the other servers of the cluster, to synchronize with.",
        (),
        parse=values.parse_urls,
        form="list of URLs",
    )
    serve_unused_sessions: int = _option(
        "How many sessions that have signed nothing yet a server keeps outside `/sys/sessions`; beyond that, it "
        "drops the oldest. With 0, it writes each new session to `/sys/sessions`, as GoatDB does.",
        200_000,
        parse=values.parse_limit_or_zero,
    )

    stores_region: str | None = _option(
        "Region of this machine: a server first reads the store of its own region, then the others in order.",
        parse=values.parse_region,
    )
    stores_primary: values.StoreEntry | None = _option(
        "With stores in several regions: `region` and `provider` (a URI) of the store that rotations write. The "
        "flag or variable of `provider` takes precedence.",
        parse=values.parse_store,
    )
    stores_followers: tuple[values.StoreEntry, ...] = _option(
        "The stores of the other regions, to which commands copy the secret: `region` and `provider` of each.",
        (),
        parse=values.parse_follower_stores,
    )
    stores_allow_lagging: tuple[str, ...] = _option(
        "Regions whose store may lag: changes do not wait for it, and servers that read only this store follow "
        "late, or not at all.",
        (),
        parse=values.parse_regions,
    )

    limits_forwarded_by: tuple[str, ...] = _option(
        "Networks of the proxies in front of `goatherd serve` or the door, whose `X-Forwarded-For` header is used.",
        (),
        parse=values.parse_networks,
        form="list of networks",
    )
    limits_connections: int = _option(
        "How many connections `goatherd serve` or the door keeps open at the same time. One address may hold a "
        "quarter; proxies in `limits.forwarded_by` have no such limit.",
        4000,
        parse=values.parse_limit,
    )
    limits_idle_timeout: timedelta = _option(
        "How long `goatherd serve` or the door keeps a connection without a request open. Must be longer than "
        "in a proxy or load balancer in front (60 s for nginx and AWS, 600 s for Google Cloud).",
        timedelta(seconds=75),
        parse=values.parse_idle_timeout,
    )
    limits_requests_per_second: int = _option(
        "How many requests one address may send per second on average, with a burst of five times as many. With the "
        "default, it may request 300 new sessions in a burst, which are restored within 25 minutes, and one session "
        "may send 30 requests per second; another value changes both in proportion.",
        500,
        parse=values.parse_limit,
    )

    agent_data: Path | None = _option("Data directory of the GoatDB server that `goatherd run` runs.")
    agent_url: str = _option(
        "URL of the GoatDB server; `{org}` is replaced by the organization.",
        "http://127.0.0.1:8080",
        parse=values.parse_agent_url,
        form="URL",
    )
    agent_memory: Path | None = _option("Directory on a tmpfs for settings.json (default: found automatically).")
    agent_on_change: str = _option(
        "How the agent notifies the server when the identity changes: restart, signal, command or ignore.",
        "restart",
        parse=values.parse_on_change,
    )
    agent_signal: int = _option(
        'Signal to send to the server if `on_change` is "signal".', 1, parse=values.parse_signal_number, form="signal"
    )
    agent_command: str | None = _option(
        'Command to run, without a shell, if `on_change` is "command".', parse=values.parse_command, form="command"
    )
    agent_grace: timedelta = _option("How long a server may take to stop before it is killed.", timedelta(seconds=30))
    agent_ready_timeout: timedelta = _option(
        "How long a started server may take until it accepts a request signed by the current root.",
        timedelta(seconds=60),
        parse=values.parse_positive_duration,
    )
    agent_crashes: int = _option(
        "How many times in a row to restart a server that crashed; with 0, the agent ends with the server.",
        5,
        parse=values.parse_restarts,
    )
    agent_pass_env: tuple[str, ...] = _option(
        "Environment variables with store credentials to pass to the server; the agent removes all others.", ()
    )
    agent_lease: str | None = _option(
        "URI of the secret that holds the restart lease (default: `<secret>-lease`, beside the identity). "
        'With "none", servers restart without a lease.',
        parse=values.parse_lease,
        form="URI",
    )

    rotation_lifetime: timedelta = _option(
        "How long a new root session is valid. At least 1h, and at least 4 x (3 x `rotation.adoption` + "
        "`rotation.unlisted` + `rotation.health_soak` + 90s); more than 30d where a server runs "
        "unmodified GoatDB.",
        timedelta(days=180),
        parse=values.parse_root_lifetime,
    )
    rotation_working_lifetime: timedelta = _option(
        "How long a new working root, which an anchor endorses, is valid. It is renewed when a third is left. "
        "Lower limits as for `rotation.lifetime`, but more than 45d where a server runs unmodified GoatDB.",
        timedelta(days=30),
        parse=values.parse_root_lifetime,
    )
    rotation_adoption: timedelta = _option(
        "How long the servers have to follow; then a rotation is cancelled or rolled back, and a revocation is left"
        " incomplete.",
        timedelta(minutes=5),
    )
    rotation_clock_tolerance: timedelta = _option(
        "How much this machine's clock may differ from those of the store and of most servers; otherwise no "
        "command writes. It is also how far in the future a recorded timestamp may be.",
        timedelta(minutes=5),
        parse=values.parse_positive_duration,
    )
    rotation_grace: timedelta = _option(
        "How long after a rotation the store keeps the old private key for `restore`, before `retire` destroys it.",
        timedelta(days=30),
    )
    rotation_quorum: str = _option(
        "How many servers must follow before a rotation continues: `all`, a count such as `4`, or a share such "
        "as `80%`. It leaves out only servers that have not answered within `rotation.adoption`.",
        "all",
        parse=values.parse_quorum,
    )
    rotation_unlisted: timedelta | None = _option(
        "How long the next root must be published before it signs, so that servers that are not listed read it first. "
        "`0s`: all servers are listed. Default: `settings.refresh_interval` with its jitter plus two seconds if "
        "servers are discovered, else 0s."
    )
    rotation_bare: tuple[str, ...] = _option(
        "URLs of unmodified GoatDB servers that you restart by hand, and that sign with the previous root until then.",
        (),
        parse=values.parse_urls,
        form="list of URLs",
    )
    rotation_distrust: tuple[str, ...] = _option(
        "URLs of servers to ignore when they report a later identity than the store holds, or when they are peers "
        "of listed servers and not listed themselves. Any other such server stops the commands that write.",
        (),
        parse=values.parse_urls,
        form="list of URLs",
    )
    rotation_health_url: str | None = _option(
        "URL of an HTTP health check of the cluster; a GET must return a status from 200 to 299.",
        parse=values.parse_http_url,
        form="URL",
    )
    rotation_health_soak: timedelta = _option(
        "How long the health check, if any, must pass while the next root signs, before the rotation is final.",
        timedelta(seconds=10),
    )

    controller_cron: str | None = _option(
        "Minutes in which `goatherd controller` may begin a rotation, in crontab format: minute, hour, day of month, "
        "month, day of week; such as `* 2-4 * * MON-FRI`. Default: any minute.",
        parse=values.parse_cron,
    )
    controller_max_age: timedelta | None = _option(
        "Age at which a key is due to be replaced. Default: when half of its lifetime is left, at most 60 days, so a "
        "key of 180 days at the age of 120 days; a working root when a third of its lifetime is left."
    )
    controller_timezone: str = _option(
        "Time zone of `cron`, such as Europe/Berlin.", "UTC", parse=values.parse_timezone
    )
    controller_interval: timedelta = _option(
        "How often a controller reads the store.", timedelta(minutes=1), parse=values.parse_positive_duration
    )
    controller_retire: bool = _option("Whether a controller destroys old private keys as `retire` does.", True)
    controller_alert_command: str | None = _option(
        "Command that `/bin/sh -c` runs when an operator is needed; it reads the reason as JSON from standard input.",
        form="command",
    )

    audit_log: Path | None = _option(
        "File of the audit trail: `rotate`, `restore`, `retire`, `revoke`, `stores`, `controller` and changes of labels"
        " append every decision to it, signed."
    )

    web_host: str = _option("Address to listen on.", "127.0.0.1", parse=values.parse_bind_address)
    web_port: int = _option("Port to listen on; 0 takes a free one.", 8090, parse=values.parse_port)
    web_interval: timedelta = _option(
        "How often the page's store and servers are read, however many pages are open.",
        timedelta(seconds=10),
        parse=values.parse_page_interval,
    )
    web_token: str | None = _option(
        "Source of the token that a reader of the page must give, in a form of `settings.last_known_good_key`.",
        parse=values.parse_page_token,
    )
    web_certificate: Path | None = _option("PEM file with the page's TLS certificate and its chain.")
    web_certificate_key: Path | None = _option("PEM file with the private key of that certificate.")
    web_proxies: tuple[str, ...] = _option(
        "Networks of the reverse proxies in front of the page. Only they may connect, and they sign readers in.",
        (),
        parse=values.parse_networks,
        form="list of networks",
    )

    origin: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    file: Path | None = field(default=None, compare=False, repr=False)

    @property
    def stores(self) -> tuple[values.StoreEntry, ...]:
        """The stores of several regions, the primary store first; empty if `provider` or nothing names the store."""
        if self.provider is not None or self.stores_primary is None:
            return ()
        return (self.stores_primary, *self.stores_followers)


class Key(NamedTuple):
    """One option of Goatherd as the reference page of the configuration shows it."""

    name: str
    attribute: str
    variable: str
    form: str
    help: str
    default: Any
    parse: Callable[[object], Any]

    @property
    def is_table(self) -> bool:
        """Whether the value is a table or a list of tables, which only goatherd.toml can hold."""
        return self.form in ("table", "list of tables")

    @property
    def default_text(self) -> str:
        """Return the default as goatherd.toml would write it; empty if there is none."""
        return "" if self.default is None or self.default == () else self.text_of(self.default)

    def text_of(self, value: Any) -> str:
        """Return a value of this option as goatherd.toml would write it. The value must not be a list or a table."""
        if self.form == "signal":
            return signal.Signals(value).name.removeprefix("SIG")
        if isinstance(value, timedelta):
            return format_duration(value)
        return str(value).lower() if self.form == "flag" else str(value)


@cache
def option_keys() -> tuple[Key, ...]:
    """Return every option in the order of the reference page."""
    return tuple(_make_key(item) for item in fields(Options) if item.metadata)


def _make_key(item: Field[Any]) -> Key:
    form, parse = _TYPES[str(item.type).removesuffix(" | None")]
    return Key(
        name=_find_key(item.name),
        attribute=item.name,
        variable=ENVIRONMENT_PREFIX + item.name.upper(),
        form=item.metadata["form"] or form,
        help=item.metadata["help"],
        default=item.default,
        parse=item.metadata["parse"] or parse,
    )


def _find_key(attribute: str) -> str:
    """Return the key in goatherd.toml of an attribute of `Options`: the first word is the section, if it is one."""
    section, _, rest = attribute.partition("_")
    return f"{section}.{rest}" if section in _SECTIONS else _NAMES_OF_GOATDB.get(attribute, attribute)


def load_options(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    *,
    directory: Path,
    file: Path | None = None,
    flag_names: Mapping[str, str] = MappingProxyType({}),
) -> Options:
    """Combine flags, environment, configuration file and defaults.

    Args:
        flags: Values by the names of the fields of `Options`; None and an empty tuple mean not given.
        environ: The environment.
        directory: Directory whose goatherd.toml is read if no file is named.
        file: The file that a flag names; ``GOATHERD_CONFIG`` if None. A named file must exist.
        flag_names: The flag for a field in messages, such as ``--node`` for ``nodes``.

    Raises:
        ConfigurationError: The file is missing, is not TOML, has an unknown key, or has an invalid value, even if a
            flag or a variable overrides that value; the name of a variable is a mistyped name of one of Goatherd's
            variables; or another user could have written the goatherd.toml that was found in `directory`.
    """
    named = file
    if named is None and environ.get(FILE_VARIABLE):
        try:
            named = values.parse_path(environ[FILE_VARIABLE])
        except ConfigurationError as error:
            raise ConfigurationError(f"{FILE_VARIABLE}: {error}", hint=error.hint) from None
    path = named or directory / FILE_NAME
    found = _read_file(path, is_named=named is not None)
    texts = [*flags.values(), *environ.values(), *({} if found is None else found.values).values()]
    for name in environ:
        _check_variable(name, environ, texts)
    given_values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key in option_keys():
        if found is not None and key.name in found.values:
            where = found.place_of(key.name)
            given_values[key.attribute] = _parse_value(key, found.values[key.name], f"{where}: {key.name}")
            origin[key.name] = where
        given = flags.get(key.attribute)
        if given is not None and given != ():
            flag = flag_names.get(key.attribute, key.name)
            given_values[key.attribute], origin[key.name] = _parse_value(key, given, flag), "flag"
        elif environ.get(key.variable) and not key.is_table:
            # A variable that Kubernetes takes from a file or a Secret often ends with a line feed.
            given_values[key.attribute] = _parse_value(key, environ[key.variable].strip(), key.variable)
            origin[key.name] = key.variable
    return Options(**given_values, origin=origin, file=None if found is None else path)


def _check_owner(path: Path, found: os.stat_result) -> None:
    """Refuse a goatherd.toml that was found in the current directory if another user can have written it.

    Args:
        path: The file.
        found: The status of the file, or of a symbolic link at its path.

    SECURITY: the file names commands to run and the store to trust, and operators change into directories of other
    users (tests/unit/config/test_options.py).

    Raises:
        ConfigurationError: Another user can have written the file.
    """
    if os.name != "posix" or stat.S_ISDIR(found.st_mode):
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        raise ConfigurationError(
            f"{path} is not a regular file, so it is not used",
            hint="Remove the file, or name another one with --config FILE.",
        )
    hint = f"If you trust it, name it: --config {path}."
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigurationError(f"{path} belongs to another user (uid {found.st_uid}), so it is not used", hint=hint)
    if stat.S_ISLNK(found.st_mode):
        return  # its owner alone decides where it leads
    shared = found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid)
    if shared or found.st_mode & stat.S_IWOTH:
        who = "other users" if found.st_mode & stat.S_IWOTH else f"its group (gid {found.st_gid})"
        hint = f"chmod go-w {path}; or, if you trust them, name it: --config {path}."
        raise ConfigurationError(f"{path} can be written by {who}, so it is not used", hint=hint)


def _is_own_group(gid: int) -> bool:
    """Whether a group is root's, or has only this user as a member and the user's own name.

    Some systems give each user such a group of the same name.
    """
    import grp
    import pwd

    if gid == 0:
        return True
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _parse_value(key: Key, value: object, where: str) -> Any:
    try:
        return key.parse(value)
    except ConfigurationError as error:
        hint = error.hint
        if str(value).startswith(_SERVICE_ADDRESS) and where == key.variable:
            hint = (
                "Kubernetes sets this variable for a Service of that name. Set `enableServiceLinks: false` in the pod, "
                "or rename the Service."
            )
        raise ConfigurationError(f"{where}: {error}", hint=hint) from None


# The variables that Kubernetes sets in each container for a Service in its namespace:
# https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
_SERVICE_LINK = re.compile(
    r"_SERVICE_HOST\Z|_SERVICE_PORT(?:_|\Z)|_PORT_\d+_(?:TCP|UDP|SCTP)(?:_|\Z)|\AGOATHERD_PORT\Z"
)
_SERVICE_ADDRESS: Final = ("tcp://", "udp://", "sctp://")
"""How the value of ``<SERVICE>_PORT`` begins, which has a name as an option could have it."""
_CLOSE: Final = 0.8


def _check_variable(name: str, environ: Mapping[str, str], texts: Iterable[object]) -> None:
    """Refuse an environment variable whose name looks like a mistyped one of Goatherd's.

    Other variables that begin with GOATHERD_ are accepted, because plugins, images and Kubernetes Services set their
    own; and those that a flag, a variable or the file names as the source of a secret.

    Args:
        name: The name of the variable.
        environ: The environment.
        texts: The values of all flags and variables, and of all keys in the file.

    Raises:
        ConfigurationError: The name is similar to one of Goatherd's variables.
    """
    if not name.startswith(ENVIRONMENT_PREFIX) or _SERVICE_LINK.search(name):
        return
    known = {key.variable: key for key in option_keys()}
    if name in known and known[name].is_table:
        raise ConfigurationError(
            f"{name}: a table cannot be written into an environment variable",
            hint="Set GOATHERD_PROVIDER to the store's URI, or write the table into goatherd.toml.",
        )
    if name in known or name == FILE_VARIABLE:
        return
    if name.endswith("_PORT") and environ[name].startswith(_SERVICE_ADDRESS):
        return
    suffix = name.removeprefix(ENVIRONMENT_PREFIX)
    short = {variable.removeprefix(ENVIRONMENT_PREFIX): variable for variable in (*known, FILE_VARIABLE)}
    close = [short[each] for each in _find_close(suffix, short, cutoff=_CLOSE)]
    close = close or [variable for each, variable in short.items() if each.rpartition("_")[2] == suffix]
    if close and not any(re.search(rf"\benv:{re.escape(name)}\b", str(text)) for text in texts):
        raise ConfigurationError(
            f"{name} is not a variable that Goatherd reads",
            hint=f"Did you mean {' or '.join(close[:3])}? If the variable belongs to another program, give it"
            " another prefix.",
        )


class _File(NamedTuple):
    """The contents of a configuration file.

    Attributes:
        path: The file.
        values: The values by full key, such as ``rotation.grace``.
        lines: The line number of each key, as far as it was found.
    """

    path: Path
    values: Mapping[str, object]
    lines: Mapping[str, int]

    def place_of(self, name: str) -> str:
        """Return the file and, if it is known, the line number of a key."""
        return f"{self.path}:{self.lines[name]}" if name in self.lines else str(self.path)


def _find_close(name: str, known: Iterable[str], *, cutoff: float) -> list[str]:
    """Return, as a list, the known name most similar to `name`; empty if the similarity (0 to 1) is below `cutoff`."""
    import difflib  # here, since most commands need no suggestion

    return difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)


def _read_file(path: Path, *, is_named: bool) -> _File | None:
    try:
        if not is_named:
            _check_owner(path, path.lstat())
            _check_owner(path, path.stat())
        if path.exists() and not (path.is_file() or path.is_dir()):  # to open a pipe would not end
            raise ConfigurationError(
                f"{str(path)!r} cannot be read: it is no regular file",
                hint=f"--config and GOATHERD_CONFIG must name a file, such as {FILE_NAME}.",
            )
        with path.open(encoding="utf-8-sig") as file:  # editors of Windows write a byte order mark
            if not is_named:
                _check_owner(path, os.fstat(file.fileno()))  # another file may have been put there meanwhile
            text = file.read()
    except FileNotFoundError:
        if is_named:
            raise ConfigurationError(
                f"there is no {path}", hint="--config and GOATHERD_CONFIG must name a file that exists."
            ) from None
        return None
    except IsADirectoryError:
        hint = f"--config and GOATHERD_CONFIG must name a file, such as {path / FILE_NAME}."
        raise ConfigurationError(f"{str(path)!r} cannot be read: it is a directory", hint=hint) from None
    except OSError as error:
        hint = "Give this user the right to read it, or name another file with --config."
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    except UnicodeDecodeError as error:
        hint = 'Such as: provider = "file:///srv/keys/root"'
        raise ConfigurationError(f"{path} is not TOML: it is not UTF-8", hint=hint) from error
    import tomllib  # here, since a command without a file does not need it

    try:
        _check_lines(text, path)
        document = tomllib.loads(text)
    except RecursionError:
        raise ConfigurationError(f"{path} is not a configuration: it is nested too deeply") from None
    except ValueError as error:  # tomllib.TOMLDecodeError, or an integer of more digits than Python reads
        hint = 'Strings need quotes, such as provider = "file:///srv/keys/root". Keys and sections are unique.'
        raise ConfigurationError(f"{path} is not TOML: {error}", hint=hint) from error
    known = [key.name for key in option_keys()]
    sections = list(dict.fromkeys(name.partition(".")[0] for name in known if "." in name))
    tables = [key.name for key in option_keys() if key.form == "table" and "." not in key.name]
    found = _File(path=path, values=dict(_flatten_sections(document, sections)), lines=_find_lines(text, sections))
    for name, value in document.items():
        if isinstance(value, Mapping) and name not in (*sections, *tables):
            close = _find_close(name, [*sections, *tables], cutoff=0.5)
            hint = f"Did you mean [{close[0]}]?" if close else ""
            hint = hint or "Sections: " + ", ".join(f"[{each}]" for each in (*sections, *tables)) + "."
            raise ConfigurationError(f"{found.place_of(name)}: unknown section [{name}]", hint=hint)
        if name in sections and not isinstance(value, Mapping):
            raise ConfigurationError(
                f"{found.place_of(name)}: {name!r} is a section, not a key", hint=f"Write [{name}], and keys below it."
            )
    for name in found.values:
        if name not in known:
            raise ConfigurationError(f"{found.place_of(name)}: unknown key {name!r}", hint=suggest_keys(name, known))
    return found


def _check_lines(text: str, path: Path) -> None:
    """Reject a line with so many dotted keys that parsing takes too long: time and memory grow quadratically."""
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > _MAX_LINE:
            raise ConfigurationError(
                f"{path}, line {number}: longer than {_MAX_LINE} characters",
                hint="Write a long list over several lines.",
            )
        if line.count(".") > _MAX_DOTS and _QUOTED.sub("", line).partition("#")[0].count(".") > _MAX_DOTS:
            raise ConfigurationError(
                f"{path}, line {number}: a key has more than {_MAX_DOTS} parts",
                hint="A key has at most two parts, such as rotation.grace.",
            )


def _flatten_sections(document: Mapping[str, object], sections: Sequence[str]) -> Iterable[tuple[str, object]]:
    for name, value in document.items():
        if name in sections and isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", item) for inner, item in value.items())
        else:
            yield name, value


def _find_lines(text: str, sections: Sequence[str]) -> dict[str, int]:
    """Return the line number of each key and section of goatherd.toml, for error messages.

    A regular expression finds the lines, because `tomllib` does not report them.
    """
    found: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if head := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            section = head[1]
            found.setdefault(section, number)
        elif key := re.match(r"""\s*(["']?)([\w.-]+)\1\s*=""", line):
            found.setdefault(f"{section}.{key[2]}" if section in sections else key[2], number)
    return found


def suggest_keys(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown key: the most similar key of its section, keys with the same last part, or all."""
    known = list(known)
    section, dot, tail = name.rpartition(".")
    own = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    close = [own[each] for each in _find_close(tail, own, cutoff=0.7)]
    close = close or [key for key in known if key.rpartition(".")[2] == tail]
    close = close or [own[each] for each in _find_close(tail, own, cutoff=0.5)]
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return (f"Keys of [{section}]: " if dot and own else "Known keys: ") + ", ".join(own.values() or known) + "."


_SECRET_NAME = re.compile(
    r"token|password|passwd|secret(?!_?id)|credential|apikey|api_key|sig(nature)?$", re.IGNORECASE
)
HIDDEN: Final = "<hidden>"


class Setting(NamedTuple):
    """One option with its effective value, as `goatherd doctor --options` shows it.

    Attributes:
        key: The option's name in goatherd.toml.
        value: The value as text, with possible secrets masked; None if there is none.
        source: ``flag``, an environment variable, the file with its line, or ``default``.
        variable: The environment variable that sets the option; None if there is none.
    """

    key: str
    value: str | None
    source: str
    variable: str | None


def effective_settings(options: Options) -> tuple[Setting, ...]:
    """Return every option with its value and the value's source, in the order of the reference page.

    SECURITY: no value may show a secret. Masked are the credentials and the query of a URL, the arguments of a command,
    and every value whose name suggests a secret (tests/unit/config/test_options.py).
    """
    return tuple(
        Setting(
            key=key.name,
            value=_value_text(key, getattr(options, key.attribute)),
            source=options.origin.get(key.name, "default"),
            variable=None if key.is_table else key.variable,
        )
        for key in option_keys()
    )


def _value_text(key: Key, value: Any) -> str | None:
    if value is None or value == ():
        return None
    if isinstance(value, values.StoreEntry):
        return _url_text(str(value))
    if key.form == "table":
        texts = {name: HIDDEN if _SECRET_NAME.search(name) else _url_text(value[name]) for name in sorted(value)}
        return ", ".join(f"{name}={text}" for name, text in texts.items())
    if key.form == "command":
        program = find_program(value)
        return program if program == value.strip() else f"{program} {HIDDEN}".lstrip()
    if isinstance(value, tuple):
        return ", ".join(_url_text(str(each)) for each in value)
    text = key.text_of(value)
    return _url_text(text) if key.form in ("URL", "URI") else text


def _url_text(text: str) -> str:
    """Return a URL in which the password, and query parameters that may be secret, are masked."""
    before, question, query = text.partition("?")
    scheme, colon, rest = before.partition("://")
    if colon and "@" in rest:
        before = f"{scheme}://{HIDDEN}@{rest.rpartition('@')[2]}"
    if scheme in ("http", "https"):
        return f"{before}?{HIDDEN}" if question else before
    parts = [f"{part.partition('=')[0]}={HIDDEN}" if _SECRET_NAME.search(part) else part for part in query.split("&")]
    return before + question + "&".join(parts)
