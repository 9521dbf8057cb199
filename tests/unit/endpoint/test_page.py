"""The page of an endpoint has what its status has, and nothing of it is taken for HTML."""

from rtrain.endpoint.page import page
from rtrain.endpoint.tally import Tally

STATUS = {
    "endpoint": "demo",
    "step": "step 1 of 3: 10%",
    "routers": 2,
    "seconds": 4.0,
    "versions": [
        {"version": 1, "run": "good", "role": "champion", "share": 0.9, **Tally().to_json()},
        {"version": 2, "run": "<b>bad</b>", "role": "candidate", "share": 0.1, **Tally(answers=8).to_json()},
    ],
    "decisions": [
        {
            "at": "2026-11-28T00:13:21+00:00",
            "what": "take back",
            "version": 2,
            "share": 0.1,
            "why": "<script>",
            "by": "a&b",
        },
        {"at": "2026-11-28T00:13:20+00:00", "what": "problem", "why": "the registry is away", "by": "endpoint"},
    ],
}


def test_the_page_has_all_of_it() -> None:
    found = page(STATUS)
    for said in (
        "step 1 of 3: 10%, 2 routers",
        "&lt;b&gt;bad&lt;/b&gt;",
        "&lt;script&gt;",
        "a&amp;b",
        "2026-11-28 00:13:21",
    ):
        assert said in found
    assert found.count('class="w bad"') == 2 and "<script>" not in found and 'style="width:10.00%"' in found
    assert "<td class=n>8</td><td class=n>2.0</td>" in found, "answers, and a second"


def test_a_conductor_that_is_away_is_said() -> None:
    assert "does not answer" in page({"endpoint": "demo", "problem": "its conductor does not answer (x)"})
