#!/bin/sh
# The peers' own environment: torch of the readout benchmark, and the newest TransformerLens and nnsight that install with it.
# Run: sh benchmarks/peers/make_env.sh FOLDER      (then: python benchmarks/peers/compare.py --python FOLDER/bin/python)
set -eu
folder=${1:?"give a folder for the environment"}
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
for package in transformer-lens nnsight; do
    # One library that does not install leaves the others.
    "$folder/bin/python" -m pip install --disable-pip-version-check --quiet -c "$here/../../constraints.txt" torch psutil "$package" ||
        echo "$package does not install with the torch of constraints.txt (see above)" >&2
done
"$folder/bin/python" -m pip list --disable-pip-version-check 2>/dev/null | grep -iE '^(torch|transformers|transformer-lens|nnsight|numpy) '
