#!/usr/bin/env bash
# Installs OpenMMLab (MMPose, MMAction2) beside provscale, for skeleton extraction and the networks posec3d and stgcn.
#
#     bash tools/install_openmmlab.sh .venv/bin/python
#
# Changes none of the packages that are there: everything comes without its dependencies, because MMPose asks for
# chumpy, which cannot be built any more, and MMEngine and MMAction2 for copies of OpenCV over the one installed.
# Needs a C compiler and Python's headers (xtcocotools is built against the installed numpy). About 30 seconds, 36 MB.
set -euo pipefail

if [[ $# -ne 1 ]] || ! command -v "$1" >/dev/null; then
    echo "error: give the python to install into: bash tools/install_openmmlab.sh .venv/bin/python" >&2
    exit 2
fi
python=$("$1" -c "import sys; print(sys.executable)")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pip=("$python" -m pip --disable-pip-version-check --quiet)

if ! "$python" -c "import torch, torchvision, cv2, scipy, matplotlib, rich, yaml, provscale" 2>/dev/null; then
    echo "error: $python lacks provscale or one of its dependencies; install them first (make install)" >&2
    exit 2
fi
if ! "$python" -W ignore -c "import pkg_resources" 2>/dev/null; then
    echo "error: MMEngine needs pkg_resources, which setuptools no longer has: $python -m pip install 'setuptools<81'" >&2
    exit 2
fi
# The header is found through the interpreter, the compiler as Python's build tools find it.
header=$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")/Python.h
if ! command -v "${CC:-gcc}" >/dev/null || [[ ! -f $header ]]; then
    echo "error: xtcocotools is built from source: needs a C compiler and $header (Debian: build-essential python3-dev)" >&2
    exit 2
fi

others() {  # what is installed besides the packages below
    "$python" -m pip --disable-pip-version-check list --format freeze | grep -viE '^(mm(pose|action2|cv-lite|engine)|xtcocotools|addict|einops|json[-_.]tricks|munkres|six|termcolor|yapf|platformdirs)=='
}
before=$(others)

# mmcv-lite: mmcv's compiled operations do not build against this PyTorch, and mmpose from 1.2 on imports them.
# mmaction2 1.2.0's wheel lacks a module.
"${pip[@]}" install --no-deps mmengine==0.10.7 mmcv-lite==2.0.1 mmpose==1.1.0 mmaction2==1.1.0
# What they import beyond provscale's own dependencies; what others may share stays at the version that is there.
"${pip[@]}" install --no-deps addict==2.4.0 json_tricks==3.17.3 munkres==1.1.4 yapf==0.43.0
"${pip[@]}" install --no-deps einops platformdirs six termcolor

# The wheel of xtcocotools was built for numpy 1. Its build tools stay outside the environment.
if ! "$python" -c "import xtcocotools.mask" 2>/dev/null; then
    tools=$(mktemp -d)
    trap 'rm -rf "$tools"' EXIT
    "${pip[@]}" install --target "$tools" cython "setuptools>=77"
    PYTHONPATH=$tools "${pip[@]}" install --no-deps --no-build-isolation --no-cache-dir --force-reinstall \
        --no-binary xtcocotools xtcocotools==1.14.3
fi

if [[ $(others) != "$before" ]]; then
    echo "error: other packages changed:" >&2
    diff <(echo "$before") <(others) >&2 || true
    exit 1
fi

cd "$root"
OMP_NUM_THREADS=1 "$python" -m tools.try_openmmlab
