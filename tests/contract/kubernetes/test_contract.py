"""The Kubernetes provider over the fake API server: the provider contract, and the requests that it sends."""

from __future__ import annotations

import base64
import hashlib
import json
import traceback
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    ProviderMisuseError,
    SecretExistsError,
    SecretNotFoundError,
    SecretTooLargeError,
    ThrottledError,
    UnavailableError,
)
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.base import RetryPolicy, SecretProvider
from goatherd.providers.kubernetes.permissions import policy
from goatherd.providers.kubernetes.provider import HISTORY, KubernetesSecretProvider
from goatherd.providers.values import CURRENT, STABLE, Label, VersionId
from goatherd.testing.contract import AnswerContract, ProviderContract
from goatherd.testing.wrong_answers import WrongAnswers
from tests.contract.kubernetes.clients import kubeconfig, provider_of
from tests.deadlines import HANG
from tests.fakes.kubernetes_fake import FakeKubernetes, Trouble

NEVER = RetryPolicy(attempts=1)
ROOT = "default/root"


@pytest.fixture
async def provider(fake: FakeKubernetes, tmp_path: Path) -> AsyncIterator[KubernetesSecretProvider]:
    async with provider_of(fake, tmp_path) as entered:
        yield entered


class TestKubernetesFake(ProviderContract):
    promises = frozenset({"cas", "custom_labels", "destroys", "durable", "push"})
    prefix = "default/goatherd-contract-"
    settle = timedelta(0)
    rounds = 20

    @pytest.fixture(autouse=True)
    def _server(self, fake: FakeKubernetes, tmp_path: Path) -> None:
        self.fake, self.path = fake, tmp_path

    def provider(self) -> SecretProvider:
        return provider_of(self.fake, self.path)


class TestKubernetesFakeAnswers(AnswerContract):
    prefix = "default/goatherd-contract-"
    settle = timedelta(0)

    @pytest.fixture(autouse=True)
    def _server(self, fake: FakeKubernetes, tmp_path: Path) -> None:
        self.fake, self.path = fake, tmp_path

    def provider(self) -> SecretProvider:
        return provider_of(self.fake, self.path)

    def wrong_answers(self) -> WrongAnswers:
        return self.fake.wrong


@pytest.mark.deep
class TestKubernetesFakeAtLength(TestKubernetesFake):
    rounds = 100


# --- the object -----------------------------------------------------------------------------------------------------


async def test_one_object_holds_the_values_as_they_are_and_the_record(
    fake: FakeKubernetes, provider: KubernetesSecretProvider
):
    first = await provider.create(ROOT, b'{"a": 1}')
    await provider.write(ROOT, b'{"a": 2}', expected=first.id)
    await provider.label(ROOT, STABLE, first.id, expected=None)
    stored = fake.stored("default", "root")
    data = {key: base64.b64decode(value) for key, value in stored["data"].items()}
    assert stored["type"] == "Opaque"
    assert sorted(data) == ["record", "v1", "value"]
    assert (data["v1"], data["value"]) == (b'{"a": 1}', b'{"a": 2}')
    record = json.loads(data["record"])
    assert record["labels"] == {"current": 2, "stable": 1}
    assert record["versions"]["1"]["sha256"] == hashlib.sha256(b'{"a": 1}').hexdigest()


async def test_what_others_put_into_the_object_survives_every_change(
    fake: FakeKubernetes, provider: KubernetesSecretProvider
):
    first = await provider.create(ROOT, b"first")
    theirs = fake.stored("default", "root")
    theirs["metadata"] |= {"annotations": {"who": "them"}, "labels": {"app": "goatdb"}, "finalizers": ["a.b/c"]}
    theirs["data"]["ca.pem"] = base64.b64encode(b"theirs").decode()
    fake.put("default", "root", theirs)
    await provider.write(ROOT, b"second", expected=first.id)
    await provider.destroy(ROOT, first.id)
    now = fake.stored("default", "root")
    assert {name: now["metadata"][name] for name in ("annotations", "labels", "finalizers")} == {
        "annotations": {"who": "them"},
        "labels": {"app": "goatdb"},
        "finalizers": ["a.b/c"],
    }
    assert base64.b64decode(now["data"]["ca.pem"]) == b"theirs"


async def test_every_replacement_names_the_state_that_it_replaces(
    fake: FakeKubernetes, provider: KubernetesSecretProvider, monkeypatch: pytest.MonkeyPatch
):
    sent: list[Any] = []
    replace = FakeKubernetes.replace

    def seen(self: FakeKubernetes, namespace: str, name: str, content: dict[str, Any]) -> dict[str, Any]:
        sent.append((content["metadata"]["resourceVersion"], self.get(namespace, name)["metadata"]["resourceVersion"]))
        return replace(self, namespace, name, content)

    monkeypatch.setattr(FakeKubernetes, "replace", seen)
    first = await provider.create(ROOT, b"first")
    second = await provider.write(ROOT, b"second", expected=first.id)
    await provider.label(ROOT, STABLE, second.id, expected=None)
    await provider.destroy(ROOT, first.id)
    assert len(sent) == 3
    assert all(named and named == was for named, was in sent)


async def test_a_writer_that_was_overtaken_looks_again_and_decides_again(
    fake: FakeKubernetes, provider: KubernetesSecretProvider, monkeypatch: pytest.MonkeyPatch
):
    first = await provider.create(ROOT, b"first")
    replace, overtaken = FakeKubernetes.replace, []

    def slow(self: FakeKubernetes, namespace: str, name: str, content: dict[str, Any]) -> dict[str, Any]:
        if not overtaken:
            overtaken.append(True)
            theirs = self.stored(namespace, name)
            theirs["metadata"]["annotations"] = {"touched": "yes"}
            self.put(namespace, name, theirs)
        return replace(self, namespace, name, content)

    monkeypatch.setattr(FakeKubernetes, "replace", slow)
    second = await provider.write(ROOT, b"second", expected=first.id)
    assert [asked.status for asked in fake.asked if asked.verb == "update"] == [409, 200]
    assert fake.stored("default", "root")["metadata"]["annotations"] == {"touched": "yes"}
    assert (await provider.read(ROOT)).version.id == second.id


async def test_old_versions_make_room_and_what_a_label_points_at_never_does(
    fake: FakeKubernetes, provider: KubernetesSecretProvider
):
    size = provider.guarantees.max_value_bytes
    holder = await provider.create(ROOT, b"%05d" % 1 * (size // 5))
    for number in range(1, 7):
        await provider.label(ROOT, f"kept-{number}", holder.id, expected=None)
        holder = await provider.write(ROOT, b"%05d" % (number + 1) * (size // 5), expected=holder.id)
    for number in range(8, 30):
        before = holder
        holder = await provider.write(ROOT, b"%05d" % number * (size // 5), expected=holder.id)
        assert (await provider.read(ROOT, before.id)).version.id == before.id, "who just held a label is kept"
    listed = await provider.versions(ROOT)
    assert len([version for version in listed if not version.labels]) >= HISTORY
    for number in range(1, 7):
        kept = await provider.read(ROOT, Label(f"kept-{number}"))
        assert kept.value.reveal()[:5] == b"%05d" % number
    with pytest.raises(SecretNotFoundError):
        await provider.read(ROOT, VersionId("9"))
    stored = fake.stored("default", "root")["data"]
    assert sum(len(base64.b64decode(value)) for value in stored.values()) <= 1 << 20
    assert len(stored) == len(listed) + 1, "the values of dropped versions are gone"


async def test_labels_that_leave_no_room_are_named_before_anything_is_sent(
    fake: FakeKubernetes, provider: KubernetesSecretProvider
):
    size = provider.guarantees.max_value_bytes
    holder = await provider.create(ROOT, b"1" * size)
    for number in range(1, 15):
        await provider.label(ROOT, f"kept-{number}", holder.id, expected=None)
        holder = await provider.write(ROOT, b"2" * size, expected=holder.id)
    await provider.label(ROOT, "kept-15", holder.id, expected=None)
    before = fake.stored("default", "root")
    with pytest.raises(SecretTooLargeError, match="no room") as caught:
        await provider.write(ROOT, b"3" * size, expected=holder.id)
    assert "labels" in caught.value.hint
    assert fake.stored("default", "root") == before


async def test_many_small_versions_are_bounded_in_number_too(provider: KubernetesSecretProvider):
    holder = await provider.create(ROOT, b"0")
    for number in range(1, 50):
        holder = await provider.write(ROOT, b"%d" % number, expected=holder.id)
    assert [version.id for version in await provider.versions(ROOT)] == [str(number) for number in range(50, 16, -1)]


# --- what is there and is not right ---------------------------------------------------------------------------------


async def test_a_secret_that_is_not_ours_is_neither_read_nor_changed_nor_deleted(
    fake: FakeKubernetes, provider: KubernetesSecretProvider
):
    theirs = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "root", "namespace": "default"}, "data": {}}
    fake.put("default", "root", theirs)
    before = fake.stored("default", "root")
    with pytest.raises(SecretExistsError):
        await provider.create(ROOT, b"x")
    for attempt in (
        provider.read(ROOT),
        provider.write(ROOT, b"x", expected=None),
        provider.label(ROOT, STABLE, "1", expected=None),
        provider.versions(ROOT),
        provider.destroy(ROOT, "1"),
        provider.delete(ROOT),
    ):
        with pytest.raises(ProviderConfigurationError, match="not made by Goatherd"):
            await attempt
    assert fake.stored("default", "root") == before


@pytest.mark.parametrize("how", ["record digest", "record cut", "not base64", "value", "value gone"])
async def test_damage_at_rest_is_unavailable_and_never_absent_or_a_value_and_is_not_written_over(
    fake: FakeKubernetes, provider: KubernetesSecretProvider, how: str
):
    first = await provider.create(ROOT, b"first")
    broken = fake.stored("default", "root")
    raw = base64.b64decode(broken["data"]["record"])
    if how == "record digest":
        raw = raw.replace(b'"destroyed": false', b'"destroyed": true ')
    elif how == "record cut":
        raw = raw[:-9]
    broken["data"]["record"] = base64.b64encode(raw).decode() if how != "not base64" else "*"
    if how == "value":
        broken["data"]["value"] = base64.b64encode(b"f1rst").decode()
    elif how == "value gone":
        del broken["data"]["value"]
    fake.put("default", "root", broken)
    before = fake.stored("default", "root")
    asked = len(fake.asked)
    with pytest.raises(UnavailableError, match="damaged"):
        await provider.read(ROOT)
    assert len(fake.asked) == asked + 1, "asking again would not help"
    if "value" not in how:
        with pytest.raises(UnavailableError, match="damaged"):
            await provider.write(ROOT, b"second", expected=first.id)
        assert fake.stored("default", "root") == before


SECRET = b"S3CRET-of-the-test"
ANSWERS: list[tuple[str, Trouble]] = [
    ("empty", Trouble(status=200, body=b"")),
    ("an empty object", Trouble(status=200, body=b"{}")),
    ("no JSON", Trouble(status=200, body=b"<html>welcome</html>")),
    ("half of it", Trouble(status=200, body=b'{"kind":"Secret","metadata":{"name":"root","na')),
    ("a list", Trouble(status=200, body=b"[]")),
    ("another kind", Trouble(status=200, body={"kind": "ConfigMap", "metadata": {"name": "root"}})),
    (
        "another secret",
        Trouble(
            status=200,
            body={"kind": "Secret", "metadata": {"name": "x", "namespace": "default", "resourceVersion": "1"}},
        ),
    ),
    (
        "no resourceVersion",
        Trouble(status=200, body={"kind": "Secret", "metadata": {"name": "root", "namespace": "default"}}),
    ),
    ("a bare 404", Trouble(status=404, body=b"404 page not found\n")),
    (
        "a 404 of another thing",
        Trouble(
            status=404,
            body={"kind": "Status", "status": "Failure", "reason": "NotFound", "details": {}, "code": 404},
        ),
    ),
    ("a redirect", Trouble(status=302, headers={"Location": "http://127.0.0.1:1/"})),
    ("a teapot", Trouble(status=418, body=b"{}")),
    ("a failure", Trouble(status=500, body=b"oops " + SECRET)),
    ("a gateway", Trouble(status=503, body=b"<html>no upstream</html>")),
]


@pytest.mark.parametrize(("_what", "trouble"), ANSWERS, ids=[what for what, _ in ANSWERS])
async def test_a_damaged_answer_is_unavailable_and_never_absent_and_the_next_attempt_helps(
    fake: FakeKubernetes, provider: KubernetesSecretProvider, tmp_path: Path, _what: str, trouble: Trouble
):
    first = await provider.create(ROOT, SECRET)
    fake.troubles = [trouble]
    trouble.times = 1
    async with provider_of(fake, tmp_path, retry=NEVER) as once:
        with pytest.raises(UnavailableError) as caught:
            await once.read(ROOT)
    assert SECRET.decode() not in "".join(traceback.format_exception(caught.value))
    for method in ("GET", "PUT"):
        trouble.times, trouble.method = 1, method
        holder = (await provider.read(ROOT)).version.id
        trouble.times = 1
        second = await provider.write(ROOT, SECRET, expected=holder)
        assert trouble.times == 0
        assert [version.id for version in await provider.versions(ROOT)][:2] == [second.id, holder]
    assert (await provider.read(ROOT, first.id)).value.reveal() == SECRET


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "2", "Content-Type": "text/plain"}, b"Too many requests, please try again later.\n", 2.0),
        ({}, {"kind": "Status", "reason": "TooManyRequests", "details": {"retryAfterSeconds": 7}}, 7.0),
        ({"Retry-After": "soon"}, b"", None),
        ({}, b"", None),
    ],
)
async def test_a_throttled_request_carries_the_servers_own_hint(
    fake: FakeKubernetes,
    tmp_path: Path,
    headers: dict[str, str],
    body: bytes | dict[str, Any],
    seconds: float | None,
):
    fake.troubles = [Trouble(status=429, headers=headers, body=body)]
    async with provider_of(fake, tmp_path, retry=NEVER) as provider:
        with pytest.raises(ThrottledError) as caught:
            await provider.read(ROOT)
    assert caught.value.retry_after == seconds


async def test_a_throttled_request_may_name_a_date(fake: FakeKubernetes, tmp_path: Path):
    later = (datetime.now(UTC) + timedelta(hours=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    fake.troubles = [Trouble(status=429, headers={"Retry-After": later})]
    async with provider_of(fake, tmp_path, retry=NEVER) as provider:
        with pytest.raises(ThrottledError) as caught:
            await provider.read(ROOT)
    assert caught.value.retry_after is not None
    assert 3600 - 2 * HANG < caught.value.retry_after <= 3600


async def test_an_unknown_token_is_denied_and_the_hint_says_where_it_comes_from(fake: FakeKubernetes, tmp_path: Path):
    async with provider_of(fake, tmp_path, token="nobody") as provider:
        with pytest.raises(ProviderAccessDeniedError, match="rejected the credentials") as caught:
            await provider.read(ROOT)
    assert "nobody" not in str(caught.value)
    assert "kubeconfig" in str(caught.value)


async def test_a_rotator_who_may_not_create_a_secret_is_told_which_role_may(fake: FakeKubernetes, tmp_path: Path):
    token = fake.account("rotator", next(yaml.safe_load_all(policy("rotator", ROOT))))
    async with provider_of(fake, tmp_path, token=token) as provider:
        with pytest.raises(ProviderAccessDeniedError, match="cannot create") as caught:
            await provider.create(ROOT, b"value")
    assert "Only the role admin may create a Secret" in caught.value.hint


async def test_a_namespace_that_is_missing_is_said_to_be_so_on_creation(provider: KubernetesSecretProvider):
    with pytest.raises(ProviderConfigurationError, match="no namespace 'nowhere'") as caught:
        await provider.create("nowhere/root", b"x")
    assert caught.value.hint == "Create the namespace: kubectl create namespace nowhere"
    with pytest.raises(SecretNotFoundError):
        await provider.read("nowhere/root")


async def test_an_immutable_secret_is_said_to_be_so(fake: FakeKubernetes, provider: KubernetesSecretProvider):
    first = await provider.create(ROOT, b"first")
    fake.put("default", "root", {**fake.stored("default", "root"), "immutable": True})
    with pytest.raises(ProviderConfigurationError, match="immutable") as caught:
        await provider.write(ROOT, b"second", expected=first.id)
    hint = str(caught.value.hint)  # an operator who deletes the Secret before saving it loses the keys
    assert hint.index("kubectl get secret") < hint.index("delete")


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(status=413, body={"kind": "Status", "reason": "RequestEntityTooLarge", "code": 413}),
        Trouble(status=500, body={"kind": "Status", "message": "etcdserver: request is too large", "code": 500}),
        Trouble(
            status=422,
            body={"kind": "Status", "details": {"causes": [{"reason": "FieldValueTooLong", "field": "data"}]}},
        ),
    ],
    ids=["413", "etcd", "422"],
)
async def test_every_way_to_say_too_large_is_understood(
    fake: FakeKubernetes, provider: KubernetesSecretProvider, trouble: Trouble
):
    first = await provider.create(ROOT, b"first")
    fake.troubles, trouble.method, trouble.times = [trouble], "PUT", 1
    with pytest.raises(SecretTooLargeError):
        await provider.write(ROOT, b"second", expected=first.id)


async def test_keys_of_others_that_fill_the_secret_leave_no_room(
    fake: FakeKubernetes, provider: KubernetesSecretProvider
):
    first = await provider.create(ROOT, b"first")
    theirs = fake.stored("default", "root")
    theirs["data"]["theirs"] = base64.b64encode(b"x" * ((1 << 20) - 4000)).decode()
    fake.put("default", "root", theirs)
    with pytest.raises(SecretTooLargeError, match="no room"):
        await provider.write(ROOT, b"second", expected=first.id)


async def test_a_refusal_that_quotes_the_request_is_not_quoted(
    fake: FakeKubernetes, provider: KubernetesSecretProvider
):
    first = await provider.create(ROOT, b"first")
    encoded = base64.b64encode(SECRET).decode()
    told = f"illegal base64 data at input byte 4, error found in #10 byte of ...|{encoded}|..., {SECRET.decode()}"
    for status, reason in ((400, "BadRequest"), (422, "Invalid"), (500, "InternalError"), (409, encoded)):
        causes = [{"reason": "FieldValueInvalid", "message": told, "field": "data[value]"}]
        body = {"kind": "Status", "status": "Failure", "message": told, "reason": reason, "details": {"causes": causes}}
        fake.troubles = [Trouble(status=status, body=body, method="POST" if status == 409 else "PUT")]
        provider.retry = NEVER
        create = provider.create("default/other", SECRET)
        write = provider.write(ROOT, SECRET, expected=first.id)
        wanted, other = (create, write) if status == 409 else (write, create)
        other.close()
        with pytest.raises(ProviderError) as caught:
            await wanted
        shown = "".join(traceback.format_exception(caught.value))
        assert encoded not in shown
        assert SECRET.decode() not in shown


async def test_a_provider_opens_itself_and_says_so_when_it_is_closed(fake: FakeKubernetes, tmp_path: Path):
    provider = provider_of(fake, tmp_path)
    with pytest.raises(SecretNotFoundError):
        await provider.read(ROOT)
    await provider.aclose()
    with pytest.raises(ProviderMisuseError, match="the provider is closed"):
        await provider.read(ROOT)


async def test_a_deadline_ends_a_call_without_an_answer(fake: FakeKubernetes, tmp_path: Path):
    async with provider_of(fake, tmp_path) as calm, provider_of(fake, tmp_path, timeout=0.3) as provider:
        await calm.create(ROOT, b"first")
        with fake.changed, pytest.raises(UnavailableError) as caught:  # the server stands still
            await provider.read(ROOT)
    assert "root" in str(caught.value)


# --- reply lost, and retries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 503, 504])
@pytest.mark.parametrize("operation", ["create", "write", "label", "destroy", "delete"])
async def test_a_change_whose_success_was_reported_as_a_failure_is_not_made_twice(
    fake: FakeKubernetes, provider: KubernetesSecretProvider, operation: str, status: int
):
    method = {"create": "POST", "delete": "DELETE"}.get(operation, "PUT")
    trouble = Trouble(status=status, method=method, takes_effect=True, times=0)
    fake.troubles = [trouble]
    if operation != "create":
        first = await provider.create(ROOT, b"first")
        await provider.write(ROOT, b"second", expected=first.id)
    trouble.times = 1
    match operation:
        case "create":
            await provider.create(ROOT, b"first")
        case "write":
            made = await provider.write(ROOT, b"third", expected="2")
            assert made.id == "3"
        case "label":
            await provider.label(ROOT, STABLE, "1", expected=None)
        case "destroy":
            await provider.destroy(ROOT, "1")
        case _:
            await provider.delete(ROOT)
    assert trouble.times == 0
    done = [asked for asked in fake.asked if asked.verb == {"POST": "create", "DELETE": "delete"}.get(method, "update")]
    earlier = {"create": 0, "write": 1, "label": 1, "destroy": 1, "delete": 0}[operation]
    again = {"create": 1, "label": 0}.get(operation, 0)  # creating is tried again, and found to be done
    assert len(done) - earlier - again == 1 or operation == "label", "nothing was written twice"
    if operation == "delete":
        with pytest.raises(SecretNotFoundError):
            await provider.read(ROOT)
    else:
        assert len(await provider.versions(ROOT)) == {"create": 1, "write": 3}.get(operation, 2)


async def test_a_lost_label_move_is_not_taken_for_a_lost_race(fake: FakeKubernetes, provider: KubernetesSecretProvider):
    first = await provider.create(ROOT, b"first")
    second = await provider.write(ROOT, b"second", expected=first.id)
    fake.troubles = [Trouble(status=504, method="PUT", takes_effect=True)]
    await provider.label(ROOT, CURRENT, first.id, expected=second.id)
    assert (await provider.read(ROOT)).version.id == first.id
    with pytest.raises(ConflictError):
        await provider.label(ROOT, CURRENT, first.id, expected=second.id)


# --- addresses ------------------------------------------------------------------------------------------------------


async def test_the_address_the_configuration_and_the_plugin_lead_to_the_same_secret(
    fake: FakeKubernetes, tmp_path: Path
):
    file = kubeconfig(tmp_path, fake.url)
    first, secret_id = open_provider(f"k8s://default/root?kubeconfig={file}&context=it")
    assert secret_id == ROOT
    async with first:
        await first.create(secret_id, b"value")
    config = {"provider": "kubernetes", "secretId": "default/root", "kubeconfig": file, "region": "eu-west-1"}
    second, again = provider_from_config(config)
    async with second:
        assert (await second.read(again)).value.reveal() == b"value"
