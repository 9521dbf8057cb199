"""The features of MovieLens-100K's columns, for recipes to choose from and put into a schema.

Schema(features=(*IDS, *CONTENT, *RESIDUALS), group="user_id", time="timestamp")
"""

from rtrain.data.movielens import GENDERS, GENRES, OCCUPATIONS
from rtrain.data.side import Bins, SideFeatures
from rtrain.data.words import Words
from rtrain.schema import Dense, Id, IdList

USERS, ITEMS = 944, 1683  # ids count from 1

IDS = (
    Id(name="user_id", entity="user", rows=USERS),
    Id(name="item_id", entity="item", rows=ITEMS),
    Id(name="gender", entity="user", vocabulary=GENDERS),
    Id(name="occupation", entity="user", vocabulary=OCCUPATIONS),
    IdList(name="genres", entity="item", vocabulary=GENRES),
)
CONTENT = (
    Dense(name="age", entity="user", mean=33.0, std=12.0, missing=33.0),
    Dense(name="release_year", entity="item", mean=1988.0, std=14.0, missing=1988.0),
)
OF_USERS = SideFeatures(
    source="ml-100k",
    key="user_id",
    features=(
        Id(name="gender", vocabulary=GENDERS),
        Id(name="occupation", vocabulary=OCCUPATIONS),
        Bins(name="age", edges=(18.0, 25.0, 35.0, 45.0, 50.0, 56.0)),
    ),
)
"""What is known of users beside their ids, for models that find items among all; ages parted as MovieLens-1M's."""
OF_FILMS = SideFeatures(
    source="ml-100k",
    key="item_id",
    features=(
        IdList(name="genres", vocabulary=GENRES, max_length=len(GENRES)),
        Bins(
            name="release_year",
            edges=(1940.0, 1950.0, 1960.0, 1970.0, 1980.0, 1985.0, 1990.0, 1993.0, 1994.0, 1995.0, 1996.0, 1997.0),
        ),
    ),
)
"""What is known of films beside their ids."""
TITLE = Words(name="title", rows=16_384, longest=12)
"""A film's title, without its year; in all they have 2,390 different words."""
USER_SEEN = Dense(name="user_seen", entity="user", mean=3.0, std=1.5)
"""How many rows the user had before this moment, as log(1 + number)."""
RESIDUALS = (
    Dense(name="user_dev", entity="user", std=0.16),
    Dense(name="item_dev", entity="item", std=0.16),
    Dense(name="user_rdev", entity="user", std=0.39),
    Dense(name="item_rdev", entity="item", std=0.39),
    Dense(name="genre_dev", std=0.09),
    Dense(name="genre_rdev", std=0.21),
    Dense(name="near_dev", std=0.115),
    Dense(name="near_rdev", std=0.26),
    Dense(name="near_seen", mean=1.5, std=0.87),
)
"""What the past of user and item, of the user with the film's genres and with films near it says beside their means."""
