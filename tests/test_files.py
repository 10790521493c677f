import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resrepro.files import lock_option, write_atomically


def test_a_file_that_several_write_at_once_is_one_of_theirs(tmp_path: Path) -> None:
    file, writers = tmp_path / "claims.md", 4
    barrier = threading.Barrier(writers)

    def write(writer: int) -> None:
        for _ in range(20):
            barrier.wait(timeout=30)
            write_atomically(file, bytes([writer]) * 10_000)

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    assert file.read_bytes() in {bytes([writer]) * 10_000 for writer in range(writers)}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("place", "option"),
    [
        ("home/outputs", "nolock"),
        ("home/good/outputs", ""),
        ("a b/outputs", "localflock"),
        ("homely", ""),
    ],
)
def test_a_mount_whose_locks_are_its_hosts_alone(place: str, option: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "overlay / overlay rw,relatime 0 0\n"
        f"server:/home {tmp_path}/home nfs rw,vers=3,nolock,addr=192.0.2.1 0 0\n"
        f"server:/good {tmp_path}/home/good nfs4 rw,local_lock=none 0 0\n"
        f"mds:/lustre {tmp_path}/a\\040b lustre rw,localflock 0 0\n"
    )
    assert lock_option(tmp_path / place, mounts) == option
    assert lock_option(tmp_path / place, tmp_path / "lost") == ""
