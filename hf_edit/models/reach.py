"""Which modules an adapter reaches when it is opened by plain `load_adapter`."""

from __future__ import annotations

import copy
import warnings

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from hf_edit.models.loading import quiet
from hf_edit.models.orientation import fused_orientation, matrix_shape
from hf_edit.models.shapes import linear_shape


class Reach:
    """Asks transformers and PEFT themselves, on a copy of the model without weights.

    PEFT takes the names of what were single experts once, such as `down_proj`, for parts of fused ones in every model
    that has these, also where a dense map has that name; it refuses some maps of state space models; and a model's
    renaming of old checkpoints is applied to an adapter's names too, fitting or not.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def reaches(self, name: str) -> bool:
        """Whether an adapter for this full module name is put around that module, and all of it arrives there."""
        skeleton = self._skeleton()
        if skeleton is None:
            return True
        d_out, d_in = linear_shape(skeleton.get_submodule(name))
        return _arrives(skeleton, name, LoraConfig(r=1, target_modules=[name]), (1, d_in), (d_out, 1))

    def reaches_experts(self, name: str) -> bool:
        """The same for the full name of a parameter of fused experts."""
        skeleton = self._skeleton()
        if skeleton is None:
            return True
        holder = name.rpartition(".")[0]
        shape = skeleton.get_parameter(name).shape
        d_out, d_in = matrix_shape(shape, fused_orientation(skeleton.get_submodule(holder)))
        config = LoraConfig(r=1, target_modules=[], target_parameters=[name])
        return _arrives(skeleton, holder, config, (shape[0], d_in // shape[0]), (d_out, shape[0]))

    def _skeleton(self) -> PreTrainedModel | None:
        """A new model of the same configuration on the meta device; None for a class that is built otherwise."""
        try:
            with torch.device("meta"):
                return type(self._model)(copy.deepcopy(self._model.config))
        except Exception:  # a class of the user's own, with an __init__ of its own
            return None


def _arrives(
    skeleton: PreTrainedModel, module: str, config: LoraConfig, a: tuple[int, int], b: tuple[int, int]
) -> bool:
    """Whether factors of these shapes, in a file, end up around that module and nowhere else."""
    key = f"base_model.model.{module}.lora_"
    factors = {f"{key}A.weight": torch.zeros(a), f"{key}B.weight": torch.zeros(b)}
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            loaded = skeleton.load_adapter(peft_config=config, adapter_state_dict=factors)
    except Exception:  # whatever they say to a name that they do not take, the answer is no
        return False
    around = [n for n, part in skeleton.named_modules() if isinstance(part, BaseTunerLayer)]
    return around == [module] and not loaded.unexpected_keys and not loaded.missing_keys
