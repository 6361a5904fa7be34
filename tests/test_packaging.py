"""The sdist and the wheel: built from what git would commit, complete, and working where there is no checkout.

`python tests/test_packaging.py some.whl` runs the last part alone, on a wheel already built (`make wheel`).
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "reports")
SMOKE = """
import tgrad, tgrad.kernels, tgrad.profiler
from pathlib import Path
from tgrad.profiler.cli import main
for module in (tgrad, tgrad.kernels, tgrad.profiler):
    assert Path(module.__file__).is_relative_to({site!r}), module.__file__
assert callable(main)
assert (tgrad.ones(2, 3) * 2).sum().item() == 12
print(tgrad.__version__)
"""


def run(*command, cwd, **env) -> str:
    words = [str(word) for word in command]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run(words, check=False, cwd=cwd, env={**os.environ, **env}, **quiet)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def smoke(wheel: Path, folder: Path) -> str:
    """Installs the wheel, without what it needs, into a folder of its own, and computes there. Returns the version.

    The interpreter's own site-packages serve torch and triton; a checkout installed there (-e) comes after the folder.
    """
    site = (folder / "site").resolve()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    run(*pip, "--target", site, wheel, cwd=folder)
    return run(sys.executable, "-P", "-c", SMOKE.format(site=str(site)), cwd=folder, PYTHONPATH=str(site)).strip()


def copy_of_the_tree(to: Path) -> Path:
    """What git would commit, links as links; where there is no git, everything but what is built."""
    if not (ROOT / ".git").exists():
        return Path(shutil.copytree(ROOT, to, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE)))
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, to / name
        if os.path.lexists(source) and not name.startswith("reports/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return to


def packaged(names) -> set[str]:
    return {name for name in names if PurePosixPath(name).parts[0] == "tgrad" and not name.endswith("/")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(tree, sdist, wheel made from the sdist, wheel made from the tree)."""
    tmp = tmp_path_factory.mktemp("packaging")
    tree = copy_of_the_tree(tmp / "tree")
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    run(*build, tmp / "dist", tree, cwd=tmp)  # the sdist, and the wheel from it
    run(*build, tmp / "direct", "--wheel", tree, cwd=tmp)
    (sdist,), (wheel,), (direct,) = (tmp.glob(p) for p in ("dist/*.tar.gz", "dist/*.whl", "direct/*.whl"))
    return tree, sdist, wheel, direct


def contents(archive: Path) -> dict[str, bytes]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as z:
            return {name: z.read(name) for name in z.namelist()}
    with tarfile.open(archive) as t:
        members = [m for m in t.getmembers() if not m.isdir()]
        assert all(m.isfile() for m in members), "an sdist holds files, not links"
        return {m.name.split("/", 1)[1]: t.extractfile(m).read() for m in members}


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package_and_nothing_else(built):
    tree, _, wheel, _ = built
    expected = set()
    for folder, _, names in os.walk(tree / "tgrad", followlinks=True):
        expected |= {(Path(folder) / name).relative_to(tree).as_posix() for name in names if not name.endswith(".pyc")}
    in_wheel = set(contents(wheel))
    assert packaged(in_wheel) == expected
    top = {PurePosixPath(name).parts[0] for name in in_wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"tgrad"}
    roots = {f"{package}/__init__.py" for package in ("tgrad", "tgrad/kernels", "tgrad/profiler")}
    assert roots | {"tgrad/py.typed"} <= in_wheel
    assert any(name.startswith("tgrad/profiler/templates/") and name.endswith(".html") for name in in_wheel)


@pytest.mark.slow
def test_sdist_holds_each_package_once(built):
    _, sdist, wheel, _ = built
    in_sdist, in_wheel = contents(sdist), contents(wheel)
    assert packaged(in_sdist) == packaged(in_wheel)
    assert not [name for name in in_sdist if name.startswith(("kernels/", "profiler/"))]
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "tests/test_packaging.py"} <= set(in_sdist)


@pytest.mark.slow
def test_wheel_from_the_sdist_is_the_wheel_from_the_tree(built):
    *_, wheel, direct = built
    made, expected = contents(wheel), contents(direct)
    assert set(made) == set(expected)
    assert [n for n in made if n.startswith("tgrad/") and made[n] != expected[n]] == []


@pytest.mark.slow
def test_metadata(built):
    *_, wheel, _ = built
    files = contents(wheel)
    (info,) = {name.split("/")[0] for name in files if ".dist-info/" in name}
    metadata = files[f"{info}/METADATA"].decode().split("\n\n")[0]
    assert info.startswith("tgrad_triton-")
    assert "Name: tgrad-triton" in metadata and "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in files
    assert "tgrad = tgrad.profiler.cli:main" in files[f"{info}/entry_points.txt"].decode()


@pytest.mark.slow
def test_wheel_works_without_the_checkout(built, tmp_path):
    *_, wheel, _ = built
    assert smoke(wheel, tmp_path) == wheel.name.split("-")[1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"{Path(sys.argv[1]).name}: version {smoke(Path(sys.argv[1]).resolve(), Path(folder))} computes")
