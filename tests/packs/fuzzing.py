"""Damage at random: bytes, JSON values and safetensors headers of a pack, with digests made right again or not.

Nothing but HfEditError may come of it, the model stays as it is, and no file outside the pack's folder is opened.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import hf_edit
from hf_edit.cli.inspect import inspect
from hf_edit.errors import HfEditError
from hf_edit.packs.contents import ADAPTER, CONFIG, EDITS, EVALUATION, FILES, MANIFEST, VALUES
from hf_edit.packs.manifest import LAYOUTS
from hf_edit.packs.pack import EditPack
from tests.packs.hostile import reseal, with_header
from tests.packs.make import make_pack, measured
from tests.snapshots import tensor_bytes
from tests.tiny import tiny_model


NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, "", " ", "\0", "..", "../../x"),
    *("/etc/passwd", "\ud800", "\u202e\x1b[2J\x9b31m", "a" * 5000, ".*", "lm_head", [], {}, [[]], {"": None}),
    *([None], ["x", 1], {"a": {"b": []}}, list(range(100))),
]
TEXTS = (MANIFEST, CONFIG, EDITS, EVALUATION)
TENSORS = (ADAPTER, VALUES)
STEERING = set("\x1b\x07\x9b\u202e\0")


def base_packs(model: PreTrainedModel, folder: Path) -> list[Path]:
    """One sound pack for each layout that it can be written in."""
    pack = measured(make_pack(model))
    paths = []
    for layout in LAYOUTS:
        try:
            pack.save_pretrained(folder / layout, layout=layout)
        except HfEditError:
            continue
        paths.append(folder / layout)
    return paths


def damaged_bytes(data: bytes, generator: random.Random) -> bytes:
    """Flip, insert, leave out, double, cut or mix."""
    if not data:
        return generator.randbytes(4)
    at, end = sorted(generator.randrange(len(data) + 1) for _ in range(2))
    some = generator.choice(
        [generator.randbytes(generator.randrange(1, 9)), b"\0" * 8, b"\xff" * 8, b"[" * 2000, b'"']
    )
    return generator.choice(
        [
            lambda: data[:at] + bytes([data[at % len(data)] ^ 1 << generator.randrange(8)]) + data[at + 1 :],
            lambda: data[:at] + some + data[at:],
            lambda: data[:at] + some + data[at + len(some) :],
            lambda: data[:at] + data[end:],
            lambda: data[:end] + data[at:end] + data[end:],
            lambda: data[:at],
            lambda: data.replace(b"0", some[:1]),
        ]
    )()


def damaged_json(value: Any, generator: random.Random) -> Any:
    """One place of a JSON value replaced, left out, doubled or renamed."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return generator.choice(NASTY)
    holder, key = generator.choice(places)
    kind = generator.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[str(generator.choice(NASTY))] = holder.pop(key)
    elif kind == 2:
        other, other_key = generator.choice(places)
        holder[key] = copy.deepcopy(other[other_key])
    elif kind == 3 and isinstance(holder[key], (int, float)):
        holder[key] = holder[key] + generator.choice([-1, 1, 0.5, 2**40])
    else:
        holder[key] = copy.deepcopy(generator.choice(NASTY))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def damage(pack: Path, generator: random.Random) -> str:
    """Damage one file of a pack; returns what was done to which."""
    name = generator.choice(FILES)
    path, kind = pack / name, generator.choice(["bytes", "values", "values"])
    data = path.read_bytes() if path.exists() else b""
    if kind == "values" and name in TEXTS:
        lines = data.decode(errors="replace").splitlines() if name == EDITS else [data.decode(errors="replace")]
        damaged = [_in_text(line, generator) for line in lines]
        path.write_bytes("\n".join(damaged).encode(errors="surrogatepass"))
    elif kind == "values" and name in TENSORS and len(data) > 8:
        end = 8 + int.from_bytes(data[:8], "little")
        header = _in_text(data[8:end].decode(errors="replace"), generator)
        path.write_bytes(with_header(header.encode(errors="surrogatepass"), data[end:]))
    else:
        kind = "bytes"
        path.write_bytes(damaged_bytes(data, generator))
    return f"{kind} of {name}"


def _in_text(text: str, generator: random.Random) -> str:
    try:
        value = json.loads(text)
    except (RecursionError, ValueError):
        return text
    return json.dumps(damaged_json(value, generator), ensure_ascii=generator.random() < 0.5)


def opened(pack: Path, model: PreTrainedModel, scratch: Path) -> str:
    """Do with a pack what a user would; returns what came of it.

    Raises:
        AssertionError: something that steers a terminal was printed or said.
    """
    out = StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(out):
            inspect(str(pack))
            name = hf_edit.attach(model, pack)
            hf_edit.detach(model, name)
            EditPack.from_pretrained(pack).save_pretrained(scratch / "again")
        came = "opened"
    except HfEditError as error:
        assert error.message and error.remedy
        out.write(str(error))
        came = f"refused: {type(error).__name__}"
    assert not STEERING & set(out.getvalue()), f"steers a terminal: {out.getvalue()!r}"
    return came


class Watch:
    """Files opened, and programs started, while it is on: what lies outside of the allowed folders.

    Python has no way to take an audit hook off again: use it in a process of its own.
    """

    def __init__(self, *writable: Path) -> None:
        self._writable = tuple(os.path.realpath(path) for path in writable)
        libraries = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        here = Path(hf_edit.__file__).parents[1]
        self._readable = tuple(os.path.realpath(path) for path in [*libraries, sys.base_prefix, sys.prefix, here])
        self.seen: list[str] = []
        self._on = False
        sys.addaudithook(self._hear)

    @contextmanager
    def on(self) -> Iterator[None]:
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2] or 0
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            allowed = self._writable if writes else self._writable + self._readable
            if not path.startswith(allowed):
                self.seen.append(f"{'wrote' if writes else 'read'} {path}")
        elif event.startswith(("subprocess.", "os.system", "os.exec", "os.spawn", "socket.connect", "pickle.")):
            self.seen.append(f"{event} {arguments!r}")


def fuzz(folder: Path, seed: int, until: Callable[[int], bool]) -> Counter[str]:
    """Damage packs in `folder` until told to stop.

    Args:
        until: called with the number of packs tried so far.

    Returns:
        What was done and what came of it, counted.

    Raises:
        AssertionError: what must not be, with the seed of the pack that showed it, which is left in `folder`.
    """
    model = tiny_model()
    before = [tensor_bytes(tensor) for tensor in model.state_dict().values()]
    sound, pack = base_packs(model, folder / "sound"), folder / "pack"
    assert opened(sound[0], model, folder) == "opened"  # everything is imported
    watch, counts = Watch(folder), Counter[str]()
    number = 0
    while not until(number):
        generator = random.Random(f"{seed} {number}")
        shutil.rmtree(pack, ignore_errors=True)
        shutil.copytree(generator.choice(sound), pack)
        done = [damage(pack, generator) for _ in range(generator.choice([1, 1, 1, 2, 4]))]
        if generator.random() < 0.8:
            reseal(pack)
        where = f"seed {seed}, pack {number} ({', '.join(done)}), which is in {pack}"
        try:
            with watch.on():
                came = opened(pack, model, folder)
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error}: {where}") from error
        assert not watch.seen, f"{watch.seen}: {where}"
        counts.update([*done, came])
        number += 1
    after = [tensor_bytes(tensor) for tensor in model.state_dict().values()]
    assert after == before, "the model was changed"
    return counts


def for_seconds(seconds: float) -> Callable[[int], bool]:
    """Stop so many seconds after the first pack."""
    began: list[float] = []

    def until(number: int) -> bool:
        began.append(time.monotonic())
        return began[-1] - began[0] >= seconds

    return until
