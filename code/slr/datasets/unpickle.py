"""Pickles read as data: nothing that they name is ever imported or called.

    entries = load_pickle("phoenix14t.train")        # gzip or bare; plain containers, arrays
    info = load_npy("train_info.npy")                # a 0-d object array gives the object in it

A pickle is a program, and Python's own unpickler runs it. Here `pickletools` decodes its instructions and a machine
of our own carries out those that build None, numbers, text, lists, tuples, dicts, sets, numpy numbers and arrays, and
torch tensors, which become numpy arrays: torch is not imported. Whatever else it names, or whatever else it would
have done, ends in a Mistake that says so.
"""

import ast
import gzip
import io
import math
import pickletools
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from slr import paths
from slr.errors import Mistake

LIMIT = 1 << 30  # bytes of an annotation once unpacked: the largest real one has 12 million
HEADER_LIMIT = 10_000  # bytes of an .npy file's head, as numpy has it
TORCH_MAGIC, TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before it wrote zip files


DAMAGE = (ValueError, TypeError, AttributeError, LookupError, OverflowError, struct.error, MemoryError, RecursionError)


class Refused(Exception):
    """What a pickle does that data does not."""


# --- what a file is -----------------------------------------------------------------------------------------

class _Bounded(io.RawIOBase):
    """A stream that ends in `Refused` behind `limit` bytes, whatever a small gzip file unpacks to."""

    def __init__(self, stream: Any, limit: int):
        self.stream, self.limit, self.left = stream, limit, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.stream.readinto(buffer)
        self.left -= count
        if self.left < 0:
            raise Refused(f"more than {self.limit} bytes when unpacked")
        return count


def _read(path: Path, read: Callable[[Any], Any], limit: int) -> Any:
    """read(stream) of a file, unpacked where it is gzip; anything wrong with it is a Mistake."""
    problem = f"{paths.shown(path)} is not read"
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else raw as stream:
                return read(io.BufferedReader(_Bounded(stream, limit), 1 << 16))
    except Refused as error:
        do = "a pickle can hold code: get this one from its source, or use another form of the annotation"
        raise Mistake(problem, str(error), do) from error
    except (OSError, EOFError, zlib.error) as error:
        raise Mistake(problem, str(error) or "it ends too early", "get the file anew") from error
    except DAMAGE as error:
        raise Mistake(problem, f"damaged: {error or type(error).__name__}"[:200], "get the file anew") from error


def load_pickle(path: Path | str, limit: int = LIMIT) -> Any:
    """The object in a pickle or gzipped pickle. torch tensors come as numpy arrays, numpy numbers as plain ones.

    Args:
        limit: the most bytes it may have when unpacked.

    Raises:
        Mistake: no such file, damaged, larger than that, or it names or does something that data does not.
    """
    return _read(Path(path), _Machine.load, limit)


def load_npy(path: Path | str, limit: int = LIMIT) -> Any:
    """The array in an .npy file; of an array of objects without dimensions, as `np.save` makes of a dict, the object.

    Raises:
        Mistake: as `load_pickle`, or it is no .npy file.
    """
    return _read(Path(path), _npy, limit)


def _header(stream: Any) -> tuple[str, tuple[int, ...], bool]:
    """(dtype, shape, Fortran order) out of an .npy file's head: magic, version, length, a dict as Python writes it."""
    magic, major = stream.read(6), stream.read(2)[:1]
    if magic != b"\x93NUMPY" or major not in (b"\x01", b"\x02", b"\x03"):
        raise ValueError("it is no .npy file")
    length = int.from_bytes(stream.read(2 if major == b"\x01" else 4), "little")
    if length > HEADER_LIMIT:
        raise ValueError(f"a header of {length} bytes")
    try:
        found = ast.literal_eval(stream.read(length).decode("latin-1").strip())
    except SyntaxError as error:
        raise ValueError("its header is damaged") from error
    if not isinstance(found, dict) or not re.fullmatch(r"\|O|[<>|](?:[biuf]\d{1,2}|[SU]\d{1,6})", str(found["descr"])):
        raise Refused("an array of records")
    return found["descr"], _shape_of(found["shape"]), bool(found["fortran_order"])


def _npy(stream: Any) -> Any:
    code, shape, fortran = _header(stream)
    if code != "|O":
        return _array(stream.read(), np.dtype(code), shape, "F" if fortran else "C")
    array = _Machine.load(stream)
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise ValueError(f"no array of shape {shape}")
    return array.item() if array.shape == () else array


# --- numpy --------------------------------------------------------------------------------------------------

class _DType:
    """A dtype on its way: its byte order comes after its name. Records and sub-arrays are refused: numpy
    believes what a pickle says of their layout."""

    def __init__(self, code: str):
        if not re.fullmatch(r"[biuf][1248]|O8|[SU]\d{1,6}", code):
            raise Refused(f"an array of {code!r}")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        _, order, *layout = state
        if any(part is not None for part in layout[:3]) or order not in ("<", ">", "|", "="):
            raise Refused("an array of records")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


def _dtype_of(value: Any, objects: bool = False) -> np.dtype:
    if not isinstance(value, _DType) or (value.dtype.kind == "O" and not objects):
        raise Refused("an array of objects, or of nothing that is known")
    return value.dtype


def _shape_of(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 8 or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError("an array without a shape")
    return value


def _bytes_of(value: Any) -> bytes:
    """Python 2 wrote bytes as text of the same numbers."""
    return value.encode("latin-1") if isinstance(value, str) else bytes(memoryview(value))


def _array(raw: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """A new array of exactly these bytes."""
    if dtype.hasobject:
        raise Refused(f"an array of {dtype}")
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes for an array of shape {shape} and type {dtype}")
    flat = np.frombuffer(raw, dtype) if raw else np.empty(0, dtype)
    return flat.reshape(shape, order=order).copy()


def _build_array(array: np.ndarray, state: Any) -> None:
    """numpy's own __setstate__, once everything that it would believe is known to be true."""
    version, shape, dtype, fortran, raw = state
    shape, dtype = _shape_of(shape), _dtype_of(dtype, objects=True)
    if dtype.kind == "O":
        if type(raw) is not list or len(raw) != math.prod(shape):
            raise ValueError(f"an array of {math.prod(shape)} objects without them")
    else:
        raw = _bytes_of(raw)
        _array(raw, dtype, shape, "C")
    believed: Any = (1, shape, dtype, bool(fortran), raw)
    array.__setstate__(believed)


def _scalar(dtype: Any, raw: Any) -> Any:
    return _array(_bytes_of(raw), _dtype_of(dtype), (), "C").item()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if order not in ("C", "F"):
        raise ValueError("an array in no known order")
    return _array(_bytes_of(raw), _dtype_of(dtype), _shape_of(shape), order)


# --- torch --------------------------------------------------------------------------------------------------

STORAGES = {"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "u2", "Long": "i8", "Int": "i4", "Short": "i2",
            "Char": "i1", "Byte": "u1", "Bool": "?"}


class _Storage:
    """The numbers under a tensor, of one dimension."""

    def __init__(self, kind: str, key: str):
        self.kind, self.key, self.numbers = kind, key, np.empty(0, STORAGES[kind])

    def read(self, stream: io.BytesIO) -> None:
        count, = struct.unpack("<q", stream.read(8))
        raw = stream.read()
        self.numbers = _array(raw, self.numbers.dtype, (count,), "C")
        if self.kind == "BFloat16":  # the upper half of a float32
            self.numbers = (self.numbers.astype(np.uint32) << 16).view(np.float32)


def _storage(data: Any) -> _Storage:
    """What torch.save wrote of one storage: five pickles, then its bytes."""
    stream = io.BytesIO(data)
    magic, protocol, system = (_Machine.load(stream) for _ in range(3))
    if (magic, protocol) != (TORCH_MAGIC, TORCH_PROTOCOL) or system.get("little_endian") is not True:
        raise ValueError("a tensor in an unknown form")
    storage, keys = _Machine.load(stream, storages=True), _Machine.load(stream)
    if not isinstance(storage, _Storage) or keys != [storage.key]:
        raise ValueError("a tensor without its numbers")
    storage.read(stream)
    return storage


def _persistent(identity: Any) -> _Storage:
    """('storage', FloatStorage, key, device, count, view): torch's name for numbers that follow."""
    what, name, key, _device, _count, view = identity
    kind = name.kind if isinstance(name, _StorageName) else ""
    if what != "storage" or not kind or type(key) is not str or view is not None:
        raise Refused("a torch storage of an unknown kind")
    return _Storage(kind, key)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_gradient_and_hooks: Any) -> np.ndarray:
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
        raise ValueError("a tensor without numbers")
    size, stride = _shape_of(tuple(size)), _shape_of(tuple(stride))
    numbers = storage.numbers
    if len(size) != len(stride):
        raise ValueError(f"a tensor of shape {size} and strides {stride}")
    if not math.prod(size):
        return np.empty(size, numbers.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(numbers) or math.prod(size) > len(numbers):
        raise ValueError(f"a tensor of shape {size} over {len(numbers)} numbers")
    steps = [step * numbers.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(numbers[offset:], size, steps).copy()


# --- the machine --------------------------------------------------------------------------------------------

def _keys(items: Iterable[Any]) -> list[Any]:
    """Keys and members are flat: the hash of a tuple of tuples of one tuple could take for ever."""
    items = list(items)
    odd = next((item for item in items if not isinstance(item, str | bytes | int | float | None)), None)
    if odd is not None:
        raise Refused(f"a key that is a {type(odd).__name__}")
    return items


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    pairs = list(pairs)
    return dict(zip(_keys(key for key, _ in pairs), [value for _, value in pairs], strict=True))


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused("it calls _codecs.encode for something else than latin-1")
    return text.encode("latin-1")


class _Callable:
    """A name that may be called: what is called is `function`, ours."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function


class _StorageName:
    def __init__(self, kind: str):
        self.kind = kind


ARRAY = object()  # numpy.ndarray, which is only ever an argument
NAMES: dict[str, Any] = {
    "numpy.ndarray": ARRAY,
    "numpy.dtype": _Callable(lambda code, *_: _DType(code)),
    "numpy.core.multiarray._reconstruct": _Callable(lambda *_: np.empty(0)),
    "numpy.core.multiarray.scalar": _Callable(_scalar),
    "numpy.core.numeric._frombuffer": _Callable(_from_buffer),
    "torch._utils._rebuild_tensor_v2": _Callable(_tensor),
    "torch.storage._load_from_bytes": _Callable(_storage),
    "collections.OrderedDict": _Callable(_dict),
    "builtins.bytes": _Callable(lambda: b""),  # how protocols 0 to 2 write empty ones
    "builtins.set": _Callable(lambda items=(): set(_keys(items))),
    "builtins.frozenset": _Callable(lambda items=(): frozenset(_keys(items))),
    "_codecs.encode": _Callable(_encode),
}
STORAGE_NAMES = {f"torch.{kind}Storage": _StorageName(kind) for kind in STORAGES}
VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split())


class _Machine:
    """The stack, the marks in it and the memo of one pickle; a method for every instruction that data needs."""

    def __init__(self, storages: bool):
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # one stack for every mark that is open
        self.memo: dict[int, Any] = {}
        self.names = NAMES | STORAGE_NAMES if storages else NAMES
        self.storages = storages

    @classmethod
    def load(cls, stream: Any, storages: bool = False) -> Any:
        """Run one pickle of a stream, and leave the stream behind it. `storages`: it is a torch storage's."""
        machine = cls(storages)
        source: Any = SimpleNamespace(read=stream.read, readline=stream.readline)  # no `tell`, which is slow
        for instruction, argument, _ in pickletools.genops(source):
            name = instruction.name
            if name in VALUES:
                machine.push(argument)
            elif name in DO:
                DO[name](machine, argument)
            else:
                raise Refused(f"the instruction {name}")
        return machine.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def last(self, count: int) -> list[Any]:
        """The topmost items, in the order in which they came."""
        items = self.stack[-count:]
        if len(items) < count:
            raise ValueError("an instruction without its items")
        del self.stack[-count:]
        return items

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused(f"items for a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        self.top(dict).update(zip(_keys(items[::2]), items[1::2], strict=True))

    def add_items(self, items: list[Any]) -> None:
        self.top(set).update(_keys(items))

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("a name that is no text")
        module = re.sub(r"^numpy\._core\b", "numpy.core", re.sub(r"^__builtin__$", "builtins", module))
        if f"{module}.{name}" not in self.names:
            raise Refused(f"it names {module}.{name}"[:120])
        self.push(self.names[f"{module}.{name}"])

    def call(self) -> None:
        function, arguments = self.last(2)
        if not isinstance(function, _Callable) or type(arguments) is not tuple:
            raise Refused(f"a call of a {type(function).__name__}")
        self.push(function.function(*arguments))

    def build(self) -> None:
        target, state = self.last(2)
        if isinstance(target, _DType):
            target.build(state)
        elif isinstance(target, np.ndarray):
            _build_array(target, state)
        else:
            raise Refused(f"a state for a {type(target).__name__}")
        self.push(target)

    def persistent(self) -> None:
        if not self.storages:
            raise Refused("the instruction BINPERSID")
        self.push(_persistent(self.stack.pop()))

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.push(self.memo[index])


def _push(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make())


def _gather(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make(machine.since_mark()))


def _wrap(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(tuple(machine.last(count)))


DO: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    "NONE": _push(lambda: None), "NEWTRUE": _push(lambda: True), "NEWFALSE": _push(lambda: False),
    "EMPTY_LIST": _push(list), "EMPTY_DICT": _push(dict), "EMPTY_TUPLE": _push(tuple), "EMPTY_SET": _push(set),
    "LIST": _gather(list), "TUPLE": _gather(tuple), "FROZENSET": _gather(lambda items: frozenset(_keys(items))),
    "DICT": _gather(lambda items: _dict(zip(items[::2], items[1::2], strict=True))),
    "TUPLE1": _wrap(1), "TUPLE2": _wrap(2), "TUPLE3": _wrap(3),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.add_items(machine.since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, index: machine.remember(index)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.recall(index)),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "GLOBAL": lambda machine, name: machine.name(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.last(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persistent(),
}
