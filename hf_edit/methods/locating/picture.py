"""The heat map of traced effects: classes of tokens against layers, as a PNG."""

from __future__ import annotations

import os
from collections.abc import Collection
from types import ModuleType

from hf_edit.errors import ConfigError
from hf_edit.methods.locating.effects import CLASSES, Effects


def plotting() -> ModuleType:
    """matplotlib's figures, drawn without a display and without its global state.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise ConfigError(
            "A picture needs the package matplotlib, which is not installed.", "pip install 'hf-edit[plots]'"
        ) from error
    return figure


def draw_effects(effects: Effects, path: str | os.PathLike[str], proposed: Collection[int] = ()) -> None:
    """Write the mean effects as a PNG; what a class without tokens leaves empty is hatched.

    Args:
        proposed: layers to underline.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    n_layers = effects.mean.shape[1]
    figure = plotting().Figure(figsize=(max(7, 2.9 + 0.2 * n_layers), 3.3), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.93")
    axes.patch.set(hatch="///", edgecolor="0.8")
    # negative effects are noise around nothing: the scale begins at zero
    highest = effects.mean.nan_to_num(0).max().clamp_min(1e-6).item()
    cells = axes.pcolormesh(effects.mean.numpy(), cmap="Purples", vmin=0, vmax=highest, edgecolors="white", lw=0.4)
    axes.invert_yaxis()
    axes.set_yticks([i + 0.5 for i in range(len(CLASSES))], CLASSES)
    every = max(1, round(n_layers / 16))
    axes.set_xticks([i + 0.5 for i in range(0, n_layers, every)], [str(i) for i in range(0, n_layers, every)])
    axes.tick_params(length=0)
    axes.tick_params(axis="x", pad=7)  # room for the marks
    for spine in axes.spines.values():
        spine.set_visible(False)
    for layer in proposed:
        (line,) = axes.plot([layer + 0.1, layer + 0.9], [-0.02, -0.02], transform=axes.get_xaxis_transform())
        line.set(color="#d55e00", lw=3, solid_capstyle="butt", clip_on=False)
    axes.set_xlabel("layer" + (" (underlined: proposed)" if proposed else ""), labelpad=6)
    axes.set_title(_title(effects), fontsize="medium", loc="left")
    figure.colorbar(cells, ax=axes, pad=0.01).set_label("answer regained", fontsize="small")
    figure.savefig(path, dpi=150, format="png")


def _title(effects: Effects) -> str:
    clean, corrupted = (
        sum(getattr(e, name) for e in effects.edits) / len(effects.edits) for name in ("clean", "corrupted")
    )
    what = (
        "Residual stream of one layer" if effects.restored == "stream" else f"MLP outputs of {effects.window} layers"
    )
    count = f"{len(effects.edits)} question" + "s" * (len(effects.edits) != 1)
    return f"{what} put back at one token\n{count}, answer {clean:.2f} clean, {corrupted:.2f} under noise"
