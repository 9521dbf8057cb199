"""A small Llama-style decoder on real text that every machine has: the source of Python's own library, by bytes.

python recipes/gpt_stdlib.py                                        # two data ranks under ZeRO-1
python recipes/gpt_stdlib.py plan --parallel.tensor 2
python recipes/gpt_stdlib.py train --parallel.pipeline 2 --parallel.microbatches 4
python recipes/gpt_stdlib.py train --launcher inline                # one process, no Ray
"""

from dataclasses import replace

from rtrain import (
    AdamW,
    Checkpoint,
    Cluster,
    Decoder,
    Duration,
    Evaluation,
    Parallel,
    Perplexity,
    Run,
    Schedule,
    TokenLoss,
    Tokens,
    main,
)


def run() -> Run:
    """The settings of nanoGPT's example for a CPU: 4 layers, 4 heads, dim 128, context 64, batch 12, 2000 steps."""
    return Run(
        name="gpt-stdlib",
        model=Decoder(vocab=256, layers=4, dim=128, heads=4),
        data=Tokens(source="stdlib", context=64, valid=0.001, test=0.001),
        optim=AdamW(
            lr=1e-3,
            betas=(0.9, 0.99),
            weight_decay=0.1,
            clip_norm=1.0,
            schedule=Schedule(warmup_steps=100, decay="cosine", floor=0.1),
        ),
        global_batch=12,
        duration=Duration(steps=2000),
        parallel=Parallel(dense="zero", zero_stage=1),
        evaluation=Evaluation(every=Duration(steps=500), monitor="loss", batch=48),
        checkpoint=Checkpoint(every=Duration(steps=500)),
        cluster=Cluster(workers=2),
        metrics=(TokenLoss(), Perplexity()),
        log_every_steps=50,
    )


def debug() -> Run:
    """The same path in seconds."""
    return replace(
        run(),
        name="gpt-stdlib-debug",
        model=Decoder(vocab=256, layers=2, dim=32, heads=4, kv_heads=2),
        duration=Duration(steps=20),
        evaluation=Evaluation(every=Duration(steps=10), monitor="loss", batch=48),
        data=Tokens(source="stdlib", context=32, valid=0.0001, test=0.0001),
        log_every_steps=5,
    )


if __name__ == "__main__":
    main(run, debug)
