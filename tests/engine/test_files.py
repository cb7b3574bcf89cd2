"""Files that somebody else may have written, and files that appear whole or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from isoframe.engine.errors import CheckpointError, InputError
from isoframe.engine.files import (
    MAX_JSON_BYTES,
    KeptOutputError,
    WholeFile,
    output_when_whole,
    parse_json,
    read_json,
    remove_orphans,
    temporary_name,
)
from isoframe.engine.output_paths import (
    check_apart,
    check_export_path,
    check_latents_path,
    check_png_path,
    check_video_path,
    free_partial_path,
)

HOSTILE = {
    "nested-deeply": b"[" * 200_000,
    "nested-objects": b'{"a":' * 200_000,
    "infinity": b"[1e999]",
    "nan": b"[NaN]",
    "digits": b"9" * 5000,
    "no-utf-8": b'["\xff"]',
    "half-a-character": b'["\\ud800"]',
    "half-a-character-as-name": b'{"\\uDFFF": 1}',
    "empty": b"",
    "too-long": b'"' + b"a" * MAX_JSON_BYTES + b'"',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_json_that_nobody_means_is_a_value_error(case: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the messages are json's
        parse_json(HOSTILE[case])


def test_json_is_read_as_the_library_reads_it() -> None:
    values = {"text": "é \U0001f600", "numbers": [1, -2.5, 1e308, True, None], "nested": {"a": [[]]}}
    for ascii_only in (True, False):
        text = json.dumps(values, ensure_ascii=ascii_only)
        assert parse_json(text) == parse_json(text.encode()) == values


@pytest.mark.parametrize("content", [*HOSTILE.values(), b"[]", b"5"])
def test_a_file_that_holds_no_object_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(path)


def test_a_file_of_a_killed_process_goes_with_the_next_write_and_one_at_work_stays(tmp_path: Path) -> None:
    orphan = tmp_path / temporary_name("other.mp4", "0123abcd")
    orphan.write_bytes(b"half")
    foreign = tmp_path / ".other.mp4.0123abcd.tmp"
    foreign.write_bytes(b"of another program")
    whole = WholeFile(tmp_path / "a.png")
    whole.create()
    assert not orphan.exists()
    assert foreign.exists()
    assert remove_orphans(tmp_path) == []
    whole.temporary.write_bytes(b"whole")
    assert remove_orphans(tmp_path) == []
    whole.place()
    assert (tmp_path / "a.png").read_bytes() == b"whole"
    other = WholeFile(tmp_path / "b.png")
    other.create()
    other.discard()
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", foreign.name}


def test_files_of_other_users_are_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orphan = tmp_path / temporary_name("other.mp4", "0123abcd")
    orphan.write_bytes(b"half")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert remove_orphans(tmp_path) == []
    assert orphan.exists()


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appeared_meanwhile_stays_and_the_new_content_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    path = tmp_path / "a.gif"
    if not has_links:
        monkeypatch.setattr(os, "link", fail(errno.EPERM))
    with pytest.raises(KeptOutputError, match="appeared") as caught:
        write_while_another_does(path)
    assert path.read_bytes() == b"old"
    assert caught.value.kept.read_bytes() == b"new"
    assert str(caught.value.kept) in str(caught.value)
    assert {file.name for file in tmp_path.iterdir()} == {"a.gif", caught.value.kept.name}
    with output_when_whole(path, overwrite=True) as new:
        new.write_bytes(b"newer")
    assert path.read_bytes() == b"newer"
    with output_when_whole(tmp_path / "b.gif", overwrite=False) as new:
        new.write_bytes(b"b")
    assert (tmp_path / "b.gif").read_bytes() == b"b"


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.EACCES, errno.EIO, errno.EROFS, errno.EISDIR])
def test_whole_content_that_gets_no_name_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "replace", fail(code))
    with (
        pytest.raises(KeptOutputError) as caught,
        output_when_whole(tmp_path / "a.mp4", overwrite=True) as new,
    ):
        new.write_bytes(b"new")
    assert os.strerror(code) in str(caught.value)
    assert caught.value.kept.read_bytes() == b"new"


def test_content_that_did_not_reach_the_disk_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with (
        pytest.raises(OSError, match="Input/output"),
        output_when_whole(tmp_path / "a.mp4", overwrite=True) as new,
    ):
        new.write_bytes(b"new")
    assert list(tmp_path.iterdir()) == []


CHECKS: dict[str, Callable[..., None]] = {
    ".mp4": check_video_path,
    ".gif": check_export_path,
    ".webp": check_export_path,
    ".png": check_png_path,
    ".safetensors": check_latents_path,
}


@pytest.mark.parametrize("suffix", CHECKS)
@pytest.mark.parametrize("character", ["a", "é", "漢", "\U0001f600"])
def test_names_are_measured_in_bytes_before_any_work(tmp_path: Path, suffix: str, character: str) -> None:
    size = len(character.encode())
    fits = [
        n for n in range(1, 300 // size) if is_accepted(CHECKS[suffix], tmp_path / (character * n + suffix))
    ]
    assert fits == list(range(1, len(fits) + 1))
    # The longest name that is accepted can be written, with all that it needs meanwhile.
    path = tmp_path / (character * len(fits) + suffix)
    assert len(os.fsencode(path.name)) > 200
    for name in {path.name, *([free_partial_path(path).name] if suffix == ".mp4" else [])}:
        with output_when_whole(path.with_name(name), overwrite=False) as new:
            new.write_bytes(b"")
    with pytest.raises(InputError, match=r"must have at most \d+ bytes"):
        CHECKS[suffix](tmp_path / (character * (len(fits) + 1) + suffix), overwrite=False)


@pytest.mark.parametrize(
    "path", ["a\0b.mp4", f"{'d' * 256}/a.mp4", "/".join(["d" * 200] * 21) + "/a.mp4", f"{'漢' * 90}/x/a.mp4"]
)
def test_paths_that_cannot_be_are_refused_before_any_work(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="must"):
        check_video_path(tmp_path / path, overwrite=True)


def test_the_file_system_says_how_long_names_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pathconf", lambda _, name: 80 if name == "PC_NAME_MAX" else 4096)
    with pytest.raises(InputError, match="takes names of 80"):
        check_video_path(tmp_path / ("a" * 60 + ".mp4"), overwrite=False)


@pytest.mark.parametrize("link", [os.symlink, os.link, shutil.copyfile])
def test_an_output_must_not_be_what_it_is_made_from(tmp_path: Path, link: Callable[..., None]) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    source.write_bytes(b"video")
    link(source, target)
    check_apart([tmp_path / "c.mp4"], [source, None, object(), "no such file"])
    with pytest.raises(InputError, match="made from"):
        check_apart([source], [None, source])
    if link is shutil.copyfile:
        check_apart([target], [source])
    else:
        with pytest.raises(InputError, match="made from"):
            check_apart([target], [source])


def write_while_another_does(path: Path) -> None:
    with output_when_whole(path, overwrite=False) as new:
        new.write_bytes(b"new")
        path.write_bytes(b"old")


def fail(code: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def is_accepted(check: Callable[..., None], path: Path) -> bool:
    try:
        check(path, overwrite=False)
    except InputError:
        return False
    return True
