"""`goatherd web`: serve a read-only page with the status, live."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

from goatherd.cli.main import FILE, App, command, config_flag
from goatherd.cluster.discovery import NodeDirectory
from goatherd.config.build import build_policy, build_schedule, listed_nodes, open_nodes, open_store
from goatherd.config.options import Options
from goatherd.operations.identity_store import Store
from goatherd.serving.signals import watch_stop_signals
from goatherd.stores import ReplicatedStore
from goatherd.web.access import PageAddress, check_address
from goatherd.web.collector import Collector
from goatherd.web.publisher import publish_views


@command(
    example="goatherd web --port 8090 --node http://10.0.0.1:8080 --node http://10.0.0.2:8080\n"
    "goatherd web --host 0.0.0.0 --token file:/etc/goatherd/token --certificate web.pem --certificate-key web.key",
    nodes=True,
)
@config_flag("--host", "web_host", metavar="ADDRESS")
@config_flag("--port", "web_port")
@config_flag("--interval", "web_interval")
@config_flag(
    "--token",
    "web_token",
    "Source of the token that a reader must give: file:/PATH, env:NAME or credential:NAME (a systemd credential).",
    metavar="SOURCE",
)
@config_flag("--certificate", "web_certificate", kind=FILE)
@config_flag("--certificate-key", "web_certificate_key", kind=FILE)
@config_flag("--behind", "web_proxies", "Network of a reverse proxy that signs readers in; only it may connect.")
@config_flag("--audit-log", "audit_log", "File of the audit trail that the page verifies and shows.", kind=FILE)
async def web(app: App) -> None:
    """Serve a read-only page with the status of a cluster, live.

    The page shows the store, the identity and every server. By default, only this machine can open it. To serve it to
    others, give a token and TLS, or name a reverse proxy that authenticates readers. The store and each server are read
    once in an interval, however many pages are open. A separate process without any key answers the readers.

    The command prints one line when the page is served. SIGTERM or Ctrl-C stops it.
    """
    options = app.options
    address = page_address(options, options.web_host, options.web_port)

    def print_ready(url: str) -> None:
        app.out.ready({"url": url, "org": options.org}, f"ready at {url}: organization {options.org}")

    async with AsyncExitStack() as stack:
        store: Store = await stack.enter_async_context(open_store(options, is_reader=True))
        nodes = await stack.enter_async_context(open_nodes(options)) if listed_nodes(options) else None
        collector = make_collector(options, store, nodes)
        signals = stack.enter_context(watch_stop_signals())
        await publish_views(collector, address, interval=options.web_interval, stop=signals.stop, on_ready=print_ready)


def page_address(options: Options, host: str, port: int) -> PageAddress:
    """Return the address of the status page, with the token, the certificate and the proxies that the options name.

    Args:
        options: The options.
        host, port: Address to listen on.

    Raises:
        ConfigurationError: Other machines could see the page without signing in, or a file cannot be used.
    """
    return check_address(
        host,
        port,
        token=options.web_token,
        certificate=options.web_certificate,
        key=options.web_certificate_key,
        proxies=options.web_proxies,
    )


def make_collector(
    options: Options, store: Store, nodes: NodeDirectory | None, *, may_write: bool = False
) -> Collector:
    """Return the collector, which builds the views of a cluster for the status page.

    Args:
        options: The policy, the schedule and the audit trail.
        store: The open store.
        nodes: The servers; None for the store alone.
        may_write: Whether the process also rotates, so that the page must not warn of credentials that may write.
    """
    if isinstance(store.provider, ReplicatedStore):
        # A controller's page, too, shows what another region's store holds while the primary store does not answer.
        store = replace(store, provider=store.provider.open_reader(options.web_interval))
    return Collector(
        store=store,
        nodes=nodes,
        policy=build_policy(options),
        schedule=build_schedule(options),
        grace=options.rotation_grace,
        interval=options.web_interval,
        hidden=set(options.rotation_bare) - set(options.nodes),
        audit_log=options.audit_log,
        may_write=may_write,
    )
