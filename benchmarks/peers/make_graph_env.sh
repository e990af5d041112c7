#!/bin/sh
# circuit-tracer's own environment. Its requirements leave open what its imports need: TransformerLens 2 (later ones have no HookedTransformer), transformers 4,
# nnsight before its rearrangement, a pyarrow that works with the numpy that TransformerLens asks for. No model hub is needed.
# Run: sh benchmarks/peers/make_graph_env.sh FOLDER      (then: python benchmarks/graph_peer.py --python FOLDER/bin/python)
set -eu
folder=${1:?"give a folder for the environment"}
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --disable-pip-version-check --quiet -c "$here/../../constraints.txt" torch
"$folder/bin/python" -m pip install --disable-pip-version-check --quiet -c "$here/../../constraints.txt" torch psutil \
    circuit-tracer==0.5.0 transformer-lens==2.16.1 transformers==4.57.3 nnsight==0.6.1 "pyarrow<21"
"$folder/bin/python" -m pip list --disable-pip-version-check 2>/dev/null | grep -iE '^(torch|transformers|transformer-lens|circuit-tracer|numpy) '
