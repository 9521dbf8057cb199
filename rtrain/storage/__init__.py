"""Files on any fsspec file system: whole or absent, tried again while a storage is away."""

from rtrain.storage.folder import Folder, check_writable, make_folder, sha256_of
from rtrain.storage.paths import path_on_disk
from rtrain.storage.patience import Patience, StorageDown, refused_by_storage

__all__ = [
    "Folder", "Patience", "StorageDown", "check_writable", "make_folder", "path_on_disk", "refused_by_storage",
    "sha256_of",
]  # fmt: skip
