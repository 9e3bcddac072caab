"""Small satellite products, laid out as ESA, USGS and STAC catalogues lay them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine

Surface = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[Any]]
"""From x and y in metres, from the top left corner of the scene, to numbers."""

WEST, NORTH = 500_000.0, 5_000_000.0
SIDE_M = 4800.0

METRES = {
    "B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10,
    "B8A": 20, "B09": 60, "B10": 60, "B11": 20, "B12": 20,
}  # fmt: skip
LEVEL_2A = [name for name in METRES if name != "B10"]

NO_OFFSET: Mapping[str, float] = {}


def ramp(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[Any]:
    """A plane: 2 for a metre to the east, 3 for one to the south."""
    return 2000 + 2 * x + 3 * y


def write_raster(
    path: Path,
    surface: Surface = ramp,
    metres: float = 10.0,
    *,
    side_m: float = SIDE_M,
    crs: str | None = "EPSG:32633",
    origin: tuple[float, float] = (WEST, NORTH),
    dtype: str = "uint16",
    **profile: Any,
) -> Path:
    """Write a raster of one band whose pixels hold a surface at their centres."""
    size = round(side_m / metres)
    centres = (np.arange(size) + 0.5) * metres
    x = centres[None, :] + origin[0] - WEST
    y = centres[:, None] - origin[1] + NORTH
    values = np.broadcast_to(np.asarray(surface(x, y)), (size, size)).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff"} | profile
    if profile["driver"] == "JP2OpenJPEG":
        profile |= {"REVERSIBLE": "YES", "QUALITY": "100"}
    with rasterio.open(
        path, "w", height=size, width=size, count=1, dtype=dtype, crs=crs,
        transform=Affine(metres, 0, origin[0], 0, -metres, origin[1]), **profile,
    ) as raster:  # fmt: skip
        raster.write(values, 1)
    return path


def write_safe(
    folder: Path,
    surfaces: Mapping[str, Surface] | None = None,
    *,
    level: str = "2A",
    baseline: str = "04.00",
    offset: float | None = -1000,
    scl: Surface | None = None,
    leave_out: tuple[str, ...] = (),
    side_m: float = SIDE_M,
) -> Path:
    """Write a Sentinel-2 SAFE folder: JPEG 2000 files, and metadata after S2-PDGS-TAS-DI-PSD."""
    names = LEVEL_2A if level == "2A" else list(METRES)
    safe = folder / f"S2A_MSIL{level}_20221005T115411_N0400_R023_T33TWL_20221005T164454.SAFE"
    images = f"GRANULE/L{level}_T33TWL_A038058_20221005T115407/IMG_DATA"
    listed = []
    for name in (*names, *(("SCL",) if scl else ())):
        metres = METRES.get(name, 20)
        # Level 2A holds each band at its own resolution and all coarser ones.
        for held in [m for m in (10, 20, 60) if m >= metres] if level == "2A" else [metres]:
            if name == "SCL" and held != 20:
                continue
            stem = f"{images}/T33TWL_20221005T115411_{name}"
            if level == "2A":
                stem = f"{images}/R{held}m/T33TWL_20221005T115411_{name}_{held}m"
            listed.append(stem)
            surface = scl if name == "SCL" and scl else (surfaces or {}).get(name, ramp)
            if name not in leave_out:
                write_raster(
                    safe / f"{stem}.jp2", surface, held, side_m=side_m, driver="JP2OpenJPEG",
                    dtype="uint8" if name == "SCL" else "uint16",
                )  # fmt: skip
    quantity, what = ("BOA", "BOA") if level == "2A" else ("RADIO", "")
    offsets = "".join(
        f'<{quantity}_ADD_OFFSET band_id="{number}">{offset}</{quantity}_ADD_OFFSET>'
        for number in range(13)
        if offset is not None
    )
    files = "".join(f"<IMAGE_FILE>{stem}</IMAGE_FILE>" for stem in listed)
    quantum = f"{what}_QUANTIFICATION_VALUE".lstrip("_")
    (safe / f"MTD_MSIL{level}.xml").write_text(
        f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product.xsd">
<n1:General_Info><Product_Info>
<PRODUCT_START_TIME>2022-10-05T11:54:11.024Z</PRODUCT_START_TIME>
<PROCESSING_LEVEL>Level-{level}</PROCESSING_LEVEL>
<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
<Datatake><SPACECRAFT_NAME>Sentinel-2A</SPACECRAFT_NAME></Datatake>
<Product_Organisation><Granule_List><Granule>{files}</Granule></Granule_List>
</Product_Organisation></Product_Info>
<Product_Image_Characteristics>
<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT>
<SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
<{quantum} unit="none">10000</{quantum}>
<ADD_OFFSETS>{offsets}</ADD_OFFSETS>
<Spectral_Information bandId="3" physicalBand="B4"><RESOLUTION>10</RESOLUTION>
<Wavelength><MIN unit="nm">646</MIN><MAX unit="nm">684</MAX><CENTRAL unit="nm">664.6</CENTRAL>
</Wavelength></Spectral_Information>
</Product_Image_Characteristics></n1:General_Info></n1:Level-{level}_User_Product>""",
        encoding="utf-8",
    )
    return safe


def write_landsat(
    folder: Path,
    *,
    level: str = "L2SP",
    surface: Surface = lambda x, y: 9000 + x,
    qa: Surface = lambda x, y: 21824,
    as_text: bool = False,
) -> Path:
    """Write a Landsat 8 folder of collection 2 with its MTL file."""
    scene = f"LC08_{level}_224078_20200518_20200820_02_T1"
    product = folder / scene
    is_level_2 = level == "L2SP"
    files = {f"B{n}": f"{scene}_{'SR_' * is_level_2}B{n}.TIF" for n in range(1, 8)}
    for name in files.values():
        write_raster(product / name, surface, 30, nodata=0)
    write_raster(product / f"{scene}_{'ST_' * is_level_2}B10.TIF", surface, 30, nodata=0)
    if not is_level_2:
        # The panchromatic band is centred on the same pixels, and so starts a quarter later.
        write_raster(
            product / f"{scene}_B8.TIF", surface, 15, origin=(WEST + 7.5, NORTH - 7.5),
            side_m=SIDE_M - 15,
        )  # fmt: skip
    write_raster(product / f"{scene}_QA_PIXEL.TIF", qa, 30, nodata=1)
    first = {f"REFLECTANCE_MULT_BAND_{n}": "2.0000E-05" for n in range(1, 9)}
    first |= {f"REFLECTANCE_ADD_BAND_{n}": "-0.100000" for n in range(1, 9)}
    first |= {"RADIANCE_MULT_BAND_10": "3.3420E-04", "RADIANCE_ADD_BAND_10": "0.10000"}
    second = {f"REFLECTANCE_MULT_BAND_{n}": "2.75e-05" for n in range(1, 8)}
    second |= {f"REFLECTANCE_ADD_BAND_{n}": "-0.2" for n in range(1, 8)}
    groups: dict[str, dict[str, str]] = {
        "PRODUCT_CONTENTS": {"PROCESSING_LEVEL": level, "COLLECTION_NUMBER": "02"},
        "IMAGE_ATTRIBUTES": {
            "SPACECRAFT_ID": "LANDSAT_8", "DATE_ACQUIRED": "2020-05-18", "CLOUD_COVER": "12.30",
            "SUN_ELEVATION": "30.0",
        },
        **({
            "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": second,
            "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS": {
                "TEMPERATURE_MULT_BAND_ST_B10": "0.00341802", "TEMPERATURE_ADD_BAND_ST_B10": "149.0"
            },
        } if is_level_2 else {}),
        "LEVEL1_RADIOMETRIC_RESCALING": first,
    }  # fmt: skip
    if as_text:
        lines = ["GROUP = LANDSAT_METADATA_FILE"]
        for name, group in groups.items():
            quoted = [f'    {key} = "{value}"' for key, value in group.items()]
            lines += [f"  GROUP = {name}", *quoted, f"  END_GROUP = {name}"]
        text = "\n".join([*lines, "END_GROUP = LANDSAT_METADATA_FILE", "END"])
        (product / f"{scene}_MTL.txt").write_text(text, encoding="utf-8")
    else:
        (product / f"{scene}_MTL.json").write_text(
            json.dumps({"LANDSAT_METADATA_FILE": groups}), encoding="utf-8"
        )
    return product


def write_item(path: Path, assets: Mapping[str, Any], **properties: Any) -> Path:
    """Write a STAC item."""
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": "S2B_33TWL_20230810_0_L2A",
        "geometry": {"type": "Point", "coordinates": [15.0, 45.0]},
        "bbox": [15.0, 45.0, 15.0, 45.0],
        "properties": {"datetime": "2023-08-10T10:00:00Z", **properties},
        "links": [],
        "assets": dict(assets),
    }
    path.write_text(json.dumps(item), encoding="utf-8")
    return path
