"""The service's figures in Prometheus' text format: what Ray's exporters of all nodes have of it.

Gateways and replicas give their figures to the exporter of their node every few seconds, so any gateway can answer
for the whole service. Ray's own figures, hundreds of series per node, stay on its ports.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import httpx2
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from llm_blender_ray.actors.errors import one_line
from llm_blender_ray.cluster.session import metrics_urls
from llm_blender_ray.pipelines.serve.errors import ApiError

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0  # of an exporter; Prometheus waits for 10 s
_OURS = (
    "ray_blend_",
    "ray_serve_deployment_",
    "ray_serve_replica_processing_queries",
    "ray_serve_replica_utilization_percent",
    "ray_serve_autoscaling_target_replicas",
)


class MetricsPage:
    """Makes the page. It belongs to one event loop."""

    def __init__(
        self,
        urls: Callable[[], Sequence[str]] = metrics_urls,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Make one.

        Args:
            urls: Pages of the exporters, at the moment.
            transport: Way to them; None: HTTP without proxies.
        """
        self._urls = urls
        self._client = httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False, transport=transport)

    async def __call__(self) -> bytes:
        """The page. An exporter that does not answer is logged, and its node's figures are missing.

        Raises:
            ApiError: No exporter answers.
        """
        urls = await asyncio.to_thread(self._urls)
        texts = await asyncio.gather(*map(self._read, urls))
        if all(text is None for text in texts):
            raise ApiError(503, "no exporter of Ray's metrics answers", code="no_metrics")
        return await asyncio.to_thread(merged, [text for text in texts if text is not None])

    async def _read(self, url: str) -> str | None:
        try:
            answer = await self._client.get(url)
            return answer.raise_for_status().text
        except httpx2.HTTPError as error:
            log.warning("no metrics of %s: %s", url, one_line(error))
            return None


def merged(texts: Iterable[str]) -> bytes:
    """The service's metrics of several exporters as one text, each metric with all of its series."""
    found: dict[str, Metric] = {}
    for text in texts:
        for metric in text_string_to_metric_families("\n".join(_own_lines(text))):
            if metric.name in found:
                found[metric.name].samples += metric.samples
            else:
                found[metric.name] = metric
    registry = CollectorRegistry()
    registry.register(_Metrics(found.values()))
    return generate_latest(registry)


def _own_lines(text: str) -> Iterator[str]:
    """Lines of the service's metrics: parsing all of Ray's takes ten times as long."""
    for line in text.splitlines():
        if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(_OURS):
            yield line
    yield ""  # the parser needs a line's end


class _Metrics(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """See base class."""
        return self._metrics
