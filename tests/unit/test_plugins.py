"""Plugins: found by scheme, loaded one at a time, and rejected with a reason that helps."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Self

import pytest

from goatherd import plugins
from goatherd.errors import ConfigurationError, MissingExtraError, PluginNotFoundError, SecretNotFoundError
from goatherd.plugins import (
    open_provider,
    open_signer_plugin,
    policy_text,
    provider_from_config,
    provider_schemes,
    signer_schemes,
)
from goatherd.providers.base import Call, Guarantees, SecretProvider
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import Label, SecretValue, VersionId
from goatherd.signers import Signer


class Distribution:
    def __init__(self, name: str) -> None:
        self.name = name
        self.version = "9.9"


def point(name: str, value: str, distribution: str = "stranger") -> EntryPoint:
    made = EntryPoint(name=name, value=value, group="goatherd.providers")
    vars(made)["dist"] = Distribution(distribution)
    return made


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Return the list of installed entry points, which the test can change."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    return points


MEMORY = "goatherd.providers.memory:MemorySecretProvider"


def test_the_embedded_providers_are_entry_points_like_any_other():
    assert {"file", "memory"} <= set(provider_schemes())
    provider, secret_id = open_provider("memory:///somewhere/acme/root")
    assert isinstance(provider, MemorySecretProvider)
    assert secret_id == "acme/root"


async def test_providers_of_one_memory_name_share_a_store_and_others_do_not():
    first, secret_id = open_provider("memory:///test-plugins-a/root")
    await first.create(secret_id, b"value")
    again, _ = open_provider("MEMORY:///test-plugins-a/root")
    assert (await again.read(secret_id)).value.reveal() == b"value"
    other, _ = open_provider("memory:///test-plugins-b/root")
    assert await other.create(secret_id, b"another")


@pytest.mark.parametrize(
    "uri", ["memory:///", "memory:///name", "memory://host/name/x", "memory:///n/s?x", "memory:///n/"]
)
def test_a_memory_address_is_a_name_and_a_secret(uri: str):
    with pytest.raises(ConfigurationError, match="memory"):
        open_provider(uri)


@pytest.mark.parametrize("uri", ["", "root", "/srv/keys/root", "file:/srv/keys/root", "://x", "1x://y", "a b://c"])
def test_what_is_no_uri_is_refused_with_an_example_and_the_known_schemes(uri: str):
    with pytest.raises(ConfigurationError, match="is not the URI of a store") as caught:
        open_provider(uri)
    assert "file:///srv/keys/root" in caught.value.hint
    assert "memory" in caught.value.hint


def test_an_unknown_scheme_is_answered_with_the_known_ones(installed: list[EntryPoint]):
    installed += [point("zeta", MEMORY), point("alpha", MEMORY)]
    with pytest.raises(PluginNotFoundError, match="no provider for the scheme 's3'; known schemes: alpha, zeta"):
        open_provider("s3://bucket/key")


def test_nothing_installed_is_told_apart_from_an_unknown_scheme(installed: list[EntryPoint]):
    with pytest.raises(PluginNotFoundError, match="goatherd itself is not installed"):
        open_provider("file:///srv/keys/root")


def test_a_password_in_an_address_is_refused_and_not_quoted():
    with pytest.raises(ConfigurationError) as caught:
        open_provider("memory://user:hunter2@host/name/secret")
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("file:///srv/{foo}/root", "{foo}"),
        ("memory:///a/{ORG}-root", "{ORG}"),
        ("memory:///a/{{org}}/root", "{}"),
        ("memory:///a/{org}/{", "{"),
        ("k8s://{namespace}/goatdb-{org}", "{namespace}"),
        ("aws://eu-west-1/goatdb/{org }/root", "{org }"),
    ],
)
def test_a_placeholder_that_stands_for_nothing_is_refused_and_the_right_one_is_named(uri: str, named: str):
    with pytest.raises(ConfigurationError, match=re.escape(named)) as caught:
        open_provider(uri)
    assert "{org}" in caught.value.hint


def test_a_placeholder_is_refused_in_goatdbs_own_options_and_for_policies_too():
    with pytest.raises(ConfigurationError, match=r"\{ORG\}"):
        provider_from_config({"provider": "file", "secretId": "/srv/{ORG}/root"})
    with pytest.raises(ConfigurationError, match=r"\{ORG\}"):
        policy_text("file", "server", "file:///srv/{ORG}/root")
    assert open_provider("memory:///a/{org}/root")[1] == "{org}/root"


def test_the_policies_of_another_plugin_take_an_address_and_no_cloud_config(installed: list[EntryPoint]):
    installed.append(point("x", f"{__name__}:Clumsy"))
    with pytest.raises(ConfigurationError, match="take no cloudConfig") as caught:
        policy_text("x", "server", {"provider": "x", "secretId": "a"})
    assert caught.value.hint == "Give the address of the secret."


def test_a_scheme_claimed_twice_is_refused_with_both_names(installed: list[EntryPoint]):
    installed += [point("x", MEMORY, "one"), point("x", "other:Provider", "two")]
    with pytest.raises(ConfigurationError, match=r"is provided by two packages: one \(.*\) and two \(other:Provider\)"):
        open_provider("x:///a/b")


def test_one_distribution_found_twice_on_the_path_is_one(installed: list[EntryPoint]):
    installed += [point("x", MEMORY, "one"), point("x", MEMORY, "one")]
    assert open_provider("x:///a/b")[1] == "b"


@pytest.mark.parametrize(
    ("scheme", "distribution", "command"),
    [
        ("aws", "goatherd", "pip install 'goatherd[aws]'"),
        ("azure", "goatherd", "pip install 'goatherd[azure]'"),
        ("gcp", "goatherd", "pip install 'goatherd[gcp]'"),
        ("k8s", "goatherd", "pip install 'goatherd[kubernetes]'"),
        ("k8s-volume", "goatherd", "pip install 'goatherd[kubernetes]'"),
        ("openbao", "goatherd", "pip install 'goatherd[vault]'"),
        ("vault", "goatherd", "pip install 'goatherd[vault]'"),
        ("aws", "stranger", "pip install stranger"),
    ],
)
def test_a_missing_library_is_answered_with_the_install_command(
    installed: list[EntryPoint], scheme: str, distribution: str, command: str
):
    installed.append(point(scheme, "no_such_library_at_all.provider:Provider", distribution))
    with pytest.raises(MissingExtraError, match="no_such_library_at_all") as caught:
        open_provider(f"{scheme}://somewhere/x")
    assert command in caught.value.hint


def test_every_extra_that_an_install_command_may_name_exists_and_all_brings_each():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    schemes = set(provider_schemes()) - {"file", "memory"}
    assert {plugins._EXTRAS.get(scheme, scheme) for scheme in schemes} <= set(extras)
    named = set(re.findall(r"[a-z0-9]+", extras["all"][0].partition("[")[2]))
    assert named == set(extras) - {"all"}


def test_every_scheme_of_a_provider_has_a_policy():
    assert {point.name for point in plugins._entry_points(plugins.POLICIES)} == {*provider_schemes(), *signer_schemes()}


@pytest.mark.parametrize(
    "value",
    ["goatherd.providers.memory:NoSuchClass", "goatherd.providers.base:check_label", "goatherd.errors:ConflictError"],
)
def test_a_plugin_that_is_no_provider_is_refused_with_its_maker(installed: list[EntryPoint], value: str):
    installed.append(point("x", value))
    with pytest.raises(ConfigurationError, match="of stranger is"):
        open_provider("x:///a/b")


class Incomplete(SecretProvider):
    scheme = "x"

    @classmethod
    def from_uri(cls, uri: str) -> tuple[Self, str]:
        return cls(), "root"  # type: ignore[abstract]

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        raise call.error(SecretNotFoundError, "there is no such secret")


class IncompleteSigner(Signer):
    scheme = "y"

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        return cls()  # type: ignore[abstract]


def test_a_plugin_without_a_required_method_is_refused_with_the_methods_that_it_lacks(installed: list[EntryPoint]):
    installed += [point("x", f"{__name__}:Incomplete"), point("y", f"{__name__}:IncompleteSigner")]
    lacking = "_create, _delete, _destroy, _label, _versions, _write, guarantees"
    with pytest.raises(ConfigurationError, match=f"the x provider of stranger lacks {lacking}: "):
        open_provider("x:///a/root")
    with pytest.raises(ConfigurationError, match="the y signer of stranger lacks facts, public_key, sign: "):
        open_signer_plugin("y:key")


class Unnamed(MemorySecretProvider):
    scheme = None  # type: ignore[assignment]


class Method(MemorySecretProvider):
    def guarantees(self) -> Guarantees:  # type: ignore[override]
        return super().guarantees


class Bare(MemorySecretProvider):
    def __init__(self) -> None:
        pass

    @classmethod
    def from_uri(cls, uri: str):
        return cls(), "root"


class Swapped(MemorySecretProvider):
    @classmethod
    def from_uri(cls, uri: str):
        return "root", cls()


class Alone(MemorySecretProvider):
    @classmethod
    def from_uri(cls, uri: str):
        return cls()


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ("Unnamed", "the x provider of stranger lacks scheme"),
        ("Method", "the x provider of stranger lacks the property guarantees"),
        ("Bare", r"the x provider is broken: its __init__ must call super\(\)\.__init__\(\)"),
        ("Swapped", "the x provider is broken: from_uri must return a provider and the id of a secret"),
        ("Alone", "the x provider is broken: from_uri must return a provider and the id of a secret"),
    ],
)
def test_what_the_author_of_a_plugin_has_missed_is_named(installed: list[EntryPoint], made: str, problem: str):
    installed.append(point("x", f"{__name__}:{made}"))
    with pytest.raises(ConfigurationError, match=problem) as caught:
        open_provider("x:///a/root")
    assert "authors" in caught.value.hint
    with pytest.raises(ConfigurationError):
        provider_from_config({"provider": "x", "secretId": "a/root"})


def silent_policy(role: str, address: str) -> None:
    pass


def test_a_policy_that_is_no_text_is_the_plugin_s_fault(installed: list[EntryPoint]):
    installed.append(point("x", f"{__name__}:silent_policy"))
    with pytest.raises(ConfigurationError, match="'x' are broken: a NoneType was returned"):
        policy_text("x", "server", "x:///a/root")


def test_one_broken_plugin_does_not_hide_the_others(installed: list[EntryPoint]):
    installed += [point("z", MEMORY), point("a", "no_such_library_at_all:P"), point("m", "goatherd.errors:Nothing")]
    with pytest.raises(MissingExtraError):
        open_provider("a:///a/root")
    with pytest.raises(ConfigurationError):
        open_provider("m:///a/root")
    assert open_provider("z:///a/root")[1] == "root"


def test_a_plugin_that_ends_the_process_when_it_is_imported_is_broken_like_any_other(
    installed: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "needs_a_licence.py").write_text("raise SystemExit('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    installed += [point("a", "needs_a_licence:Provider"), point("z", MEMORY)]
    with pytest.raises(ConfigurationError, match="no licence"):
        open_provider("a:///a/root")
    assert open_provider("z:///a/root")[1] == "root"


class Clumsy(MemorySecretProvider):
    @classmethod
    def from_uri(cls, uri: str):
        raise KeyError(uri)

    @classmethod
    def from_config(cls, config: Mapping[str, object]):
        raise KeyError(config["secretId"])


def test_what_a_plugin_raises_over_an_address_is_named_and_not_quoted(installed: list[EntryPoint]):
    installed.append(point("x", f"{__name__}:Clumsy"))
    place = "somewhere".upper()  # so that no line of this file quotes it
    for attempt in (
        lambda: open_provider(f"x:///{place}"),
        lambda: provider_from_config({"provider": "x", "secretId": place}),
    ):
        with pytest.raises(ConfigurationError, match="KeyError") as caught:
            attempt()
        assert place not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("scheme", sorted(set(provider_schemes()) - {"memory"}))
@pytest.mark.parametrize("rest", ["[/root", "[::1/root", "a\u2100b/root", "host:port/a/b", "host:99999999/a/b"])
def test_an_address_that_is_no_uri_is_a_configuration_error(scheme: str, rest: str):
    for attempt in (
        lambda: open_provider(f"{scheme}://{rest}"),
        lambda: policy_text(scheme, "server", f"{scheme}://{rest}"),
    ):
        try:
            attempt()
        except ConfigurationError:
            continue


def test_goatdb_s_configuration_shape_chooses_the_plugin():
    provider, secret_id = provider_from_config({"provider": "memory", "secretId": "name/secret", "region": "anywhere"})
    assert isinstance(provider, MemorySecretProvider)
    assert secret_id == "secret"


@pytest.mark.parametrize("name", ["s3", "swift", "Kubernetes", None, 5, "", "Not A Name"])
def test_a_configuration_with_an_unknown_provider_is_a_configuration_error(name: object):
    with pytest.raises(ConfigurationError, match="cloudConfig"):
        provider_from_config({"provider": name, "secretId": "x"})


def test_goatdb_s_name_for_kubernetes_is_its_scheme(installed: list[EntryPoint]):
    installed.append(point("k8s", MEMORY))
    assert provider_from_config({"provider": "kubernetes", "secretId": "ns/name"})[1] == "name"


def test_opening_one_scheme_imports_no_other_provider():
    program = (
        "import sys; from goatherd.plugins import open_provider, provider_schemes; provider_schemes();"
        "assert not [m for m in sys.modules if m.startswith('goatherd.providers')];"
        "open_provider('memory:///n/s');"
        "assert 'goatherd.providers.memory' in sys.modules;"
        "assert 'goatherd.providers.file' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
