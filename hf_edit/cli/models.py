"""`hf-edit models`: the known architectures, or what can be edited in one model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.options import Device, Dtype, Json, Revision
from hf_edit.cli.output import print_facts, print_json, print_table


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_edit.models.editable import EditableModel


def models(
    model: Annotated[
        str | None, typer.Argument(help="Hub id, directory or .gguf file of a model to look at.", show_default=False)
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """List the known architectures, or show what can be edited in one model and what is by default."""
    if model is None:
        _list_families(as_json)
    else:
        from hf_edit.models.loading import load_model

        loaded, _ = load_model(model, revision=revision, device=device, dtype=dtype)
        _describe(model, loaded, as_json)


def _list_families(as_json: bool) -> None:
    from hf_edit.models.families import families

    table = families()
    if as_json:
        print_json({name: {"blocks": f.blocks, "mlp_out": list(f.mlp_out)} for name, f in table.items()})
        return
    print_table(
        "Known architectures",
        ("model type", "blocks", "edited map"),
        ((n, f.blocks, ", else ".join(f.mlp_out)) for n, f in table.items()),
    )
    typer.echo("Others are found by their structure: hf-edit models ID_OR_DIR shows what can be edited.")


def _describe(name: str, model: PreTrainedModel, as_json: bool) -> None:
    from hf_edit.methods import METHODS, default_config, method_for
    from hf_edit.models.editable import EditableModel

    view = EditableModel.of(model)
    document: dict[str, Any] = {
        "model": name,
        "model_type": model.config.model_type,
        "family": view.family.name,
        "preferred_maps": list(view.family.mlp_out),
        "layers": view.n_layers,
        "hidden_size": view.hidden_size,
        "max_length": view.max_length,
        "parameters": model.num_parameters(),
        "dtype": str(view.dtype).removeprefix("torch."),
        "edited_by_default": {
            method: [x.name for x in method_for(config).linears(view)]
            for method, config in {
                "the default": default_config(),
                **{name: entry.config_class() for name, entry in METHODS.items()},
            }.items()
        },
        "linears": [{"name": x.name, "d_out": x.d_out, "d_in": x.d_in} for x in view.linears],
    }
    if as_json:
        print_json(document)
        return
    print_facts(
        (
            ("model", name),
            ("architecture", f"{document['model_type']} (found in the {_found(view.family.name)})"),
            ("parameters", f"{document['parameters'] / 1e6:,.1f} M in {document['dtype']}"),
            ("layers", view.n_layers),
            ("hidden size", view.hidden_size),
            ("longest input", f"{view.max_length} tokens" if view.max_length else "not stated"),
            ("blocks", view.family.blocks),
            *(("editable map", kind) for kind in _kinds(view)),
            *(
                (f"{method} edits", ", ".join(names))
                for method, names in document["edited_by_default"].items()
                if names
            ),
        )
    )


def _kinds(view: EditableModel) -> list[str]:
    """The maps that are edited, alike ones together, in the family's order of preference."""
    kinds = Counter((x.name.split(f".{x.layer}.", 1)[1], x.d_out, x.d_in) for x in view.linears)
    order = sorted(kinds, key=lambda kind: view.family.mlp_out.index(kind[0]))
    return [
        f"{path} in {kinds[path, d_out, d_in]} blocks, {d_out} outputs x {d_in} inputs" for path, d_out, d_in in order
    ]


def _found(family: str) -> str:
    return "model's structure" if family == "structural" else "table"
