"""Files are whole or not there, and their versions can be told apart."""

import os
from pathlib import Path

from distributor.files import Folder


def test_each_version_of_a_file_has_a_later_second_than_the_one_before(tmp_path: Path) -> None:
    folder, seconds = Folder(tmp_path), []
    for version in range(5):  # within a moment, of one size, and once with the machine's clock set back
        target = folder.write("list.json", b"%d" % version)
        if version == 2:
            os.utime(target, (4_000_000_000, 4_000_000_000))
        seconds.append(int(target.stat().st_mtime))
    assert seconds == sorted(set(seconds))
    assert seconds[3:] == [4_000_000_001, 4_000_000_002]


def test_the_same_bytes_leave_a_file_as_it_is(tmp_path: Path) -> None:
    target = Folder(tmp_path).write("list.json", b"{}")
    os.utime(target, (1_000_000_000, 1_000_000_000))
    Folder(tmp_path).write("list.json", b"{}")
    assert target.stat().st_mtime == 1_000_000_000
