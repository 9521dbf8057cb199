import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rtrain.data import movielens, sources
from rtrain.data.cached import VERSION_KEY
from rtrain.errors import DataError

GET = "from rtrain.data import sources; print(sources.get('ml-100k'))"


def hidden(cache: Path) -> list[str]:
    """What an unfinished call might have left."""
    return sorted(p.name for p in cache.rglob(".*") if not p.name.endswith(".lock"))


def child(cache: Path, **kwargs: object) -> "subprocess.Popen[str]":
    env = os.environ | {"RTRAIN_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", GET],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,  # type: ignore[call-overload]
    )


class Index:
    """A package index on this machine, which pip is pointed to."""

    def __init__(self, wheel: bytes):
        self.wheel = wheel
        self.cut: int | None = None
        """Send only so many bytes, then break the connection."""
        self.hang = threading.Event()
        """Clear: send half of the wheel, and then nothing for as long as it stays clear."""
        self.hang.set()
        self.asked = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                if self.path.endswith(".whl"):
                    self.send_header("Content-Length", str(len(index.wheel)))
                    self.end_headers()
                    self.wfile.write(index.wheel[: index.cut if index.hang.is_set() else 1_000_000])
                    self.wfile.flush()
                    index.asked.set()
                    index.hang.wait(60)
                    self.close_connection = True
                else:
                    page = f'<a href="/{sources.WHEEL}">{sources.WHEEL}</a>'.encode()
                    self.send_header("Content-Type", "text/html")
                    self.send_header("Content-Length", str(len(page)))
                    self.end_headers()
                    self.wfile.write(page)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def index(cache_with_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    index = Index((cache_with_wheel / sources.WHEEL).read_bytes())
    for name in [n for n in os.environ if n.startswith("PIP_") or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{index.server.server_port}/simple")
    yield index
    index.hang.set()
    index.server.shutdown()
    index.server.server_close()


def test_pip_brings_the_wheel_once(index: Index, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = sources.get("ml-100k", cache=tmp_path)
    assert folder == tmp_path / "ml-100k" and [p.name for p in folder.iterdir()] == ["ml-100k.parquet"]
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("rtrain: downloading recbole==1.2.1")
    index.asked.clear()
    (folder / "ml-100k.parquet").unlink()
    assert sources.get("ml-100k", cache=tmp_path, progress=False) == folder
    assert not index.asked.is_set() and hidden(tmp_path) == []  # from the wheel that was kept
    assert capfd.readouterr() == ("", "")


def test_a_download_that_breaks_off_leaves_nothing(index: Index, tmp_path: Path) -> None:
    index.cut = 500_000
    with pytest.raises(DataError, match=r"recbole==1\.2\.1 could not be downloaded"):
        sources.get("ml-100k", cache=tmp_path)
    assert hidden(tmp_path) == [] and not (tmp_path / sources.WHEEL).exists()


def test_another_wheel_is_refused(index: Index, tmp_path: Path) -> None:
    content = bytearray(index.wheel)
    content[30_000] ^= 1
    index.wheel = bytes(content)
    with pytest.raises(DataError, match=r"sha256 is [0-9a-f]{64}, not 9c99482.*\. The index gave another file"):
        sources.get("ml-100k", cache=tmp_path)
    assert not (tmp_path / sources.WHEEL).exists() and hidden(tmp_path) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_download_that_is_interrupted_leaves_nothing_that_matters(index: Index, tmp_path: Path, stop: int) -> None:
    index.hang.clear()
    process = child(tmp_path, start_new_session=True)
    assert index.asked.wait(60)
    os.killpg(process.pid, stop)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (tmp_path / sources.WHEEL).exists() and not list(tmp_path.rglob("*.parquet"))
    if stop == signal.SIGINT:
        assert hidden(tmp_path) == []
    # The next call sweeps what SIGKILL left, and is not held up by the dead one's lock.
    index.hang.set()
    sources.get("ml-100k", cache=tmp_path)
    assert hidden(tmp_path) == []


def test_no_network_and_no_cache_says_what_to_place_where(
    index: Index, tmp_path: Path, cache_with_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(DataError) as error:
        sources.get("ml-100k", cache=tmp_path)
    text = str(error.value)
    assert "could not be downloaded (the package index cannot be reached)" in text and "\n" not in text
    assert f"place {sources.WHEEL} in {tmp_path}, or" in text
    assert f"place ml-100k.inter, ml-100k.user, ml-100k.item in {tmp_path / 'ml-100k'};" in text
    # Doing as it says helps, the one way and the other.
    for file in movielens.FILES:
        content = _member(cache_with_wheel / sources.WHEEL, file)
        (tmp_path / "ml-100k" / file).write_bytes(content)
    assert movielens.is_current(sources.get("ml-100k", cache=tmp_path) / "ml-100k.parquet")


def _member(wheel: Path, file: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"{sources.IN_WHEEL}/{file}")


def test_a_wheel_placed_by_hand_is_used_and_checked(cache: Path) -> None:
    assert movielens.is_current(sources.get("ml-100k", cache=cache) / "ml-100k.parquet")
    (cache / "ml-100k" / "ml-100k.parquet").unlink()
    (cache / sources.WHEEL).write_bytes(b"PK")
    with pytest.raises(DataError, match=rf"{sources.WHEEL}: sha256 is .*\. Delete it, or place the wheel of recbole"):
        sources.get("ml-100k", cache=cache)


def test_a_cached_file_is_kept_while_it_is_good_and_made_anew_when_not(cache: Path) -> None:
    parquet = sources.get("ml-100k", cache=cache) / "ml-100k.parquet"
    first, before = parquet.read_bytes(), parquet.stat().st_mtime_ns
    sources.get("ml-100k", cache=cache)
    assert parquet.stat().st_mtime_ns == before
    for damaged in (first[:-100], first[:1000] + b"\0\0\0\0" + first[1004:], b""):
        parquet.write_bytes(damaged)
        sources.get("ml-100k", cache=cache)
        assert parquet.read_bytes() == first
    pq.write_table(pq.read_table(parquet).replace_schema_metadata({VERSION_KEY: "0"}), parquet)
    sources.get("ml-100k", cache=cache)
    assert parquet.read_bytes() == first


def test_processes_that_ask_at_once_all_get_it(cache: Path) -> None:
    processes = [child(cache) for _ in range(2)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [out.strip() for out, _ in ends] == [str(cache / "ml-100k")] * 2, ends
    assert sum(err.count("converting") for _, err in ends) == 1
    assert hidden(cache) == [] and movielens.is_current(cache / "ml-100k" / "ml-100k.parquet")


@pytest.mark.parametrize("after_s", [0.0, 0.2])
def test_a_killed_conversion_leaves_nothing_half_written(cache: Path, after_s: float) -> None:
    process = child(cache)
    assert process.stderr is not None and "converting" in process.stderr.readline()
    time.sleep(after_s)
    process.kill()
    process.communicate(timeout=60)
    parquet = cache / "ml-100k" / "ml-100k.parquet"
    assert not parquet.exists() or movielens.is_current(parquet)
    sources.get("ml-100k", cache=cache)
    assert movielens.is_current(parquet) and hidden(cache) == []


def test_a_disk_that_takes_no_more_is_an_error_that_names_the_cache(cache: Path) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({500_000}, {resource.RLIM_INFINITY})); "
    code = limit + "from pathlib import Path; from rtrain.data import movielens, sources\n"
    code += "try: sources.get('ml-100k')\nexcept Exception as e: print(type(e).__name__, e)"
    env = os.environ | {"RTRAIN_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(
        f"DataError {cache}: the data cache cannot be used (File too large). Set RTRAIN_CACHE"
    )
    assert hidden(cache) == [] and not list(cache.rglob("*.parquet"))


def test_a_cache_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"the data cache cannot be used \(Not a directory\)\. Set RTRAIN_CACHE"):
        sources.get("ml-100k", cache=tmp_path / "file" / "cache")


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data set 'ml-100'; did you mean 'ml-100k'"):
        sources.get("ml-100", cache=tmp_path)
    with pytest.raises(DataError, match=r"there is no data set 'netflix'\. The named ones are ml-100k"):
        sources.get("netflix", cache=tmp_path)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RTRAIN_CACHE", str(tmp_path))
    assert sources.default_cache() == tmp_path
    monkeypatch.delenv("RTRAIN_CACHE")
    assert sources.default_cache() == Path.home() / ".cache" / "rtrain"
