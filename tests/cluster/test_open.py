"""Nobody without its token uses an embedded Ray, from whatever address; and nothing of it stays."""

import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from rtrain.doctor.cluster import check_open_rays
from tests.cluster.conftest import ROOT, environment, wait_for

GCS_READ = "from ray._raylet import GcsClient; print('READ', GcsClient(address='{}').internal_kv_keys(b'', b''))"
TASK = "import ray; ray.init('{}', log_to_driver=False); print('RAN', ray.get(ray.remote(lambda: 1).remote()))"


def outward() -> str:
    """This machine's address as another one would use it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        address = str(probe.getsockname()[0])
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    return address


def listening_ports() -> set[int]:
    """Of all of Ray's processes below this one."""
    pids = {p.pid for p in psutil.Process().children(recursive=True)} | {os.getpid()}
    return {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in pids}


def stranger(code: str, token: str | None) -> str:
    """What a process without the right token gets to see."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": "/nowhere"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    env["RAY_gcs_rpc_server_connect_timeout_s"] = "1"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_every_port_refuses_strangers(joined_ray: None) -> None:
    address, ports = outward(), listening_ports()
    assert len(ports) >= 8  # GCS, raylet, agents, workers
    jobs = 0
    for port in ports:
        for path in ("/api/job_agent/jobs/", "/api/jobs/"):
            try:
                answer = httpx.post(
                    f"http://{address}:{port}{path}", json={"entrypoint": "true"}, timeout=10, trust_env=False
                )
            except httpx.TransportError:
                continue  # gRPC, or not at this address
            jobs += answer.status_code == 401
            # 405: a metrics page, which knows GET alone.
            assert answer.status_code in (401, 405), (port, path, answer.text[:200])
    assert jobs >= 2, "no port even knew what a job is: this test no longer looks at the right ones"

    import ray

    gcs = ray.get_runtime_context().gcs_address
    right = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    read, task = GCS_READ.format(gcs), TASK.format(gcs)
    # Side by side: a task waits 20 s for a connection that it does not get.
    asked = [(read, None), (read, "f" * 64), (task, None), (task, "f" * 64), (read, right)]
    with ThreadPoolExecutor(len(asked)) as pool:
        *refused, answered = pool.map(lambda one: stranger(*one), asked)
    for text in refused[:2]:
        assert "READ" not in text and "InvalidAuthToken" in text, text[-2000:]
    for text in refused[2:]:
        assert "RAN" not in text and "ConnectionError" in text, text[-2000:]
    assert "READ" in answered, answered[-2000:]


def test_token_file_is_the_users_alone(joined_ray: None) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert len(token.read_text()) == 64


OPEN = """
import os, sys, ray
if sys.argv[2] == "open":
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[1], log_to_driver=False)
    print("up", os.getpid(), flush=True)
    sys.stdin.read()
else:
    os.environ["RTRAIN_RAY_TEMP_DIR"] = sys.argv[1]
    from rtrain.launch.embedded import embedded_ray
    tokens = []
    for _ in range(2):
        with embedded_ray(num_cpus=1):
            tokens.append(open(os.environ["RAY_AUTH_TOKEN_PATH"]).read())
            assert ray.get(ray.remote(lambda: 7).remote()) == 7
            print("up", os.getpid(), flush=True)
            sys.stdin.readline()
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert tokens[0] != tokens[1]
    print("left", flush=True)
"""


def test_doctor_names_an_open_ray(ray_temp_dir: str) -> None:
    env = {k: v for k, v in environment(ray_temp_dir).items() if not k.startswith("RAY_AUTH")}
    with subprocess.Popen(
        [sys.executable, "-c", OPEN, f"{ray_temp_dir}/open", "open"],
        env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout and process.stdout.readline().startswith("up")
            finding = wait_for(lambda: next((f for f in check_open_rays() if f.status != "ok"), None), "the finding")
            assert "runs commands for anybody" in finding.found
            assert f"{outward()}:" in finding.found
        finally:
            started = [*psutil.Process(process.pid).children(recursive=True), process]
            for one in started:
                one.kill()
    psutil.wait_procs([p for p in started if isinstance(p, psutil.Process)], timeout=30)


@pytest.mark.slow
def test_nothing_stays_of_an_embedded_ray(ray_temp_dir: str, tmp_path: Path) -> None:
    """Neither of one that ends well, twice in one process, nor of one whose process is killed."""
    base = Path(ray_temp_dir) / "leak"
    command = [sys.executable, "-c", OPEN, str(base), "ours"]
    env = {k: v for k, v in environment(ray_temp_dir).items() if not k.startswith("RAY_AUTH")}
    env["RAY_AUTH_MODE"] = "disabled"  # is not taken over, and that is said once a process

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=(tmp_path / "errors").open("a"), text=True,
        )  # fmt: skip

    with started() as killed:
        assert killed.stdout and killed.stdout.readline().startswith("up"), (tmp_path / "errors").read_text()
        children = psutil.Process(killed.pid).children(recursive=True)
        killed.kill()
    assert [p.name for p in base.iterdir()], "a killed process cannot tidy up"

    with started() as well:
        for _ in range(2):
            assert well.stdout and well.stdout.readline().startswith("up"), (tmp_path / "errors").read_text()
            ours = psutil.Process(well.pid).children(recursive=True)
            assert well.stdin and well.stdin.write("\n")
            well.stdin.flush()
        said = well.stdout.readline() if well.stdout else ""
        assert said == "left\n", (tmp_path / "errors").read_text()
        assert not [p for p in [*children, *ours] if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not list(base.iterdir())
    assert (tmp_path / "errors").read_text().count("RAY_AUTH_MODE=disabled is not taken over") == 2
