"""A server's status as Prometheus metrics: read when scraped, nothing is kept.

Needs `prometheus-client` (extra `metrics`). Names, in seconds and bytes as Prometheus has them, are
listed in README.md of the runtime. While no server is heard, `neds_up` is 0 and all that there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from neds_rt.errors import BadInput
from neds_rt.watching import LOST_S, LatestStatus

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from neds_rt.status import Histogram, Stage, Status

QUANTILES = (("0.5", "p50"), ("0.99", "p99"), ("0.999", "p999"), ("1", "max"))
BUCKETS_PER_DECADE = 5  # of the published histogram: its own 40 would be 280 series


class StatusCollector:
    """What a registry asks at every scrape."""

    def __init__(self, latest: LatestStatus) -> None:
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        status, age_s = self._latest.get()
        heard = status is not None and age_s <= LOST_S
        yield _gauge("neds_up", "1 if the server is heard of", heard)
        if status is None or not heard:
            return
        yield from _of_model(status)
        yield from _of_decodes(status)
        yield from _of_time(status)
        yield from _of_probes(status)
        yield from _of_parts(status)


def _of_model(status: Status) -> Iterator[Metric]:
    from prometheus_client.core import InfoMetricFamily

    facts = {"model": status.model, "engine": status.engine, "precision": status.precision}
    yield InfoMetricFamily("neds_model", "The model that is served", value=facts)
    yield _gauge("neds_uptime_seconds", "Time since the start", status.uptime_s)
    if status.memory_mb is not None:
        yield _gauge("neds_resident_memory_bytes", "Memory in RAM", status.memory_mb * 1e6)


def _of_decodes(status: Status) -> Iterator[Metric]:
    yield _gauge("neds_decode_valid", "1 if the last decode may be acted upon", status.valid)
    yield _counter("neds_bins", "Whole bins decoded", {(): status.bins}, ())
    yield _counter("neds_decodes", "Decode messages by reason; ok is valid",
                   {(reason,): n for reason, n in status.reasons.items()}, ("reason",))
    yield _counter("neds_input_events", "Counters of the input, by kind",
                   {(kind,): n for kind, n in status.counters.items()}, ("kind",))
    yield _counter("neds_missed_deadlines", "Bins whose service took longer than the deadline",
                   {(): status.missed_deadlines}, ())


def _of_time(status: Status) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    if status.sample_age_s is not None:
        yield _gauge("neds_sample_age_seconds", "Age of the newest spike that was decoded",
                     status.sample_age_s)
    recent = GaugeMetricFamily(
        "neds_stage_seconds", f"Time a stage took, over the last {status.recent_s:g} s",
        labels=["stage", "quantile"])
    for name, stage in status.stages.items():
        if stage.recent is not None:
            for quantile, field in QUANTILES:
                seconds = getattr(stage.recent, field) / 1e6
                recent.add_metric([name.removesuffix("_us"), quantile], seconds)
    yield recent
    if "service_us" in status.stages:
        yield _histogram(status.service, status.stages["service_us"])


def _of_probes(status: Status) -> Iterator[Metric]:
    names = ("probe",)
    probes = status.probes
    yield _gauges("neds_probe_up", "1 if frames come", names,
                  {(p.name,): float(p.state == "live") for p in probes})
    yield _counter("neds_probe_frames", "Frames accepted", {(p.name,): p.frames for p in probes},
                   names)
    yield _gauges("neds_probe_frame_age_seconds", "Time since the last frame", names,
                  {(p.name,): p.frame_age_s for p in probes if p.frame_age_s is not None})
    yield _gauges("neds_probe_lag_seconds", "How far behind the furthest probe", names,
                  {(p.name,): p.lag_s for p in probes})
    yield _counter("neds_source_events", "Counters of a probe's source, by kind",
                   {(p.name, k): n for p in probes for k, n in p.counters.items()},
                   ("probe", "kind"))


def _of_parts(status: Status) -> Iterator[Metric]:
    if status.drift is not None:
        yield _gauge("neds_drift_score", "How far the input is from training", status.drift.score)
        yield _gauge("neds_drift_limit", "Score at which decodes turn invalid", status.drift.limit)
    if status.recorder is not None:
        yield _counter("neds_recorder_written_bytes", "Bytes recorded",
                       {(): status.recorder.bytes}, ())
        yield _counter("neds_recorder_lost", "Messages that were not recorded",
                       {(): status.recorder.lost}, ())
    if status.failover is not None:
        yield _counter("neds_failovers", "Changes to the standby engine",
                       {(): status.failover.failovers}, ())
        yield _counter("neds_model_swaps", "Models swapped while serving",
                       {(): status.failover.swaps}, ())


def _gauge(name: str, text: str, value: float) -> Metric:
    return _gauges(name, text, (), {(): float(value)})


def _gauges(
    name: str, text: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]
) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def _counter(
    name: str, text: str, values: dict[tuple[str, ...], int], labels: tuple[str, ...]
) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def _histogram(service: Histogram, stage: Stage) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    step = max(1, service.per_decade // BUCKETS_PER_DECADE)
    buckets: list[tuple[str, float]] = []
    below = 0
    for i, (edge, n) in enumerate(zip(service.edges_us(), service.all, strict=False)):
        below += n
        if i % step == 0:
            buckets.append((f"{edge / 1e6:.6g}", below))
    buckets.append(("+Inf", sum(service.all)))
    return HistogramMetricFamily(
        "neds_service_seconds", "From frame received to decode sent, all bins", buckets=buckets,
        sum_value=stage.sum_us / 1e6)


def serve_metrics(latest: LatestStatus, host: str, port: int) -> Any:
    """Serve `/metrics` on a thread; returns the server. Raises `BadInput` for a port in use."""
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(StatusCollector(latest))
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        found = f"{host}:{port} ({error.strerror})"
        raise BadInput("--listen", "address", found, "a free one") from error
    return server
