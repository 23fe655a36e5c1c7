"""What people without hf_edit do with a pack of the Hub, and what happens when its base moved on.

In a process of its own, because the client reads its settings when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.loopback_hub import LoopbackHub
from tests.tiny import tiny_model, tiny_tokenizer


ROOT = Path(__file__).parents[2]
COMMON = """
    import torch
    from huggingface_hub import HfApi
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM
    from hf_edit import EditPack, attach
    from hf_edit.errors import BaseMismatchError
    from tests.packs.make import dense_logits, logits, make_pack

    def base(**options):
        return AutoModelForCausalLM.from_pretrained("org/base", **options)
"""


@pytest.fixture
def server(tmp_path: Path) -> LoopbackHub:
    """A Hub with a base model on it."""
    with LoopbackHub() as hub:
        hub.users |= {"my-token": "me", "org-token": "org"}
        tiny_model().save_pretrained(tmp_path / "base")
        tiny_tokenizer().save_pretrained(tmp_path / "base")
        hub.upload("org/base", tmp_path / "base")
        yield hub


def run(hub: LoopbackHub, home: Path, code: str) -> str:
    """What a new process prints that knows the Hub by its environment alone."""
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "my-token",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMMON) + textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # a process that imports torch and transformers, and many models
def test_packs_open_for_everybody_and_belong_to_their_base(server: LoopbackHub, tmp_path: Path) -> None:
    code = """
        model = base()
        pack = make_pack(model)
        other = make_pack(model, ranks=(2, 2), seed=5)
        expected, expected_other = dense_logits(model, pack.deltas), dense_logits(model, other.deltas)
        pack.push_to_hub("me/pack", tag="v1")
        other.push_to_hub("me/pack", subfolder="other")
        recorded = pack.manifest.base.revision

        def near(model, expected=expected):
            torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)

        def loaded(**options):
            plain = base()
            plain.load_adapter("me/pack", adapter_kwargs=options)
            return plain

        near(loaded())
        near(loaded(revision="v1"))
        near(loaded(subfolder="other"), expected_other)
        near(AutoModelForCausalLM.from_pretrained("me/pack"))
        near(AutoModelForCausalLM.from_pretrained("me/pack", adapter_kwargs={"revision": "v1"}))
        near(AutoModelForCausalLM.from_pretrained("me/pack", adapter_kwargs={"subfolder": "other"}), expected_other)
        near(PeftModel.from_pretrained(base(), "me/pack"))
        near(PeftModel.from_pretrained(base(), "me/pack", revision="v1"))
        near(PeftModel.from_pretrained(base(), "me/pack", subfolder="other"), expected_other)
        model = base()
        attach(model, "me/pack")
        near(model)

        moved = base()
        moved.model.layers[1].mlp.down_proj.weight.data.mul_(1.001)
        moved.save_pretrained("MOVED")
        HfApi(token="org-token").upload_folder(repo_id="org/base", folder_path="MOVED")
        pack = EditPack.from_pretrained("me/pack")
        for call in (lambda: pack.verify(base()), lambda: attach(base(), pack)):
            try:
                call()
            except BaseMismatchError as error:
                assert "other values" in str(error) and f"org/base at revision {recorded}" in str(error)
            else:
                raise AssertionError("the moved base was taken for the pack's")
        model = base(revision=recorded)
        pack.verify(model)
        attach(model, pack)
        near(model)
        near(AutoPeftModelForCausalLM.from_pretrained("me/pack"))  # heeds the revision in adapter_config.json
        print(recorded)
    """
    first = server.repositories["org/base"].branches["main"]
    assert run(server, tmp_path / "home", code.replace("MOVED", str(tmp_path / "moved"))).split() == [first]
    assert server.repositories["org/base"].branches["main"] != first
    assert server.repositories["me/pack"].tags.keys() == {"v1"}


@pytest.mark.slow  # a process of its own too
def test_a_private_pack_opens_for_its_owner_alone(server: LoopbackHub, tmp_path: Path) -> None:
    code = """
        pack = make_pack(base())
        pack.push_to_hub("me/secret", private=True)
        pack.push_to_hub("me/secret", subfolder="sets/one")

        def adapted(**options):
            model = base()
            model.load_adapter("me/secret", adapter_kwargs=options)
            return model

        def opened(token=None, **options):
            return AutoModelForCausalLM.from_pretrained("me/secret", token=token, adapter_kwargs=options)

        for way in (adapted, opened):
            for token in (False, "org-token"):
                try:
                    way(token=token)
                except (OSError, ValueError) as error:
                    assert "me/secret" in str(error)
                else:
                    raise AssertionError("a private pack was opened by somebody else")
        for model in (adapted(), opened(), adapted(subfolder="sets/one"), opened(subfolder="sets/one")):
            torch.testing.assert_close(logits(model), dense_logits(base(), pack.deltas), rtol=1e-4, atol=1e-4)
    """
    run(server, tmp_path / "home", code)
    assert server.repositories["me/secret"].private
