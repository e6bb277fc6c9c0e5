"""Every query of every dashboard and every rule, put to a real Prometheus that watched a real fleet at work."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from observed_fleet import (
    DEPLOY,
    ROOT,
    Observed,
    PrometheusUnavailableError,
    binaries,
    fast_configuration,
    interpolate,
    observed_fleet,
    panels,
)

PANELS = list(panels())
QUERIES = [
    pytest.param(panel["title"], target["expr"], id=f"{board['title']}: {panel['title']}: {target['refId']}")
    for board, panel in PANELS
    for target in panel["targets"]
]
# Panels that may show zeros only: what they count does not happen in a fleet that works.
MAY_BE_ZERO = {
    "Failing": "no call fails through a fault of the fleet",
    "Availability: burn rate": "the same",
    "Preemptions": "whether blocks run short depends on who meets whom",
}
ALERTS = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
TESTS = yaml.safe_load((DEPLOY / "prometheus/rules_test.yaml").read_text())["tests"]
OPERATIONS = (ROOT / "docs/operations.md").read_text()


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    """A fleet after 15 seconds of work."""
    try:
        with observed_fleet(15) as observed:
            yield observed
    except PrometheusUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def promtool() -> str:
    """The program promtool."""
    try:
        return str(binaries()[1])
    except PrometheusUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("title", "expr"), QUERIES)
def test_a_panel_shows_the_work(observed: Observed, title: str, expr: str) -> None:
    found = observed.prometheus.query_range(interpolate(expr), observed.start, observed.end, 1)
    numbers = [float(value) for series in found for _, value in series["values"] if value != "NaN"]
    assert numbers, "nothing to see"
    assert any(numbers) or title in MAY_BE_ZERO, "only zeros"


def test_rules_are_evaluated_without_error(observed: Observed) -> None:
    rules = observed.prometheus.rules()
    assert len(rules) == sum(
        len(group["rules"]) for group in yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text())["groups"]
    )
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}
    assert {rule["name"] for rule in rules if rule["health"] != "ok"} == set()


def test_recorded_series_exist(observed: Observed) -> None:
    recorded = {rule["name"] for rule in observed.prometheus.rules() if rule["type"] == "recording"}
    assert {name for name in recorded if not observed.prometheus.query(name, observed.end)} == set()


def test_alerts_read_metrics_that_exist(observed: Observed) -> None:
    expressions = " ".join(rule["expr"] for rule in ALERTS)
    read = set(re.findall(r"(?<![:\w])argosy_\w+", expressions))
    assert read
    assert {name for name in read if not observed.prometheus.query(name, observed.end)} == set()


def test_rules_and_configuration_are_valid(promtool: str, tmp_path) -> None:
    for arguments in (
        ("check", "rules", "--lint-fatal", str(DEPLOY / "prometheus/rules.yaml")),
        ("check", "config", str(fast_configuration(tmp_path, 1))),
    ):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_pass_their_unit_tests(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "test", "rules", str(DEPLOY / "prometheus/rules_test.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _alerts_tested(fires: bool) -> set[str]:
    return {
        case["alertname"]
        for test in TESTS
        for case in test.get("alert_rule_test", ())
        if bool(case.get("exp_alerts")) is fires
    }


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_tested_and_has_a_runbook(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
    assert re.search(rf"^### {name}$", OPERATIONS, re.MULTILINE)
    assert name in _alerts_tested(fires=True)
    assert name in _alerts_tested(fires=False)


def test_runbooks_are_of_alerts_that_exist() -> None:
    mentioned = set(re.findall(r"\bArgosy[A-Z]\w+", OPERATIONS + " ".join(panel["description"] for _, panel in PANELS)))
    assert mentioned <= {alert["alert"] for alert in ALERTS}


def test_a_panel_says_what_to_do() -> None:
    assert [panel["title"] for _, panel in PANELS if "**When it looks wrong:** " not in panel["description"]] == []
    titles = [(board["title"], panel["title"]) for board, panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_dashboards_read_instruments_of_the_table_or_records() -> None:
    known = set(re.findall(r"^\| `(argosy_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    read = {
        name
        for _, panel in PANELS
        for target in panel["targets"]
        for name in re.findall(r"argosy_\w+(?=\{)", target["expr"])
    }
    assert read
    assert {name for name in read if re.sub(r"_(bucket|sum|count)$", "", name) not in known} == set()
