"""Writes what the chart in helm/argosy takes from the code, or checks that it is up to date.

That is `files/serve.json` (what Ray Serve is told, and the settings' defaults), the settings in `values.schema.json`,
the versions in `Chart.yaml`, copies of the rules and dashboards below deploy/, and README.md, from the comments in
values.yaml.

usage: python scripts/generate_chart.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from argosy import __version__
from argosy_services.cluster.serve_config import COMMON, SHARED, environment, serve_config
from argosy_services.engine.tensorrt_llm.device import GPUS
from argosy_services.settings import ClusterSettings, Replicas, Settings, live_fields

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm/argosy"
DATA_DIR = "/var/lib/argosy"
# The chart sets these itself: values of their own would contradict ports, mounts, probes and Secrets.
OF_THE_CHART = {
    "": {
        *("host", "port", "metrics_host", "metrics_port", "data_dir", "api_keys", "priority_keys", "insecure"),
        *("tls_certificate", "tls_key", "drain_seconds"),
    },
    "ClusterSettings": {
        *("http_port", "dashboard_port", "haproxy_stats_port", "haproxy_metrics_port", "drain_seconds"),
    },
}


def serve_facts() -> str:
    """What the template of serveConfigV2 and of Ray's environment starts from."""
    settings = Settings(data_dir=Path(DATA_DIR), insecure=True, cluster=ClusterSettings(profile="production"))
    small = settings.model_copy(update={"cluster": ClusterSettings()})
    sections = {name: type(value) for name, value in settings if hasattr(type(value), "model_fields")}
    facts = {
        "rayVersion": _ray_version(),
        # The data directory always differs from the default, which is below a home directory.
        "defaults": Settings().model_dump(mode="json", exclude={"data_dir"}),
        "replicas": Replicas().model_dump(mode="json"),
        "live": {"": sorted(live_fields(Settings)), **{name: sorted(live_fields(s)) for name, s in sections.items()}},
        # Sections that go to every service, and settings of any section that do.
        "common": sorted(COMMON),
        "shared": sorted(SHARED),
        "environment": {"small": environment(small), "production": environment(settings)},
        "config": serve_config(settings),
    }
    return json.dumps(facts, indent=2) + "\n"


def schema() -> str:
    """values.schema.json, with the settings as the servers check them and the GPUs that engines are compiled for."""
    whole = json.loads((CHART / "values.schema.json").read_text())
    settings = _without_titles(Settings.model_json_schema())
    definitions = settings.pop("$defs")
    for name in OF_THE_CHART[""]:
        del settings["properties"][name]
    for name in OF_THE_CHART["ClusterSettings"]:
        del definitions["ClusterSettings"]["properties"][name]
    generated = {"Settings": settings, **definitions, "Gpu": {"enum": list(GPUS)}}
    by_hand = {name: part for name, part in whole["$defs"].items() if name[0].islower()}
    whole["$defs"] = {**by_hand, **generated}
    return json.dumps(whole, indent=2) + "\n"


def _without_titles(part: Any) -> Any:
    """Titles repeat names, and defaults are told by the servers."""
    if isinstance(part, list):
        return [_without_titles(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        key: _without_titles(value)
        for key, value in part.items()
        if not (key in ("title", "default") and not isinstance(value, dict)) and key != "default"
    }


def chart_yaml() -> str:
    """Chart.yaml, with the version of the servers as appVersion."""
    text = (CHART / "Chart.yaml").read_text()
    return re.sub(r"(?m)^appVersion: .*$", f'appVersion: "{__version__}"', text)


def readme() -> str:
    """README.md: a head, and a table of all values."""
    values = (CHART / "values.yaml").read_text()
    rows = "".join(f"| `{key}` | {_cell(default)} | {text} |\n" for key, default, text in _documented(values))
    return README_HEAD + rows


def _documented(text: str) -> Iterator[tuple[str, Any, str]]:
    """Path, default and description of each value that has a comment which begins with `# --`."""
    values = yaml.safe_load(text)
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = [stripped[5:]]
        elif stripped.startswith("# ") and comment:
            comment.append(stripped[2:])
        elif match := re.match(r"( *)([A-Za-z][A-Za-z0-9]*):", line):
            indent = len(match[1])
            path = [(depth, key) for depth, key in path if depth < indent] + [(indent, match[2])]
            if comment:
                keys = [key for _, key in path]
                yield ".".join(keys), _at(values, keys), " ".join(comment)
            comment = []


def _at(values: Any, keys: list[str]) -> Any:
    for key in keys:
        values = values[key]
    return values


def _cell(default: object) -> str:
    return f"`{json.dumps(default)}`" if default not in ("", {}, []) else "none"


def _ray_version() -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (version,) = (match[1] for name in extras["ray"] if (match := re.fullmatch(r"ray\[serve\]==(.+)", name)))
    return version


def copies() -> dict[Path, str]:
    """Rules and dashboards, which charts can only read from below themselves."""
    sources = {CHART / "files/rules.yaml": ROOT / "deploy/prometheus/rules.yaml"}
    for dashboard in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        sources[CHART / "files/dashboards" / dashboard.name] = dashboard
    return {target: source.read_text() for target, source in sources.items() if source.is_file()}


README_HEAD = """# argosy

Generated by `make docs` from values.yaml. Do not edit.

The fleet on Kubernetes, as one Deployment (`mode: embedded`) or as a RayService of KubeRay (`mode: ray`).
[docs/deploying.md](../../docs/deploying.md) has the steps; `ci/` has values for typical cases.

| Value | Default | Meaning |
| --- | --- | --- |
"""


def main() -> int:
    """Returns 1 where a file had to be brought up to date while checking."""
    wanted = {
        CHART / "files/serve.json": serve_facts(),
        CHART / "values.schema.json": schema(),
        CHART / "Chart.yaml": chart_yaml(),
        CHART / "README.md": readme(),
        **copies(),
    }
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    # A dashboard that is gone must go from the chart, too.
    gone = [path for path in (CHART / "files/dashboards").glob("*.json") if path not in wanted]
    for path in (*stale, *gone):
        name = path.relative_to(ROOT)
        if "--check" in sys.argv[1:]:
            print(f"{name} is out of date: run `make docs`", file=sys.stderr)
        elif path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
            print(f"wrote {name}")
        else:
            path.unlink()
            print(f"removed {name}")
    return int("--check" in sys.argv[1:] and bool(stale or gone))


if __name__ == "__main__":
    sys.exit(main())
