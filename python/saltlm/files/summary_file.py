"""saltlm.json, the summary of a model that saltlm wrote: file name, versions, and the types of its content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

SUMMARY = "saltlm.json"
# Version of the folder: which files it contains.
FORMAT = 1
# Version of saltlm.json: its keys and their meaning. It increases when a reader of an older version would misread the file.
SCHEMA_VERSION = 1


class ModelInput(TypedDict):
    """A model that a transfer read.

    Attributes:
        path: folder or hub name as given.
        revision: commit of a hub model; ``None`` for a local folder.
        architecture: name of the class in transformers; ``None`` for a tokenizer alone.
        licence: as the model card names it, else ``not stated``.
        sha256: file (or ``FILE#TENSOR``) -> hexadecimal digest.
    """

    path: str
    revision: str | None
    architecture: str | None
    licence: str
    sha256: dict[str, str]


class VectorsDescription(TypedDict, total=False):
    """Origin of static vectors. Which keys are present depends on ``kind``.

    Attributes:
        kind: ``fasttext``, ``text``, ``spacy``, ``train``, ``segmented`` or ``plm``.
        path: as given.
        bytes: size of the file.
        sha256: hexadecimal digest of the file; ``None`` above 1 GiB.
        changed: time of the last change of the file (UTC), only if ``sha256`` is ``None``.
        vectors_sha256: hexadecimal digest of the vectors of the tokens.
        dimension: width of the vectors.
        known: number of tokens with a vector.
        words: number of words whose vectors were averaged (``segmented``).
        dictionary: path of the bilingual dictionary of vectors that were rotated.
        dictionary_sha256: hexadecimal digest of the dictionary.
        pairs: number of pairs of the dictionary in the fit of the rotation.
    """

    kind: str
    path: str
    bytes: int
    sha256: str | None
    changed: str
    vectors_sha256: str
    dimension: int
    known: int
    words: int
    dictionary: str
    dictionary_sha256: str
    pairs: int


class VectorsInput(VectorsDescription, total=False):
    """Vectors that a transfer read.

    Attributes:
        licence: ``not stated``, because files of vectors name none.
    """

    licence: str


class _Models(TypedDict):
    source: ModelInput
    target: ModelInput


class Inputs(_Models, total=False):
    """What a transfer read.

    Attributes:
        source: the causal LM.
        target: the PLM.
        auxiliary: vectors of the target language, if the method read them.
        source_auxiliary: vectors of the source language, if the method read them.
    """

    auxiliary: VectorsInput
    source_auxiliary: VectorsInput


class SupportSizes(TypedDict):
    """Quantiles of the number of entries behind a built row.

    Attributes:
        of: what is counted: ``anchors``, ``pieces`` or ``source tokens``.
        min: smallest.
        median: median.
        p95: 95th percentile.
        max: largest.
    """

    of: str
    min: int
    median: float
    p95: float
    max: int


class StatusCount(TypedDict):
    """Number of rows of a status; its position in the list is its code in provenance.safetensors."""

    name: str
    count: int


class NormFigures(TypedDict):
    """Euclidean norms of input rows."""

    median: float
    max: float


class RowFigures(TypedDict):
    """Medians over hidden tokens of the distance between predicted and true rows.

    Attributes:
        tokens: number of tokens.
        relative_error: ``|predicted - true| / |true|``.
        cosine: between predicted and true row.
        rank: of the true row among the candidates by cosine to the predicted row; 1 is best.
    """

    tokens: int
    relative_error: float
    cosine: float
    rank: int


class RankedFigures(RowFigures):
    """Figures of all hidden tokens.

    Attributes:
        candidates: number of shared rows among which the true row is ranked.
        top1: share of hidden tokens of rank 1.
    """

    candidates: int
    top1: float


class ScoreParts(TypedDict):
    """The score of all rows, and its parts.

    Attributes:
        score: ``2 signal - noise / 2 - offset``: 1.5 for exact rows, about 0 for equal rows, about -0.5 for random ones.
        signal: covariance of predicted and true rows, in units of the variance of the true ones.
        noise: variance of the rows of new tokens, in the same units.
        offset: squared norm of the mean of the rows of new tokens, in the same units.
    """

    score: float
    signal: float
    noise: float
    offset: float


class SelfCheck(RankedFigures, ScoreParts):
    """Figures of the self-check.

    Attributes:
        drawn: number of hidden tokens that the method cannot build.
        new_tokens: number of new tokens checked.
        broken: why the rows are unusable as a start; ``None`` if they are usable.
        scripts: figures by script of the token.
        bands: figures by frequency band, 1 (most frequent) to 4.
        band_order: what the bands are sorted by, ``score`` or ``id``.
    """

    drawn: int
    new_tokens: int
    broken: str | None
    scripts: dict[str, RowFigures]
    bands: dict[str, RowFigures]
    band_order: str


class ScoredText(TypedDict):
    """The text by which options were chosen.

    Attributes:
        path: as given.
        sha256: hexadecimal digest.
        documents: number of scored documents.
        bytes: size of these documents.
    """

    path: str
    sha256: str
    documents: int
    bytes: int


class TuningRecord(TypedDict):
    """How options were chosen.

    Attributes:
        grid: option -> the values that were tried.
        trials: of each trial: ``options``, and figures of the self-check or ``bits_per_byte``.
        choice: option -> chosen value.
        text: the scored text; ``None`` where the self-check chose.
    """

    grid: dict[str, list[Any]]
    trials: list[dict[str, Any]]
    choice: dict[str, Any]
    text: ScoredText | None


class Blend(TypedDict):
    """The blend in use.

    Attributes:
        weight: of the second rule, in [0, 1], or the name of a rule for it.
        length: sum of the weights of both rules.
    """

    weight: float | str
    length: float


class MergeCounts(TypedDict):
    """How a BPE tokenizer reaches its new tokens; zeros for a Unigram tokenizer.

    Attributes:
        whole_words: added tokens that only the look-up of whole words finds.
        merges: added merges.
    """

    whole_words: int
    merges: int


class ExpansionCounts(MergeCounts):
    """Tokens of an expanded tokenizer.

    Attributes:
        added: new tokens.
        left_out: tokens of the target that the expanded tokenizer could never produce.
        fillers: tokens without text, for rows of the source without a token.
    """

    added: int
    left_out: int
    fillers: int


class ShiftFigures(TypedDict):
    """A shift of built output rows by the frequency of their tokens.

    Attributes:
        shared: shared tokens in the regression.
        rows: shifted rows.
        median: median absolute shift in nats.
    """

    shared: int
    rows: int
    median: float


# ``from``, origin of the frequencies, is a keyword of Python, so that the class syntax cannot name it.
_ShiftOrigin = TypedDict("_ShiftOrigin", {"from": str, "sha256": str | None})


class UnigramShift(ShiftFigures, _ShiftOrigin):
    """The shift with ``from``, the origin of the frequencies, and ``sha256`` of the text; ``None`` without a text."""


class GuardedSide(TypedDict):
    """Built rows of one matrix whose norm exceeds the bound.

    Attributes:
        bound: 3 times the 99.9 % quantile of the norms of the source rows.
        rows: number of rows above the bound.
        largest: largest of their norms; 0.0 if there are none.
        tokens: [id, text or ``None``] of up to ten of these rows.
    """

    bound: float
    rows: int
    largest: float
    tokens: list[list[Any]]


class StepReports(TypedDict, total=False):
    """Reports of the steps after the method.

    Attributes:
        unigram_shift: present if the option was given.
        norm_guard: ``input``, ``output`` or ``bias`` -> built rows that are too long; present unless rows were not built.
    """

    unigram_shift: UnigramShift
    norm_guard: dict[str, GuardedSide]


class BlendReport(TypedDict, total=False):
    """Present if rows were blended.

    Attributes:
        blend: weight and length.
    """

    blend: Blend


class RoleReport(TypedDict):
    """A token of the new tokenizer that has a role.

    Attributes:
        id: of the token.
        token: its spelling.
        roles: roles that the target or source tokenizer gives it.
        stands_in_for: roles that the target lacks, which the token has without an effect on its rows.
        input: source token of its input row; ``None`` for a row that is not a copy.
        output: source token of its output row; ``None`` for a row that is not a copy.
    """

    id: int
    token: str
    roles: list[str]
    stands_in_for: list[str]
    input: str | None
    output: str | None


class ReloadReport(TypedDict):
    """The check of the written folder against the source.

    Attributes:
        checked: ``full``, ``truncated`` (a copy with fewer layers) or ``off``.
        reason: why nothing was checked; ``None`` where something was.
        layers: of a truncated copy; ``None`` for another.
        dtype: in which both models ran; ``None`` where nothing was checked.
        tokens: number of input tokens.
        compared: logits compared a token.
        difference: largest difference of two logits, as a share of the largest logit; ``None`` where nothing was checked.
        tolerance: largest allowed difference, in the same units; ``None`` where nothing was checked.
    """

    checked: str
    reason: str | None
    layers: int | None
    dtype: str | None
    tokens: int
    compared: int
    difference: float | None
    tolerance: float | None


class Versions(TypedDict):
    """Versions in every saltlm.json.

    Attributes:
        format: version of the folder, see :data:`FORMAT`.
        schema_version: version of the file, see :data:`SCHEMA_VERSION`.
        saltlm_version: version of the program.
    """

    format: int
    schema_version: int
    saltlm_version: str


class WrittenFiles(TypedDict, total=False):
    """Present in the file of a written folder.

    Attributes:
        files: file name -> hexadecimal sha256 of the other files of the folder; ``N bytes`` for a weight file; ``FILE#KEY`` ->
            hexadecimal sha256 of a vocabulary tensor. ``saltlm verify`` compares them.
    """

    files: dict[str, str]


class Summary(Versions, BlendReport, StepReports, WrittenFiles):
    """Content of saltlm.json after a transfer; :attr:`~saltlm.pipeline.Transfer.summary` is such a dictionary.

    Attributes:
        method: name of the method.
        config: all options.
        inputs: models, vectors and their digests.
        origins: names of the codes of ``origin`` in provenance.safetensors.
        rules: names of the codes of ``rule`` in provenance.safetensors.
        counts: origin -> number of rows.
        overlap: kind of match -> number of target tokens.
        anchors: number of shared tokens that the method learns from.
        new_tokens: number of tokens whose rows were built.
        support: sizes of the supports; ``None`` for methods without supports.
        statuses: names of the codes of ``status`` in provenance.safetensors, with numbers of rows.
        norms: origin -> norms of the input rows.
        heldout: figures of the self-check; ``None`` without one.
        tuning: how options were chosen; ``None`` if they were not tuned.
        seconds: stage -> seconds.
        environment: package -> version; ``device`` and ``operators``.
        expansion: tokens of the expanded tokenizer; ``None`` for a replaced tokenizer.
        roles: tokens with a role; empty for an expanded tokenizer.
        reload_check: comparison of the written folder with the source; ``None`` where nothing was written.
        warnings: sentences for the user.
    """

    method: str
    config: dict[str, Any]
    inputs: Inputs
    origins: list[str]
    rules: list[str]
    counts: dict[str, int]
    overlap: dict[str, int]
    anchors: int
    new_tokens: int
    support: SupportSizes | None
    statuses: list[StatusCount]
    norms: dict[str, NormFigures]
    heldout: SelfCheck | None
    tuning: TuningRecord | None
    seconds: dict[str, float]
    environment: dict[str, str | None]
    expansion: ExpansionCounts | None
    roles: list[RoleReport]
    reload_check: ReloadReport | None
    warnings: list[str]


class TextFingerprint(TypedDict):
    """A file or dataset of text.

    Attributes:
        path: as given.
        sha256: hexadecimal digest of samples of the file; ``None`` for a streamed dataset.
    """

    path: str
    sha256: str | None


class _Untrained(TypedDict, total=False):
    untrained: list[str]


class AdaptationRun(_Untrained):
    """A finished adaptation.

    Attributes:
        saltlm_version: version of the program that trained.
        model: folder or hub name of the model that was trained.
        phases: ``NAME:STEPS``, separated by commas.
        config: all options.
        text: the training text.
        replay: of each replayed text its fingerprints, followed by its share of all blocks.
        evaluation: the held-out text of the target language and of the source language; ``None`` where none was given.
        processes: number of processes.
        steps: number of steps.
        kept_step: step whose weights were written.
        tokens: number of predicted tokens.
        bytes: bytes of text of these tokens.
        seconds: sum over the steps.
        environment: package -> version.
        heldout: [step, bits per byte] of each evaluation in the target language.
        source: the same in the source language.
        untrained: names of the tensors and files outside the model class, which were written as they were; absent if none.
    """

    saltlm_version: str
    model: str
    phases: str
    config: dict[str, Any]
    text: list[TextFingerprint]
    replay: list[list[Any]]
    evaluation: list[list[TextFingerprint] | None]
    processes: int
    steps: int
    kept_step: int
    tokens: int
    bytes: int
    seconds: float
    environment: dict[str, str | None]
    heldout: list[tuple[int, float]]
    source: list[tuple[int, float]]


class AdaptationRecord(AdaptationRun):
    """The entry ``adapted`` of saltlm.json.

    Attributes:
        before: the entry of the model that was trained, if that one was adapted as well; it may hold such a list itself.
    """

    before: list[dict[str, Any]]


class AdaptedSummary(Versions, WrittenFiles):
    """Content of saltlm.json after an adaptation: all keys of the trained model's file, and ``adapted``.

    ``files`` is that of the adapted folder.

    Attributes:
        adapted: record of the adaptation.
    """

    adapted: AdaptationRecord


def schema_version_of(summary: Mapping[str, Any]) -> int:
    """Schema version of a ``saltlm.json``: 1 if it does not name one, because the first version did not.

    Args:
        summary: content of the file.
    """
    return summary.get("schema_version", 1)
