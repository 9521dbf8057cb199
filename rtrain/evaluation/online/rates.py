"""The rates: what each counts, over what, which events and columns it needs, and how sure it is."""

from dataclasses import dataclass

from rtrain.evaluation.online.intervals import Interval, Moments, delta, wilson


@dataclass(frozen=True)
class Rate:
    """Sum of sessions' numerators / sum of their denominators; both are columns of `tally.SESSIONS`."""

    name: str
    numerator: str
    denominator: str
    means: str
    """The formula in words."""
    needs: tuple[tuple[str, ...], ...] = ()
    """Kinds of events; of each group of them the log has to have one."""
    column: str = ""
    """Column that it needs besides, a field of `log.Columns`."""
    is_share: bool = False
    """Whether it is at most 1."""

    def interval(self, of: Moments, *, of_sessions: bool) -> Interval | None:
        """Its 95 % interval; `of_sessions`: whether the moments' units are sessions, and not their users."""
        if self.is_share and self.denominator == "sessions" and of_sessions:
            return wilson(of)
        found = delta(of)
        return (found[0], min(found[1], 1.0)) if found and self.is_share else found


CTR = Rate("ctr", "clicks", "impressions", "clicks / impressions", (("impression",), ("click",)))
QUERY_CTR = Rate(
    "query_ctr",
    "clicked_queries",
    "queries",
    "searches with a click / searches, by query id",
    (("search",), ("click",)),
    "query",
    is_share=True,
)
ADD_TO_CART_RATE = Rate(
    "add_to_cart_rate", "added", "sessions", "sessions with an add / sessions", (("add_to_cart",),), is_share=True
)
CONVERSION_RATE = Rate(
    "conversion_rate", "bought", "sessions", "sessions with a purchase / sessions", (("purchase",),), is_share=True
)
EXIT_RATE = Rate(
    "exit_rate",
    "left_unmoved",
    "sessions",
    "sessions that end with an impression or a search / sessions",
    (("impression", "search"),),
    is_share=True,
)
ZERO_RESULT_RATE = Rate(
    "zero_result_rate",
    "empty_searches",
    "counted_searches",
    "searches with 0 results / searches that say how many",
    (("search",),),
    "results",
    is_share=True,
)
EVENTS_PER_SESSION = Rate("events_per_session", "events", "sessions", "events / sessions")
CLICKED_ITEMS_PER_SESSION = Rate(
    "clicked_items_per_session",
    "clicked_items",
    "sessions",
    "each session's distinct clicked items / sessions",
    (("click",),),
    "item",
)
RATES = (
    CTR, QUERY_CTR, ADD_TO_CART_RATE, CONVERSION_RATE, EXIT_RATE, ZERO_RESULT_RATE, EVENTS_PER_SESSION,
    CLICKED_ITEMS_PER_SESSION,
)  # fmt: skip
