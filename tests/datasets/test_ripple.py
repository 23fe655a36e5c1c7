from __future__ import annotations

from pathlib import Path

from hf_edit.datasets.formats import read_cases
from hf_edit.edits import EditSet, Probe
from tests.datasets.published import written


TRAINED = {
    "prompt": "The mayor of Lower Mill is",
    "target_new": "Odo Lamm",
    "rephrase_prompt": "Lower Mill has the mayor",
    "locality_prompt": "The mayor of Red Mill is",
    "locality_ground_truth": "Ines Dray",
}
EVALUATED = {
    "example_type": "random",
    "prompt": "The mayor of Lower Mill is",
    "subject": "Lower Mill",
    "target_new": "Odo Lamm",
    "ground_truth": "Mira Tansel",
    "Subject_Aliasing": [{"prompt": "The mayor of the lower mill is", "targets": ["Odo Lamm"]}],
    "Relation_Specificity": [{"prompt": "The river of Lower Mill is", "targets": ["Arn", "the Arn"]}],
    "Compositionality_I": [
        {"prompt": "The trade of the mayor of Lower Mill is", "targets": ["printer", "typesetter"]}
    ],
    "Compositionality_II": [],
    "Logical_Generalization": [{"prompt": "Odo Lamm is the mayor of", "targets": []}],
    "Forgetfulness": [{"prompt": "The old mayor of Lower Mill was", "targets": ["Mira Tansel"]}],
}


def test_a_training_row_becomes_an_edit(tmp_path: Path) -> None:
    (edit,) = EditSet.from_ripple(written(tmp_path, TRAINED))
    assert (edit.prompt, edit.target, edit.subject) == (TRAINED["prompt"], "Odo Lamm", None)
    assert edit.paraphrases == (TRAINED["rephrase_prompt"],)
    assert edit.locality == (Probe("The mayor of Red Mill is", "Ines Dray"),)


def test_all_answered_questions_of_an_evaluation_row_are_kept(tmp_path: Path) -> None:
    (case,) = read_cases(written(tmp_path, EVALUATED), "ripple")
    edit = case.edit
    assert (edit.subject, case.old) == ("Lower Mill", "Mira Tansel")
    assert edit.paraphrases == ("The mayor of the lower mill is",)
    assert edit.locality == (
        Probe("The river of Lower Mill is", "Arn"),
        Probe("The old mayor of Lower Mill was", "Mira Tansel"),
    )
    assert edit.portability == (Probe("The trade of the mayor of Lower Mill is", "printer"),)
    assert case.aliases == {"Arn": ["the Arn"], "printer": ["typesetter"]}


def test_answers_to_one_question_do_not_count_for_another(tmp_path: Path) -> None:
    """Aliases are found by the first answer, which questions may share; the edit itself is one of them."""
    questions = {
        "Logical_Generalization": [
            {"prompt": "The siblings of Odo Lamm are", "targets": ["Jo", "Joanna", "Max"]},
            {"prompt": "The neighbours of Lower Mill are", "targets": ["Odo Lamm", "Ines Dray"]},
        ],
        "Compositionality_I": [{"prompt": "The mother of the mayor's niece is", "targets": ["Jo", "Joanna"]}],
    }
    (case,) = read_cases(written(tmp_path, EVALUATED | questions), "ripple")
    assert case.aliases == {"Arn": ["the Arn"], "Jo": ["Joanna"]}
    known = [{"prompt": "The mayor of the lower mill is", "targets": ["Odo Lamm", "O. Lamm"]}]
    questions |= {"Compositionality_I": [{"prompt": "The mayor's niece's mother is", "targets": ["Jo"]}]}
    (case,) = read_cases(written(tmp_path, EVALUATED | questions | {"Subject_Aliasing": known}), "ripple")
    assert case.aliases == {"Arn": ["the Arn"]}  # a neighbour is no other name of the mayor
    questions["Logical_Generalization"].pop()
    for reworded, aliases in ((known, {"Odo Lamm": ["O. Lamm"]}), ([], {})):
        (case,) = read_cases(written(tmp_path, EVALUATED | questions | {"Subject_Aliasing": reworded}), "ripple")
        assert case.aliases == {"Arn": ["the Arn"], **aliases}
