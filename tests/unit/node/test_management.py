from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from goatherd.errors import UnavailableError
from goatherd.node import Server
from goatherd.providers.memory import MemorySecretProvider
from goatherd.telemetry import Metric

from .nodes import document_of, root, settings_of, store_of


def numbers(text: str) -> dict[str, float]:
    """Return the metrics that have no labels."""
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


async def test_a_store_that_goes_away_shows_in_health_and_metrics_but_requests_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(await store_of(document_of(root())))

    async def away(*_: object, **__: object) -> None:
        raise UnavailableError("gone", provider="memory", secret_id="root", operation="read")

    async with Server(tmp_path, settings) as server:
        transport = httpx2.ASGITransport(server.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://node", verify=False) as http:
            health = (await http.get("/goatherd/v1/health")).json()
            assert health.pop("expiry")["urgency"] == "due"
            assert health.pop("data")["records"] == 0
            assert health == {"status": "ok", "source": "store", "reason": None}
            before = await http.get("/goatherd/v1/metrics")
            assert before.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert numbers(before.text)[Metric.SETTINGS_DEGRADED] == 0
            assert numbers(before.text)[Metric.IDENTITY_GENERATION] == settings.settings.document.generation

            with monkeypatch.context() as patch:
                patch.setattr(MemorySecretProvider, "read", away)
                await settings.refresh()
            health = (await http.get("/goatherd/v1/health")).json()
            del health["expiry"], health["data"]
            assert health == {"status": "degraded", "source": "store", "reason": "provider.unavailable"}
            during = numbers((await http.get("/goatherd/v1/metrics")).text)
            assert (await http.post("/auth/session", content=b" " * 20_000)).status_code == 413
            text = (await http.get("/goatherd/v1/metrics")).text
            assert 'goatherd_stopped_total{rule="too-large"} 1.0' in text
            assert 'goatherd_stopped_total{rule="too-many"} 0.0' in text
            assert during[Metric.CONNECTIONS] == 0, "not counted without a socket"
            assert during[Metric.SETTINGS_DEGRADED] == 1
            assert during[Metric.SETTINGS_FAILURES] == 1
            assert during[Metric.SETTINGS_BREAKER_OPEN] == 1
            healthy = await http.get("/healthy")
            assert (healthy.status_code, healthy.text) == (200, "OK")
