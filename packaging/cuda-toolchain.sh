#!/bin/bash
# Fetch the CUDA 13.0 compiler that builds animd's kernels: pinned wheels from PyPI, no GPU and no root needed.
#
#   packaging/cuda-toolchain.sh [DEST]        DEST defaults to .cuda in the repository root
#
# DEST/nvidia/cu13 is then a CUDA_HOME with nvcc, ptxas, cuobjdump and nvdisasm; kernels/build.rs finds the default
# place by itself. About 110 MB to download, 280 MB on disk. Running it again does nothing unless a pin changed.
set -euo pipefail

dest=${1:-$(cd "$(dirname "$0")/.." && pwd)/.cuda}

# Every wheel is pinned and taken without its dependencies: nvcc's metadata leaves them open and would mix releases.
pins=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
  nvidia-cuda-cuobjdump==13.5.37
  nvidia-cuda-nvdisasm==13.5.37
)

stamp=$dest/pins
if [[ -x $dest/nvidia/cu13/bin/nvcc && -f $stamp ]] && [[ "$(<"$stamp")" == "${pins[*]}" ]]; then
  echo "CUDA_HOME=$dest/nvidia/cu13"
  exit 0
fi

# Build beside DEST and move it into place, so that an interrupted run leaves nothing that looks complete.
mkdir -p "$(dirname "$dest")"
partial=$(mktemp -d "$dest.XXXXXX.part")
trap 'rm -rf "$partial"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --no-cache-dir \
  --only-binary=:all: --target "$partial" "${pins[@]}"
printf '%s' "${pins[*]}" > "$partial/pins"
chmod 755 "$partial"
rm -rf "$dest"
mv "$partial" "$dest"
echo "CUDA_HOME=$dest/nvidia/cu13"
