"""Which samples the committed steps consumed, and the proof that none was lost or repeated."""
