"""`rtrain data prepare` after a kill in the midst of its last step, where the storage renames nothing."""

from pathlib import Path

from rtrain.launch.preparing import RECORD, _is_being_moved
from rtrain.storage import Folder


def test_only_a_part_of_its_own_output_is_gone_on_with(tmp_path: Path) -> None:
    under_way, out = Folder(str(tmp_path / "out.partial")), Folder(str(tmp_path / "out"))
    assert not _is_being_moved(under_way, out), "nothing has begun"
    out.child("data").write("00000.parquet", b"x")
    assert not _is_being_moved(under_way, out), "somebody's data"
    whole = under_way.child("whole")
    whole.child("data").write("00000.parquet", b"x")
    whole.write("statistics.json", b"{}")
    assert not _is_being_moved(under_way, out), "the move had not begun: what lies there is another's"
    whole.write(RECORD, b"{}")
    assert _is_being_moved(under_way, out)
    out.write("notes.txt", b"mine")
    assert not _is_being_moved(under_way, out), "a file that is none of the output"
    out.discard("notes.txt")
    out.write(RECORD, b"{}")
    assert not _is_being_moved(under_way, out), "it is whole"
