"""The command with which each store's page reads the current document without Goatherd, after each kind of change.

Vault's and Azure's are in `test_vault_readers` and `test_azure_readers`. Where the platform's own program is not
installed, the test sends the request that the command sends, with the names and options that the page has.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml

from goatherd.errors import ConflictError
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, STABLE

HOW_TO = Path(__file__).resolve().parents[2] / "docs/how-to"
DOCUMENT = '{\n  "roots": ["é", "\\u0001"],\t"n": 1\n}'


def commands(page: str, beginning: str) -> list[str]:
    """Return the commands of a page's section "Read it without Goatherd" that begin so."""
    text = (HOW_TO / page).read_text()
    section = re.split(r"^##+ ", text.split("### Read it without Goatherd\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    return [line for line in re.findall(r"^\$ (.*)$", section, re.MULTILINE) if line.startswith(beginning)]


async def after_each_change(provider: SecretProvider, name: str, read: Callable[[], Awaitable[str]]) -> None:
    """Change the secret in every way and compare what `read` gets."""
    first = await provider.create(name, DOCUMENT.encode())
    assert await read() == DOCUMENT
    second = await provider.write(name, b"second", expected=first.id)
    assert await read() == "second"
    await provider.write(name, b"a candidate", label="candidate", expected=None)
    with pytest.raises(ConflictError):
        await provider.write(name, b"lost", expected=first.id)
    await provider.label(name, STABLE, first.id, expected=None)
    assert await read() == "second"
    await provider.label(name, CURRENT, first.id, expected=second.id)
    assert await read() == DOCUMENT
    await provider.destroy(name, second.id)
    assert await read() == DOCUMENT


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!{sys.executable}\n{text}")
    (folder / name).chmod(0o700)


def typed(script: str, environment: dict[str, str], folder: Path) -> str:
    """Run the script in a shell, and return what it prints."""
    shell = ["/bin/sh", "-euc", script]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


JQ = """
import json, sys
assert sys.argv[1:3] == ["-j", ".value"]
sys.stdout.write(json.load(open(sys.argv[3]))["value"])
"""


async def test_files(tmp_path: Path):
    from goatherd.providers.file.provider import FileSecretProvider

    (command,) = commands("store-file.md", "jq ")
    program(tmp_path, "jq", JQ)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    async def read() -> str:
        return await asyncio.to_thread(typed, command, environment, tmp_path)

    await after_each_change(FileSecretProvider(str(tmp_path)), "root", read)


async def test_aws(monkeypatch: pytest.MonkeyPatch):
    boto3 = pytest.importorskip("boto3", reason="needs the extra aws")
    from goatherd.providers.aws.address import AWSAddress
    from goatherd.providers.aws.permissions import policy
    from goatherd.providers.aws.provider import AWSSecretProvider
    from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager

    (command,) = commands("store-aws.md", "aws secretsmanager get-secret-value ")
    words = command.split()[3:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options.keys() == {"--secret-id", "--version-stage", "--query", "--output"}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    name, reader = options["--secret-id"], "AKIAREADER0000000000"
    with FakeSecretsManager() as fake:
        fake.keys.add(reader)
        fake.policies[reader] = policy("server", f"aws://{REGION}/{name}")
        client = boto3.client(
            "secretsmanager",
            region_name=REGION,
            endpoint_url=fake.url,
            aws_access_key_id=reader,
            aws_secret_access_key="x" * 40,
        )

        async def read() -> str:
            answer = client.get_secret_value(SecretId=name, VersionStage=options["--version-stage"])
            return str(answer[options["--query"]])

        try:
            async with AWSSecretProvider(AWSAddress(region=REGION, endpoint=fake.url, recovery_days=0)) as provider:
                await after_each_change(provider, name, read)
        finally:
            client.close()


async def test_gcp():
    pytest.importorskip("google.cloud.secretmanager_v1", reason="needs the extra gcp")
    from google.auth.credentials import AnonymousCredentials

    from goatherd.providers.gcp.address import GCPAddress
    from goatherd.providers.gcp.provider import GCPSecretProvider
    from tests.fakes.gcp_fake import FakeSecretManager

    (command,) = commands("store-gcp.md", "gcloud secrets versions access ")
    found = re.fullmatch(r"gcloud secrets versions access (\S+) --secret=(\S+)", command)
    assert found is not None
    with FakeSecretManager("goatherd-testing") as fake:
        address = GCPAddress(project="goatherd-testing", endpoint=fake.endpoint)
        async with GCPSecretProvider(address, credentials=AnonymousCredentials()) as provider:

            async def read() -> str:
                client = await provider._api._connection.open()
                wanted = f"projects/goatherd-testing/secrets/{found[2]}/versions/{found[1]}"
                return (await client.access_secret_version(request={"name": wanted})).payload.data.decode()

            await after_each_change(provider, found[2], read)


KUBECTL = """
import base64, json, os, re, sys, urllib.request
arguments = sys.argv[1:]
assert arguments[:2] == ["get", "secret"] and arguments[3] == "-n" and arguments[5] == "-o", arguments
key = re.fullmatch(r"jsonpath=\\{\\.data\\.(.*)\\}", arguments[6])[1].replace("\\\\.", ".")
url = f"{os.environ['SERVER']}/api/v1/namespaces/{arguments[4]}/secrets/{arguments[2]}"
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + os.environ["TOKEN"]})
with urllib.request.urlopen(request, timeout=60) as answer:
    sys.stdout.write(json.load(answer)["data"].get(key, ""))
"""


async def test_kubernetes(tmp_path: Path):
    pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")
    from goatherd.providers.kubernetes.permissions import policy
    from tests.contract.kubernetes.clients import provider_of
    from tests.fakes.kubernetes_fake import FakeKubernetes

    (script,) = commands("store-kubernetes.md", "kubectl get secret root -n goatdb -o jsonpath=")
    program(tmp_path, "kubectl", KUBECTL)
    with FakeKubernetes(namespaces=("goatdb",)) as fake:
        token = fake.account("reader", next(yaml.safe_load_all(policy("server", "goatdb/root"))))
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SERVER": fake.url, "TOKEN": token}

        async def read() -> str:
            return await asyncio.to_thread(typed, script, environment, tmp_path)

        async with provider_of(fake, tmp_path) as provider:
            await after_each_change(provider, "goatdb/root", read)


@pytest.mark.parametrize(
    ("store", "page"),
    [
        ("AWS", "store-aws.md"),
        ("Azure", "store-azure.md"),
        ("Google", "store-gcp.md"),
        ("Vault, OpenBao", "store-vault.md"),
    ],
)
def test_the_page_about_external_secrets_names_what_the_command_of_the_store_s_page_names(store: str, page: str):
    (row,) = re.findall(rf"^\| {store} \| `(.*)` \|$", (HOW_TO / "external-secrets.md").read_text(), re.MULTILINE)
    remote = yaml.safe_load(row)
    assert remote
    section = (HOW_TO / page).read_text().split("### Read it without Goatherd\n")[1].split("\n## ")[0]
    for word in remote.values():
        assert re.search(rf"^\$ .*[ =]{re.escape(word)}(\s|$)", section, re.MULTILINE), f"{word} is in no command"
