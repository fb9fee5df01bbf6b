"""Every private or undocumented name of another library that saltlm uses, each with what breaks when it changes.

``USES`` is the one list of these names. Each entry is a test: the name still exists, it takes the arguments that saltlm gives
it, and the library still calls what saltlm overrides. A new release of a library that drops a name fails here with the feature
that would break, instead of somewhere inside that feature. ``.ci/smoke`` also runs this file at both ends of the supported
ranges, with Python 3.10, torch 2.10 and transformers 5.0, and with the newest of each.

``test_every_private_name_is_listed`` reads saltlm's source and fails for a private name that has no entry.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import saltlm

GIVEN = "a value"  # stands for an argument: only the signature is checked, nothing is called

ROW_MASK = "adapt: the row mask is not applied, so frozen rows are trained"
CHECKPOINTS = "adapt: checkpoints are not written whole, and --resume finds none"
SHARDED = "adapt --sharding fsdp2: checkpoints hold slices of matrices instead of whole matrices"
SECOND_COPY = "importing two copies of saltlm (a wheel beside an editable install) ends the process"
LOSS = "adapt: the loss and the bits per byte of a step are wrong when gradients are accumulated"
RENAMING = "transfer: the vocabulary rows of a checkpoint whose keys differ from the names in the class are not found"
HARNESS_BARS = "evaluate --tasks: the harness draws its progress bars over saltlm's"
TASKS = "evaluate --tasks: task names and folders of task files cannot be loaded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """One name of another library.

    Attributes:
        module: where it is imported from.
        name: dotted path inside the module.
        breaks: what in saltlm stops working without it.
        args: positional arguments that saltlm gives; ``None`` checks no signature.
        options: keyword arguments that saltlm gives.
        called: what the library's own class must contain, because saltlm overrides the method or reads what this line sets.
    """

    module: str
    name: str
    breaks: str
    args: int | None = None
    options: tuple[str, ...] = ()
    called: str | None = None

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def trainer(name: str, breaks: str, args: int, *options: str, called: str | None = None) -> Use:
    """A method of transformers' Trainer that saltlm overrides; ``args`` does not count ``self``."""
    called = f"self.{name}(" if called is None else called
    return Use(
        module="transformers", name=f"Trainer.{name}", breaks=breaks, args=args + 1, options=options, called=called
    )


USES = [
    # torch: which operators are registered. torch has no public function that answers this.
    Use(module="torch", name="_C._dispatch_find_schema_or_throw", breaks=SECOND_COPY),
    Use(module="torch", name="_C._dispatch_has_kernel_for_dispatch_key", breaks=SECOND_COPY),
    Use(
        module="torch",
        name="_C._jit_get_schemas_for_operator",
        breaks="operators of an older build are called with arguments that they do not have",
    ),
    # torch: FSDP2, whose API is documented as a prototype.
    Use(
        module="torch.distributed.fsdp", name="fully_shard", breaks="adapt --sharding fsdp2", args=1, options=("mesh",)
    ),
    Use(
        module="torch.distributed.fsdp", name="FSDPModule.unshard", breaks="adapt --sharding fsdp2: evaluation", args=1
    ),
    Use(
        module="torch.distributed.fsdp", name="FSDPModule.reshard", breaks="adapt --sharding fsdp2: evaluation", args=1
    ),
    Use(module="torch.distributed.tensor", name="DTensor.full_tensor", breaks=SHARDED, args=1),
    Use(module="torch.distributed.tensor", name="DTensor.to_local", breaks=f"{SHARDED}; {ROW_MASK}", args=1),
    Use(module="torch.distributed.tensor", name="DTensor.device_mesh", breaks=f"{SHARDED}; {ROW_MASK}"),
    Use(module="torch.distributed.tensor", name="DTensor.placements", breaks="adapt --sharding fsdp2 --resume"),
    Use(
        module="torch.distributed.tensor",
        name="distribute_tensor",
        breaks="adapt --sharding fsdp2 --resume: loading sends every matrix from one process to all others",
        args=3,
        options=("src_data_rank",),
    ),
    # transformers: which class a config belongs to.
    Use(
        module="transformers",
        name="AutoModel._model_mapping",
        breaks="transfer: a target model that transformers cannot build is not refused with exit code 2",
    ),
    Use(
        module="transformers",
        name="AutoModelForCausalLM._model_mapping",
        breaks="transfer: a source model that is no causal LM is not refused with exit code 2",
    ),
    Use(
        module="transformers.models.auto.modeling_auto",
        name="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        breaks="transfer: a source checkpoint with another head, such as a classifier, is not refused",
    ),
    Use(
        module="transformers.models.auto.modeling_auto",
        name="MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        breaks="transfer: an encoder that is given as the source is not refused",
    ),
    Use(
        module="transformers",
        name="PreTrainedModel._no_split_modules",
        breaks="adapt --sharding fsdp2: the model is gathered as a whole instead of layer by layer",
    ),
    Use(
        module="transformers",
        name="PreTrainedConfig.attribute_map",
        breaks="transfer: the vocabulary size is written under the wrong key of config.json",
    ),
    Use(
        module="transformers",
        name="PreTrainedConfig.get_text_config",
        breaks="transfer: the text part of a model of several parts is not found; evaluate: the window's length is unknown",
        args=1,
    ),
    Use(
        module="transformers.models.auto.processing_auto",
        name="PROCESSOR_MAPPING_NAMES",
        breaks="transfer: tokens that only the code of a processor spells do not come along",
    ),
    # transformers: how the keys of a checkpoint are renamed when a class loads it. None of it is documented.
    Use(
        module="transformers.conversion_mapping",
        name="get_model_conversion_mapping",
        breaks=RENAMING,
        args=1,
    ),
    Use(module="transformers.core_model_loading", name="rename_source_key", breaks=RENAMING, args=5),
    Use(module="transformers.core_model_loading", name="WeightRenaming", breaks=RENAMING),
    Use(module="transformers.core_model_loading", name="WeightConverter", breaks=RENAMING),
    Use(module="transformers.core_model_loading", name="dot_natural_key", breaks=RENAMING, args=1),
    Use(module="transformers", name="PreTrainedModel.base_model_prefix", breaks=RENAMING),
    # transformers: tokenizers.
    Use(
        module="transformers",
        name="PreTrainedTokenizerFast._tokenizer",
        breaks="transfer --keep-source-vocabulary: the expanded vocabulary does not get into the written tokenizer",
    ),
    Use(
        module="transformers",
        name="PreTrainedTokenizerFast.backend_tokenizer",
        breaks="align and transfer: the vocabulary of a tokenizer object cannot be read",
    ),
    # transformers: progress bar of the GGUF reader, which heeds no setting.
    Use(
        module="transformers.modeling_gguf_pytorch_utils",
        name="tqdm",
        breaks="transfer --gguf-file: transformers draws a progress bar over saltlm's",
    ),
    # transformers: Trainer. Which methods exist, with which arguments, and that Trainer calls them.
    trainer(
        "_get_train_sampler",
        "adapt: blocks are shuffled again, so --resume trains on other blocks",
        1,
        called="self._get_train_sampler",
    ),
    trainer("create_optimizer", f"adapt: rates by group and AdamW's options are ignored; {ROW_MASK}", 0),
    trainer(
        "create_scheduler",
        "adapt: --schedule and --decay-share are ignored",
        0,
        "num_training_steps",
        "optimizer",
    ),
    trainer("compute_loss", LOSS, 2, "num_items_in_batch"),
    trainer("training_step", f"{ROW_MASK}; metrics.jsonl has no losses", 3),
    trainer("save_model", SHARDED, 1, "_internal_call"),
    trainer("_save_optimizer_and_scheduler", SHARDED, 1),
    trainer("_load_optimizer_and_scheduler", "adapt --sharding fsdp2 --resume", 1),
    trainer("_load_from_checkpoint", "adapt --resume: the weights of a checkpoint are not loaded", 2),
    trainer("_save_checkpoint", CHECKPOINTS, 2),
    trainer("_save", SHARDED, 1, "state_dict"),
    Use(
        module="transformers",
        name="Trainer",
        breaks="adapt: the learning rate schedule is not advanced",
        called="self._created_lr_scheduler",
    ),
    Use(module="transformers", name="Trainer", breaks=LOSS, called="self.model_accepts_loss_kwargs"),
    Use(module="transformers.trainer", name="OPTIMIZER_NAME", breaks="adapt --sharding fsdp2 --resume"),
    Use(module="transformers.trainer", name="SCHEDULER_NAME", breaks="adapt --sharding fsdp2 --resume"),
    Use(module="transformers.trainer", name="PREFIX_CHECKPOINT_DIR", breaks=CHECKPOINTS),
    Use(
        module="transformers",
        name="TrainingArguments",
        breaks="adapt: Trainer wraps the model in DataParallel where a process sees several GPUs",
        called="self._n_gpu",
    ),
    # accelerate: what it leaves on a model that it has prepared.
    Use(
        module="accelerate",
        name="Accelerator",
        breaks="adapt --phases: the second phase trains without mixed precision or gradient synchronization",
        called="_is_accelerate_prepared",
    ),
    Use(
        module="accelerate",
        name="Accelerator",
        breaks="adapt --phases --precision bf16: mixed precision is put around the model once more in each phase",
        called="_original_forward",
    ),
    Use(
        module="accelerate",
        name="Accelerator.prepare_model",
        breaks="adapt --sharding fsdp2: accelerate puts DDP around a sharded model",
        args=2,
        options=("device_placement", "evaluation_mode"),
        called="self.prepare_model(",
    ),
    Use(
        module="accelerate.optimizer",
        name="AcceleratedOptimizer",
        breaks="adapt: the schedule and checkpoints get accelerate's wrapper instead of the optimizer",
        called="self.optimizer = optimizer",
    ),
    # lm-evaluation-harness.
    Use(
        module="lm_eval.tasks._yaml_loader",
        name="load_yaml",
        breaks="evaluate --tasks FOLDER: task files with local data cannot be read",
        args=1,
        options=("resolve_func",),
    ),
    Use(
        module="lm_eval.tasks",
        name="TaskManager",
        breaks=TASKS,
        args=0,
        options=("include_path", "include_defaults"),
        called="task_index",
    ),
    Use(module="lm_eval.tasks", name="TaskManager.all_tasks", breaks=TASKS),
    Use(module="lm_eval.tasks", name="TaskManager.load", breaks=TASKS, args=2),
    Use(module="lm_eval.api.model", name="tqdm", breaks=HARNESS_BARS),
    Use(module="lm_eval.api.task", name="tqdm", breaks=HARNESS_BARS),
    Use(module="lm_eval.models.huggingface", name="tqdm", breaks=HARNESS_BARS),
    Use(
        module="lm_eval.models.huggingface",
        name="HFLM",
        breaks="evaluate --tasks",
        args=1,
        options=("backend", "tokenizer", "batch_size", "max_length", "prefix_token_id"),
        called="self.cache_hook.add_partial(",
    ),
    Use(
        module="lm_eval.models.huggingface", name="HFLM.set_cache_hook", breaks="evaluate --tasks: no progress", args=2
    ),
    Use(
        module="lm_eval.api.task",
        name="ConfigurableTask",
        breaks="evaluate --tasks: items whose answer is none of their choices are counted as wrong instead of refused",
        called="Label index",
    ),
]


def resolve(use: Use) -> Any:
    """The object; fails with what breaks where it is gone. A library that is not installed is skipped."""
    library = use.module.partition(".")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    try:
        member: Any = importlib.import_module(use.module)
        for part in use.name.split("."):
            member = getattr(member, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{use} is gone ({error}). What breaks: {use.breaks}.")
    return member


@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use}:{use.called}" if use.called else str(use))
def test_name(use: Use) -> None:
    member = resolve(use)
    if use.args is not None:
        signature = inspect.signature(member)
        try:
            signature.bind(*[GIVEN] * use.args, **dict.fromkeys(use.options, GIVEN))
        except TypeError as error:
            pytest.fail(f"{use}{signature} does not take saltlm's arguments ({error}). What breaks: {use.breaks}.")
    if use.called is not None:
        owner = resolve(dataclasses.replace(use, name=use.name.partition(".")[0]))
        if use.called not in inspect.getsource(owner):
            pytest.fail(f"{owner.__name__} has no more {use.called!r} in its source. What breaks: {use.breaks}.")


def test_torch_answers_for_operators() -> None:
    """The three functions of ``torch._C`` on operators of torch, and on one that does not exist."""
    schemas = list(map(str, torch._C._jit_get_schemas_for_operator("aten::relu")))
    assert any("Tensor self" in schema for schema in schemas), f"schemas are shown otherwise: {schemas}"
    assert torch._C._dispatch_find_schema_or_throw("aten::relu", "") is not None
    with pytest.raises(RuntimeError):
        torch._C._dispatch_find_schema_or_throw("saltlm_test::no_such_operator", "")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::relu", "CPU") is True
    assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::relu", "FPGA") is False


def test_auto_classes_know_configs_by_their_type() -> None:
    from transformers import AutoModel, AutoModelForCausalLM, BertConfig, CLIPVisionConfig, LlamaConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    assert LlamaConfig in AutoModelForCausalLM._model_mapping and BertConfig in AutoModel._model_mapping
    assert CLIPVisionConfig not in AutoModelForCausalLM._model_mapping
    assert CAUSAL["llama"] == "LlamaForCausalLM" and "bert" in MASKED and "llama" not in MASKED


def test_keys_are_renamed_as_on_loading() -> None:
    """The base model's prefix is added or taken away; a key that the class does not have stays as it is."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.core_model_loading import rename_source_key

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1))
    state = model.state_dict()
    renamed = [rename_source_key(key, [], [], model.base_model_prefix, state)[0] for key in ("wte.weight", "x.weight")]
    assert renamed == ["transformer.wte.weight", "x.weight"], RENAMING


def test_decoder_layers_are_named_by_the_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=8)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert set(model._no_split_modules) == {"LlamaDecoderLayer"}, "adapt --sharding fsdp2 finds no layers to shard"


def test_one_gpu_is_what_training_arguments_are_told(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    arguments._n_gpu = 7
    assert arguments.n_gpu == 7, "adapt cannot keep a process to one GPU"


def test_marks_of_a_prepared_model() -> None:
    """What must be taken off a model so that it is prepared anew for the next phase."""
    pytest.importorskip("accelerate")
    code = (  # in a process of its own, because accelerate keeps one precision for the whole process
        "import accelerate, torch\n"
        "model = torch.nn.Linear(2, 2)\n"
        "accelerate.Accelerator(cpu=True, mixed_precision='bf16').prepare(model)\n"
        "marks = {'_original_forward', '_is_accelerate_prepared'} & set(vars(model))\n"
        "assert len(marks) == 2, f'adapt --phases: a model is not prepared anew for its next phase, it has {marks}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _backend() -> Any:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def test_layout_of_a_tokenizer_file() -> None:
    """The parts of ``tokenizer.json`` that alignment reads and that an expanded vocabulary is written into."""
    content = json.loads(_backend().to_str())
    assert content["model"]["type"] == "BPE" and content["model"]["vocab"] == {"a": 0, "b": 1, "ab": 2}
    assert content["model"]["merges"] == [["a", "b"]]
    assert {"ignore_merges", "continuing_subword_prefix", "end_of_word_suffix", "dropout"} <= set(content["model"])
    assert [(token["content"], token["id"], token["special"]) for token in content["added_tokens"]] == [
        ("<s>", 3, True)
    ]
    assert "post_processor" in content


def test_a_fast_tokenizer_is_its_backend() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=_backend(), bos_token="<s>")
    fast._tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "ba": 3}, merges=[("a", "b"), ("b", "a")]))
    why = "transfer --keep-source-vocabulary: the expanded vocabulary does not get into the tokenizer"
    assert fast.backend_tokenizer is fast._tokenizer, why
    assert fast("ba", add_special_tokens=False)["input_ids"] == [3], why


def test_special_tokens_in_text_are_split() -> None:
    """``split_special_tokens`` sets ``encode_special_tokens`` of the backend, which evaluate puts back."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=_backend(), bos_token="<s>")
    assert fast.backend_tokenizer.encode_special_tokens is False
    assert 3 not in fast("<s>a", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    fast.backend_tokenizer.encode_special_tokens = False
    assert 3 in fast("<s>a", add_special_tokens=False)["input_ids"]


def test_files_of_a_checkpoint() -> None:
    from transformers import trainer as stock

    names = (stock.OPTIMIZER_NAME, stock.SCHEDULER_NAME, stock.PREFIX_CHECKPOINT_DIR)
    assert names == ("optimizer.pt", "scheduler.pt", "checkpoint"), CHECKPOINTS


def test_entries_of_the_task_index(tmp_path: Path) -> None:
    harness = pytest.importorskip("lm_eval.tasks")
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: json\ndoc_to_text: x\n", encoding="utf-8")
    entry = harness.TaskManager(include_path=[tmp_path], include_defaults=False).task_index["mine"]
    assert Path(entry.yaml_path).name == "mine.yaml" and entry.cfg["dataset_path"] == "json", TASKS


# The completeness of USES.

SOURCES = sorted(Path(saltlm.__file__).parent.rglob("*.py"))
DOCUMENTED = {"_exit"}  # os._exit: the underscore is part of a documented name


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def attributes_of_saltlm(trees: Mapping[Path, ast.Module]) -> set[str]:
    """Private attributes that classes of saltlm define: methods, fields, and what is assigned to ``self``."""
    names = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            names |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            names |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def foreign_names(trees: Mapping[Path, ast.Module]) -> Iterator[tuple[str, str]]:
    """(private name of another library, where saltlm uses it)."""
    defined = attributes_of_saltlm(trees)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in DOCUMENTED:
                if node.attr not in defined or ast.unparse(node.value) == "super()":
                    yield node.attr, f"{path.name}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith("saltlm"):
                for part in [*(node.module or "").split("."), *(alias.name for alias in node.names)]:
                    if private(part):
                        yield part, f"{path.name}:{node.lineno}"


def overridden_names(trees: Mapping[Path, ast.Module]) -> Iterator[tuple[str, str]]:
    """(method of Trainer that a subclass in saltlm overrides, where)."""
    from transformers import Trainer

    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and "Trainer" in map(ast.unparse, node.bases):
                for part in node.body:
                    if isinstance(part, ast.FunctionDef) and hasattr(Trainer, part.name) and part.name != "__init__":
                        yield part.name, f"{path.name}:{part.lineno}"


def test_every_private_name_is_listed() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    listed = {part for use in USES for part in f"{use}.{use.called or ''}".replace("(", "").split(".")}
    used = [*foreign_names(trees), *overridden_names(trees)]
    assert {"_tokenizer", "_model_mapping", "_save_checkpoint", "create_optimizer"} <= {name for name, _ in used}
    missing = [f"{name} ({where})" for name, where in used if name not in listed]
    assert not missing, f"private names of other libraries without an entry in USES: {', '.join(missing)}"
