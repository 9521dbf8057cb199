"""What a GPU answers is what the processor answers: a ranking export, whole and in fewer bits; a language model's."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rtrain
from recipes.gpt_stdlib import debug as gpt
from rtrain import Handoff
from rtrain.export.artifact import Predictor, apart_of
from rtrain.export.fastest import fastest
from rtrain.export.head import HEAD
from rtrain.export.request import rows_of
from rtrain.handoff.served import SAME, apart
from rtrain.storage import Folder
from rtrain.training.records import PREDICTIONS
from tests.unit.release.runs import run_of, write_rows
from tests.unit.training.jobs import train

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("tables", ["trained", "float16", "int8", "int4"])
def test_answers_are_those_of_the_processor(tmp_path: Path, tables: str) -> None:
    write_rows(tmp_path)
    run = replace(run_of(tmp_path, "gpu"), handoff=Handoff(rows=64, tables=tables, tolerance=0.1))  # type: ignore[arg-type]
    train(run)
    export, dataset = f"{run.folder}/export", run.data.open()
    rows = rows_of(dataset.raw("test", 0, 256), dataset.schema)
    there, here = Predictor(export, device="cuda"), Predictor(export, program="eager")
    compiled = Predictor(export, device="cuda", program="compiled")
    chosen = Predictor(export, device="cuda")
    assert fastest(export, chosen).keys() == {"eager", "compiled"}
    beside = Predictor(export, device="cuda", tables="host")
    assert {x.device.type for x in beside.lookup.tables.values()} == {"cpu"}
    assert {parameter.device.type for parameter in beside.lookup.whole.dense.parameters()} == {"cuda"}
    assert there.program is None and there.device.type == "cuda" and compiled.program is not None
    if tables == "trained":
        assert {parameter.device.type for parameter in there.model.parameters()} == {"cuda"}
    for count in (1, 64, 256):
        assert apart(there.predict(rows[:count]), here.predict(rows[:count])) <= SAME
        assert apart(beside.predict(rows[:count]), here.predict(rows[:count])) <= SAME
        assert apart(chosen.predict(rows[:count]), here.predict(rows[:count])) <= SAME
        assert apart(compiled.predict(rows[:count]), here.predict(rows[:count])) <= SAME


@pytest.mark.parametrize("kept", ["trained", "bfloat16"])
def test_a_language_model_says_what_transformers_say_there(tmp_path: Path, kept: str) -> None:
    """Greedy tokens of several at once are those of `generate` on the GPU, and rows cost what the processor says."""
    pytest.importorskip("transformers")
    from rtrain.language.engine import Engine
    from rtrain.language.model import load
    from rtrain.language.sampling import Sampling

    changes = {"storage": str(tmp_path), "name": "gpu", "duration.steps": 200, "optim.lr": 5e-3, "cluster.workers": 1}
    changes |= {"handoff.weights": kept, "handoff.rows": 8, "tracking.to": ()}
    result = rtrain.train(rtrain.override(gpt(), changes), launcher="inline", quiet=True)
    assert result is not None and result.export is not None
    head = Folder(result.export).read_json(HEAD)
    recorded = Folder(f"{tmp_path}/gpu").read_json(PREDICTIONS)
    there = Engine(load(result.export, device=DEVICE), lanes=4)
    model = there.language.model
    assert model.device.type == DEVICE
    scored, greedy = Sampling(max_tokens=0, echo=True, logprobs=0), Sampling(max_tokens=8, temperature=0)
    shards = rtrain.override(gpt(), changes).data.open().shards
    rows = [shards.sample(number).tolist() for number in recorded["rows"]]
    losses = [-sum(t.logprob for t in there.answer(row, scored).tokens if t.logprob is not None) for row in rows]
    assert apart(losses, recorded["predictions"]) <= SAME + apart_of(head)
    prompts = [row[:16] for row in rows[:4]]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: there.answer(prompt, greedy), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt], device=DEVICE)
        wanted = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
        said = [token.id for token in answer.tokens]
        # A token that is all but as likely as another may change with what is computed beside it.
        assert kept != "trained" or said == wanted[: len(said)]
    there.close()
