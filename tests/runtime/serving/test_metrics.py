from __future__ import annotations

from divprune.runtime.serving.metrics import Counter, Histogram, Metrics


def test_counter_has_a_line_for_each_label() -> None:
    counter = Counter("requests_total", "Requests.", "status")
    counter.add(1, "200")
    counter.add(2, "429")
    counter.add(1, "200")
    assert list(counter.lines()) == [
        "# HELP divprune_requests_total Requests.",
        "# TYPE divprune_requests_total counter",
        'divprune_requests_total{status="200"} 2',
        'divprune_requests_total{status="429"} 2',
    ]


def test_large_counts_are_written_in_full() -> None:
    counter = Counter("tokens_total", "Tokens.")
    counter.add(123_456_789)
    assert list(counter.lines())[-1] == "divprune_tokens_total 123456789"


def test_histogram_counts_up_to_each_bound_inclusively() -> None:
    histogram = Histogram("seconds", "Seconds.", (0.5, 1))
    for seconds in (0.1, 0.5, 0.7, 3):
        histogram.add(seconds)
    assert list(histogram.lines())[2:] == [
        'divprune_seconds_bucket{le="0.5"} 2',
        'divprune_seconds_bucket{le="1"} 3',
        'divprune_seconds_bucket{le="+Inf"} 4',
        "divprune_seconds_sum 4.300000",
        "divprune_seconds_count 4",
    ]


def test_gauge_is_read_when_asked_and_left_out_without_a_value() -> None:
    metrics = Metrics()
    values: list[float | None] = [3.0, None]
    metrics.gauge("waiting", "Waiting.", lambda: values.pop(0))
    assert "divprune_waiting 3\n" in metrics.render()
    assert "divprune_waiting" not in metrics.render()


def test_every_line_is_a_comment_or_a_name_and_a_number() -> None:
    metrics = Metrics()
    metrics.requests.add(1, "200")
    text = metrics.render()
    assert text.endswith("\n")
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert name.startswith("divprune_")
            float(value)
