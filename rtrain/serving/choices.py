"""Several answers of a language model under way at once."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from rtrain.language.pieces import Piece

Answers = Sequence[Callable[[], AsyncGenerator[Piece, None]]]


async def as_they_come(answers: Answers, at_once: int) -> AsyncGenerator[tuple[int, Piece], None]:
    """Pieces of all of them, each with the number of its answer; whoever leaves this ends all.

    `at_once`: that are under way, so that those of one request leave room for others'.

    Raises:
        Exception: the first that one of them raises, which ends the others.
    """
    lanes = asyncio.Semaphore(at_once)
    found: asyncio.Queue[tuple[int, Piece] | BaseException | None] = asyncio.Queue()

    async def follow(number: int, answer: Callable[[], AsyncGenerator[Piece, None]]) -> None:
        async with lanes, aclosing(answer()) as pieces:
            async for piece in pieces:
                found.put_nowait((number, piece))

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            found.put_nowait(task.exception())

    tasks = [asyncio.create_task(follow(*of)) for of in enumerate(answers)]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        under_way = len(tasks)
        while under_way:
            match await found.get():
                case (number, piece):
                    yield number, piece
                case None:
                    under_way -= 1
                case error:
                    raise error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
