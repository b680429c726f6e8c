import io
import tarfile
from pathlib import Path

import pytest

from benchmarks.cpu.llama_build import PACKAGE, VENDORED, VERSION, download, unpack
from runtime.errors import KimiVLError


def make_archive(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return path


def test_only_llama_cpp_itself_is_unpacked(tmp_path: Path) -> None:
    names = [f"{VENDORED}src/llama.cpp", f"llama_cpp_python-{VERSION}/setup.py"]
    source = unpack(make_archive(tmp_path / "a.tar.gz", names), tmp_path / "source")
    assert [str(path.relative_to(source)) for path in source.rglob("*.*")] == ["src/llama.cpp"]


def test_an_unpacking_that_was_stopped_starts_again(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", [f"{VENDORED}CMakeLists.txt"])
    (tmp_path / "source.part").mkdir()
    (tmp_path / "source.part" / "half").touch()
    source = unpack(archive, tmp_path / "source")
    assert [path.name for path in source.iterdir()] == ["CMakeLists.txt"]
    assert not (tmp_path / "source.part").exists()


def test_an_archive_with_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz").write_text("not it")
    with pytest.raises(KimiVLError, match=r"sha256 is .* expected 832db06"):
        download(tmp_path)
