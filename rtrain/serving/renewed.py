"""A replica whose GPU computes no more is started anew: an error of CUDA's stays with the process that had it."""


class Renewed:
    """A deployment that tells Ray Serve when its process is of no use any more."""

    @property
    def broken(self) -> str:
        """Why nothing can be computed in this process any more; empty: it can."""
        raise NotImplementedError

    def check_health(self) -> None:
        """Serve asks this, and starts a replica anew after some refusals in a row.

        Raises:
            RuntimeError: it is broken.
        """
        if self.broken:
            raise RuntimeError(self.broken)
