"""Discover the servers of a cluster from URLs, DNS names or a Kubernetes Service, again for each observation.

An address in one of these forms stands for servers:

- ``http://host:port``, ``https://…``: one server.
- ``dns://host:port``: a server for each A and AAAA record. The operating system resolves the name, also from
  ``/etc/hosts``.
- ``dns://_service._tcp.domain``: a server for each SRV record (RFC 2782) and each address of its target.
- ``k8s-service://namespace/name:port``: a server for each pod behind a Service, from its EndpointSlices.

The result is one open client for each server; `goatherd.cluster.observer` observes the servers.

Rules:
- SECURITY: a failed discovery, or an answer that names no server, is an error. If it counted as "there are no servers",
  a rotation would wait for no server and lose commits (tests/unit/cluster/test_discovery.py).
- A partial answer is an error, too: if one of several sources fails, one record type times out, or a list is truncated.
- The client connects to the IP address that was found, but TLS and the ``Host`` header use the server's name.
- DNS may return only some of its records, and may omit servers that are not ready. So a server that DNS has named stays
  listed for `LINGER`. A Service's list is complete, and includes pods that are not ready, which may hold the old key.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from goatherd.clock import Clock, SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import (
    ConfigurationError,
    DiscoveryError,
    GoatherdError,
    MissingExtraError,
    ProviderAccessDeniedError,
    ProviderError,
)
from goatherd.serving.server_url import masked, parse_server_url

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

    from goatherd.providers.capabilities import ServiceReader

LINGER: Final = timedelta(seconds=30)
"""How long a server stays listed after DNS last named it."""
SCHEMES: Final = ("dns", "k8s-service")
"""Schemes of addresses that discover servers."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_K8S_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_FAMILIES: Final = {"4": socket.AF_INET, "6": socket.AF_INET6}
_FORMS: Final = (
    "http://HOST:PORT, dns://HOST:PORT, dns://_SERVICE._tcp.DOMAIN (SRV records), or k8s-service://NAMESPACE/NAME:PORT"
)


@dataclass(frozen=True, slots=True)
class Place:
    """The address of a server: its URL, and its name for TLS and ``Host`` if that differs from the URL's host."""

    url: str
    server_name: str | None = None


class Source(Protocol):
    """The interface of one source of server addresses.

    Attributes:
        linger: How long a server stays listed after the source last named it.
    """

    @property
    def linger(self) -> timedelta: ...

    async def find(self) -> Sequence[Place]:
        """Return the addresses of the servers that the source finds, at least one.

        Raises:
            DiscoveryError: The servers cannot be found out now.
        """
        ...


def is_discovered(address: str) -> bool:
    """Return whether an address names a source that finds servers, such as DNS, and not one server by its URL."""
    return address.partition("://")[0] in SCHEMES


def source_of(address: str, *, timeout: timedelta) -> Source:
    """Return the source that finds the servers of one address. No request is made yet.

    Args:
        address: A server's URL, ``dns://…`` or ``k8s-service://…`` (see the module).
        timeout: Timeout of one request.

    Raises:
        ConfigurationError: The address has none of these forms.
        MissingExtraError: The address needs SRV records or names a DNS server (``server=``), and ``dnspython``, which
            does that, is not installed.
    """
    scheme = address.partition("://")[0]
    if scheme == "dns":
        return _dns_source(address, timeout)
    if scheme == "k8s-service":
        return _service_source(address, timeout)
    return Listed(Place(str(parse_server_url(address))))


class NodeDirectory:
    """Discovers the servers at any number of addresses, and returns a client for each at every call.

    It is a `goatherd.cluster.node.NodeSource`. Use it as an async context manager. It owns the clients that it returns,
    and closes a client when its server is no longer listed.

    Args:
        addresses: Servers' URLs, ``dns://…`` or ``k8s-service://…`` (see the module).
        timeout: Timeout of one request to a server, and of one discovery request.
        clock: Tells the time.
        connect: Makes the client for a server's address; over HTTP by default.
        org: The organization that requests are about; needed if an agent serves several.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        timeout: timedelta,
        clock: Clock | None = None,
        connect: Callable[[Place], NodeClient] | None = None,
        org: str | None = None,
    ) -> None:
        self.addresses = tuple(addresses)
        self._org = org
        self.is_discovered = any(is_discovered(address) for address in addresses)
        self._sources = [source_of(address, timeout=timeout) for address in addresses]
        self.timeout = timeout
        self._clock: Clock = clock or SystemClock()
        self._connect = connect or self._over_http
        self._seen: list[dict[Place, float]] = [{} for _ in self._sources]
        self._clients: dict[Place, NodeClient] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close(list(self._clients))

    async def __call__(self) -> list[NodeClient]:
        """Discover the servers, and return a client for each, one per URL. Empty only if no address was given.

        Raises:
            DiscoveryError: The servers cannot be discovered. The caller must not treat known servers as removed.
        """
        places: dict[str, Place] = {}
        for found in await self._find_places():
            for place in found:
                places.setdefault(place.url, place)
        for place in places.values():
            if place not in self._clients:
                self._clients[place] = self._connect(place)
        await self._close([place for place in self._clients if places.get(place.url) != place])
        return [self._clients[place] for place in places.values()]

    async def _find_places(self) -> list[list[Place]]:
        answers = await asyncio.gather(*(source.find() for source in self._sources), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        now = self._clock.monotonic()
        found = []
        for source, seen, answer in zip(self._sources, self._seen, answers, strict=True):
            assert not isinstance(answer, BaseException)
            seen.update(dict.fromkeys(answer, now))
            for place in [each for each, at in seen.items() if now - at > source.linger.total_seconds()]:
                del seen[place]
            found.append(list(seen))
        return found

    def _over_http(self, place: Place) -> NodeClient:
        return NodeClient(
            place.url, timeout=self.timeout, clock=self._clock, server_name=place.server_name, org=self._org
        )

    async def _close(self, places: Sequence[Place]) -> None:
        for client in [self._clients.pop(place) for place in places]:
            await client.aclose()


# --- sources ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """A source that names one server, which the operator has listed by its URL."""

    place: Place
    linger: timedelta = timedelta(0)

    async def find(self) -> Sequence[Place]:
        return [self.place]


class PlatformNames:
    """A source that finds servers by a host name, with the operating system's resolver, as other programs do."""

    linger = LINGER

    def __init__(self, host: str, port: int, *, scheme: str, server_name: str, family: str | None) -> None:
        self._host, self._port, self._scheme, self._server_name = host, port, scheme, server_name
        self._family = _FAMILIES.get(family or "", socket.AF_UNSPEC)
        self._running: asyncio.Task[list[Any]] | None = None

    async def find(self) -> Sequence[Place]:
        try:
            # A lookup cannot be stopped: a later caller waits for a lookup that hangs, and uses no second thread.
            if self._running is None or self._running.done():
                self._running = asyncio.create_task(self._look_up_host(), name=f"look up {self._host}")
                self._running.add_done_callback(lambda task: task.cancelled() or task.exception())
            answers = await asyncio.shield(self._running)
        except OSError as error:
            raise DiscoveryError(f"dns://{self._host}: {error.strerror or error}") from error
        return _places([str(answer[4][0]) for answer in answers], self._port, self._scheme, self._server_name)

    async def _look_up_host(self) -> list[Any]:
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(self._host, self._port, family=self._family, type=socket.SOCK_STREAM)


@dataclass(slots=True)
class Records:
    """A source that finds servers by asking DNS servers directly: for SRV records, or for the addresses of one name.

    Attributes:
        port: The servers' port, to look up the addresses of `host`; None to look up SRV records, which contain ports.
        server_name: The servers' name for TLS and ``Host``; None to use the host name that was looked up.
    """

    resolver: Resolver
    host: str
    port: int | None
    scheme: str
    server_name: str | None
    family: str | None
    linger: timedelta = field(default=LINGER)

    async def find(self) -> Sequence[Place]:
        if self.port is not None:
            return await self._addresses(self.host, self.port)
        targets = [(record.target.to_text(omit_final_dot=True), record.port) for record in await self._query_dns("SRV")]
        # "A Target of "." means that the service is decidedly not available at this domain" (RFC 2782).
        targets = [(target, port) for target, port in targets if target not in (".", "")]
        if not targets:
            raise DiscoveryError(f"dns://{self.host}: there are no SRV records", hint=_NO_SERVER_NAMED)
        found = await asyncio.gather(*(self._addresses(target, port) for target, port in targets))
        return sorted((place for places in found for place in places), key=lambda place: place.url)

    async def _addresses(self, host: str, port: int) -> list[Place]:
        kinds = ["A"] if self.family == "4" else ["AAAA"] if self.family == "6" else ["A", "AAAA"]
        answers = await asyncio.gather(*(self._query_dns(kind, host) for kind in kinds))
        addresses = [record.address for records in answers for record in records]
        return _places(addresses, port, self.scheme, self.server_name or host)

    async def _query_dns(self, kind: str, host: str | None = None) -> list[Any]:
        """Return the DNS records of type `kind` for `host` (default: `self.host`); empty if the name has none."""
        from dns.exception import DNSException
        from dns.resolver import NXDOMAIN

        name = host or self.host
        try:
            answer = await self.resolver.resolve(name, kind, raise_on_no_answer=False)
        except NXDOMAIN as error:
            raise DiscoveryError(f"dns://{name}: there is no such name in DNS", hint=_NO_SERVER_NAMED) from error
        except (DNSException, OSError) as error:
            raise DiscoveryError(f"dns://{name}: {kind} records cannot be looked up: {error}") from error
        return [] if answer.rrset is None else list(answer)


class ServiceEndpoints:
    """A source that finds the pods behind a Kubernetes Service, ready or not, but not those that have stopped serving.

    A pod that is not ready may hold the old key and become ready with it, so it counts. A pod that terminates but still
    serves accepts commits, so it counts until it stops serving:
    https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#conditions.
    """

    linger = timedelta(0)

    def __init__(
        self,
        cluster: Mapping[str, str],
        namespace: str,
        name: str,
        port: str,
        *,
        scheme: str,
        server_name: str,
        timeout: timedelta,
    ) -> None:
        self._cluster, self._namespace, self._name, self._port = cluster, namespace, name, port
        self._scheme, self._server_name, self.timeout = scheme, server_name, timeout
        self._reader: ServiceReader | None = None

    async def find(self) -> Sequence[Place]:
        from goatherd.plugins import open_service_reader

        where = f"k8s-service://{self._namespace}/{self._name}"
        try:
            if self._reader is None:
                self._reader = open_service_reader("k8s", self._cluster, timeout=self.timeout)
            slices = await self._reader.endpoint_slices(self._namespace, self._name)
        except ProviderAccessDeniedError as error:
            # The advice is in the message, because an obstacle of a rotation shows its own hint.
            raise DiscoveryError(f"{where}: {error}. {_RIGHTS}", hint=_ROLE) from error
        except ProviderError as error:
            raise DiscoveryError(f"{where}: {error}") from error
        except MissingExtraError as error:
            raise DiscoveryError(f"{where}: {error}. {error.hint}", hint=error.hint) from error
        except (GoatherdError, OSError) as error:
            raise DiscoveryError(f"{where}: {error}", hint=getattr(error, "hint", None)) from error
        places = self._places(slices)
        if not places:
            raise DiscoveryError(
                f"{where}: no pod is behind this Service, or there is no such Service", hint=_NO_SERVER_NAMED
            )
        return places

    def _places(self, slices: Sequence[Mapping[str, Any]]) -> list[Place]:
        found: dict[str, Place] = {}
        # A pod of a Service for both families is in one slice of each; IPv4 comes first.
        for each in sorted(slices, key=lambda one: str(one.get("addressType"))):
            endpoints = [one for one in each.get("endpoints") or [] if _is_serving(one)]
            if not endpoints:
                continue
            port = self._port_in(each)
            for endpoint in endpoints:
                address = str(endpoint["addresses"][0])  # "consumers should always use the first": they are fungible
                pod = endpoint.get("targetRef") or {}
                place = _places([address], port, self._scheme, self._server_name)[0]
                found.setdefault(str(pod.get("uid") or place.url), place)
        return list(found.values())

    def _port_in(self, slice_: Mapping[str, Any]) -> int:
        ports = [one for one in slice_.get("ports") or [] if isinstance(one.get("port"), int)]
        for one in ports:
            if self._port in (one.get("name") or "", str(one["port"])):
                return int(one["port"])
        known = ", ".join(f"{one.get('name') or '(no name)'} ({one['port']})" for one in ports) or "none"
        raise DiscoveryError(
            f"k8s-service://{self._namespace}/{self._name}: the pods have no port {self._port!r}",
            hint=f"Give the port's name in the Service, or the number on which the pods listen: {known}.",
        )


_NO_SERVER_NAMED: Final = "Goatherd does not treat an empty answer as an empty cluster."
_RIGHTS: Final = "The account must be allowed to list endpointslices of discovery.k8s.io in that namespace."
_ROLE: Final = "Create the Role and the RoleBinding for that (how-to page: Discover servers)."


def _is_serving(endpoint: Mapping[str, Any]) -> bool:
    conditions = endpoint.get("conditions") or {}
    return bool(endpoint.get("addresses")) and not (
        conditions.get("terminating") is True and conditions.get("serving") is False
    )


def _places(addresses: Sequence[str], port: int, scheme: str, server_name: str) -> list[Place]:
    if not addresses:
        raise DiscoveryError(f"{server_name} has no IP addresses", hint=_NO_SERVER_NAMED)
    # DNS servers rotate their answers; a fixed order is easier to follow in logs.
    return [Place(f"{scheme}://{_bracket_ipv6(address)}:{port}", server_name) for address in sorted(set(addresses))]


def _bracket_ipv6(address: str) -> str:
    try:
        return f"[{address}]" if isinstance(ip_address(address), IPv6Address) else address
    except ValueError:
        return address  # a slice of type FQDN has names


# --- addresses ----------------------------------------------------------------------------------------------------


def _dns_source(address: str, timeout: timedelta) -> Source:
    host, port, options = _split_address(address, {"scheme", "family", "server", "tls-name"})
    if not _NAME.fullmatch(host) or len(host) > 253:
        raise _not_an_address(address)
    scheme, family = _choose_scheme(address, options), options.get("family")
    if family not in (None, *_FAMILIES):
        raise ConfigurationError(f"{address}: the option family must be 4 (IPv4) or 6 (IPv6)")
    is_srv = host.startswith("_")
    if is_srv == bool(port):
        raise ConfigurationError(
            f"{address}: an address that uses SRV records must not contain a port"
            if is_srv
            else f"{address}: the port is missing",
            hint=f"Use {_FORMS}.",
        )
    number = None if is_srv else _parse_port(address, port)
    if number is not None and "server" not in options:
        name = options.get("tls-name", host.rstrip("."))
        return PlatformNames(host, number, scheme=scheme, server_name=name, family=family)
    return Records(
        resolver=_make_resolver(address, options.get("server"), timeout),
        host=host,
        port=number,
        scheme=scheme,
        server_name=options.get("tls-name"),
        family=family,
    )


def _make_resolver(address: str, server: str | None, timeout: timedelta) -> Resolver:
    try:
        from dns.asyncresolver import Resolver
        from dns.resolver import NoResolverConfiguration
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{address} needs a library that is not installed: dnspython",
            hint="Install it: pip install 'goatherd[dns]'",
        ) from error
    try:
        resolver = Resolver(configure=server is None)
    except NoResolverConfiguration as error:
        raise ConfigurationError(
            f"{address}: this machine has no DNS server configured; add ?server=ADDRESS to name one"
        ) from error
    resolver.lifetime = timeout.total_seconds()
    resolver.use_search_by_default = server is None
    if server is not None:
        try:
            parts = urlsplit(f"//{server}")
            name_server, port = str(ip_address(parts.hostname or "")), parts.port or 53
        except ValueError:
            raise ConfigurationError(
                f"{address}: the option server must be an IP address, such as 127.0.0.1:8600"
            ) from None
        resolver.nameservers, resolver.port = [name_server], port
    return resolver


def _service_source(address: str, timeout: timedelta) -> Source:
    namespace, port, options = _split_address(address, {"scheme", "kubeconfig", "context", "tls-name"}, has_path=True)
    namespace, _, name = namespace.partition("/")
    if not all(_K8S_NAME.fullmatch(part) for part in (namespace, name)) or not port:
        raise _not_an_address(address)
    if not _K8S_NAME.fullmatch(port):
        raise ConfigurationError(f"{address}: {port!r} is not the name or the number of a port")
    return ServiceEndpoints(
        options,
        namespace,
        name,
        port,
        scheme=_choose_scheme(address, options),
        server_name=options.get("tls-name", f"{name}.{namespace}.svc"),
        timeout=timeout,
    )


def _split_address(address: str, known: set[str], *, has_path: bool = False) -> tuple[str, str, dict[str, str]]:
    """Split an address into the part before the port, the port (empty if there is none), and the options by name.

    Raises:
        ConfigurationError: The address is malformed; or an option is not among `known`, is repeated, or has no value.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        raise _not_an_address(address) from None
    if parts.fragment or "@" in address:
        raise _not_an_address(address)
    options = parse_qsl(parts.query, keep_blank_values=True)
    place = unquote(parts.netloc + (parts.path if has_path else parts.path.rstrip("/")))
    names = [name for name, _ in options]
    unknown = sorted(set(names) - known)
    if unknown or len(set(names)) < len(names) or not all(value for _, value in options):
        what = f"unknown option {unknown[0]!r}" if unknown else "an option is repeated, or has no value"
        raise ConfigurationError(f"{masked(address)}: {what}", hint=f"Options: {', '.join(sorted(known))}, once each.")
    before, colon, port = place.rpartition(":")
    return (before, port, dict(options)) if colon else (place, "", dict(options))


def _choose_scheme(address: str, options: Mapping[str, str]) -> str:
    scheme = options.get("scheme", "http")
    if scheme not in ("http", "https"):
        raise ConfigurationError(f"{address}: the option scheme must be http or https")
    return scheme


def _parse_port(address: str, port: str) -> int:
    if not port.isascii() or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 65_536:
        raise ConfigurationError(f"{address}: {port!r} is not a port; a port must be a number from 1 to 65535")
    return int(port)


def _not_an_address(address: str) -> ConfigurationError:
    return ConfigurationError(f"{masked(address)!r} is not a valid server address", hint=f"Use {_FORMS}.")
