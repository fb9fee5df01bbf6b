"""The evaluation suite of the SALT paper as names of lm-evaluation-harness, for each language that it has."""

from __future__ import annotations

from ...errors import input_error

# Folders of the harness's own tasks in which the names below stand: indexing these alone takes a second, all of them half a
# minute.
FOLDERS = (
    "okapi/arc_multilingual",
    "okapi/hellaswag_multilingual",
    "okapi/mmlu_multilingual",
    "arc_mt",
    "xquad",
    "mlqa",
    "xnli",
)
# Name with the language in it -> languages the harness has it for. ARC, HellaSwag and MMLU are Okapi's machine translations,
# ARC in five more languages is the one of LumiOpen; XQuAD and MLQA ask for a span, XNLI is judged.
LANGUAGES = {
    "arc_{0}": "ar bn ca da de es eu fr gu hi hr hu hy id it kn ml mr ne nl pt ro ru sk sr sv ta te uk vi zh",
    "arc_challenge_mt_{0}": "el fi is nb pl",
    "hellaswag_{0}": "ar bn ca da de es eu fr gu hi hr hu hy id it kn ml mr ne nl pt ro ru sk sr sv ta te uk vi",
    "m_mmlu_{0}": "ar bn ca da de en es eu fr gu hi hr hu hy id is it kn ml mr nb ne nl pt ro ru sk sr sv ta te uk vi zh",
    "xquad_{0}": "ar de el en es hi ro ru th tr vi zh",
    "mlqa_{0}_{0}": "ar de en es hi vi zh",
    # Mixed-language MLQA: the text in one language, the question in the other.
    "mlqa_{0}_en": "ar de es hi vi zh",
    "mlqa_en_{0}": "ar de es hi vi zh",
    "xnli_{0}": "ar bg de el en es fr hi ru sw th tr ur vi zh",
}


def paper_languages() -> list[str]:
    """Languages that have at least one task of the suite."""
    return sorted({language for languages in LANGUAGES.values() for language in languages.split()})


def paper_tasks(language: str) -> list[str]:
    """Tasks of the paper's suite in a language: translated ARC, HellaSwag and MMLU, XQuAD, MLQA plain and mixed, XNLI.

    Args:
        language: two letters.

    Returns:
        Names of lm-evaluation-harness; for German, Arabic and Vietnamese, the paper's languages, all of them.

    Raises:
        InputError: the harness has none in that language.

    Example:
        >>> paper_tasks("fi")
        ['arc_challenge_mt_fi']
    """
    names = [name.format(language) for name, languages in LANGUAGES.items() if language in languages.split()]
    if not names:
        expected = f"paper:LANGUAGE with one of {', '.join(paper_languages())}"
        raise input_error("tasks", f"no task of the paper's suite in {language!r}", expected, "or give a task folder")
    return names
