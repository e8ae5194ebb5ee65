"""Channels of an image by their names: red, green, blue, an alpha channel, or something else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from xarray import DataArray

RGB = ["r", "g", "b"]

ALPHA = ("a", "alpha")

SAME_AS = {"red": "r", "green": "g", "blue": "b"}

NUMBERED = re.compile(r"(?:c|ch|chan|channel|s|sample|band|image)?[\W_]*\d+(?:[\W_]+\d+)*")
"""Names that writers give to channels without one, such as ``0``, ``c0``, ``channel_1``, ``Channel:0:1``."""

OTHERS = (
    (
        "a fluorescence image",
        r"dapi|hoechst.*|draq\d*|to-?pro\w*|syto\w*|sytox\w*|fitc|tritc|texas ?red|cy[2357](\.5)?|[egy]fp|mcherry|"
        r"(alexa|af|atto|opal|dylight|cf)[\W_]*(fluor)?[\W_]*\d{3}\w*|a(488|555|568|594|647)|18s|atp1a1\w*|"
        r"(pan)?[\W_]*c(yto)?k(eratin)?s?\d*|panck|cd\d+\w*|e-?cad\w*|vimentin|alpha[\W_]?sma|[aα]?sma|polyt|fluorescen\w*|"
        r"boundary|membrane|interior\w*|foxp3|ki-?67|pd-?l?1|autofluorescence",
    ),
    ("a stain separated from others", r"h|e|dab|res(idual)?|ha?ematoxylin|eosin|h&e|hed"),
    ("CMYK", r"c|m|y|k|cyan|magenta|yellow|key|black"),
    ("another colour space", r"l|l\*|a\*|b\*|hue|saturation|value|lightness|luma|luminance|cb|cr|u|v|x|z"),
)
"""What an image is that has a channel of such a name, in small letters."""


def channel_names(level: DataArray) -> list[str]:
    """Names of the channels in small letters, those of colours as ``r``, ``g``, ``b``; numbers where there are none."""
    names = level.coords["c"].values[: level.sizes["c"]] if "c" in level.coords else range(level.sizes["c"])
    small = [str(name).strip().lower() for name in names]
    return [SAME_AS.get(name, name) for name in small]


def is_numbered(names: list[str]) -> bool:
    """Whether channels have no names but numbers."""
    return all(NUMBERED.fullmatch(name) for name in names)


def has_alpha(level: DataArray) -> bool:
    """Whether the fourth channel is alpha, by its name or because four channels have none."""
    names = channel_names(level)
    return len(names) == 4 and ((names[:3] == RGB and names[3] in ALPHA) or is_numbered(names))


def kind_of(names: list[str]) -> str | None:
    """What an image with channels of these names is, if a name is known not to be a colour of H&E."""
    for kind, pattern in OTHERS:
        if any(re.fullmatch(pattern, name) for name in names[:4]):
            return kind
    return None


def require_colours(level: DataArray) -> str | None:
    """Raise :class:`SetupError` unless the first three channels may be red, green and blue.

    Returns a sentence on names that are unknown.
    """
    names = channel_names(level)
    listed = ", ".join(map(str, level.coords["c"].values)) if "c" in level.coords else ", ".join(names)
    first = names[:3]
    if len(names) >= 3 and first == RGB:
        return None
    if sorted(first) == sorted(RGB):
        raise SetupError(
            f"its channels have the order {', '.join(first)}. Reorder them, so that red, green and blue come first, and parse it "
            "again."
        )
    kind = kind_of(names)
    numbered = is_numbered(names)
    if kind is not None or len(names) < 3 or len(names) > (4 if numbered else 3):
        what = f"It is {kind}, not H&E." if kind is not None else "A fluorescence image is not H&E."
        raise SetupError(
            f"it has {len(names)} channels ({listed}), and H&E has red, green and blue first. {what} Choose the H&E with "
            "image_key=…, or name the channels r, g, b if that is what they are: sdata.set_channel_names(…)."
        )
    if numbered:
        return None
    return (
        f"Its channels are named {listed} and are read as red, green and blue. Name them r, g, b if they are, with "
        "sdata.set_channel_names(…). A fluorescence image is not H&E."
    )
