#!/bin/sh
# Test the data part alone: another Python, the newest libraries, no torch, no napari.
#   scripts/test_data.sh python3.13
# The virtual environment is made once, in $MUVIT_DATA_VENV or the folder for temporary files.
set -eu
python=${1:?which Python? For example: scripts/test_data.sh python3.13}
cd "$(dirname "$0")/.."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
venv=${MUVIT_DATA_VENV:-${TMPDIR:-/tmp}/napari-muvit-data-$version}
if [ ! -e "$venv/.installed" ]; then
    "$python" -m venv "$venv"
    # what data, geometry, config and errors import, what reads URLs, and what the tests use
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        numpy zarr ome-zarr dask pydantic pyyaml tqdm tifffile imagecodecs scikit-image pillow \
        s3fs aiohttp tensorstore 'moto[s3]' flask flask-cors pytest pytest-timeout hypothesis
    touch "$venv/.installed"
fi
"$venv/bin/python" -m pip list --disable-pip-version-check 2>/dev/null |
    grep -Ei '^(numpy|zarr|ome-zarr|tifffile|dask|tensorstore) '
# only data/dataset.py needs torch
PYTHONPATH=src "$venv/bin/python" -m pytest tests/data tests/test_geometry.py tests/test_errors.py \
    --ignore-glob='*/test_dataset*.py' -q -p no:cacheprovider
