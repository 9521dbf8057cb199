"""The `Run`: everything that one training job is, in one frozen config."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from rtrain.config import flatten, validate
from rtrain.data.cursor import batches_per_epoch
from rtrain.data.protocol import Data
from rtrain.duration import Duration
from rtrain.errors import ConfigError, did_you_mean
from rtrain.mesh import Parallel
from rtrain.metrics import AUC, LogLoss
from rtrain.metrics.state import Metric, Retrieved, group_columns, sampled_of, takes
from rtrain.models.protocol import Blueprint, Model
from rtrain.optim import AdamW, RowWiseAdagrad, SparseOptim
from rtrain.tracking import Tracking, has_secret

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When checkpoints are written and how many stay."""

    every: Duration = Duration(steps=200)
    """Between checkpoints; one more is written at the end, and one at each best evaluation."""
    background: bool = True
    """Write while training goes on, from a copy in the host's memory (as large as the state); else it waits."""
    keep: int = 3
    """Newest intact checkpoints that stay; the best one by `evaluation.monitor` stays beside them."""
    retry_s: float = 60.0
    """Seconds for which an operation of the storage that failed is tried again, with growing pauses."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"checkpoint.keep: must be at least 1, got {self.keep}")
        if self.retry_s < 0:
            raise ConfigError(f"checkpoint.retry_s: must be at least 0, got {self.retry_s}")

    @classmethod
    def of_older(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """The fields of a config that was stored before there were durations."""
        if "every_steps" in stored:
            stored["every"] = Duration(steps=stored.pop("every_steps"), seconds=stored.pop("every_s", None))
        return stored


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When the validation split is scored, and what stops a run early."""

    every: Duration = Duration(epochs=1)
    """Between evaluations; one more comes at the end."""
    monitor: str = "auc"
    """Metric that decides which checkpoint is the best; of a further label `<label>_<metric>`."""
    patience: int | None = None
    """Evaluations without a better `monitor` after which the run stops; none: never."""
    batch: int = 8192
    """Rows of a global batch in evaluation."""
    slices: tuple[str, ...] = ()
    """Columns of the schema by whose values the metrics of the test split are told too, as `auc[gender=F]`: the 20 most
    frequent values of each, the others together; of numbers that are no ids up to five bins of about as many rows,
    `auc[12.5<price<=30]`. Of retrieval: `history`, the number of a user's interactions that train, and of `Pairs` with
    `user_features` any column of their source."""
    boosting_rows: int = 50_000
    """Training rows, drawn by chance, of a baseline of gradient boosting on the same features; 0: none. It is left out
    of data of more than 1,000,000 rows, and without scikit-learn."""

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"evaluation.patience: must be at least 1, or none, got {self.patience}")
        if self.batch < 1:
            raise ConfigError(f"evaluation.batch: must be at least 1, got {self.batch}")
        if self.boosting_rows < 0:
            raise ConfigError(f"evaluation.boosting_rows: must be at least 0, got {self.boosting_rows}")

    @classmethod
    def of_older(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """The fields of a config that was stored before there were durations."""
        if "every_steps" in stored:
            steps = stored.pop("every_steps")
            stored["every"] = Duration(epochs=1) if steps is None else Duration(steps=steps)
        return stored


FailureKind = Literal[
    "kill-rank", "exception", "hang", "preempt", "corrupt-checkpoint", "truncate-checkpoint", "slow-rank"
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Injection:
    """A failure to cause once, for a rehearsal; the verb `chaos` sets it."""

    kind: FailureKind
    """What happens. The checkpoint kinds damage the newest one and kill the rank."""
    step: int
    """At the end of this step, or of the first later one by which there is a checkpoint to come back from."""
    rank: int = 0
    """Which rank, modulo the number of ranks."""

    def __post_init__(self) -> None:
        if self.step < 1 or self.rank < 0:
            raise ConfigError(f"faults.inject: step must be at least 1 and rank 0, got {self.step} and {self.rank}")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What a run survives by itself."""

    max_failures: int = 3
    """Worker failures after which the run gives up; 0: the first one ends it."""
    hang_s: float = 300.0
    """Seconds without a sign of life after which a rank ends itself; collectives give up 15 s later."""
    grace_s: float = 120.0
    """Seconds after SIGTERM in which a checkpoint must be written; then the process is ended (exit code 143)."""
    inject: Injection | None = None
    """A failure to cause; none: none."""

    @property
    def collective_s(self) -> float:
        """Time-out of process groups: after the watchdogs, which name the silent rank; it ends what they cannot."""
        return self.hang_s + 15.0

    def __post_init__(self) -> None:
        if self.max_failures < 0 or not self.hang_s > 0 or not self.grace_s > 0:
            raise ConfigError("faults: max_failures must be at least 0, hang_s and grace_s positive")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The workers that a run asks Ray for."""

    workers: int = 2
    """Processes that train, one a GPU where there are GPUs."""
    cpus_per_worker: float = 1.0
    """CPUs reserved for each worker."""
    gpus_per_worker: Literal[0, 1] = 0
    """1: each worker owns a GPU (NCCL); 0: CPU (gloo)."""
    memory_gb_per_worker: float | None = None
    """GiB that tables, parameters and optimizer state may take on a worker; none: what the machine has, shared out."""
    wait_s: float = 60.0
    """How long to wait for workers that the cluster does not have free before giving up."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"cluster.workers: must be at least 1, got {self.workers}")
        if self.cpus_per_worker <= 0:
            raise ConfigError(f"cluster.cpus_per_worker: must be positive, got {self.cpus_per_worker}")
        if self.memory_gb_per_worker is not None and not self.memory_gb_per_worker > 0:
            raise ConfigError(f"cluster.memory_gb_per_worker: must be positive, got {self.memory_gb_per_worker}")


@dataclass(frozen=True, kw_only=True)
class Handoff:
    """What happens to the best checkpoint when training has ended."""

    export: bool = True
    """Write the unsharded model with its input schema to `export/`."""
    serve_check: bool = False
    """Start the export under Ray Serve and compare its HTTP answers with the trainer's predictions."""
    rows: int = 1024
    """Test rows whose predictions the trainer records for that comparison, and for the gate's."""
    port: int = 8000
    """HTTP port of Ray Serve, on localhost."""
    index_from: int | None = 100_000
    """Items from which on a retrieval model's export has an index to find them by; none: all are always compared."""
    program: Literal["eager", "measured", "onnx", "compiled"] = "eager"
    """What answers of a ranking model's export: torch's modules; onnx: lookups and dense part by ONNX Runtime;
    compiled: by AOTInductor, on each machine that answers, which takes that one half a minute at its first start;
    measured: the fastest of the three here, if it answers the same."""
    tables: Literal["trained", "float16", "int8", "int4"] = "trained"
    """What weights of tables are kept as in a ranking model's export: as they were trained, or in fewer bits."""
    weights: Literal["trained", "bfloat16", "float16"] = "trained"
    """What a language model's export keeps its weights as, and computes in: as they were trained, float32, or in half
    the bytes."""
    dense: Literal["trained", "int8"] = "trained"
    """What weights of the dense part are kept as in the program of a ranking model's export: int8 where that is
    measured to be faster."""
    pruned: float = 0.0
    """Share of each matrix's weights of a ranking model's dense part, the least ones, that its export leaves out."""
    tolerance: float = 0.001
    """How much worse fewer bits or weights may make a metric of the test split, in its unit; beyond it the run ends
    with an error, and its export is as it was trained. Metrics that group rows by a column are not held."""

    def __post_init__(self) -> None:
        if self.serve_check and not self.export:
            raise ConfigError("handoff.serve_check: needs handoff.export, which is off")
        if self.rows < 1:
            raise ConfigError(f"handoff.rows: must be at least 1, got {self.rows}")
        if not 0 < self.port < 65536:
            raise ConfigError(f"handoff.port: must be 1..65535, got {self.port}")
        if self.index_from is not None and self.index_from < 1:
            raise ConfigError(f"handoff.index_from: must be at least 1, or none, got {self.index_from}")
        if self.program not in ("measured", "eager", "onnx", "compiled"):
            raise ConfigError(f"handoff.program: must be measured, eager, onnx or compiled, got {self.program!r}")
        if self.tables not in ("trained", "float16", "int8", "int4"):
            raise ConfigError(f"handoff.tables: must be trained, float16, int8 or int4, got {self.tables!r}")
        if self.weights not in ("trained", "bfloat16", "float16"):
            raise ConfigError(f"handoff.weights: must be trained, bfloat16 or float16, got {self.weights!r}")
        if self.dense not in ("trained", "int8"):
            raise ConfigError(f"handoff.dense: must be trained or int8, got {self.dense!r}")
        if self.dense == "int8" and self.program in ("eager", "compiled"):
            raise ConfigError("handoff.dense: int8 is of an ONNX program. Set handoff.program to measured, or onnx")
        if not 0 <= self.pruned < 1:
            raise ConfigError(f"handoff.pruned: must be a share, from 0 to below 1, got {self.pruned}")
        if not self.tolerance >= 0:
            raise ConfigError(f"handoff.tolerance: must be at least 0, got {self.tolerance}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training job: model, data, optimizers, layout, and what to do when things go wrong or well."""

    name: str
    """Folder of the run under `storage`; starting a name again resumes it."""
    model: Model
    """What is trained."""
    data: Data
    """What it is trained on."""
    optim: AdamW = AdamW()
    """Optimizer of the dense parameters."""
    sparse_optim: SparseOptim = RowWiseAdagrad()
    """Optimizer of the embedding tables: fused into backward, or `Adam` on every row."""
    global_batch: int = 1024
    """Rows of a step over all workers; an epoch is cut into equal batches of at most this many."""
    duration: Duration = Duration(epochs=1)
    """How long it trains."""
    parallel: Parallel = Parallel()
    """How the run is laid out over its workers."""
    evaluation: Evaluation = Evaluation()
    """When the validation split is scored."""
    checkpoint: Checkpoint = Checkpoint()
    """When checkpoints are written."""
    faults: Faults = Faults()
    """What the run survives by itself."""
    cluster: Cluster = Cluster()
    """The workers that the run asks for."""
    tracking: Tracking = Tracking()
    """Where curves are sent besides the run's own folder."""
    handoff: Handoff = Handoff()
    """What happens to the best checkpoint."""
    metrics: tuple[Metric, ...] = (AUC(), LogLoss())
    """What is computed on the validation and test splits, exactly, over all ranks."""
    log_every_steps: int = 10
    """Steps between points of the training curve."""
    seed: int = 0
    """Seeds weights, dropout and the order of the data."""
    storage: str = "runs"
    """Folder or fsspec URI under which the run's folder lies."""

    def __post_init__(self) -> None:
        validate(self)
        self._check_secrets()  # first: the other messages repeat values
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"name: {self.name!r} must be letters, digits, '.', '_' or '-', at most 100")
        for field in ("global_batch", "log_every_steps"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.seed < 0:
            raise ConfigError(f"seed: must be at least 0, got {self.seed}")
        if self.duration.limit(1, 1) is None:
            raise ConfigError(
                "duration: it has seconds alone, but the schedule of the learning rate needs an end that it knows. "
                "Give steps, samples or epochs too; what is reached first counts"
            )
        names = [name for name, _ in self.named_metrics()]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"metrics: two of them would be called {name!r}. Drop one, or rename its label")
        if self.evaluation.monitor not in names:
            raise ConfigError(
                f"evaluation.monitor: {self.evaluation.monitor!r} is not among the metrics: {', '.join(names)}"
                f"{did_you_mean(self.evaluation.monitor, names)}"
            )
        if not self.monitored.monitored:
            raise ConfigError(
                f"evaluation.monitor: {self.evaluation.monitor} is best somewhere in between, not at an end. "
                "Monitor log_loss instead"
            )
        self._check_kinds()

    def _check_secrets(self) -> None:
        for key, value in flatten(self).items():
            if has_secret(value):
                raise ConfigError(
                    f"{key}: the URI carries a password, token or signature, and the config is stored with the run. "
                    "Give it in the environment (or in fsspec's or MLflow's own settings) instead"
                )

    def _check_kinds(self) -> None:
        """Model, data and metrics are of one kind."""
        model, data = type(self.model).__name__, type(self.data).__name__
        if self.model.reads is not self.data.gives:
            raise ConfigError(f"data: {model} is trained on {self.model.reads.made_by}, got {data}")
        blueprint = self.blueprint
        gives = blueprint.objective.gives
        if wrong := [metric.name for metric in self.metrics if not takes(metric, gives)]:
            raise ConfigError(f"metrics: {', '.join(wrong)} cannot measure {model}. It takes {gives.measured_by}")
        if gives is Retrieved:
            sampled_of(self.metrics)
        elif any(getattr(metric, "sampled", 0) for metric in self.metrics):
            raise ConfigError(f"metrics: {model} scores the rows that there are. Leave out `sampled`")
        ranked = [m.name for m in self.metrics if m.by_group and not group_columns(m)]
        apart = [m.name for m in self.metrics if group_columns(m)]
        if apart and not self.data.columns:
            raise ConfigError(f"metrics: {', '.join(apart)} group by columns, of which {data} has none. Leave out by")
        for name in self.evaluation.slices:
            known = self.data.slices
            if known is not None and name not in known:
                do = did_you_mean(name, known) or f". Known: {', '.join(known) or 'none'}. Name another"
                raise ConfigError(f"evaluation.slices: {data} has no column {name!r} with one value a row or user{do}")
        if len(set(self.evaluation.slices)) < len(self.evaluation.slices):
            raise ConfigError("evaluation.slices: it names a column twice. Name it once")
        if ranked and not self.data.group:
            raise ConfigError(
                f"metrics: {', '.join(ranked)} rank rows within a group; set schema.group to an Id feature"
            )
        if self.handoff.export and not self.model.exported:
            raise ConfigError(f"handoff.export: {model} is not exported yet. Set handoff.export to false")
        if self.handoff.serve_check and not self.model.served:
            raise ConfigError(f"handoff.serve_check: answers of {model} are not compared yet. Set it to false")
        if self.sparse_optim.clip_with_dense and not self.optim.clip_norm:
            raise ConfigError(
                "sparse_optim.clip_with_dense: scales by the factor of optim.clip_norm, which is 0 (off). Set it, or "
                "leave this out"
            )
        if self.sparse_optim != RowWiseAdagrad() and not blueprint.tables:
            raise ConfigError(f"sparse_optim: {model} has no embedding tables for it. Leave it out")

    def named_metrics(self) -> list[tuple[str, Metric]]:
        """Key in results -> metric, of every label."""
        return [(f"{prefix}{metric.name}", metric) for prefix in self.data.metric_prefixes for metric in self.metrics]

    def total_steps(self, rows: int) -> int:
        """Optimizer steps on a training split of `rows`, if no clock and no patience ends the run before."""
        steps = self.duration.limit(rows, batches_per_epoch(rows, self.global_batch))
        assert steps is not None, "a run has more than seconds"
        return steps

    @classmethod
    def of_older(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """The fields of a config that was stored before there were durations."""
        if "epochs" in stored:
            stored["duration"] = Duration(epochs=stored.pop("epochs"), steps=stored.pop("max_steps", None))
        return stored

    @property
    def monitored(self) -> Metric:
        """The metric that `evaluation.monitor` names, of whichever label."""
        return dict(self.named_metrics())[self.evaluation.monitor]

    @property
    def blueprint(self) -> Blueprint:
        """The model as it is built for the data."""
        return self.model.blueprint(self.data.facts)

    @property
    def folder(self) -> str:
        """URI of the run's folder."""
        return f"{self.storage.rstrip('/')}/{self.name}"
