"""Each tracker for real: what it stored is read back with the tool's own reader."""

import io
import json
import math
import os
import subprocess
import sys
import textwrap
import uuid

import fsspec
import psutil
import pytest

from rtrain import config
from rtrain.errors import ClusterError, ConfigError, RtrainWarning
from rtrain.tracking import Tracking, mask, mask_command, open_trackers

CONFIG = {
    "$type": "Run",
    "optim.lr": 0.001,
    "data.api_token": "hunter2-token",
    "storage": "s3://AKIA:hunter2-userinfo@bucket/runs",
    "metrics.1.k": 10,
    "note": "",
}
SECRETS = (b"hunter2-token", b"hunter2-userinfo")


def start(tracking, folder, *, attempt=1, resume_step=0, **changes):
    return open_trackers(
        tracking,
        run_name="dlrm",
        folder=str(folder),
        config=CONFIG | changes,
        attempt=attempt,
        resume_step=resume_step,
    )


def log(trackers, steps):
    for step in steps:
        for tracker in trackers:
            tracker.log(step, {"train/loss": 1 / step, "valid/ndcg@10": 0.5})


def two_attempts(tracking, folder):
    """Steps 10 to 50, a failure, and a second attempt from step 30 to the end."""
    first = start(tracking, folder)
    log(first, (10, 20, 30, 40, 50))
    for tracker in first:
        tracker.close()
    second = start(tracking, folder, attempt=2, resume_step=30, **{"optim.lr": 0.002})
    log(second, (40, 50, 60))
    for tracker in second:
        tracker.finish({"best/auc": 0.75})


def no_secrets(path):
    files = [f for f in path.rglob("*") if f.is_file()]
    assert files
    for file in files:
        assert not any(secret in file.read_bytes() for secret in SECRETS), file


def test_config_says_what_it_cannot_do():
    config.validate(Tracking())
    assert config.override(Tracking(), {"to": "wandb,jsonl"}).to == ("wandb", "jsonl")
    with pytest.raises(ConfigError, match="named twice: jsonl, jsonl"):
        Tracking(to=("jsonl", "jsonl"))
    with pytest.raises(ConfigError, match="project: must not be empty"):
        Tracking(project=" ")
    for store in ("mlruns", "/tmp/mlruns", "file:///tmp/mlruns"):
        with pytest.raises(ConfigError, match="Use sqlite:///"):
            Tracking(mlflow_uri=store)
    for uri in ("sqlite:////x/mlflow.db", "https://mlflow:5000", "postgresql+psycopg2://u@h/db"):
        assert Tracking(mlflow_uri=uri).mlflow_uri == uri


def test_no_tracker_loads_no_tracker_package(tmp_path):
    script = f"""
        import sys
        from rtrain.tracking import Tracking, open_trackers
        open_trackers(Tracking(to=("jsonl",)), run_name="r", folder={str(tmp_path)!r}, config={{}}, attempt=1)
        print(sorted({{"wandb", "mlflow", "tensorboard", "matplotlib", "ray"}} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_secrets_are_masked_and_what_only_looks_like_one_is_not():
    flat = {
        "hf_token": "x", "auth.apiKey": "x", "db.password": "x", "s3.secret_access_key": "x", "secrets.aws": "x",
        "credentials": ["a", "b"], "uri": "https://u:pw@host/p?api_key=abc&n=1",
        "max_tokens": 128, "token_column": "word", "key_dim": 64, "tokenizer": "bpe", "password": "", "key": None,
        "monkey": "banana", "parts": ["postgresql://me:pw@db/x", 3],
    }  # fmt: skip
    masked = mask(flat)
    assert {k for k, v in masked.items() if v == "***"} == {
        "hf_token", "auth.apiKey", "db.password", "s3.secret_access_key", "secrets.aws", "credentials",
    }  # fmt: skip
    assert masked["uri"] == "https://***@host/p?api_key=***&n=1"
    assert masked["parts"] == ["postgresql://me:***@db/x", 3]
    unchanged = ("max_tokens", "token_column", "key_dim", "tokenizer", "password", "key", "monkey")
    assert all(masked[k] == flat[k] for k in unchanged)


def test_secrets_of_a_command_are_masked():
    command = "python recipes/x.py train --optim.lr 3e-4 --data.token abc --db.password=q --name 'a b'"
    assert mask_command(command) == (
        "python recipes/x.py train --optim.lr 3e-4 --data.token '***' '--db.password=***' --name 'a b'"
    )
    assert mask_command("python 'x y.py'  train") == "python 'x y.py'  train"
    assert mask_command("it's s3://k:pw@b") == "it's s3://k:***@b"


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events, {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_hides_the_steps_that_a_resume_took_again(tmp_path):
    """Also where both attempts begin within one second, and a file's number in its process goes from 9 to 10."""
    from tensorboard.summary.writer.event_file_writer import _global_uid

    while _global_uid.get() % 10 != 8:
        pass
    two_attempts(Tracking(), tmp_path)
    events, found = scalars(tmp_path / "tensorboard")
    assert [s for s, _ in found["train/loss"]] == [10, 20, 30, 40, 50, 60]
    assert [v for _, v in found["train/loss"]] == pytest.approx([1 / s for s in (10, 20, 30, 40, 50, 60)], rel=1e-6)
    assert found["best/auc"] == [(60, 0.75)]
    text = events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "|optim.lr|0.002|" in text and "|data.api_token|***|" in text
    no_secrets(tmp_path)


def test_json_lines_have_no_step_twice_and_drop_a_line_that_a_crash_cut(tmp_path):
    tracking = Tracking(to=("jsonl",))
    first = start(tracking, tmp_path)
    log(first, (10, 20, 30, 40))
    first[0].log(20, {"valid/nan": math.nan})
    # A killed process never closes: every line is in the file already, the last one may be cut.
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 25, "train/lo')
    second = start(tracking, tmp_path, attempt=2, resume_step=20)
    log(second, (30,))
    second[0].finish({"best/auc": 0.75})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [10, 20, 20, 30, None]
    assert lines[2] == {"step": 20, "valid/nan": None}
    assert lines[-1] == {"summary": {"best/auc": 0.75}}
    # A finished run that is trained further loses its summary, not its steps.
    start(tracking, tmp_path, attempt=3, resume_step=30)[0].close()
    assert [json.loads(x).get("step") for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        10,
        20,
        20,
        30,
    ]


def test_mlflow_keeps_one_run_over_attempts_in_sqlite(tmp_path, capfd):
    from mlflow.tracking import MlflowClient

    two_attempts(Tracking(to=("mlflow",), project="shop", group="asha"), tmp_path)
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("shop")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["group"]) == ("asha/dlrm", "FINISHED", "asha")
    assert run.data.params["optim.lr"] == "0.001" and run.data.params["type"] == "Run"
    assert run.data.params["data.api_token"] == "***"
    assert run.data.tags["config.attempt-2"] == "optim.lr: 0.001 -> 0.002" and run.data.tags["attempt"] == "2"
    losses = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(losses) == [(s, 1 / s) for s in (10, 20, 30, 40, 50, 60)]  # no step twice
    assert run.data.metrics["valid/ndcg_at_10"] == 0.5
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "best/auc")] == [(60, 0.75)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlflow.db", "trackers.json"]
    no_secrets(tmp_path)


def test_mlflow_that_cannot_start_says_what_to_do(tmp_path):
    uri = f"sqlite:///{tmp_path}/missing/folder/mlflow.db"
    (tmp_path / "missing").write_text("a file where a folder should be")
    with pytest.raises(
        ClusterError, match="MLflow cannot be used at sqlite:.*set tracking.mlflow_uri, or take 'mlflow'"
    ):
        start(Tracking(to=("mlflow",), mlflow_uri=uri), tmp_path)


def test_wandb_is_offline_silent_and_one_run_over_attempts(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")  # the config decides, not what a shell left behind
    two_attempts(Tracking(to=("wandb",), group="asha"), tmp_path)
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""
    # Its process is the one that writes: what it had not yet written when the run ended would be missing.
    assert not [p for p in psutil.Process().children(recursive=True) if p.name().startswith("wandb")]
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    stored = sorted((tmp_path / "wandb").glob(f"offline-run-*-{identity}*/run-{identity}.wandb"))
    assert stored, list((tmp_path / "wandb").iterdir())
    everything = b"".join(f.read_bytes() for f in stored)
    for word in (b"train/loss", b"best/auc", b"optim.lr", b"***", b"asha/dlrm"):
        assert word in everything
    no_secrets(tmp_path)


@pytest.mark.parametrize("key", ["", "x" * 40])
def test_wandb_online_that_cannot_start_writes_offline_and_says_so(key, tmp_path, monkeypatch):
    """Without a key, and with one while its server is away."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.warns(RtrainWarning, match="wandb cannot start online.*'wandb sync --sync-all .*Set WANDB_API_KEY"):
        trackers = start(Tracking(to=("jsonl", "wandb"), wandb_mode="online"), tmp_path)
    log(trackers, (10, 20))
    for tracker in trackers:
        tracker.finish({"best/auc": 0.75})
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    (stored,) = (tmp_path / "wandb").glob(f"offline-run-*-{identity}*/run-{identity}.wandb")
    assert all(word in stored.read_bytes() for word in (b"train/loss", b"best/auc"))
    assert not key or key.encode() not in stored.read_bytes()


def test_a_tracker_package_that_is_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "rtrain.tracking.wandb", raising=False)
    with pytest.raises(ConfigError, match=r"'wandb' cannot be imported .*pip install wandb\), or take it out"):
        start(Tracking(to=("wandb",)), tmp_path)


@pytest.fixture
def remote():
    uri = f"memory://{uuid.uuid4().hex}/dlrm"
    yield uri
    memory = fsspec.filesystem("memory")
    if memory.exists(uri):
        memory.rm(uri, recursive=True)


def test_a_remote_folder_gets_everything_and_scratch_is_gone(remote, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    two_attempts(Tracking(to=("tensorboard", "jsonl", "mlflow", "wandb")), remote)
    assert not [p for p in scratch.iterdir() if p.name.startswith("rtrain-")]

    fetched = tmp_path / "fetched"
    fsspec.filesystem("memory").get(remote, str(fetched), recursive=True)
    _, found = scalars(fetched / "tensorboard")
    assert [s for s, _ in found["train/loss"]] == [10, 20, 30, 40, 50, 60]
    lines = [json.loads(line) for line in (fetched / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [10, 20, 30, 40, 50, 60, None]
    client = MlflowClient(tracking_uri=f"sqlite:///{fetched / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("rtrain").experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics["train/loss"] == 1 / 60
    identity = json.loads((fetched / "trackers.json").read_text())["wandb"]
    assert list((fetched / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    no_secrets(fetched)


def test_a_remote_folder_is_kept_up_to_date_while_the_run_goes_on(remote):
    trackers = start(Tracking(to=("tensorboard", "jsonl")), remote)
    for tracker in trackers:
        tracker.place.every_s = 0.0
    log(trackers, (10,))
    memory = fsspec.filesystem("memory")
    assert json.loads(memory.cat_file(f"{remote}/metrics.jsonl"))["step"] == 10
    (events,) = memory.ls(f"{remote}/tensorboard", detail=True)
    assert events["size"] > 0
    for tracker in trackers:
        tracker.close()


def test_storage_that_fails_costs_no_run_and_the_files_stay(remote, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tracker,) = start(Tracking(to=("jsonl",)), remote)
    tracker.place.every_s = 0.0

    def broken(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(type(tracker.place.folder.fs), "put_file", broken)
    log([tracker], (10, 20))
    with pytest.warns(RuntimeWarning, match="could not be copied to memory://.*no route.*kept there"):
        tracker.finish({})
    assert [json.loads(x).get("step") for x in tracker.place.path.read_text().splitlines()] == [10, 20, None]


@pytest.mark.parametrize("kind", ["tensorboard", "jsonl"])
def test_s3(kind, tmp_path):
    """The same against a server that speaks S3."""
    pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        script = f"""
            import fsspec
            from rtrain.tracking import Tracking, open_trackers
            fsspec.filesystem("s3").makedirs("bucket", exist_ok=True)
            (tracker,) = open_trackers(
                Tracking(to=({kind!r},)), run_name="r", folder="s3://bucket/runs/r", config={{}}, attempt=1)
            tracker.log(10, {{"train/loss": 0.5}})
            tracker.finish({{}})
            print(fsspec.filesystem("s3").find("bucket/runs/r"))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=os.environ | {
                "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_DEFAULT_REGION": "us-east-1", "TMPDIR": str(tmp_path),
            },
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        expected = "bucket/runs/r/metrics.jsonl" if kind == "jsonl" else "bucket/runs/r/tensorboard/events.out.tfevents"
        assert expected in done.stdout
    finally:
        server.stop()
