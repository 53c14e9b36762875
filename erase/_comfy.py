"""Which layers of a PEFT file ComfyUI reads as they are. What it does not know it leaves out with a line in its log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

UNREAD: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("sd3", "flux", "flux-cfg", "aura-flow", "hidream", "qwen-image", "z-image"), ()),
    **dict.fromkeys(("pixart-alpha", "pixart-sigma"), ()),
    "chroma": ("distilled_guidance_layer",),
    **dict.fromkeys(
        ("flux2", "flux2-klein"),
        (
            "time_guidance_embed",
            "double_stream_modulation_img",
            "double_stream_modulation_txt",
            "single_stream_modulation",
        ),
    ),
}
"""Family -> the parts of its denoiser for which ComfyUI knows no PEFT name; families that are not here it reads under
other names only (Stable Diffusion 1 to SDXL: kohya files) or not at all.
"""


def unread(family: str, layers: Iterable[str]) -> list[str] | None:
    """The parts of the denoiser that ComfyUI would leave out of a PEFT file; None if it reads none of the family's.

    Args:
        family: of the base.
        layers: full names of the edited Linears.
    """
    if family not in UNREAD:
        return None
    parts = {n.split(".")[1] for n in layers}
    return sorted(parts & set(UNREAD[family]))
