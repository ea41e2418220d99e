"""Everything that is run on this project, by name: ``nox -l`` lists it.

Torch alone takes several gigabytes, so all sessions that need the package share one environment,
``.nox/shared``. It is made by the first session that wants it and renewed when pyproject.toml
changes. Set ``BIOTUNE_PYTHON`` to the interpreter of an environment that has the extras ``bench``,
``dev`` and ``docs`` to use that instead.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
SHARED = ROOT / ".nox" / "shared"
# A process of tests takes about 1 GB; each keeps the files it has begun, and their fixtures.
PROCESSES = min(4, os.cpu_count() or 1)
SUITE = ["-q", f"--numprocesses={PROCESSES}", "--dist=loadfile", "--no-loadscope-reorder"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # PyTorch's threads would only wait for each other
RUFF = "ruff>=0.17,<0.18"  # a new minor version brings new rules into the families chosen
BENCHMARKS = ROOT / "studies" / "benchmarks"
# Benchmarks whose page is of data that no package brings along, and what to call them with.
NEEDS_DATA = {
    "choice": "--weights FILE --dtd10 FOLDER",
    "landscapes": "TASK --data-root FOLDER",
    "members": "TASK --tables FOLDER --data-root FOLDER",
    "optimism": "--data FOLDER",
}
# What peers of the second evidence need, by environment: the project itself needs none of it.
PEERS = {
    "fastai": (["fastai>=2.8,<3", "timm>=1.0.26", "safetensors"], ["fastai", "timm-recipe"]),
    "autogluon": (["autogluon.multimodal>=1.6,<1.7"], ["autogluon"]),
}


def shared_python(session: nox.Session) -> str:
    """Path of the shared environment's interpreter; makes or renews the environment."""
    if given := os.environ.get("BIOTUNE_PYTHON"):
        return given
    python = SHARED / "bin" / "python"
    stamp = SHARED / "installed"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        if not python.exists():
            session.run(sys.executable, "-m", "virtualenv", "--quiet", str(SHARED), external=True)
        install = ["install", "--quiet", "--editable", ".[bench,dev,docs]"]
        session.run(str(python), "-m", "pip", *install, external=True)
        stamp.write_text(wanted)
    return str(python)


def run(session: nox.Session, *command: str, env: dict[str, str] | None = None) -> None:
    """Runs ``python COMMAND`` in the shared environment."""
    session.run(shared_python(session), *command, external=True, env=env)


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """The test suite in several processes; with arguments after ``--``, pytest in one with them."""
    run(session, "-m", "pytest", *(session.posargs or SUITE), env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and formatting."""
    session.install(RUFF)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=False)
def types(session: nox.Session) -> None:
    """Strict mypy over the package."""
    run(session, "-m", "mypy", *session.posargs)


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """The documentation as HTML in docs/_build; any warning is an error."""
    out = ROOT / "docs" / "_build"
    shutil.rmtree(out, ignore_errors=True)
    run(session, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(out))


@nox.session(python=False)
def demo(session: nox.Session) -> None:
    """``biotune demo`` in a folder of its own (arguments after ``--`` go to it)."""
    command = Path(shared_python(session)).parent / "biotune"
    with session.chdir(session.create_tmp()):
        session.run(str(command), "demo", *session.posargs, external=True)


@nox.session(python=False, default=False)
def fuzz(session: nox.Session) -> None:
    """Hostile files against every reader, a minute of CPU each; ``-- SECONDS TARGET`` otherwise."""
    run(session, "-m", "tests.fuzz.fuzz", *(session.posargs or ["60"]), env=ONE_THREAD)


@nox.session(python=False, default=False)
def bench(session: nox.Session) -> None:
    """Benchmarks of speed, memory and search quality, into docs/benchmarks; hours.

    ``nox -s bench -- throughput prefix`` runs some by name; options after one name go to it.
    """
    scripts = {path.stem: path for path in sorted(BENCHMARKS.glob("[!_]*.py"))}
    names = [arg for arg in session.posargs if arg in scripts]
    options = [arg for arg in session.posargs if arg not in scripts]
    if options and len(names) != 1:
        session.error(f"options {options} need one benchmark: {', '.join(scripts)}")
    for name in names or scripts:
        if not names and name == "gpu":
            session.log("skipped gpu: nox -s gpu runs it, where there is a GPU")
            continue
        if not names and name in NEEDS_DATA:
            session.log(
                f"skipped {name}: its data are yours to give: nox -s bench -- {name} "
                f"{NEEDS_DATA[name]}"
            )
            continue
        run(session, str(scripts[name]), *options)


@nox.session(python=False, default=False)
def peers(session: nox.Session) -> None:
    """fastai, timm's recipe and AutoGluon beside the second evidence; hours.

    ``nox -s peers -- report FOLDER ...`` after ``studies/evidence.py report FOLDER ...``, in the
    same folder: this goes on where it stopped. Each has an environment of its own.
    """
    pythons = []
    for name, (packages, served) in PEERS.items():
        python = ROOT / ".nox" / f"peers-{name}" / "bin" / "python"
        stamp = python.parents[1] / "installed"
        if not stamp.exists() or stamp.read_text() != repr(packages):
            place = str(python.parents[1])
            session.run(sys.executable, "-m", "virtualenv", "--quiet", place, external=True)
            install = ["install", "--quiet", *packages]
            session.run(str(python), "-m", "pip", *install, external=True)
            stamp.write_text(repr(packages))
        pythons += [f"{peer}={python}" for peer in served]
    words = [*session.posargs, "--python", *pythons]
    run(session, "studies/peers/run.py", *words, env=ONE_THREAD)


@nox.session(python=False, default=False)
def gpu(session: nox.Session) -> None:
    """Checks and measures the engine on a GPU, into docs/benchmarks/gpu.md; eight minutes.

    ``nox -s gpu -- pytest`` runs the tests of the engine there instead, ``nox -s gpu -- --parts
    equal`` a part of the check, without writing the page.
    """
    if session.posargs[:1] == ["pytest"]:
        where = session.posargs[1:] or ["tests/finetune", "tests/methods", "tests/data"]
        run(session, "-m", "pytest", "-q", "--device", "cuda", *where, env=ONE_THREAD)
        return
    out = ["--out", str(Path(session.create_tmp()) / "gpu.json")]
    options = session.posargs or ["--page", "docs/benchmarks/gpu.md"]
    run(session, str(BENCHMARKS / "gpu.py"), *out, *options)


@nox.session(python=False, default=False)
def sweep(session: nox.Session) -> None:
    """Every architecture of timm in blocks, each family cut; writes docs/benchmarks; hours.

    ``nox -s sweep -- "resnet*"`` tries some architectures and writes nothing.
    """
    for script, page in (("block_sweep", "blocks"), ("cut_sweep", "cuts")):
        table = ["--table", f"docs/benchmarks/{page}.md"]
        options = ["--filter", *session.posargs] if session.posargs else table
        run(session, f"tests/sweep/{script}.py", *options)


@nox.session(python=False, default=False)
def e2e(session: nox.Session) -> None:
    """Report and dashboard of a real study in a real Chromium; slow."""
    run(session, "-m", "pytest", "tests/e2e", "--timeout=0", *session.posargs)


@nox.session(python=False, default=False)
def fault(session: nox.Session) -> None:
    """Killed workers, lost databases, dead hosts; slow, prints what docs/reliability.md tells."""
    run(session, "-m", "pytest", "tests/fault", "--timeout=0", "-v", "-rA", *session.posargs)


@nox.session(python=False, default=False)
def cluster(session: nox.Session) -> None:
    """Workers started by Ray and Slurm, and a server of S3, on this machine; slow.

    Installs Ray, s3fs and moto.
    """
    needed = ("ray[client]>=2.40", "moto[server]>=5.1", "s3fs>=2024.6")
    run(session, "-m", "pip", "install", "--quiet", *needed)
    run(session, "-m", "pytest", "tests/cluster", "--timeout=0", "-v", "-rA", *session.posargs)


@nox.session(default=False)
def lowest(session: nox.Session) -> None:
    """The test suite with the lowest version of every direct dependency; run by hand."""
    session.install("uv")
    resolve = ["--python", f"{session.bin}/python", "--resolution", "lowest-direct"]
    session.run("uv", "pip", "install", "--quiet", *resolve, "--editable", ".[dev]")
    session.run("uv", "pip", "freeze", "--python", f"{session.bin}/python")
    session.run("python", "-m", "pytest", *(session.posargs or SUITE), env=ONE_THREAD)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Wheel and sdist: built, checked, then the wheel installed and used in a clean environment."""
    session.install("build", "twine")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    files = sorted(map(str, dist.iterdir()))
    session.run("twine", "check", "--strict", *files)
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    _check_contents(session, wheel, sdist)
    session.install(f"{wheel}[demo]")
    with session.chdir(session.create_tmp()):
        session.run("python", "-m", "pip", "check")
        every_name = "import biotune_optuna as b; print([getattr(b, name) for name in b.__all__])"
        session.run("python", "-c", every_name)
        session.run("biotune", "--help")
        session.run("biotune", "--version")


def _check_contents(session: nox.Session, wheel: Path, sdist: Path) -> None:
    """Fails when the wheel or the sdist holds a file that does not belong, or lacks one."""
    package = _files_below("biotune_optuna")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    if inside != package:
        session.error(f"wheel and package differ in {sorted(inside ^ package)}")
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "noxfile.py", "PKG-INFO"}
    wanted |= package | _files_below("package")
    if missing := wanted - sources:
        session.error(f"sdist lacks {sorted(missing)}")
    stray = re.compile(r"__pycache__|\.py[co]$|\.db$|\.safetensors$|/_build/|^\.nox|\.cache")
    if strays := [name for name in sorted(names | sources) if stray.search(name)]:
        session.error(f"files that do not belong: {strays}")


def _files_below(folder: str) -> set[str]:
    """Paths of a folder's files, from the repository's root."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
