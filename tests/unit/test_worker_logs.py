"""What is kept of a worker's log: its end, without Ray's own lines and without the secrets of URIs."""

from pathlib import Path

import pytest

from rtrain.launch import worker_logs


@pytest.mark.parametrize("long", [False, True])
def test_the_end_of_a_log(tmp_path: Path, long: bool) -> None:
    log = tmp_path / "worker-1-2-3.err"
    early = "s3://me:pa55word@bucket/early\n" * (50_000 if long else 1)
    log.write_text(f":job_id:01000000\n:actor_name:RayTrainWorker\n{early}opened s3://me:pa55word@bucket/x\nlast\n")
    kept = worker_logs._end_of(log)
    assert kept.endswith("opened s3://me:***@bucket/x\nlast\n")
    assert "pa55word" not in kept and ":job_id:" not in kept
    assert len(kept) <= worker_logs.MOST_BYTES
    assert ("early" in kept) and (kept.startswith("s3://me:***@bucket/early\n"))


def test_a_log_of_ray_alone_is_empty(tmp_path: Path) -> None:
    log = tmp_path / "worker-1-2-3.out"
    log.write_text(":job_id:01000000\n:actor_name:RayTrainWorker\n")
    assert worker_logs._end_of(log) == ""
