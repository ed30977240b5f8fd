"""Parse the value of one option from the text of a flag, an environment variable or goatherd.toml.

Each function takes the given text and returns the parsed value, or raises `ConfigurationError`. An error never repeats
a value that may contain a secret. Which options exist is defined in `goatherd.config.options`.
"""

from __future__ import annotations

import ipaddress
import re
import signal
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from goatherd.errors import ConfigurationError
from goatherd.serving.server_url import check_http_url, parse_listen_host, parse_server_url
from goatherd.times import LONGEST

# The first character excludes `.` and `..`, which would lead out of the data directory.
_ORGANIZATION = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
SHORTEST_LIFETIME = timedelta(hours=1)
"""Same as in `goatherd.rotation.policy`, which takes too long to import here."""
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:\d{1,30}(?:\.\d{1,30})?(?:ms|[smhdw]))+")
_DURATION_PART = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)(ms|[smhdw])")


def parse_duration(value: object) -> timedelta:
    """Parse a duration with its unit: ``250ms``, ``30s``, ``5m``, ``2h``, ``30d``, ``1w``, or several (``1h30m``).

    Raises:
        ConfigurationError: The value is a number without a unit, or no duration.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().lower().replace(" ", "")
    if isinstance(value, bool) or not _DURATION.fullmatch(text):
        hint = "Write the unit: ms, s, m, h, d or w, such as 30s or 30d."
        raise ConfigurationError(f"{value!r} is not a duration with a unit", hint=hint)
    try:
        longest = timedelta(seconds=sum(float(n) * _UNITS[unit] for n, unit in _DURATION_PART.findall(text)))
    except OverflowError:
        longest = timedelta.max
    if longest > LONGEST:
        raise ConfigurationError(f"{value!r} is too long", hint="The longest duration is 36525d, a hundred years.")
    return longest


def parse_positive_duration(value: object) -> timedelta:
    """Parse a duration with its unit, such as ``30s``, that must be longer than zero."""
    duration = parse_duration(value)
    if not duration:
        raise ConfigurationError("must be longer than 0s", hint="Give a duration such as 5s.")
    return duration


def _at_least(least: timedelta, problem: str, hint: str) -> Callable[[object], timedelta]:
    """Return a parser of durations that are not shorter than `least`."""

    def parse(value: object) -> timedelta:
        duration = parse_duration(value)
        if duration < least:
            raise ConfigurationError(f"{value!r} is too short{problem}", hint=hint)
        return duration

    return parse


parse_page_interval = _at_least(
    timedelta(seconds=1),
    ": in each interval the page reads the store and each server once",
    "Give at least 1s; the default, 10s, suits most clusters.",
)
parse_idle_timeout = _at_least(
    timedelta(seconds=10),
    ": clients reuse a connection for 5s, and would lose requests",
    "Give at least 10s, and more than the load balancer's idle timeout; the default is 75s.",
)
parse_root_lifetime = _at_least(  # a rotation with long timeouts requires more
    SHORTEST_LIFETIME,
    " a lifetime for a root: it must be at least 1h",
    "The default, 180d, suits most clusters.",
)


def parse_string(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(
            f"must be a string, not {type(value).__name__}", hint='Write the value in quotation marks: "TEXT".'
        )
    if not value.strip():
        raise ConfigurationError("is empty", hint="Give a value, or leave the option out.")
    return value


def parse_organization(value: object) -> str:
    text = parse_string(value)
    if not _ORGANIZATION.fullmatch(text):
        hint = (
            "Use up to 128 characters of A-Z a-z 0-9 . _ - without a dot at the front: it names a "
            "directory and part of a secret."
        )
        raise ConfigurationError(f"{text!r} is not a valid organization name", hint=hint)
    return text


def parse_strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part for part in re.split(r"[,\s]+", value) if part]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise ConfigurationError(f"must be a list of strings, not {value!r}", hint='Write a list, such as ["a", "b"].')
    return tuple(value)


def parse_path(value: object) -> Path:
    if isinstance(value, str) and "://" in value:  # it would be taken for a path below the current directory
        raise ConfigurationError("is a URI, and must be a path", hint="Write a path such as /srv/goatdb.")
    path = value if isinstance(value, Path) else Path(parse_string(value))
    try:
        return path.expanduser()  # also of a flag: in `--data=~/goatdb`, the shell has not done it
    except RuntimeError:
        raise ConfigurationError(
            f"the home directory in {str(path)!r} is not known", hint="Write an absolute path."
        ) from None


def parse_command(value: object) -> str:
    """Check a command that is run without a shell, and return it."""
    import shlex

    text = parse_string(value)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigurationError(
            f"is not a command: {error}", hint='Write quotation marks in pairs, or \\" for one as a part of a word.'
        ) from None
    if not words or not words[0]:
        raise ConfigurationError("names no program", hint="Such as systemctl restart goatdb.")
    return text


def parse_port(value: object) -> int:
    number = _parse_whole_number(value)
    if number is None or not 0 <= number <= 65_535:
        what = f"{value!r} is not a port number" if number is None else f"port {number} is out of range"
        raise ConfigurationError(what, hint="A port is 0 to 65535; 0 takes a free one.")
    return number


def _parse_whole_number(value: object) -> int | None:
    """Return the value as a whole number; None if it is not one.

    A very long number is cut to 12 digits, which every limit rejects.
    """
    text = str(value).removeprefix("-")
    if isinstance(value, bool) or not text.isascii() or not text.isdigit():
        return None
    return int(str(value)[:12])


def _number(least: int, most: int) -> Callable[[object], int]:
    """Return a parser of whole numbers in this range."""

    def parse(value: object) -> int:
        number = _parse_whole_number(value)
        if number is None or not least <= number <= most:
            raise ConfigurationError(
                f"{value!r} is not a whole number from {least} to {most}", hint="Write the number without a unit."
            )
        return number

    return parse


parse_count = _number(1, 1000)
parse_restarts = _number(0, 1000)
parse_limit = _number(1, 1_000_000)
parse_limit_or_zero = _number(0, 1_000_000)


def parse_networks(value: object) -> tuple[str, ...]:
    texts = parse_strings(value)
    for text in texts:
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            raise ConfigurationError(
                f"the value is not a network: {error}", hint="Write the network as 10.0.0.0/8 or 127.0.0.1."
            ) from None
    return texts


def parse_quorum(value: object) -> str:
    text = str(value)
    if text != "all":
        # Imported here, because the package imports all of cryptography.
        from goatherd.rotation.policy import Quorum

        text = str(Quorum.from_text(text))
    return text


def parse_http_url(value: object) -> str:
    return check_http_url(
        parse_string(value), hint="Write the probe as a URL with a scheme, such as http://127.0.0.1:9000/healthy."
    )


def parse_public_url(value: object) -> str:
    url = parse_server_url(parse_string(value), hint="Write the URL as https://goats.example.")
    origin = url._replace(port=None)
    # Browsers compare it with the origin of the page, in which they leave out the scheme's own port.
    return str(origin if origin.connect_port == url.port else url)


def parse_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"1", "true", "yes", "on"}:
        return True
    if isinstance(value, str) and value.lower() in {"0", "false", "no", "off", ""}:
        return False
    raise ConfigurationError(f"{value!r} is neither true nor false", hint="Write true or false.")


NODE_FORMS = (
    "A server is http://HOST:PORT or https://HOST:PORT. Any number of servers: dns://HOST:PORT, or "
    "k8s-service://NAMESPACE/NAME:PORT."
)


def parse_node(text: str) -> str:
    if text.partition("://")[0] not in ("dns", "k8s-service"):
        return str(parse_server_url(text, hint=NODE_FORMS))
    from goatherd.cluster.discovery import source_of

    source_of(text, timeout=timedelta(seconds=1))
    return text


def parse_nodes(value: object) -> tuple[str, ...]:
    return tuple(parse_node(text) for text in _split_addresses(value))


def parse_urls(value: object) -> tuple[str, ...]:
    return tuple(str(parse_server_url(text)) for text in _split_addresses(value))


def _split_addresses(value: object) -> tuple[str, ...]:
    """Split a list of server addresses. An empty string, as from an unset variable, is kept; the caller rejects it."""
    if isinstance(value, str):
        value = [part for part in re.split(r"[,\s]+", value) if part] or [""]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        wrong = next((item for item in value if not isinstance(item, str)), value) if isinstance(value, list) else value
        hint = 'Such as ["http://10.0.0.2:8080"].'
        raise ConfigurationError(f"must be a list of URLs; {type(wrong).__name__} is not one", hint=hint)
    return tuple(value)


def parse_bind_address(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{value!r} is not an address", hint="Write an address, such as 127.0.0.1.")
    return parse_listen_host(value)


def parse_cron(value: object) -> str:
    from goatherd.schedule.due import check_cron

    text = parse_string(value)
    check_cron(text)
    return text


def parse_timezone(value: object) -> str:
    text = parse_string(value)
    if text != "UTC":
        # Imported here, because the rotation package imports all of cryptography.
        from goatherd.schedule.due import read_zone

        read_zone(text)
    return text


def parse_key_source(value: object) -> str:
    from goatherd.settings.last_known_good import KeySource

    text = parse_string(value)
    KeySource.from_text(text)
    return text


def parse_page_token(value: object) -> str:
    from goatherd.serving.secret_source import PageToken

    text = parse_string(value)
    PageToken.from_text(text)
    return text


def _one_of(*known: str, hint: str) -> Callable[[object], str]:
    """Return a parser that accepts only these strings."""

    def parse(value: object) -> str:
        if value not in known:
            names = [f"`{one}`" for one in known]
            raise ConfigurationError(f"must be {', '.join(names[:-1])} or {names[-1]}, not {value!r}", hint=hint)
        return str(value)

    return parse


parse_store_type = _one_of("cloud", "file", hint="`cloud` needs cloudConfig; `file` needs serve.settings.")
parse_on_change = _one_of("restart", "signal", "command", "ignore", hint="Such as restart.")


def parse_cloud_config(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
        raise ConfigurationError("must be a table of strings", hint="The table needs `provider` and `secretId`.")
    for name in ("provider", "secretId"):
        if name not in value:
            hint = "The table needs both `provider` and `secretId`."
            raise ConfigurationError(f"has no {name!r}", hint=hint)
    return dict(value)


def parse_agent_url(value: object) -> str:
    text = parse_string(value)
    # Check the URL with an example in place of `{org}`.
    parse_server_url(
        text.replace("{org}", "org"), hint="Write the server as a URL with a scheme, such as http://127.0.0.1:8080."
    )
    return text.rstrip("/")


def parse_lease(value: object) -> str:
    text = parse_string(value)
    if text != "none" and "://" not in text:
        raise ConfigurationError(
            f"must be the URI of a secret or `none`, not {text!r}", hint="Write a URI, such as file:///srv/lease."
        )
    return text


def parse_signal_number(value: object) -> int:
    text = str(value).upper()
    found = {number.name: int(number) for number in signal.Signals}
    number = found.get(text) or found.get(f"SIG{text}") or (int(text) if text.isdecimal() else 0)
    if isinstance(value, bool) or number not in found.values():
        raise ConfigurationError(
            f"{value!r} is not the name of a signal", hint="Write the name of a signal, such as TERM, HUP or USR1."
        )
    return number


_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_STORE_FORM = 'Such as {region = "us", provider = "aws://us-east-1/goatdb/prod/root"}.'


class StoreEntry(NamedTuple):
    """One store of the section ``[stores]``: its region and its URI."""

    region: str
    provider: str

    def __str__(self) -> str:
        return f"{self.region} {self.provider}"


def parse_region(value: object) -> str:
    text = parse_string(value)
    if not _REGION.fullmatch(text):
        raise ConfigurationError(
            f"{text[:80]!r} is not a valid region",
            hint="Choose any name, such as eu or us-east-1, of up to 63 characters of A-Z a-z 0-9 _ -.",
        )
    return text


def parse_regions(value: object) -> tuple[str, ...]:
    return tuple(parse_region(text) for text in parse_strings(value))


def parse_store(value: object) -> StoreEntry:
    names = StoreEntry._fields
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"must be a table, not {type(value).__name__}", hint=_STORE_FORM)
    for name in value:
        if name not in names:
            raise ConfigurationError(f"has an unknown member {name!r}", hint=f"Members: {', '.join(names)}.")
    for name in names:
        if name not in value:
            raise ConfigurationError(f"has no {name!r}", hint=_STORE_FORM)
    provider = parse_string(value["provider"])
    if "://" not in provider:
        raise ConfigurationError("provider must be the URI of a secret", hint=_STORE_FORM)
    return StoreEntry(region=parse_region(value["region"]), provider=provider)


def parse_follower_stores(value: object) -> tuple[StoreEntry, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigurationError(f"must be a list of tables, not {type(value).__name__}", hint=_STORE_FORM)
    return tuple(parse_store(each) for each in value)
