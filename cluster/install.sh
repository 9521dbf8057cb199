#!/usr/bin/env bash
# Installs rtrain and everything that it needs into one Python, from the versions in constraints.txt.
#
#   cluster/install.sh [--extras dev] [--fbgemm auto|cpu|cuda] [--no-prebuild] [PYTHON]
#
# PYTHON is the interpreter to install into (default: .venv/bin/python of this checkout). A second run with
# nothing changed installs nothing: the stamp in PYTHON's prefix holds a hash of all that decides the result.
# A failed run leaves no stamp. pip's own settings say where packages come from; none are written here.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
extras=dev
fbgemm=auto
prebuild=1

die() { echo "install: $*" >&2; exit 2; }
say() { echo "install: $*" >&2; }

while [ $# -gt 0 ]; do
    case $1 in
        --extras) [ $# -ge 2 ] || die "--extras needs a value, e.g. dev or ''"; extras=$2; shift ;;
        --fbgemm) [ $# -ge 2 ] || die "--fbgemm needs a value: auto, cpu or cuda"; fbgemm=$2; shift ;;
        --no-prebuild) prebuild=0 ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        -*) die "unknown option '$1'; there are --extras, --fbgemm, --no-prebuild" ;;
        *) python=$1 ;;
    esac
    shift
done

prefix=$("$python" -c '
import sys
if not (3, 11) <= sys.version_info[:2] < (3, 13):
    sys.exit("install: %s is Python %d.%d; rtrain needs 3.11 or 3.12. Set PYTHON=python3.11 (or 3.12)"
             % (sys.executable, *sys.version_info[:2]))
print(sys.prefix)') || die "'$python' cannot be used"

case $fbgemm in
    auto) if nvidia-smi -L >/dev/null 2>&1; then fbgemm=cuda; else fbgemm=cpu; fi ;;
    cpu | cuda) ;;
    *) die "--fbgemm is '$fbgemm'; it must be auto, cpu or cuda" ;;
esac
if [ "$fbgemm" = cuda ]; then
    wanted=fbgemm-gpu unwanted=fbgemm-gpu-cpu
else
    wanted=fbgemm-gpu-cpu unwanted=fbgemm-gpu
fi

# All that decides what gets installed, and where the editable install points.
key=$({ cat "$root/pyproject.toml" "$root/constraints.txt" "${BASH_SOURCE[0]}"
        echo "$root|$extras|$fbgemm|$prebuild|$("$python" -V)"; } | sha256sum | cut -d' ' -f1)
stamp=$prefix/.rtrain-install

fresh() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; }
if fresh; then
    say "up to date in $prefix"
    exit 0
fi
if command -v flock >/dev/null; then # two installs at once into one prefix: the second waits, then has nothing to do
    exec 9>"$prefix/.rtrain-install.lock"
    flock 9
    if fresh; then exit 0; fi
fi
rm -f "$stamp"

# Warnings are those of other projects' build scripts; errors still show.
pip() { PYTHONWARNINGS=ignore "$python" -m pip --disable-pip-version-check --no-input "$@" >&2; }
pinned() { pip install --quiet --constraint "$root/constraints.txt" "$@"; }

say "into $prefix ($fbgemm build of fbgemm)"
say "1/5 build tools and torch"
pinned --upgrade pip setuptools wheel
pinned torch ninja numpy
# DeepSpeed comes as source and asks torch how to build, so it must see this torch: no build isolation.
say "2/5 rtrain and what it needs"
pinned --no-build-isolation --editable "$root[${extras:+$extras,}torchrec-needs]"
# torchrec asks for fbgemm-gpu, which shares a folder with fbgemm-gpu-cpu: hence --no-deps, and never both.
say "3/5 torchrec and $wanted"
if "$python" -m pip show --quiet "$unwanted" 2>/dev/null; then
    pip uninstall --quiet --yes "$unwanted" "$wanted"
fi
pinned --no-deps torchrec "$wanted"

say "4/5 importing what was installed"
for module in torch torchrec fbgemm_gpu deepspeed ray rtrain; do
    DS_ACCELERATOR=$([ "$fbgemm" = cpu ] && echo cpu || echo cuda) "$python" -c "import $module" >/dev/null 2>"$prefix/.rtrain-import.log" ||
        { cat "$prefix/.rtrain-import.log" >&2; die "'import $module' fails after the installation (above)"; }
done
rm -f "$prefix/.rtrain-import.log"

# DeepSpeed compiles a small extension the first time that it initializes on CPU. A worker killed in mid-compile
# leaves a lock that every later run waits on for ever, so it is compiled here, once, in a folder of this prefix.
if [ "$prebuild" = 1 ] && [ "$fbgemm" = cpu ] && command -v g++ >/dev/null; then
    export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$prefix/torch_extensions}
    say "5/5 compiling deepspeed_shm_comm in $TORCH_EXTENSIONS_DIR"
    mkdir -p "$TORCH_EXTENSIONS_DIR"
    "$python" -c '
import sys
from pathlib import Path
from rtrain.parallel.extension import stale_locks
for lock in stale_locks(Path(sys.argv[1])):
    lock.unlink()' "$TORCH_EXTENSIONS_DIR"
    PATH=$prefix/bin:$PATH DS_ACCELERATOR=cpu timeout 540 "$python" -c '
from deepspeed.accelerator import get_accelerator
get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)' >"$prefix/.rtrain-compile.log" 2>&1 ||
        { tail -20 "$prefix/.rtrain-compile.log" >&2; die "deepspeed_shm_comm did not compile (above); --no-prebuild leaves it to the first run"; }
    rm -f "$prefix/.rtrain-compile.log"
else
    say "5/5 nothing to compile ahead (needs g++ and the CPU build)"
fi

printf '%s\n' "$key" >"$stamp.tmp"
mv "$stamp.tmp" "$stamp"
say "done"
