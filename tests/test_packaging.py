"""The package's URLs: those of the repository that it is built from, without secrets, and kept by its sdist."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.kit.programs import ROOT

GITHUB = "https://github.com/someone/thing"
#: Remotes, and the addresses that they stand for.
REMOTES = {
    "https://github.com/someone/thing.git": GITHUB,
    "https://github.com/someone/thing": GITHUB,
    "https://github.com/someone/thing/": GITHUB,
    "https://someone:ghp_secret@github.com/someone/thing.git": GITHUB,
    "https://ghp_secret@GitHub.com/someone/thing.git": GITHUB,
    "git@github.com:someone/thing.git": GITHUB,
    "ssh://git@github.com/someone/thing.git": GITHUB,
    "ssh://git@github.com:22/someone/thing.git": GITHUB,
    "git@gitlab.com:group/sub/thing.git": "https://gitlab.com/group/sub/thing",
    "https://codeberg.org/someone/thing.py.git": "https://codeberg.org/someone/thing.py",
    "git@bitbucket.org:someone/thing.git": "https://bitbucket.org/someone/thing",
    "git@git.sr.ht:~someone/thing": "https://git.sr.ht/~someone/thing",
    # Not public, not known, or no repository's address.
    "https://git.example.com/someone/thing.git": "",
    "https://github.com.example.com/someone/thing.git": "",
    "https://example.com/github.com/someone/thing.git": "",
    "https://example.com@evil@github.com/someone/thing.git": "",
    "http://github.com/someone/thing.git": "",
    "https://github.com/someone": "",
    "https://github.com/someone/thing?token=secret": "",
    "https://github.com/someone/thing#secret": "",
    "file:///srv/someone/thing.git": "",
    "/srv/github.com/someone/thing": "",
    "../thing": "",
}


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine's user has set is not for these repositories."""
    for name in [one for one in os.environ if one.startswith(("GIT_", "ASYNCSERVER_HOME"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


@pytest.fixture
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, timeout=60)


def repository(folder: Path, remote: str | None) -> Path:
    folder.mkdir(exist_ok=True)
    git(folder, "init")
    if remote is not None:
        git(folder, "remote", "add", "origin", remote)
    return folder


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@needs_git
@pytest.mark.parametrize(("remote", "address"), REMOTES.items())
def test_home_is_the_remotes_public_address(hook: Any, tmp_path: Path, remote: str, address: str) -> None:
    """On a forge that is known, and nothing but host, owner and name of it."""
    assert hook.home(repository(tmp_path, remote)) == address


@needs_git
def test_no_repository_of_its_own_has_no_home(hook: Any, tmp_path: Path) -> None:
    """Without a remote, and in a folder inside of another repository, which is somebody else's."""
    assert hook.home(repository(tmp_path / "alone", None)) == ""
    inside = repository(tmp_path / "around", f"{GITHUB}.git") / "unpacked"
    inside.mkdir()
    assert hook.home(inside) == ""


def test_machine_without_git(hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no remote to be asked for; a build goes on."""
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hook.home(tmp_path) == ""


@pytest.mark.parametrize("address", ["https://git.example.com/thing/", GITHUB])
def test_home_can_be_given(hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """ASYNCSERVER_HOME, for any host."""
    monkeypatch.setenv("ASYNCSERVER_HOME", address)
    assert hook.home(tmp_path) == address.rstrip("/")


@pytest.mark.parametrize("wrong", ["git.example.com", "http://example.com/x", "https://me:secret@example.com/x", "no"])
def test_wrong_home_is_told(hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """A build that would publish it fails."""
    monkeypatch.setenv("ASYNCSERVER_HOME", wrong)
    with pytest.raises(ValueError, match="ASYNCSERVER_HOME must be https://HOST/PATH, without a user; got "):
        hook.home(tmp_path)


def test_urls_are_those_that_the_forge_has(hook: Any) -> None:
    """Files and issues only where their addresses are the same for each repository; the files exist."""
    assert hook.urls("") == {}
    assert hook.urls("https://git.example.com/thing") == {
        "Homepage": "https://git.example.com/thing",
        "Source": "https://git.example.com/thing",
    }
    assert hook.urls(GITHUB) == {
        "Homepage": GITHUB,
        "Source": GITHUB,
        "Issues": f"{GITHUB}/issues",
        "Changelog": f"{GITHUB}/blob/HEAD/CHANGELOG.md",
        "Documentation": f"{GITHUB}/blob/HEAD/docs/index.md",
    }
    assert "Changelog" not in hook.urls("https://codeberg.org/someone/thing")
    assert "Issues" not in hook.urls("https://git.sr.ht/~someone/thing")
    for name in ("CHANGELOG.md", "docs/index.md"):
        assert (ROOT / name).exists()


# -- as hatchling has it


def hatchling(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"ASYNCSERVER_SPEEDUPS": "0"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done


def tree(folder: Path) -> Path:
    """A copy of what a build reads."""
    folder.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md", "pytest_asyncserver.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("asyncserver", "compat"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


def urls_of(folder: Path) -> dict[str, str]:
    told = json.loads(hatchling(folder, "metadata").stdout)
    urls: dict[str, str] = told.get("urls", {})
    return urls


@needs_git
def test_sdist_keeps_its_urls(hook: Any, tmp_path: Path) -> None:
    """A wheel that is made of it has no git to ask."""
    source = repository(tree(tmp_path / "source"), f"https://someone:secret@{GITHUB.removeprefix('https://')}.git")
    assert urls_of(source) == hook.urls(GITHUB)
    assert "without URLs" not in hatchling(source, "build", "-t", "sdist", "-d", str(tmp_path)).stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert f"Project-URL: Homepage, {GITHUB}\n" in (unpacked / "PKG-INFO").read_text()
    assert "secret" not in (unpacked / "PKG-INFO").read_text()
    assert urls_of(unpacked) == hook.urls(GITHUB)


def test_build_without_a_home_says_so(tmp_path: Path) -> None:
    """In one line; it has no URLs, and is a build like any other."""
    source = tree(tmp_path / "source")
    assert urls_of(source) == {}
    done = hatchling(source, "build", "-t", "wheel", "-d", str(tmp_path))
    assert (done.stdout + done.stderr).count("asyncserver without URLs: ") == 1
    assert len(list(tmp_path.glob("*.whl"))) == 1
