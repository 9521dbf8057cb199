"""How good a model is on a split: metrics exact over ranks, and what the data's own baseline reaches."""
