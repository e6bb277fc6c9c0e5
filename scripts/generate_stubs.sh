#!/usr/bin/env bash
# Generates the Python stubs of protos/ below a directory: generate_stubs.sh DIRECTORY
# The environment that `make install` makes must be first on PATH. What was generated there before goes away.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1

mkdir -p "$out/argosy"
fresh=$(mktemp -d -p "$out/argosy")
trap 'rm -rf "$fresh"' EXIT
mapfile -t protos < <(cd protos && find argosy -name '*.proto' | LC_ALL=C sort)
python -m grpc_tools.protoc -Iprotos \
  --python_out="$fresh" --grpc_python_out="$fresh" --mypy_out="quiet:$fresh" --mypy_grpc_out="quiet:$fresh" \
  "${protos[@]}"
# Of files without a service the gRPC plugins make empty modules.
find "$fresh/argosy/api" -name '*_pb2_grpc.py*' ! -name '*_service_pb2_grpc.py*' -delete

rm -rf "$out/argosy/api"
mv "$fresh/argosy/api" "$out/argosy/api"
