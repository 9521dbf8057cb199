"""The marker of a committed checkpoint: written last, so that without it the folder is no checkpoint for a reader."""

import hashlib
import re
from dataclasses import dataclass

from rtrain.storage import Folder

MARKER = "COMMITTED"
# Without a token: of an older rtrain, or of a writer that has the folder for itself.
MANIFESTS = re.compile(r"manifest(-e\d{8}(-[0-9a-f]{12})?)?\.json")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Marker:
    """Which manifest a checkpoint has, and its hash."""

    sha256: str
    manifest: str = MANIFEST
    """Name of the manifest's file; older markers name none."""

    @classmethod
    def read(cls, folder: Folder) -> "Marker":
        """A folder's marker, whatever it holds.

        Raises:
            FileNotFoundError: there is none.
        """
        sha256, _, name = folder.read(MARKER).decode(errors="replace").strip().partition(" ")
        return cls(sha256, name or MANIFEST)

    @classmethod
    def of(cls, manifest: bytes, name: str) -> "Marker":
        """The one that commits a manifest under that name."""
        return cls(hashlib.sha256(manifest).hexdigest(), name)

    def encode(self) -> bytes:
        """Its file's bytes."""
        return (self.sha256 if self.manifest == MANIFEST else f"{self.sha256} {self.manifest}").encode()

    def manifest_in(self, folder: Folder) -> bytes | None:
        """The manifest; none where the name is no manifest's, or its bytes are others.

        Raises:
            FileNotFoundError: it is not there.
        """
        if not MANIFESTS.fullmatch(self.manifest):
            return None
        content = folder.read(self.manifest)
        return content if hashlib.sha256(content).hexdigest() == self.sha256 else None

    def is_on(self, folder: Folder, names: list[str]) -> bool:
        """Whether it is the marker of a folder in which these names are."""
        return MARKER in names and folder.read(MARKER) == self.encode()
