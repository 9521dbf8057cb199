"""What a conductor decides of releases, without Ray: what it does to applications and the registry is written down."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtrain import config
from rtrain.endpoint.assigned import assigned_of
from rtrain.endpoint.canary import Canary, Limits
from rtrain.endpoint.conductor import Conductor
from rtrain.endpoint.state import STATE, Deployed, State
from rtrain.endpoint.tally import Tally
from rtrain.errors import CheckpointError, ClusterError, UserError
from rtrain.release.audit import AuditLog
from rtrain.storage import Folder

ONE, TWO = (Deployed(app=f"m-{n}-x", number=n, export=f"e{n}", run=f"r{n}") for n in (1, 2))
QUICK = Canary(seconds=0, answers=5, patience_s=60)


class Written(Conductor):
    """One that has no Ray Serve and no registry to ask."""

    def __init__(self, state: str):
        self.done: list[Any] = []
        self.sealed: list[str] = []
        super().__init__(state)

    def _mark(self, how: str, number: int, why: str) -> None:
        self.done.append((how, number))

    def _remove(self, app: str) -> None:
        self.done.append(("remove", app))

    def _seal(self, newest: str) -> None:
        self.sealed.append(newest)
        raise ClusterError("registry: MLflow did not do it")  # away: the log alone has it, once

    def settle(self) -> list[Any]:
        """What was done, once all is."""
        deadline = time.monotonic() + 30
        while self.status()["to_do"]:
            assert time.monotonic() < deadline, "it goes on for ever"
            time.sleep(0.01)
        return self.done

    def ask(self, answers: int, **of: Any) -> tuple[str, str, float]:
        """Routers told of answers of version 2: who is champion, who is tried, with which share."""
        found = self.exchange("router", 0, {TWO.app: Tally(answers=answers, **of)})
        return found.champion, found.candidate, found.share

    @property
    def told(self) -> list[tuple[str, float | None]]:
        return [(d["what"], d.get("share")) for d in reversed(self.status()["decisions"])]


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(model="m", registry="sqlite:////nowhere/r.db", audit=f"{tmp_path}/audit", champion=ONE)


@pytest.fixture
def conductor(tmp_path: Path, state: State) -> Written:
    Folder(str(tmp_path)).write_json(STATE, state.to_json())
    return Written(str(tmp_path))


def begin(conductor: Conductor, canary: Canary) -> None:
    conductor.begin(dict(TWO.__dict__), config.to_dict(canary), "better", "me")


def test_a_blue_green_release_is_judged_and_crowned(conductor: Written) -> None:
    begin(conductor, Canary(steps=(1.0,), seconds=0, answers=5, patience_s=60))
    assert conductor.ask(4) == (ONE.app, TWO.app, 1.0), "too few answers yet"
    assert conductor.ask(1) == (TWO.app, "", 0.0)
    assert conductor.settle() == [("promote", 2), ("remove", ONE.app)]
    assert conductor.told == [("begin", 1.0), ("champion", 1.0)]
    assert [of["version"] for of in conductor.status()["versions"]] == [2]


def test_of_blue_green_what_the_champion_still_had_under_way_is_no_measure(conductor: Written) -> None:
    begin(conductor, Canary(steps=(1.0,), seconds=0, answers=50, patience_s=60))
    late = Tally(answers=200, scores=[0.1] * 200)
    assert conductor.exchange("router", 0, {ONE.app: late}).share == 1
    assert conductor.ask(40, scores=[0.9] * 40) == (ONE.app, TWO.app, 1.0), "drifted from what nobody asks any more"
    assert conductor.ask(10, scores=[0.9] * 10) == (TWO.app, "", 0.0)


def test_a_blue_green_release_that_fails_goes_back(conductor: Written) -> None:
    begin(conductor, Canary(steps=(1.0,), seconds=0, answers=50, patience_s=60))
    assert conductor.ask(40, failed=40) == (ONE.app, "", 0.0)
    assert conductor.settle() == [("withdraw", 2), ("remove", TWO.app)]
    assert conductor.told == [("begin", 1.0), ("take back", 1.0)]


@pytest.mark.parametrize("shadow", [0.0, 0.5])
def test_each_step_is_taken_and_the_last_is_no_step(conductor: Written, shadow: float) -> None:
    begin(conductor, Canary(steps=(0.1, 1.0), seconds=0, answers=5, patience_s=60, shadow=shadow))
    shares = ([0.0] if shadow else []) + [0.1]
    for share in shares:
        assert conductor.status()["versions"][1]["share"] == share
        found = conductor.ask(5)
    assert found == (TWO.app, "", 0.0)
    assert conductor.told == [
        ("begin", shares[0]),
        *(("advance", s) for s in shares[1:]),
        ("advance", 1.0),
        ("champion", 1.0),
    ]


def test_an_ab_test_waits_for_a_person_who_may_crown_it(conductor: Written) -> None:
    begin(conductor, Canary(steps=(0.5,), seconds=0, answers=5, patience_s=60))
    assert conductor.ask(500) == (ONE.app, TWO.app, 0.5)
    conductor.hold(0.3, "less", "me")
    assert conductor.ask(500) == (ONE.app, TWO.app, 0.3) and "held at 30%" in conductor.status()["step"]
    with pytest.raises(UserError, match="a share is 0 to 100 %, got 150 %"):
        conductor.hold(1.5, "more", "me")
    conductor.hold(1.0, "it won", "me")
    assert conductor.ask(0) == (TWO.app, "", 0.0)
    assert conductor.settle() == [("promote", 2), ("remove", ONE.app)]
    assert conductor.told[-1] == ("champion", 1.0) and conductor.status()["decisions"][0]["by"] == "me"


def test_a_step_without_answers_is_given_up(conductor: Written) -> None:
    begin(conductor, Canary(seconds=0, answers=5, patience_s=1e-9))
    assert conductor.ask(4) == (ONE.app, "", 0.0)
    assert "4 answers in" in conductor.status()["decisions"][0]["why"]


def test_one_at_a_time(conductor: Written) -> None:
    with pytest.raises(UserError, match="no version is being tried"):
        conductor.hold(0.5, "why", "me")
    begin(conductor, QUICK)
    with pytest.raises(UserError, match="version 2 is being tried"):
        begin(conductor, QUICK)
    with pytest.raises(UserError, match="version 2 is being tried"):
        conductor.replace(dict(TWO.__dict__), "change", "why", "me")
    assert conductor.take_back("why", "me") and not conductor.take_back("why", "me")


def test_what_was_decided_and_not_done_is_done_by_the_one_that_starts_again(tmp_path: Path, state: State) -> None:
    state.to_do = [
        {"do": "log", "what": "champion", "why": "w", "details": {"version": 2}},
        {"do": "promote", "number": 2, "why": "w"},
        {"do": "remove", "app": ONE.app},
    ]
    Folder(str(tmp_path)).write_json(STATE, state.to_json())
    again = Written(str(tmp_path))
    assert again.settle() == [("promote", 2), ("remove", ONE.app)]
    assert [entry.what for entry in AuditLog(state.audit).entries()] == ["champion"]
    assert Folder(str(tmp_path)).read_json(STATE)["to_do"] == [] and Written(str(tmp_path)).settle() == []


def test_what_is_refused_is_said_and_keeps_nothing_up(
    conductor: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(how: str, number: int, why: str) -> None:
        raise UserError("its gate was not passed")

    monkeypatch.setattr(conductor, "_mark", refuse)
    begin(conductor, Canary(steps=(1.0,), seconds=0, answers=5, patience_s=60))
    conductor.ask(5)
    assert conductor.settle() == [("remove", ONE.app)]
    assert conductor.status()["decisions"][0]["why"].endswith("its gate was not passed")
    assert Folder(str(tmp_path)).read_json(STATE)["champion"]["number"] == 2


def test_who_is_away_is_told_when_it_is_back(
    conductor: Written, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, once, and said once; what needs nobody is done meanwhile; a conductor that starts again goes on."""

    def mark(how: str, number: int, why: str) -> None:
        raise ClusterError(f"no connection from <socket at {time.monotonic()}>")

    monkeypatch.setattr("rtrain.endpoint.conductor.AGAIN_S", 0.01)
    monkeypatch.setattr(conductor, "_mark", mark)
    begin(conductor, Canary(steps=(1.0,), seconds=0, answers=5, patience_s=60))
    conductor.ask(5)
    until(lambda: conductor.told[-1] == ("problem", None), "it is said")
    conductor.replace(dict(ONE.__dict__), "roll back", "why", "me", back=True)
    until(lambda: conductor.done == [("remove", ONE.app), ("remove", TWO.app)], "no application is kept for it")
    until(lambda: conductor._pause_s > 0.03, "it was tried again, later each time")
    assert conductor.status()["to_do"] == 3, "promote, the log of what came then, and the registry's way back"
    assert conductor.told == [("begin", 1.0), ("champion", 1.0), ("problem", None), ("roll back", 1.0)]
    assert [entry.what for entry in AuditLog(state.audit).entries()] == ["begin", "champion"]
    again = Written(str(tmp_path))
    assert again.settle() == [("promote", 2), ("rollback", 1)]
    log = AuditLog(state.audit)
    assert [entry.what for entry in log.entries()] == ["begin", "champion", "roll back"]
    sealed = conductor.sealed + again.sealed
    assert len(sealed) == 3 and set(sealed) == log.digests()


def test_of_two_who_are_away_each_is_said(conductor: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise ClusterError("no connection")

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("rtrain.endpoint.conductor.AGAIN_S", 0.01)
    monkeypatch.setattr(conductor, "_mark", gone)
    begin(conductor, Canary(steps=(1.0,), seconds=0, answers=5, patience_s=60))
    conductor.ask(5)
    until(lambda: conductor._pause_s > 0.03, "the registry is away")
    monkeypatch.setattr(conductor._folder, "write_json", full)
    until(lambda: "no space left" in conductor.status()["decisions"][0]["why"], "and now storage")
    said = [d["why"] for d in conductor.status()["decisions"] if d["what"] == "problem"]
    assert len(said) == 2 and "no connection" in said[1]
    monkeypatch.undo()


def test_what_a_newer_rtrain_wrote_is_said(state: State) -> None:
    for stored in (state.to_json() | {"lanes": 2}, state.to_json() | {"champion": dict(ONE.__dict__) | {"lanes": 2}}):
        with pytest.raises(CheckpointError, match=r"endpoint.json: a newer rtrain wrote it, with lanes. Update rtrain"):
            State.from_json(stored)


def test_an_endpoint_that_stops_takes_back_what_it_tries(conductor: Written, state: State) -> None:
    begin(conductor, Canary(steps=(0.5,), seconds=0, answers=5, patience_s=60))
    conductor.stopping("nobody asks", "me")
    assert conductor.settle() == [("withdraw", 2)], "who tells it ends the applications"
    logged = [(entry.what, entry.reason, entry.details["version"]) for entry in AuditLog(state.audit).entries()]
    assert logged == [("begin", "better", 2), ("take back", "nobody asks", 2), ("stop", "nobody asks", 1)]


def test_storage_that_is_away_has_the_state_when_it_is_back(
    conductor: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, real = [True], conductor._folder.write_json

    def write(name: str, stored: Any) -> None:
        if away[0]:
            raise OSError("no space left")
        real(name, stored)

    monkeypatch.setattr("rtrain.endpoint.conductor.AGAIN_S", 0.01)
    monkeypatch.setattr(conductor._folder, "write_json", write)
    begin(conductor, Canary(steps=(1.0,), seconds=0, answers=5, patience_s=60))
    conductor.ask(5)
    assert conductor.settle() == [("promote", 2), ("remove", ONE.app)]
    assert Folder(str(tmp_path)).read_json(STATE)["champion"]["number"] == 1
    away[0] = False
    until(lambda: Folder(str(tmp_path)).read_json(STATE)["champion"]["number"] == 2, "it is kept")
    until(lambda: conductor._pause_s == 0.0, "nobody is away")


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_a_ray_that_ended_leaves_a_word_of_what_it_had_not_finished(state: State) -> None:
    before = State.from_json(state.to_json() | {"candidate": dict(TWO.__dict__)})
    before.to_do = [
        {"do": "log", "what": "hold", "why": "w", "details": {}},
        {"do": "promote", "number": 3, "why": "w"},
        {"do": "remove", "app": "m-9-x"},
    ]
    state.after(before)
    assert [(d["what"], d.get("version")) for d in state.decisions] == [("take back", 2), ("problem", None)]
    assert "version 3 was to be the champion" in state.decisions[1]["why"]
    assert [(task["do"], task["what"]) for task in state.to_do] == [("log", "hold"), ("log", "take back")]
    log, taken_back = AuditLog(state.audit), state.to_do[1]
    before.decide("begin", "w", "me", version=2, share=0.5)
    log.append("begin", "w", before.to_do[-1]["details"] | {"since": "2026-01-01T00:00:00+00:00"})
    log.append("take back", taken_back["why"], taken_back["details"])
    (window,) = assigned_of(log, "m", 2).windows
    assert window.share == 0.5 and window.stop < float("inf"), "who had it is still known"


def test_limits_hold_what_a_person_holds_too(conductor: Written) -> None:
    begin(conductor, Canary(steps=(0.5,), seconds=0, answers=5, patience_s=60, limits=Limits()))
    conductor.hold(0.2, "an A/B test", "me")
    assert conductor.ask(100, failed=50) == (ONE.app, "", 0.0)
