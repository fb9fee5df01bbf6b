"""The evaluation suite of the SALT paper: names of tasks of lm-evaluation-harness, by language."""

from __future__ import annotations

from ...errors import input_error

# Folders of the harness that define the tasks below. To index these folders takes a second, to index all half a minute.
FOLDERS = (
    "okapi/arc_multilingual",
    "okapi/hellaswag_multilingual",
    "okapi/mmlu_multilingual",
    "arc_mt",
    "xquad",
    "mlqa",
    "xnli",
)
# Name of a task with {0} for the language -> languages in which the harness has the task. ARC, HellaSwag and MMLU are the
# machine translations of Okapi; arc_challenge_mt is the machine translation of LumiOpen.
LANGUAGES = {
    "arc_{0}": "ar bn ca da de es eu fr gu hi hr hu hy id it kn ml mr ne nl pt ro ru sk sr sv ta te uk vi zh",
    "arc_challenge_mt_{0}": "el fi is nb pl",
    "hellaswag_{0}": "ar bn ca da de es eu fr gu hi hr hu hy id it kn ml mr ne nl pt ro ru sk sr sv ta te uk vi",
    "m_mmlu_{0}": "ar bn ca da de en es eu fr gu hi hr hu hy id is it kn ml mr nb ne nl pt ro ru sk sr sv ta te uk vi zh",
    "xquad_{0}": "ar de el en es hi ro ru th tr vi zh",
    "mlqa_{0}_{0}": "ar de en es hi vi zh",
    # MLQA with the text in one language and the question in the other.
    "mlqa_{0}_en": "ar de es hi vi zh",
    "mlqa_en_{0}": "ar de es hi vi zh",
    "xnli_{0}": "ar bg de el en es fr hi ru sw th tr ur vi zh",
}


def paper_languages() -> list[str]:
    """Languages with at least one task of the suite, as two-letter codes."""
    return sorted({language for languages in LANGUAGES.values() for language in languages.split()})


def paper_tasks(language: str) -> list[str]:
    """Tasks of the suite in one language: translated ARC, HellaSwag and MMLU, XQuAD, MLQA in one and two languages, XNLI.

    Args:
        language: two-letter code.

    Returns:
        Names of tasks of lm-evaluation-harness; the whole suite for the languages of the paper, German, Arabic and
        Vietnamese.

    Raises:
        InputError: the harness has no task of the suite in that language.

    Example:
        >>> paper_tasks("fi")
        ['arc_challenge_mt_fi']
    """
    names = [name.format(language) for name, languages in LANGUAGES.items() if language in languages.split()]
    if not names:
        expected = f"paper:LANGUAGE with one of {', '.join(paper_languages())}"
        raise input_error("tasks", f"no task of the paper's suite in {language!r}", expected, "or give a task folder")
    return names
