#!/usr/bin/env bash
# Generates the Python stubs of protos/ below a directory: generate_stubs.sh DIRECTORY
# The environment that `make install` makes must be first on PATH. What was generated there before goes away.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1

rm -rf "$out/argosy/api"
mkdir -p "$out"
mapfile -t protos < <(cd protos && find argosy -name '*.proto' | LC_ALL=C sort)
python -m grpc_tools.protoc -Iprotos \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" "${protos[@]}"
# Of files without a service the gRPC plugins make empty modules.
find "$out/argosy/api" -name '*_pb2_grpc.py*' ! -name '*_service_pb2_grpc.py*' -delete
