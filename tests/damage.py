"""Files as disks, networks and attackers leave them: images, and ways to damage them.

All damage is drawn from a seed, so that what broke something can be made again.
"""

from __future__ import annotations

import random
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import rasterio
import rasterio.shutil
import tifffile
import zarr
from numpy.typing import NDArray

from images import tissue, write_scene, write_slide

HEIGHT, WIDTH = 448, 640
"""Of the images written here; no other number in their headers is the same."""
LARGE = (0, 1, 2, 7, 0x7FFF, 0xFFFF, 10**9, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""What a field of a header is set to."""
SHARED = (
    "data/slides/test3-TRITC-2-560.ndpi",
    "data/slides/camelyon_challenge_jpeg.dcm",
    "data/slides/OS-2-ndpi.ome.tif",
    "data/slides/CMU-1-Small-Region.svs",
    "data/scenes/xrspatial_s2/red_band.nc",
    "data/scenes/sen1floods11_spain/Spain_7370579_S2Hand.tif",
)
"""Real files of formats that nothing here can write, and of those that it can."""


def write_originals(folder: Path, shared: Path | None = None) -> list[Path]:
    """Write a small whole image in each format, and take the real ones that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    image = tissue(HEIGHT, WIDTH)
    half = image[::2, ::2]
    colour: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    write_slide(folder / "one-level.svs", image)
    _pyramid(folder / "pyramid.svs", image, "jpeg", f"Aperio\n{WIDTH}x{HEIGHT}|MPP = 0.5")
    _pyramid(folder / "jpeg2000.svs", image, "jpeg2000", f"Aperio\n{WIDTH}x{HEIGHT}|MPP = 0.5")
    _pyramid(folder / "pyramid.tif", image, "jpeg", None)
    tifffile.imwrite(folder / "plain.tif", image, **colour)
    tifffile.imwrite(folder / "strips.tif", image, rowsperstrip=32, compression="lzw", **colour)
    tifffile.imwrite(
        folder / "big.tif", image, bigtiff=True, tile=(128, 128), compression="zstd", **colour
    )
    tifffile.imwrite(
        folder / "planes.tif", image.transpose(2, 0, 1), planarconfig="separate", byteorder=">",
        tile=(128, 128), compression="zlib", predictor=True, **colour,
    )  # fmt: skip
    with tifffile.TiffWriter(folder / "channels.ome.tif") as file:
        planes = image.transpose(2, 0, 1).astype(np.uint16)
        about = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        file.write(planes, subifds=1, tile=(128, 128), compression="zlib", metadata=about)
        file.write(planes[:, ::2, ::2], subfiletype=1, tile=(128, 128), compression="zlib")
    _leica(folder / "leica.scn", image)
    for suffix in ("png", "jpg", "webp"):
        encode: Callable[..., bytes] = getattr(
            imagecodecs, f"{suffix}_encode".replace("jpg", "jpeg")
        )
        (folder / f"picture.{suffix}").write_bytes(encode(image))
    (folder / "picture.jp2").write_bytes(imagecodecs.jpeg2k_encode(image, codecformat="jp2"))
    write_scene(folder / "scene.tif")
    _scene(folder / "cloud-optimised.tif", image)
    with rasterio.open(folder / "cloud-optimised.tif") as scene:
        rasterio.shutil.copy(scene, folder / "mosaic.vrt", driver="VRT")
    for name, version in (("two.zarr", 2), ("three.zarr", 3)):
        _ome_zarr(folder / name, [image, half], version)
    if shared is not None:
        for name in SHARED:
            shutil.copy(shared / name, folder)
            (folder / Path(name).name).chmod(0o644)
    return sorted(folder.iterdir())


def damage(original: Path, kind: str, seed: int, folder: Path) -> Path:
    """Copy an image into an empty folder, and damage it in one of the ways of `KINDS`."""
    chance = random.Random(f"{original.name} {kind} {seed}")
    copy = folder / original.name
    if original.is_dir():
        shutil.copytree(original, copy)
        files = sorted(file for file in copy.rglob("*") if file.is_file())
        # Half of what is hit is metadata, of which there is less.
        about = [file for file in files if file.suffix == ".json" or file.name.startswith(".z")]
        target = chance.choice(about if chance.random() < 0.5 else files)
    else:
        target = shutil.copy(original, copy)
        if original.suffix == ".vrt":
            shutil.copy(original.with_name("cloud-optimised.tif"), folder)
    content = bytearray(target.read_bytes())
    target.write_bytes(KINDS[kind](content, chance))
    return copy


def flip(content: bytearray, chance: random.Random) -> bytes:
    """Turn some bits, more often near the beginning or the end, where headers lie."""
    for _ in range(chance.choice((1, 4, 32))):
        content[_place(content, chance)] ^= 1 << chance.randrange(8)
    return bytes(content)


def blank(content: bytearray, chance: random.Random) -> bytes:
    """Fill a block with zeros, as a disk does that lost a sector."""
    start = _place(content, chance)
    length = min(chance.choice((16, 512, 4096, 65536)), len(content) - start)
    content[start : start + length] = bytes(length)
    return bytes(content)


def scribble(content: bytearray, chance: random.Random) -> bytes:
    """Fill a block with noise."""
    start = _place(content, chance)
    length = min(chance.choice((4, 16, 512, 4096)), len(content) - start)
    content[start : start + length] = chance.randbytes(length)
    return bytes(content)


def cut(content: bytearray, chance: random.Random) -> bytes:
    """Cut the end off, as a broken transfer does."""
    return bytes(content[: chance.randrange(len(content))])


def shift(content: bytearray, chance: random.Random) -> bytes:
    """Insert or remove some bytes, so that all behind them is elsewhere than is said."""
    start, length = _place(content, chance), chance.choice((1, 2, 64))
    if chance.random() < 0.5:
        return bytes(content[:start] + chance.randbytes(length) + content[start:])
    return bytes(content[:start] + content[start + length :])


def claim(content: bytearray, chance: random.Random) -> bytes:
    """Set fields of the header to what no file holds: sizes, offsets, counts, pointers."""
    if content[:2] in (b"II", b"MM"):
        return _claim_in_tiff(content, chance)
    if content[:1] in (b"{", b"<"):
        numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
        if not numbers:
            return flip(content, chance)
        number = chance.choice(numbers)
        value = str(chance.choice((*LARGE, -1, 0.5, 10**18, "NaN", '""'))).encode()
        return bytes(content[: number.start()] + value + content[number.end() :])
    value = chance.choice(LARGE)
    for side in (HEIGHT, WIDTH):
        for form, largest in (
            (">I", 0xFFFFFFFF),
            ("<I", 0xFFFFFFFF),
            (">H", 0xFFFF),
            ("<H", 0xFFFF),
        ):
            place = content.find(struct.pack(form, side), 0, 4096)
            if place >= 0 and chance.random() < 0.7:
                struct.pack_into(form, content, place, min(value, largest))
                break
    if content[1:4] == b"PNG":  # or the checksum alone would be found
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    return bytes(content)


KINDS: dict[str, Callable[[bytearray, random.Random], bytes]] = {
    kind.__name__: kind for kind in (flip, blank, scribble, cut, shift, claim)
}


def tiff_fields(content: bytes) -> Iterator[tuple[int, int, int, str]]:
    """Yield tag, position, size and form of the count and value of each field of a TIFF file.

    A tag of 0 is the pointer from one directory to the next.
    """
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    offset, number, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    size = struct.calcsize(f"{order}{offset}")
    pointer, seen = 8 if big else 4, set()
    while True:
        (start,) = struct.unpack_from(f"{order}{offset}", content, pointer)
        yield 0, pointer, size, f"{order}{offset}"
        if not start or start in seen:
            return
        seen.add(start)
        (count,) = struct.unpack_from(f"{order}{number}", content, start)
        start += struct.calcsize(f"{order}{number}")
        for position in range(start, start + count * entry, entry):
            tag, kind = struct.unpack_from(f"{order}HH", content, position)
            yield tag, position + 4, size, f"{order}{offset}"
            form = {3: "H", 4: "I", 16: "Q"}.get(kind, offset)
            (held,) = struct.unpack_from(f"{order}{offset}", content, position + 4)
            # Values that do not fit lie elsewhere, and the field says where.
            inside = held * struct.calcsize(form) <= size
            yield tag, position + 4 + size, size, f"{order}{form if inside else offset}"
        pointer = start + count * entry


def set_tag(content: bytearray, tag: int, value: int, *, count: int | None = None) -> bytes:
    """Set the value of a tag that holds one number, in every directory that has it."""
    fields = [field for field in tiff_fields(content) if field[0] == tag]
    for (_, counted, _, form), (_, place, _, value_form) in zip(
        fields[::2], fields[1::2], strict=True
    ):
        if count is not None:
            struct.pack_into(form, content, counted, count)
        struct.pack_into(value_form, content, place, value)
    return bytes(content)


def _claim_in_tiff(content: bytearray, chance: random.Random) -> bytes:
    fields = list(tiff_fields(content))
    for _ in range(chance.choice((1, 1, 2, 4))):
        _, place, _, form = chance.choice(fields)
        pointers = [place for tag, place, *_ in fields if tag == 0]
        # Besides numbers: offsets of directories, so that they run in circles.
        value = chance.choice((*LARGE, len(content), chance.choice(pointers) - 2, 8))
        struct.pack_into(form, content, place, value % 256 ** struct.calcsize(form))
    return bytes(content)


def _place(content: bytes, chance: random.Random) -> int:
    """Draw a position: anywhere, or among the first or last four kilobytes."""
    near = min(4096, len(content))
    ranges = (0, len(content)), (0, near), (len(content) - near, len(content))
    return chance.randrange(*chance.choice(ranges))


def _pyramid(path: Path, image: NDArray[np.uint8], codec: str, about: str | None) -> None:
    with tifffile.TiffWriter(path) as file:
        for step in (1, 2, 4):
            file.write(
                image[::step, ::step], photometric="rgb", tile=(128, 128), compression=codec,
                description=about, metadata=None, subfiletype=int(step > 1),
            )  # fmt: skip


def _leica(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a Leica SCN of two levels: a BigTIFF whose description lists its directories."""
    height, width = image.shape[:2]
    nm = f'sizeX="{width * 500}" sizeY="{height * 500}"'
    dimensions = "".join(
        f'<dimension sizeX="{width // step}" sizeY="{height // step}" r="{r}" ifd="{r}"/>'
        for r, step in enumerate((1, 2))
    )
    about = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="a" uuid="b" sizeX="{width * 1000}" sizeY="{height * 1000}">'
        '<barcode/><image name="i" uuid="c">'
        f'<creationDate>2010-01-01</creationDate><device model="m" version="1"/>'
        f'<pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
        f'<view {nm} offsetX="0" offsetY="0" spacingZ="0"/><scanSettings><objectiveSettings>'
        "<objective>20</objective></objectiveSettings><illuminationSettings>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings>"
        "</scanSettings></image></collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for step in (1, 2):
            file.write(
                image[::step, ::step], photometric="rgb", tile=(128, 128), compression="jpeg",
                description=about if step == 1 else None, metadata=None,
            )  # fmt: skip


def _scene(path: Path, image: NDArray[np.uint8]) -> None:
    with rasterio.open(
        path, "w", driver="COG", height=HEIGHT, width=WIDTH, count=3, dtype="uint8", nodata=0,
        compress="deflate", blocksize=128, crs="EPSG:32632",
        transform=rasterio.Affine(10, 0, 6e5, 0, -10, 53e5),
    ) as scene:  # fmt: skip
        scene.write(image.transpose(2, 0, 1))


def _ome_zarr(path: Path, levels: list[NDArray[np.uint8]], version: int) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=version)
    datasets = []
    for number, level in enumerate(levels):
        group.create_array(str(number), data=level.transpose(2, 0, 1), chunks=(3, 128, 128))
        scale = {"type": "scale", "scale": [1.0, 0.5 * 2**number, 0.5 * 2**number]}
        datasets.append({"path": str(number), "coordinateTransformations": [scale]})
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    ome: dict[str, Any] = {"multiscales": [{"axes": axes, "datasets": datasets}]}
    if version == 2:
        ome["multiscales"][0]["version"] = "0.4"
        group.attrs.update(ome)
    else:
        group.attrs["ome"] = ome | {"version": "0.5"}
