"""All trackers in a worker process of Ray: a fresh interpreter with no terminal, killed and started again."""

import json
from pathlib import Path

TO = ("tensorboard", "wandb", "mlflow", "jsonl")


def test_trackers_in_a_worker_that_is_killed(joined_ray, tmp_path):
    import ray

    @ray.remote(num_cpus=0.1, max_restarts=0)
    class Worker:
        def open(self, attempt, resume_step):
            from rtrain.tracking import Tracking, open_trackers

            self.trackers = open_trackers(
                Tracking(to=TO), run_name="r", folder=str(tmp_path), config={"lr": 1.0},
                attempt=attempt, resume_step=resume_step,
            )  # fmt: skip

        def log(self, *steps):
            for step in steps:
                for tracker in self.trackers:
                    tracker.log(step, {"train/loss": 1 / step})

        def finish(self):
            for tracker in self.trackers:
                tracker.finish({"best/auc": 0.75})

    first = Worker.remote()
    ray.get([first.open.remote(1, 0), first.log.remote(10, 20, 30)])
    ray.kill(first)
    second = Worker.remote()
    ray.get([second.open.remote(2, 20), second.log.remote(30, 40), second.finish.remote()])
    ray.kill(second)

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [10, 20, 30, 40, None]

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("rtrain").experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics["train/loss"] == 1 / 40

    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    stored = list(Path(tmp_path, "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert stored and any(b"best/auc" in f.read_bytes() for f in stored)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")][-2:] == [30, 40]
