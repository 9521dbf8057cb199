"""The DLRM recipe's schema as it was when the curves and checkpoints beside this file were written: it stays as it is.

The recipe may choose other features; what the files here hold against each other is the training, not the features.
"""

from rtrain import Dense, Id, IdList, IdSequence, Schema
from rtrain.data.movielens import GENDERS, GENRES, OCCUPATIONS

SCHEMA = Schema(
    features=(
        Id(name="user_id", entity="user", rows=944),
        Id(name="item_id", entity="item", rows=1683),
        Id(name="gender", entity="user", vocabulary=GENDERS),
        Id(name="occupation", entity="user", vocabulary=OCCUPATIONS),
        IdList(name="genres", entity="item", vocabulary=GENRES),
        Id(name="hour", rows=24),
        IdSequence(name="history", entity="user", rows=1683, max_length=20),
        Dense(name="age", entity="user", mean=33.0, std=12.0, missing=33.0),
        Dense(name="release_year", entity="item", mean=1988.0, std=14.0, missing=1988.0),
        # What was known of the user and of the item before this moment: how much was liked, of how many.
        Dense(name="user_liked", entity="user", mean=0.55, std=0.2),
        Dense(name="user_seen", entity="user", mean=3.0, std=1.5),
        Dense(name="item_liked", entity="item", mean=0.55, std=0.2),
        Dense(name="item_seen", entity="item", mean=4.0, std=1.5),
    ),
    group="user_id",
    time="timestamp",
)
