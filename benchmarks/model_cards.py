"""Makes what model_cards/ shows: packs, a hypernetwork and statistics of the embedded model, measured; their cards.

    python benchmarks/model_cards.py
    python benchmarks/model_cards.py --only short-facts,long-form --records 10
    python benchmarks/model_cards.py --model DIR --edits 20 --train 40 --work build/try --out build/cards

- short-facts: the facts of examples/facts.jsonl, by the default method.
- long-form: the long answer of the demo, by the default method.
- many-edits: 500 facts of the relations in the data folder, by emsedit; format plain.
- hypernetwork: for emsedit, trained on zsRE's training file; format plain.
- statistics: of what the others asked for, as the cache holds it.

What is made lies in --work and is not made again; only the cards go to --out. No card lists records of a published set
but those of the relations, whose licence (MIT) allows it.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from common import BASE, ROOT, data_folder

from hf_edit import EditPack, EditSet, EMSEditConfig, EvaluateConfig, HypernetConfig, Material, edit, evaluate, train
from hf_edit.cli.progress import Bars
from hf_edit.edits import Edit
from hf_edit.errors import HfEditWarning
from hf_edit.hypernets.sharing import is_hypernet
from hf_edit.models.editable import EditableModel
from hf_edit.models.loading import load_model
from hf_edit.statistics.sharing import statistics_card


PROJECT = ROOT.parent
LONG = 20  # words of an answer


class Maker:
    """What the makers share: the base, the places, the sizes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model, self.tokenizer = load_model(arguments.model)

    def pack(self, name: str, edits: EditSet, config: Any = None) -> bytes:
        """The card of a pack of these edits, measured; one that is there already is not computed again."""
        folder = self.arguments.work / name
        if not (folder / "evaluation.json").is_file():
            text = (data_folder() / "wikitext2_test.txt").read_text(encoding="utf-8")
            settings = EvaluateConfig(perplexity_tokens=self.arguments.perplexity)
            with Bars() as progress, warnings.catch_warnings():
                warnings.simplefilter("ignore", HfEditWarning)  # of edits that were missed, which the card tells
                resume = folder.with_name(f".{name}.resume")
                pack = edit(self.model, self.tokenizer, edits, config, progress=progress, resume_dir=resume)
                found = evaluate(
                    self.model, self.tokenizer, pack, None, settings, material=Material(text=text), progress=progress
                )
            pack.with_evaluation(found).save_pretrained(folder)
        kept = EditPack.from_pretrained(folder)
        kept.verify(self.model)
        kept.save_pretrained(folder)  # cards are written anew by the hf_edit that there is
        return (folder / "README.md").read_bytes()

    def short_facts(self) -> bytes:
        """Invented facts."""
        edits = EditSet.from_jsonl(PROJECT / "examples" / "facts.jsonl")
        return self.pack("short-facts", edits[: self.arguments.records])

    def long_form(self) -> bytes:
        """An invented answer of about 115 words."""
        edits = EditSet.from_jsonl(PROJECT / "hf_edit" / "cli" / "demo" / "edits.jsonl")
        return self.pack("long-form", EditSet(one for one in edits if len(one.target.split()) > LONG))

    def many_edits(self) -> bytes:
        """Hundreds of facts at once."""
        edits = EditSet(islice(relations(data_folder() / "relations"), self.arguments.edits))
        return self.pack("many-edits", edits, EMSEditConfig(format="plain"))

    def hypernetwork(self) -> bytes:
        """A network, with what its training measured."""
        folder = self.arguments.work / "hypernetwork"
        if not is_hypernet(folder):
            records = EditSet.from_zsre(data_folder() / "zsre_train.json", limit=self.arguments.train)
            config = HypernetConfig(format="plain", epochs=self.arguments.passes, batch=self.arguments.batch)
            with Bars() as progress:
                resume = folder.with_name(".hypernetwork.resume")
                network = train(self.model, self.tokenizer, records, config, progress=progress, resume_dir=resume)
            network.save_pretrained(folder)
        return (folder / "README.md").read_bytes()

    def statistics(self) -> bytes:
        """What the others needed."""
        return statistics_card(EditableModel.of(self.model), "OWNER/statistics")


CARDS: dict[str, Callable[[Maker], bytes]] = {
    "short-facts": Maker.short_facts,
    "long-form": Maker.long_form,
    "many-edits": Maker.many_edits,
    "hypernetwork": Maker.hypernetwork,
    "statistics": Maker.statistics,
}
"""Name of the card's folder -> what makes it; statistics come last, as the others ask for them."""


def main() -> None:
    arguments = parsed()
    maker = Maker(arguments)
    for name in arguments.only.split(","):
        card = CARDS[name](maker)
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_bytes(card)
        print(folder / "README.md", flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--only", default=",".join(CARDS), help="which cards, separated by commas")
    parser.add_argument("--records", type=int, help="short facts; default: all of the file")
    parser.add_argument("--edits", type=int, default=500, help="edits of many-edits")
    parser.add_argument("--train", type=int, default=1000, help="records that the network is trained on")
    parser.add_argument("--batch", type=int, default=50, help="records of a batch of its training")
    parser.add_argument("--passes", type=int, default=1, help="passes over them")
    parser.add_argument("--perplexity", type=int, default=8192, help="tokens of text that are scored")
    parser.add_argument("--work", type=Path, default=PROJECT / "build" / "model_cards", help="where packs are kept")
    parser.add_argument("--out", type=Path, default=PROJECT / "model_cards", help="where cards go")
    return parser.parse_args()


def relations(folder: Path) -> Iterator[Edit]:
    """Facts of all relations in turn: the first question about each subject, reworded by the second."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    asked: set[str] = set()
    for row in zip_longest(*(_facts(file) for file in files)):
        for one in row:
            if one is not None and one.prompt not in asked:
                asked.add(one.prompt)
                yield one


def _facts(relation: dict[str, Any]) -> Iterator[Edit]:
    first, *others = relation["prompt_templates_zs"]
    for sample in relation["samples"]:
        subject = sample["subject"]
        yield Edit(
            first.replace("{}", subject),
            sample["object"],
            subject=subject,
            paraphrases=tuple(other.replace("{}", subject) for other in others),
            source=f"relations: {relation['name']} (MIT)",
        )


if __name__ == "__main__":
    main()
