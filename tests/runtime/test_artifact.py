"""Artifacts: the same bytes each time, all or nothing, and damage found by name."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import smelt
import smelt.runtime.artifact as module
from smelt.errors import ArtifactError, OutputError
from smelt.runtime.artifact import (
    MANIFEST,
    SCHEMA_VERSION,
    open_artifact,
    weight_offsets,
    write_artifact,
)

FILES = {"weights.bin": bytes(range(256)), "model.so": b"library", "c/model.c": b"int x;\n"}
DESCRIPTION = {"name": "m", "target": "cpu", "isas": [], "signature": {"inputs": [["é", "N"]]}}
FORMS = pytest.mark.parametrize("name", ["m.smelt", "m.zip"])


def contents(path: Path) -> dict[str, bytes]:
    """Everything below a folder, or in a file, with names."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- writing -------------------------------------------------------------------------------------


@FORMS
def test_what_is_written_comes_back(tmp_path, name):
    path = write_artifact(tmp_path / name, DESCRIPTION, FILES)
    artifact = open_artifact(path, verify=True)
    assert {k: artifact.manifest[k] for k in DESCRIPTION} == DESCRIPTION
    assert artifact.manifest["schema_version"] == SCHEMA_VERSION
    assert artifact.manifest["smelt"] == smelt.__version__
    assert {n: artifact.file(n).read_bytes() for n in FILES} == FILES
    assert names(tmp_path) == [name]
    with pytest.raises(ArtifactError, match="has no file nothing.so"):
        artifact.file("nothing.so")


def test_the_ending_chooses_the_form(tmp_path):
    assert write_artifact(tmp_path / "m.ZIP", DESCRIPTION, FILES).is_file()
    assert write_artifact(tmp_path / "zip", DESCRIPTION, FILES).is_dir()


@FORMS
def test_the_same_contents_give_the_same_bytes(tmp_path, name):
    first = contents(write_artifact(tmp_path / "a" / name, DESCRIPTION, FILES))
    source = tmp_path / "weights"
    source.write_bytes(FILES["weights.bin"])
    os.utime(source, (10, 10))
    files = {"weights.bin": source, "c/model.c": FILES["c/model.c"], "model.so": b"library"}
    backwards = dict(reversed(DESCRIPTION.items()))
    assert contents(write_artifact(tmp_path / "b" / name, backwards, files)) == first
    copy = open_artifact(tmp_path / "a" / name).save(tmp_path / "c" / name)
    assert contents(copy) == first


def test_both_forms_hold_the_same_files(tmp_path):
    folder = write_artifact(tmp_path / "m", DESCRIPTION, FILES)
    with zipfile.ZipFile(write_artifact(tmp_path / "m.zip", DESCRIPTION, FILES)) as archive:
        assert archive.testzip() is None
        assert {n: archive.read(n) for n in archive.namelist()} == contents(folder)


def test_file_modes_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = write_artifact(tmp_path / "m", DESCRIPTION, FILES)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o750
    assert (path / "model.so").stat().st_mode & 0o777 == 0o640


@FORMS
def test_an_artifact_is_replaced(tmp_path, name):
    path = write_artifact(tmp_path / name, DESCRIPTION, {**FILES, "old.c": b""})
    write_artifact(path, DESCRIPTION, FILES)
    assert open_artifact(path).manifest["files"].keys() == FILES.keys()
    assert names(tmp_path) == [name]


def test_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "m").mkdir()
    assert open_artifact(write_artifact(tmp_path / "m", DESCRIPTION, FILES))


def test_a_link_to_an_artifact_stays_a_link(tmp_path):
    write_artifact(tmp_path / "real", DESCRIPTION, FILES)
    (tmp_path / "link").symlink_to("real")
    write_artifact(tmp_path / "link", DESCRIPTION, {"one.c": b""})
    assert (tmp_path / "link").is_symlink()
    assert list(open_artifact(tmp_path / "real").manifest["files"]) == ["one.c"]


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {MANIFEST: "[]"}, {MANIFEST: "{}"}])
def test_other_folders_are_left_alone(tmp_path, content):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    with pytest.raises(OutputError, match="mine is there already and is not an artifact's folder"):
        write_artifact(folder, DESCRIPTION, FILES)
    assert {p.name: p.read_text() for p in folder.iterdir()} == content
    assert names(tmp_path) == ["mine"]


def test_other_files_are_left_alone(tmp_path):
    for name in ("m.smelt", "m.zip"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputError, match="is there already and is not an artifact"):
            write_artifact(tmp_path / name, DESCRIPTION, FILES)
        assert (tmp_path / name).read_text() == "mine"
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("mine", "mine")
    with pytest.raises(OutputError, match="is there already"):
        write_artifact(tmp_path / "other.zip", DESCRIPTION, FILES)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//b", "", "a\\b", "c:x", MANIFEST])
def test_names_stay_inside(tmp_path, name):
    with pytest.raises(ValueError, match="not a name for a file"):
        write_artifact(tmp_path / "m", DESCRIPTION, {name: b""})
    assert names(tmp_path) == []


class Failing(io.BytesIO):
    """Reads like a file of weights, then raises."""

    def __init__(self, error: BaseException):
        super().__init__(b"x" * 100)
        self.error = error

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(10)
        if not data:
            raise self.error
        return data


@FORMS
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("a fault of ours"), ValueError),
    ],
    ids=["full", "interrupt", "fault"],
)
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, name, existing, error, raised):
    path = tmp_path / "new" / "folder" / name
    before = {}
    if existing:
        before = contents(write_artifact(path, DESCRIPTION, FILES))
    source = tmp_path / "source"
    source.write_bytes(b"")
    plain_open = open

    def failing_open(file, *args, **kwargs):
        return Failing(error) if file == source else plain_open(file, *args, **kwargs)

    monkeypatch.setattr(module, "open", failing_open, raising=False)
    with pytest.raises(raised) as caught:
        write_artifact(path, DESCRIPTION, {**FILES, "z.bin": source})
    if raised is OutputError:
        assert str(caught.value).startswith(f"Cannot write the artifact {path}: No space left on")
        assert "free some space" in str(caught.value)
    if existing:
        assert contents(path) == before
        assert names(path.parent) == [name]
    else:
        assert names(tmp_path) == ["source"]


def test_an_interrupted_replacement_restores_the_old(tmp_path, monkeypatch):
    path = write_artifact(tmp_path / "m", DESCRIPTION, FILES)
    before = contents(path)
    plain = os.rename

    def rename(old, new):
        if str(old).endswith(".tmp"):
            raise KeyboardInterrupt
        plain(old, new)

    monkeypatch.setattr(module.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        write_artifact(path, DESCRIPTION, {"one.c": b""})
    assert contents(path) == before
    assert names(tmp_path) == ["m"]


@FORMS
def test_a_folder_that_cannot_be_written(tmp_path, name):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # root may write anywhere; nobody writes below a device
        folder = Path("/dev/null")
    with pytest.raises(OutputError, match="Cannot write the artifact .*choose a place where you"):
        write_artifact(folder / name, DESCRIPTION, FILES)
    assert names(tmp_path / "locked") == []


@FORMS
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_disk_that_is_really_full(tmp_path, name):
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    code = (
        "import os, sys, smelt.errors\n"
        "from smelt.runtime.artifact import write_artifact\n"
        "try: write_artifact(sys.argv[1], {}, {'a': b'', 'weights.bin': bytes(8 << 20)})\n"
        "except smelt.errors.OutputError as e: print(e)\n"
        "print(os.listdir(os.path.dirname(sys.argv[1])))"
    )
    script = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1/$4"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh",
         str(tmp_path), sys.executable, code, name],
        capture_output=True, text=True,
    )
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    sentence, left = done.stdout.splitlines()
    assert "No space left on device; free some space" in sentence
    assert left == "[]"


def test_missing_parents_are_made(tmp_path):
    assert open_artifact(write_artifact(tmp_path / "a" / "b" / "m", DESCRIPTION, FILES))


def test_weights_are_aligned(rng):
    sizes = rng.integers(0, 300, 50).tolist()
    offsets, end = weight_offsets(sizes)
    assert all(offset % 64 == 0 for offset in offsets)
    ends = [o + s for o, s in zip(offsets, sizes)]
    assert all(e <= o < e + 64 for e, o in zip(ends, [*offsets[1:], end]))
    assert weight_offsets([]) == ([], 0)


# --- reading -------------------------------------------------------------------------------------


def rewrite_zip(path: Path, change) -> None:
    """Applies `change` to the files by name of a zip file."""
    with zipfile.ZipFile(path) as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def damage(path: Path, name: str, change) -> None:
    """Changes the bytes of one file of an artifact; None removes it."""
    def in_zip(files: dict[str, bytes]) -> None:
        data = change(files.pop(name))
        if data is not None:
            files[name] = data

    if path.is_file():
        rewrite_zip(path, in_zip)
        return
    data = change((path / name).read_bytes())
    if data is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(data)


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@FORMS
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (flipped, "does not have the checksum"),
        (lambda data: data + b"x", "another size"),
        (lambda data: data[:-1], "another size"),
        (lambda data: None, "is missing"),
    ],
    ids=["flipped", "longer", "shorter", "missing"],
)
def test_damage_is_found_by_name(tmp_path, name, file, change, what):
    path = write_artifact(tmp_path / name, DESCRIPTION, FILES)
    damage(path, file, change)
    with pytest.raises(ArtifactError, match=f"damaged: {file} .*{what}"):
        open_artifact(path)


def overwritten(at: int, count: int):
    """Zeros, as an interrupted copy to a file of full length leaves them."""
    return lambda data: data[:at] + bytes(count) + data[at + count:]


@FORMS
def test_weights_are_checked_block_by_block(tmp_path, name, rng):
    size = 3 * module.BLOCK + 777
    weights = rng.bytes(size)
    for at in (0, module.BLOCK - 1, module.BLOCK, 2 * module.BLOCK + 5, size - 1):
        path = write_artifact(tmp_path / name, DESCRIPTION, {**FILES, "weights.bin": weights})
        assert open_artifact(path) and open_artifact(path, verify=True)
        damage(path, "weights.bin", lambda data, at=at: (
            data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]))
        for verify in (None, True):
            with pytest.raises(ArtifactError, match="damaged: weights.bin .*the checksum"):
                open_artifact(path, verify)
        assert open_artifact(path, verify=False)


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 7, 100])
def test_large_weights_are_checked_here_and_there(tmp_path, blocks, monkeypatch, rng):
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "_CHUNK", 64)
    monkeypatch.setattr(module, "CHECKED_BYTES", 5 * 64)
    size = 64 * blocks - 3
    files = {**FILES, "weights.bin": rng.bytes(size)}
    path = write_artifact(tmp_path / "m.smelt", DESCRIPTION, files)
    written = (path / "weights.bin").read_bytes()
    entry = json.loads((path / "manifest.json").read_text())["files"]["weights.bin"]
    assert entry["blocks"] == "".join(
        f"{zlib.crc32(written[at:at + 64]):08x}" for at in range(0, size, 64))
    found = []
    for block in range(blocks):
        damage(path, "weights.bin", overwritten(64 * block, min(64, size - 64 * block)))
        try:
            open_artifact(path)
        except ArtifactError:
            found.append(block)
        with pytest.raises(ArtifactError):
            open_artifact(path, verify=True)
        (path / "weights.bin").write_bytes(written)
    assert len(found) == min(blocks, 5) and {0, blocks - 1} <= set(found)
    # What was cut off, or overwritten for a while, is met wherever it begins.
    gap = -(-blocks // 4) + 1
    for first in range(0, blocks - gap, 3):
        damage(path, "weights.bin", overwritten(64 * first, 64 * gap))
        with pytest.raises(ArtifactError):
            open_artifact(path)
        (path / "weights.bin").write_bytes(written)


def test_code_is_checked_whole_however_large(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(module, "CHECKED_BYTES", 0)
    files = {**FILES, "model.so": rng.bytes(3 * module.BLOCK)}
    path = write_artifact(tmp_path / "m.smelt", DESCRIPTION, files)
    for at in (5, module.BLOCK + 3, 3 * module.BLOCK - 1):
        damage(path, "model.so", overwritten(at, 1) if files["model.so"][at] else flipped)
        with pytest.raises(ArtifactError, match="damaged: model.so "):
            open_artifact(path)
        (path / "model.so").write_bytes(files["model.so"])
    assert open_artifact(path)


def test_weights_without_block_checksums_are_checked_whole(tmp_path):
    path = write_artifact(tmp_path / "m.smelt", DESCRIPTION, FILES)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["weights.bin"]["blocks"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert open_artifact(path)
    damage(path, "weights.bin", flipped)
    with pytest.raises(ArtifactError, match="damaged: weights.bin "):
        open_artifact(path)


@pytest.mark.parametrize("blocks", ["", "00000000" * 2, "zzzzzzzz", "0" * 7])
def test_wrong_block_checksums_are_damage(tmp_path, blocks):
    path = write_artifact(tmp_path / "m.smelt", DESCRIPTION, FILES)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["weights.bin"]["blocks"] = blocks
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="damaged: weights.bin "):
        open_artifact(path)


@FORMS
def test_a_damaged_artifact_is_not_copied(tmp_path, name):
    path = write_artifact(tmp_path / name, DESCRIPTION, FILES)
    damage(path, "weights.bin", flipped)
    opened = open_artifact(path, verify=False)
    with pytest.raises(ArtifactError, match="damaged: weights.bin "):
        opened.save(tmp_path / "copy.smelt")
    assert not (tmp_path / "copy.smelt").exists()


def edited(**changes):
    def change(data: bytes) -> bytes:
        manifest = json.loads(data)
        for key, value in changes.items():
            if value is None:
                del manifest[key]
            else:
                manifest[key] = value
        return json.dumps(manifest).encode()

    return change


ENTRY = {"sha256": "0" * 64, "size": 7}


@FORMS
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (edited(schema_version=SCHEMA_VERSION + 1, smelt="9.0"),
         r"made by a newer smelt \(9.0, schema 2\): upgrade smelt"),
        (edited(schema_version=None), "no schema version"),
        (edited(schema_version="1"), "no schema version"),
        (edited(schema_version=0), "no schema version"),
        (edited(files=None), "lists no files"),
        (edited(files=["a"]), "lists no files"),
        (edited(files={"model.so": {}}), "says too little of model.so"),
        (edited(files={"model.so": 3}), "says too little of model.so"),
        (edited(files={"../model.so": ENTRY}), r"refused: its file '../model.so' is outside"),
        (edited(files={"/etc/passwd": ENTRY}), "refused: its file '/etc/passwd' is outside"),
        (lambda data: b"[]", "no schema version"),
        (lambda data: b"{", "is no JSON"),
        (lambda data: b"[" * 100000, "is no JSON"),
        (lambda data: b"\xff\xfe", "is no JSON"),
        (lambda data: None, "is not an artifact: it has no manifest.json"),
    ],
)
def test_manifests_that_are_refused(tmp_path, name, change, sentence):
    path = write_artifact(tmp_path / name, DESCRIPTION, FILES)
    damage(path, MANIFEST, change)
    with pytest.raises(ArtifactError, match=sentence):
        open_artifact(path)


@pytest.mark.parametrize("bad", ["../evil", "/evil", "a/../../evil", "c:evil", "a\\..\\evil"])
def test_zip_entries_that_escape_are_refused(tmp_path, monkeypatch, bad):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(module.tempfile, "tempdir", None)
    path = write_artifact(tmp_path / "m.zip", DESCRIPTION, FILES)
    rewrite_zip(path, lambda files: files.update({bad: b"evil"}))
    with pytest.raises(ArtifactError, match="is refused: its file .* is outside it"):
        open_artifact(path)
    assert not list(tmp_path.rglob("evil"))
    assert not list((tmp_path / "t").iterdir())


def test_things_that_are_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="There is no artifact at"):
        open_artifact(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="is not an artifact: it has no manifest.json"):
        open_artifact(tmp_path)
    file = tmp_path / "file.zip"
    for data in (b"", b"text", b"PK\x03\x04" + bytes(100)):
        file.write_bytes(data)
        with pytest.raises(ArtifactError, match="damaged: it is no readable zip file"):
            open_artifact(file)


def test_truncated_zip_files(tmp_path):
    path = write_artifact(tmp_path / "m.zip", DESCRIPTION, FILES)
    data = path.read_bytes()
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            open_artifact(path)


def test_every_flipped_byte_of_a_zip_file_is_harmless_or_found(tmp_path):
    path = write_artifact(tmp_path / "m.zip", {"name": "m"}, {"a": b"abc", "b/c": b"defg"})
    data = path.read_bytes()
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0x55]) + data[index + 1 :])
        try:
            artifact = open_artifact(path)
        except ArtifactError:
            continue
        assert artifact.file("a").read_bytes() == b"abc"
        assert artifact.file("b/c").read_bytes() == b"defg"
        artifact.close()


def test_unpacked_files_are_private_and_go_away(tmp_path):
    path = write_artifact(tmp_path / "m.zip", DESCRIPTION, FILES)
    artifact = open_artifact(path)
    folder = artifact.folder
    assert folder.stat().st_mode & 0o077 == 0
    artifact.close()
    assert not folder.exists()
    folder = open_artifact(path).folder
    assert not folder.exists()
    code = (
        "import sys; from smelt.runtime.artifact import open_artifact\n"
        "a = open_artifact(sys.argv[1]); print(a.folder)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.stdout.strip() and not Path(done.stdout.strip()).exists()


def test_a_loaded_model_survives_its_replacement(artifact):
    path = artifact("scale")
    old = smelt.runtime.load(path, threads=1)
    x = np.ones((2, 4), np.float32)
    before = old(x, 1)[0]
    files = {"model.so": path / "model.so", "weights.bin": np.zeros(16, np.float32).tobytes()}
    write_artifact(path, {"name": "new", "target": "cpu"}, files)
    np.testing.assert_array_equal(old(x, 1)[0], before)
    np.testing.assert_array_equal(smelt.runtime.load(path, threads=1)(x, 1)[0], x)


def test_weights_of_another_model(artifact):
    path = artifact("scale")
    manifest = json.loads((path / MANIFEST).read_text())
    write_artifact(path, manifest, {"model.so": path / "model.so", "weights.bin": b"short"})
    with pytest.raises(ArtifactError, match=r"weights.bin has fewer than the 64 bytes"):
        smelt.runtime.load(path)


def test_links_inside_a_folder_are_followed(tmp_path):
    # As in the caches of model hubs; the checksum says what it must be.
    path = write_artifact(tmp_path / "m", DESCRIPTION, FILES)
    (path / "weights.bin").rename(tmp_path / "blob")
    (path / "weights.bin").symlink_to(tmp_path / "blob")
    assert open_artifact(path)
