"""Argosy's Grafana dashboards as code; `python -m argosy_dashboards` writes them as JSON."""
