"""Recommendation in two stages: a retrieval model finds candidates among all items, a ranking model orders them."""
