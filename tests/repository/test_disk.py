"""The disk: what servers see there, who may change it, and what goes when room is short."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aioserving._proto import message_class
from aioserving.repository import AlreadyRunningError, Disk, InvalidNameError, NoRoomError
from aioserving.testing.rules import wanted_versions
from tests.repository.stores import version_files, write_version

pytestmark = pytest.mark.anyio


def publish(disk: Disk, model: str, version: int, size: int = 1000) -> Path:
    files = version_files(version, size)
    folder = write_version(disk.staging(model, version) / "files", files)
    return disk.publish(
        model, version, folder, size=sum(map(len, files.values())), fingerprint=f"print{version}"
    )


async def test_versions_come_and_go(tmp_path: Path) -> None:
    """A version that was published is told with its size and fingerprint until it is deleted."""
    disk = Disk(tmp_path)
    assert disk.versions() == {}
    path = publish(disk, "m", 10)
    publish(disk, "m", 9)
    publish(disk, "n", 1)
    assert path == disk.path("m") / "10"
    found = disk.versions()
    assert {model: list(versions) for model, versions in found.items()} == {"m": [9, 10], "n": [1]}
    assert found["m"][10].fingerprint == "print10"
    assert found["m"][10].size == sum(map(len, version_files(10).values()))
    assert list(disk.versions("n")) == ["n"]
    assert await disk.delete("m", 10)
    assert not await disk.delete("m", 10)
    assert list(disk.versions()["m"]) == [9]
    assert not path.exists()
    assert list((disk.private / "deleted").iterdir()) == []
    assert Disk(tmp_path).versions()["m"][9].fingerprint == "print9"


async def test_versions_of_other_origin_count_too(tmp_path: Path) -> None:
    """What somebody copied there is a version if a SavedModel is in it; what servers ignore is none."""
    disk = Disk(tmp_path)
    write_version(tmp_path / "m" / "007", version_files())
    write_version(tmp_path / "m" / "tmp-8", version_files())
    (tmp_path / "m" / "9").mkdir()
    (tmp_path / "not a model" / "1").mkdir(parents=True)
    (version,) = disk.versions()["m"].values()
    assert (version.version, version.path.name, version.fingerprint) == (7, "007", None)
    assert version.size == sum(map(len, version_files().values()))
    assert await disk.delete("m", 7)
    assert disk.versions() == {}


def test_servers_ignore_all_but_versions(tmp_path: Path) -> None:
    """Of everything in a model's folder and beside it a server scans the published versions alone."""
    disk = Disk(tmp_path)
    publish(disk, "m", 3)
    write_version(disk.staging("m", 4) / "files", version_files())
    config: Any = message_class("tensorflow.serving.ModelConfig")()
    policy = config.model_version_policy
    policy.all.SetInParent()
    assert list(wanted_versions(policy, os.listdir(disk.path("m")))) == [3]
    assert disk.private.parent == tmp_path
    with pytest.raises(InvalidNameError):
        disk.path(disk.private.name)


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    """Publishing what is there is refused; a server may have it loaded."""
    disk = Disk(tmp_path)
    publish(disk, "m", 1)
    with pytest.raises(FileExistsError):
        publish(disk, "m", 1)


async def test_deleting_is_one_step_for_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version leaves with a rename; a removal that is interrupted is finished by the next lock."""
    disk = Disk(tmp_path)
    path = publish(disk, "m", 1)
    monkeypatch.setattr("shutil.rmtree", lambda *arguments, **options: None)
    await disk.delete("m", 1)
    assert not path.exists()
    assert len(list((disk.private / "deleted").iterdir())) == 1
    monkeypatch.undo()
    with disk.lock():
        assert list((disk.private / "deleted").iterdir()) == []


def test_one_lock_at_a_time(tmp_path: Path) -> None:
    """The second lock names the holder; released, also twice, it is free."""
    lock = Disk(tmp_path).lock()
    with pytest.raises(AlreadyRunningError, match=f"process {os.getpid()} on"):
        Disk(tmp_path).lock()
    lock.release()
    lock.release()
    assert "released" in repr(lock)
    with Disk(tmp_path).lock():
        pass


async def test_room_is_made_of_what_may_go(tmp_path: Path) -> None:
    """Left-overs go first, then the versions fetched longest ago; what is kept or under way stays."""
    size = sum(map(len, version_files(1, 10_000).values()))
    disk = Disk(tmp_path, quota_bytes=4 * size)
    for version in (1, 2, 3):
        path = publish(disk, "m", version, 10_000)
        os.utime(path, (version, version))
    write_version(disk.staging("m", 8), {"files/a": b"x" * size})
    assert await disk.room_for(size // 2, {("m", 1), ("m", 2), ("m", 3)}) == []
    assert not disk.staging("m", 8).exists()
    deleted = await disk.room_for(2 * size, {("m", 1)})
    assert [version.version for version in deleted] == [2]
    assert list(disk.versions()["m"]) == [1, 3]
    with pytest.raises(NoRoomError):
        await disk.room_for(4 * size, {("m", 1)})
    assert list(disk.versions()["m"]) == [1, 3], "if it is not enough, nothing is deleted"


async def test_room_is_held_for_what_is_being_fetched(tmp_path: Path) -> None:
    """Two fetches cannot be promised the same room; when one is over its room is free."""
    disk = Disk(tmp_path, quota_bytes=10_000)
    await disk.room_for(6000, (), fetching=("m", 1))
    with pytest.raises(NoRoomError):
        await disk.room_for(6000, (), fetching=("m", 2))
    await disk.room_for(6000, (), fetching=("m", 1))
    disk.settled("m", 1)
    await disk.room_for(6000, (), fetching=("m", 2))
    assert "being fetched" in repr(disk)


async def test_more_than_the_disk_has_is_refused(tmp_path: Path) -> None:
    """Without a quota the free space of the disk is the limit; a quota of nothing is a mistake."""
    with pytest.raises(NoRoomError):
        await Disk(tmp_path).room_for(1 << 60, ())
    with pytest.raises(ValueError, match="quota_bytes"):
        Disk(tmp_path, quota_bytes=0)
