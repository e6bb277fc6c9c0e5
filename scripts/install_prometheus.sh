#!/usr/bin/env bash
# Unpacks Debian's Prometheus, with promtool, into a directory: nothing is installed, no service is started.
#
# usage: scripts/install_prometheus.sh DIRECTORY     leaves DIRECTORY/usr/bin/prometheus and DIRECTORY/usr/bin/promtool
#
# The archive comes from the machine's own apt sources, which verify it. Exit code 3: there is no apt, or no such package.
set -euo pipefail

# Tried with Debian 12's 2.42.
VERSION='2.*'

target=$1
if [[ -x $target/usr/bin/prometheus && -x $target/usr/bin/promtool ]]; then
  exit 0
fi
if ! command -v apt-get dpkg-deb > /dev/null; then
  echo "Prometheus comes from Debian's package, and there is no apt here" >&2
  exit 3
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
download() { (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "prometheus=$VERSION" 2> "$work/apt.log"); }
# A bare machine has no lists yet; only root may fetch them.
if ! download; then
  if [[ $(id -u) -ne 0 ]] || ! apt-get -qq update || ! download; then
    cat "$work/apt.log" >&2
    echo "the package prometheus $VERSION cannot be had from this machine's apt sources" >&2
    exit 3
  fi
fi
mkdir -p "$target"
dpkg-deb --extract "$work"/prometheus_*.deb "$target"
