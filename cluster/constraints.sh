#!/usr/bin/env bash
# Writes constraints.txt anew: the newest versions that pyproject.toml allows, resolved in a throw-away venv.
#
#   PYTHON=python3.11 cluster/constraints.sh
#
# The versions that are bound to one another (below) are chosen here by hand; `rtrain doctor` knows which fit.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bound=(torch==2.13.0 torchrec==1.8.0 fbgemm-gpu==1.8.0 fbgemm-gpu-cpu==1.8.0 deepspeed==0.19.8 ray==2.60.0)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
printf '%s\n' "${bound[@]}" >"$work/bound.txt"
pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }
pip install --quiet --upgrade pip setuptools wheel
pip install --quiet -c "$work/bound.txt" torch ninja numpy
pip install --quiet -c "$work/bound.txt" --no-build-isolation -e "$root[dev,torchrec-needs]"

{
    echo "# Every version that rtrain is installed with. Written by cluster/constraints.sh; do not edit by hand."
    echo "# Local parts (torch's '+cpu') are cut off, so that a CUDA build of the same version fits as well."
    {
        pip freeze --all --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' | sed 's/+[a-z0-9.]*$//'
        printf '%s\n' "${bound[@]}"
    } | awk -F== '{ name = tolower($1); gsub(/[._]/, "-", name); print name "==" $2 }' | sort -u
} >"$work/constraints.txt"
mv "$work/constraints.txt" "$root/constraints.txt"
echo "$(grep -c == "$root/constraints.txt") versions written to $root/constraints.txt" >&2
