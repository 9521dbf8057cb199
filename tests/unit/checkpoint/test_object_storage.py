"""Checkpoints and data on a running S3 server that answers with errors, slowly, or not at all."""

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rtrain.checkpoint import fence
from rtrain.checkpoint.fence import Fenced
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.format import Stored, newest
from rtrain.checkpoint.writing import save
from rtrain.data.parquet import ParquetRows
from rtrain.data.tokenize import tokenize
from rtrain.data.tokens import Tokens
from rtrain.errors import CheckpointError, DataError
from rtrain.launch.taking import move_aside
from rtrain.parallel.chunks import whole
from rtrain.storage import Folder, check_writable, refused_by_storage
from rtrain.storage.patience import NoBucket, Patience, StorageDown, may_pass

moto_server = pytest.importorskip("moto.server")
pytestmark = pytest.mark.usefixtures("world_of_one")


class Weather:
    """What the way to the storage is like now, and how often it was bad."""

    def __init__(self) -> None:
        self.chance = random.Random(7)
        self.fails = self.cuts = self.loses = 0.0
        """Shares of the requests that get a 503, are cut off, or are done and their answer is lost."""
        self.slow_s = 0.0
        self.down = False
        self.forgets_conditions = False
        self.bad = 0


class Way(BaseHTTPRequestHandler):
    """Hands requests on to moto's server, in the weather of the server."""

    protocol_version = "HTTP/1.1"
    server: Any

    def hand_on(self) -> None:
        weather: Weather = self.server.weather
        body = self.body()
        time.sleep(weather.slow_s)
        luck = weather.chance.random()
        if weather.down or luck < weather.fails:
            weather.bad += 1
            text = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            return self.answer(503, {"Content-Type": "application/xml"}, text)
        if luck < weather.fails + weather.cuts:
            weather.bad += 1
            return self.cut()
        if weather.forgets_conditions:
            del self.headers["If-None-Match"]
        behind = HTTPConnection(*self.server.behind, timeout=30)
        kept = {n: v for n, v in self.headers.items() if n.lower() not in ("transfer-encoding", "expect", "connection")}
        behind.request(self.command, self.path, body=body, headers=kept | {"Content-Length": str(len(body))})
        opened = behind.getresponse()
        content = opened.read()
        behind.close()
        if luck < weather.fails + weather.cuts + weather.loses:
            weather.bad += 1
            return self.cut()
        self.answer(opened.status, dict(opened.headers), content)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = hand_on

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def way() -> Iterator[ThreadingHTTPServer]:
    moto = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Way)
    server.behind, server.weather = (host, port), Weather()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    moto.stop()


@pytest.fixture
def run(way: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # else bodies come in chunks, which `Way` does not read
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{way.server_address[1]}",
    }.items():
        monkeypatch.setenv(name, value)
    # No retries but our own, so that what is tested is ours.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"retries": {"max_attempts": 0}}})
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    way.weather = Weather()
    bucket = f"runs-{os.urandom(4).hex()}"
    fsspec.filesystem("s3").mkdir(bucket)
    yield f"s3://{bucket}/run"
    way.weather = Weather()
    fsspec.filesystem("s3").clear_instance_cache()


QUICK = Patience(budget_s=30.0, first_s=0.01, most_s=0.1)


def write(folders: CheckpointFolders, attempt: fence.Attempt, step: int) -> None:
    save(folders, step, [whole("model.w", torch.full((1000,), float(step)))], {}, attempt=attempt)
    folders.prune(2, set())


def test_errors_cuts_lost_answers_and_slowness_are_sat_out(way: Any, run: str) -> None:
    folders = CheckpointFolders(run, QUICK)
    way.weather.fails, way.weather.cuts, way.weather.loses, way.weather.slow_s = 0.1, 0.1, 0.1, 0.002
    attempt = fence.begin(folders)
    for step in range(1, 4):
        write(folders, attempt, step)
    assert way.weather.bad > 5
    assert folders.committed() == [2, 3]
    stored, problems = newest(folders)
    assert stored is not None
    assert (stored.step, problems) == (3, [])
    assert torch.equal(stored.tensor("model.w"), torch.full((1000,), 3.0))


def test_two_attempts_on_object_storage(run: str) -> None:
    folders = CheckpointFolders(run, QUICK)
    old = fence.begin(folders)
    write(folders, old, 1)
    new = fence.begin(CheckpointFolders(run, QUICK))
    with pytest.raises(Fenced, match="attempt 2 .* has taken it over from attempt 1"):
        write(folders, old, 2)
    write(folders, new, 2)
    assert folders.committed() == [1, 2]
    log = folders.log
    assert log.create("x", b"mine")
    assert not log.create("x", b"theirs")
    assert log.create("x", b"mine"), "a try whose answer was lost is not one that failed"
    assert log.read("x") == b"mine"


def test_a_server_that_does_not_keep_conditions_is_found_out(way: Any, run: str) -> None:
    way.weather.forgets_conditions = True
    folders = CheckpointFolders(run, QUICK)
    driver = fence.take(folders)
    assert not folders.log.creates_once()
    write(folders, fence.begin(folders, driver=driver.token), 1)
    with pytest.raises(CheckpointError, match="holds it for another"):
        fence.take(CheckpointFolders(run, QUICK))
    assert folders.committed() == [1]


def test_a_storage_that_stays_away_is_told_when_the_budget_is_used_up(way: Any, run: str) -> None:
    folders = CheckpointFolders(run, Patience(budget_s=0.5, first_s=0.01, most_s=0.1))
    attempt = fence.begin(folders)
    write(folders, attempt, 1)
    way.weather.down = True
    with pytest.raises(
        CheckpointError, match=r"step 2: rank 0: StorageDown: s3://.*tried \d+ times in \d s\. Nothing was"
    ):
        write(folders, attempt, 2)
    way.weather.down = False
    write(folders, attempt, 2)  # the same attempt, once the storage is back
    assert Stored(folders.of(2), 2).tensor("model.w")[0] == 2.0


def test_a_server_that_is_started_anew_is_waited_for(way: Any, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port refuses connections meanwhile, which each library has another name for."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    fsspec.filesystem("s3").clear_instance_cache()
    uri = f"{run.rpartition('/')[0]}/anew"

    def serve() -> None:
        server: Any = ThreadingHTTPServer(("127.0.0.1", port), Way)
        server.behind, server.weather = way.behind, Weather()
        servers.append(server)
        server.serve_forever()

    servers = list[Any]()
    folder = Folder(uri, Patience(budget_s=30.0, first_s=0.05, most_s=0.2))
    with pytest.raises(StorageDown, match=rf"{uri}: write a: EndpointConnectionError.* tried \d+ times"):
        Folder(uri, Patience(budget_s=0.2, first_s=0.05)).write("a", b"1")
    thread = threading.Timer(1.0, serve)
    thread.start()
    try:
        folder.write("a", b"2")
        assert folder.read("a") == b"2" and servers
    finally:
        thread.cancel()
        for server in servers:
            server.shutdown()
            server.server_close()


def test_rows_are_read_through_errors_and_cuts(way: Any, run: str, tmp_path: Any) -> None:
    table = pa.table({"a": np.arange(4000), "b": np.random.default_rng(0).normal(size=4000)})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=500)
    uri = f"{run}.parquet"
    fsspec.filesystem("s3").put_file(str(tmp_path / "rows.parquet"), uri)
    way.weather.fails, way.weather.cuts = 0.3, 0.1
    rows = ParquetRows(uri)
    rows.patience = QUICK
    assert rows.read(0, 4000).equals(table)
    (whole_group,) = rows.groups(1000, 1500)
    parts = list(rows.batches(whole_group, ["b", "a"], 7))
    assert pa.Table.from_batches(parts).equals(table.slice(1000, 500).select(["b", "a"]).combine_chunks())
    assert way.weather.bad >= 10 and len(parts) == 72
    way.weather.down, rows.patience = True, Patience(budget_s=0.2, first_s=0.05)
    with pytest.raises(StorageDown, match=r"\.parquet: read: .* tried \d+ times"):
        rows.read(0, 1)
    way.weather = Weather()
    assert rows.read(3999, 4000).equals(table.slice(3999))


def test_a_folder_is_moved_with_all_in_it(way: Any, run: str) -> None:
    """S3 renames nothing, and fsspec's `mv` stops at what is only the beginning of files' names."""
    whole, to = Folder(f"{run}/whole", QUICK), Folder(f"{run}/out", QUICK)
    for name in ("a", "b/c", "b/d/e", "last"):
        whole.fs.pipe_file(f"{whole.path}/{name}", name.encode())
    order, copied = list[str](), whole.fs.cp_file
    way.weather.fails = 0.3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole.fs, "cp_file", lambda a, b: (copied(a, b), order.append(a.rpartition("/")[2])))
        whole.move(to, last="last")
    way.weather = Weather()
    assert order[-1] == "last" and sorted(order) == ["a", "c", "e", "last"]
    to.fs.invalidate_cache()
    found = {file.removeprefix(f"{to.path}/"): to.fs.cat_file(file).decode() for file in to.fs.find(to.path)}
    assert found == {name: name for name in ("a", "b/c", "b/d/e", "last")} and whole.names() == []
    assert move_aside(f"{run}/out") == f"{run}/out~1" and to.names() == []
    assert Folder(f"{run}/out~1").names() == ["a", "b", "last"]


@pytest.mark.parametrize("killed", ["cp_file", "rm"])
def test_an_earlier_run_whose_move_was_killed_is_moved_on(killed: str, way: Any, run: str) -> None:
    there = Folder(f"{run}/r", QUICK)
    names = ["a", "b/c", "b/d/e", "last"]
    for name in names:
        there.fs.pipe_file(f"{there.path}/{name}", name.encode())
    there.fs.pipe_file(f"{there.path}~1/earlier", b"of another move, which ended")
    done = iter([True, False])
    work = getattr(there.fs, killed)

    def once(path: str, *rest: Any, **options: Any) -> None:
        if killed == "rm":
            there.fs.rm_file(f"{path}/a")
        elif next(done):
            return work(path, *rest, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(there.fs, killed, once)
        with pytest.raises(KeyboardInterrupt):
            move_aside(f"{run}/r")
    assert move_aside(f"{run}/r") == f"{run}/r~2" and there.names() == []
    to = Folder(f"{run}/r~2")
    to.fs.invalidate_cache()
    found = {file.removeprefix(f"{to.path}/"): to.fs.cat_file(file).decode() for file in to.fs.find(to.path)}
    assert found == {name: name for name in names}
    assert Folder(f"{run}/r~3").names() == [] and Folder(f"{run}/r~1").names() == ["earlier"]


class Pages(BaseHTTPRequestHandler):
    """A file by HTTP, which most requests do not get at first."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        content, status = self.server.content, self.server.status()
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if status == 200 and asked:
            first, _, last = asked.partition("-")
            status, content = 206, content[int(first) : int(last) + 1]
        content = content if status < 400 else b""
        self.send_response_only(status)
        for name, value in {
            "Accept-Ranges": "bytes",
            "Content-Length": str(len(content)),
            **({"Content-Range": f"bytes {asked}/{len(self.server.content)}"} if status == 206 else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass


def test_rows_by_http_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever keeps it from a file fsspec says by HTTP that there is none."""
    table = pa.table({"a": np.arange(3000)})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=300)
    chance, said = random.Random(3), list[int]()
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.content = (tmp_path / "rows.parquet").read_bytes()
    server.status = lambda: said.append(503 if chance.random() < 0.7 else 200) or said[-1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_address[1]}/rows.parquet"
    monkeypatch.setattr("rtrain.data.parquet.Patience", lambda: QUICK)
    try:
        assert ParquetRows(uri).read(0, 3000).equals(table) and said.count(503) > 5
        server.status = lambda: 404
        with pytest.raises(DataError, match=rf"{uri}: no such file or folder. Check data.source"):
            ParquetRows(uri)
        server.status = lambda: 503
        monkeypatch.setattr("rtrain.data.parquet.Patience", lambda: Patience(budget_s=0.2, first_s=0.05))
        with pytest.raises(StorageDown, match=rf"{uri}: read: ClientResponseError: 503, .* tried \d+ times"):
            ParquetRows(uri)
    finally:
        server.shutdown()
        server.server_close()


def test_text_on_object_storage_is_copied_once(
    way: Any, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RTRAIN_CACHE", str(tmp_path / "cache"))
    s3, uri = fsspec.filesystem("s3"), f"{run}/shards"
    for name, text in {"b/x.txt": b"zwei" * 90, "a.txt": b"eins" * 90, "b/.hidden": b"no"}.items():
        (tmp_path / "text" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "text" / name).write_bytes(text)
        s3.pipe_file(f"{run}/text/{name}", text)
    way.weather.fails = 0.2
    assert tokenize([f"{run}/text"], uri, shard_tokens=300) == uri
    tokenize([str(tmp_path / "text")], str(tmp_path / "here"), shard_tokens=300)
    assert Folder(uri).names() == ["00000.bin", "00001.bin", "tokens.json"]
    here, there = (Tokens(source=source, context=16).open() for source in (str(tmp_path / "here"), uri))
    assert there.fingerprint == here.fingerprint
    for number in range(here.shards.samples):
        assert (there.shards.sample(number) == here.shards.sample(number)).all()
    assert capfd.readouterr().err.count("copying") == 1
    Tokens(source=uri, context=16).open()
    assert "copying" not in capfd.readouterr().err and len(list((tmp_path / "cache").glob("copy-*"))) == 1
    monkeypatch.setenv("RTRAIN_CACHE", str(tmp_path / "other"))
    s3.pipe_file(f"{uri}/00001.bin", b"\0" * s3.size(f"{uri}/00001.bin"))
    with pytest.raises(DataError, match=rf"{uri}/00001.bin: its sha256 is not what was written down"):
        Tokens(source=uri, context=16).open()
    assert not list((tmp_path / "other").glob("copy-*"))
    with pytest.raises(DataError, match=f"{run}/none: there is no tokens.json"):
        Tokens(source=f"{run}/none").open()
    with pytest.raises(DataError, match=f"{run}/none: no such file, or a folder without one"):
        tokenize([f"{run}/none"], str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=f"{uri}: it holds tokens.json already"):
        tokenize([f"{run}/text"], uri)


def test_a_bucket_that_is_not_there_is_no_empty_folder(run: str) -> None:
    assert Folder(f"{run}/none", QUICK).names() == [] == list(Folder(f"{run}/none", QUICK).sizes())
    for look in (Folder.names, Folder.sizes):
        with pytest.raises(NoBucket) as caught:
            look(Folder("s3://no-such-bucket/run", QUICK))
        told = "s3://no-such-bucket/run: list: NoBucket: The specified bucket does not exist. Check its name"
        assert refused_by_storage(caught.value) == told


def test_a_storage_that_is_waited_for_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("rtrain.storage.patience.SAY_S", 0.01)
    tries = list[int]()

    def away_at_first() -> None:
        tries.append(1)
        if len(tries) < 5:
            raise ConnectionResetError("gone")

    Patience(budget_s=30.0, first_s=0.02, most_s=0.02).run(
        away_at_first, what="ftp://me:secret@host: list", remote=True
    )
    said = capsys.readouterr().err
    assert said == "rtrain: ftp://me:***@host: list: ConnectionResetError: gone; it is tried for 30 s\n"


def test_what_a_storage_refuses_is_said_in_one_line(tmp_path: Any, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(Exception, match="Unable to locate credentials") as caught:
        Folder(run, QUICK).write("a", b"1")
    said = "NoCredentialsError: Unable to locate credentials. Set AWS_ACCESS_KEY_ID and"
    assert str(refused_by_storage(caught.value)).startswith(f"{run}: write a: {said}")
    with pytest.raises(CheckpointError, match=rf"storage: '{run}' cannot be written .*{said}"):
        check_writable(run)
    with pytest.raises(DataError, match=f"{run}: its storage refuses .NoCredentialsError: Unable to locate"):
        ParquetRows(run)
    assert refused_by_storage(PermissionError(13, "no", "x")) == "PermissionError: [Errno 13] no: 'x'"
    with pytest.raises(Exception, match="Unable to locate") as other:  # not by way of a Folder
        fsspec.open(f"{run}/x").open()
    assert str(refused_by_storage(other.value)).startswith(said)
    for error in (FileNotFoundError(2, "none"), ValueError("x"), OSError(5, "a broken disk")):
        assert refused_by_storage(error) is None


def test_a_storage_that_was_away_changes_no_draw_of_a_training() -> None:
    """The pauses are drawn, and a rank's generators are part of its checkpoint."""
    before, tries = random.getstate(), list[int]()

    def away_at_first() -> None:
        tries.append(1)
        if len(tries) < 4:
            raise ConnectionResetError

    Patience(budget_s=30.0, first_s=0.001, most_s=0.01).run(away_at_first, what="x", remote=True)
    assert len(tries) == 4 and random.getstate() == before


def test_what_no_patience_can_mend_is_raised_at_once() -> None:
    patience, tries = Patience(budget_s=60), 0

    def work() -> None:
        nonlocal tries
        tries += 1
        raise PermissionError(13, "Access denied")

    with pytest.raises(PermissionError):
        patience.run(work, what="x", remote=True)
    assert tries == 1
    for error in (OSError(28, "full"), FileNotFoundError(2, "x"), ValueError("x"), OSError(5, "a broken disk")):
        assert not may_pass(error, remote=False)
    for error in (ConnectionResetError(), TimeoutError(), OSError(116, "stale NFS handle")):
        assert may_pass(error, remote=False)
    assert may_pass(OSError(5, "what s3fs makes of a 503"), remote=True)


def test_the_budget_is_of_each_operation_and_the_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses = [100.0], list[float]()  # a real clock is never at 0
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda s: (pauses.append(s), clock.__setitem__(0, clock[0] + s)))
    patience = Patience(budget_s=60.0, first_s=1.0, most_s=8.0)

    def down() -> None:
        raise ConnectionResetError("gone")

    for _ in range(2):
        pauses.clear()
        with pytest.raises(StorageDown, match=r"^list: ConnectionResetError: gone, tried \d+ times in (5\d|60) s"):
            patience.run(down, what="list", remote=True)
        assert 52 <= sum(pauses) <= 60
        assert all(low / 2 <= pause <= low for pause, low in zip(pauses, (1, 2, 4, 8, 8, 8), strict=False))


def test_a_fetch_that_broke_off_is_not_taken_for_the_file(way: Any, run: str, tmp_path: Any) -> None:
    folder = Folder(run, QUICK)
    folder.write("big", bytes(300_000))
    way.weather.loses = 0.5
    (tmp_path / "in").mkdir()
    assert folder.fetch("big", tmp_path / "in").read_bytes() == bytes(300_000)


def test_each_part_of_a_long_transfer_shows_that_it_goes_on(run: str, tmp_path: Any) -> None:
    beats: list[None] = []
    folder = Folder(run, Patience(went_on=lambda: beats.append(None)))
    local = tmp_path / "f"
    local.write_bytes(bytes(120 << 20))  # s3fs sends parts of 50 MiB
    folder.adopt(local, "f")
    assert len(beats) >= 3
    beats.clear()
    assert folder.fetch("f", tmp_path).stat().st_size == 120 << 20
    assert len(beats) >= 3
