"""Invalid input, on the command line and in Python: one line with a remedy, exit code 2, no traceback."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
from transformers import TrainerCallback

import gvpo
from gvpo.cli.main import main
from gvpo.errors import ConfigError, DataError, GvpoError, ModelError, RewardError
from gvpo.training.warm_start import train_recipe
from tests.bad_input import furnish
from tests.fakes import byte_tokenizer, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::gvpo.errors.GvpoWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("place")
    furnish(directory)
    return directory


@pytest.fixture(autouse=True)
def _inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the directory without a network, and restore the import path."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("recipe", ["base.toml", "saved.toml", "offline.toml"])
def test_valid_recipes_train(recipe: str, tmp_path: Path):
    """Check the recipes into which the table below introduces faults."""
    assert main(["train", recipe, f"run.dir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run/summary.json").is_file()


RECIPES = {
    "nothing.toml": "there is no recipe 'nothing.toml'; give a file, or a name that `gvpo list recipes` prints",
    "bare.toml": "there is no model: set model.path to a directory or Hub model ID, or model.init to create one",
    "torn.toml": "torn.toml is not valid TOML: Expected ']'",
    "binary.toml": "binary.toml is not valid TOML: 'utf-8' codec can't decode",
    "typo.toml": "typo.toml: unknown setting 'checkpoint.evry'; did you mean 'checkpoint.every'?",
    "section.toml": "section.toml: unknown setting 'sampler'; did you mean 'sampling'?",
    "flat.toml": "flat.toml: unknown setting 'steps'; did you mean 'train.steps' or 'warm_start.steps'?",
    "list.toml": "list.toml: 'train' is a section; write [train] with its keys below",
    "orphan.toml": "cannot read recipe nowhere.toml, which orphan.toml extends: No such file or directory; correct",
    "loop.toml": "recipe loop.toml extends itself, through pool.toml; remove one `extends`",
    "self.toml": "recipe self.toml extends itself",
    "extends-number.toml": "extends-number.toml: extends=3 is not a recipe; name one file",
    "extends-list.toml": "extends-list.toml: extends=['base.toml'] is not a recipe; name one file",
    "extends-bad.toml": "typo.toml: unknown setting 'checkpoint.evry'",
}
SETTINGS = {  # of base.toml: a randomly initialized model, ten rows, one reward
    "sampler.group_size=3": "unknown setting 'sampler.group_size'; did you mean 'sampling.group_size'?",
    "train.stpes=3": "unknown setting 'train.stpes'; did you mean 'train.steps'?",
    "steps=3": "unknown setting 'steps'; did you mean 'train.steps' or 'warm_start.steps'?",
    "=3": "'=3' is not a setting; write section.key=value",
    "train.steps": "'train.steps' is not a setting; write section.key=value",
    "train.steps=": "train.steps='': Input should be a valid integer",
    "train.steps=0": "train.steps=0: Input should be greater than or equal to 1",
    "train.steps=1.5": "train.steps=1.5: Input should be a valid integer",
    "train.learning_rate=fast": "train.learning_rate='fast': Input should be a valid number",
    "train.learning_rate=inf": "train.learning_rate=inf: set a finite number",
    "train.schedule=cosin": "train.schedule='cosin': Input should be 'constant', 'linear' or 'cosine'",
    "eval.greedy=maybe": "eval.greedy='maybe': Input should be a valid boolean",
    "rewards.funcs=digits": "there is no reward 'digits'; choose one of addition_slip",
    "rewards.funcs=[1]": 'rewards.funcs.0=1: write text, "..."',
    "model.init=qwen2": "model.init='qwen2': write a table, { key = value }",
    "objective.reference=last": "objective.reference='last': set auto, previous, sampler, initial, or every:N",
    "sampling.temperature=0": "sampling.temperature=0: Input should be greater than 0",
    "sampling.top_p=1.5": "sampling.top_p=1.5: Input should be less than or equal to 1",
    "sampling.group_size=1": "rloo compares a prompt's completions: set sampling.group_size to 2 or more (it is 1)",
    "sampling.max_tokens=16": "leaves no room for a prompt in the model's context of 16 tokens; lower it",
    "sampling.stop_token_ids=[99]": "sampling.stop_token_ids contains 99, but the model's tokens are 0 to 12",
    "objective.name=ppo": "objective.name='ppo' does not exist; choose one of cispo, constrained_grpo, dapo",
    "objective.beta=0.1": "objective.beta is not a keyword of rloo; it accepts",
    "objective.name=sft": "row 1: there is no `completion` text; supervised rows need",
    "objective.name=sft objective.kl_in_reward=0.1": "objective.kl_in_reward changes rewards, but sft has none",
    "objective.name=dpo": "dpo learns from preferences, not from live samples: set data.groups to rows with `prompt`",
    "objective.name=poft": "row 1: there is no `completion` text; supervised rows need",
    "data.weak_negatives=2": "data.weak_negatives is for epa; rloo has none",
    "data.chosen_by=softmax": "data.chosen_by is for dpo and epa; rloo compares all answers",
    "data.keep_share=0.5": "data.keep_share is for poft and sft; filter the data of rloo yourself",
    "data.eval_groups=nowhere.jsonl": "there is no file nowhere.jsonl; check the path",
    "train.groups_per_update=5": "train.groups_per_update=5 is larger than train.prompts_per_step=2",
    "rewards.weights=[1.0,2.0]": "rewards.weights has 2 values for 1 rewards.funcs",
    "rewards.weights=[0.0]": "the weight of every reward is 0; give at least one of them another",
    "rewards.accuracy_reward=digit": "rewards.accuracy_reward='digit' is not one of the rewards: digits",
    "warm_start.steps=3": "warm_start needs data.task: its demonstrations come from there",
    "model.path=good": "set model.path or model.init, not both",
    "model.vocabulary=['a','a']": "model.vocabulary needs tokens that are neither empty nor repeated",
    "model.init={}": "init names no architecture; add one",
    "model.init={architecture='lama'}": "'lama' is not a causal language model of transformers; did you mean 'llama'?",
    "model.init={architecture='llama',hiden_size=3}": "init.hiden_size is not a key of the llama config; did you mean",
    "model.init={architecture='llama',hidden_size=30,num_attention_heads=4}": "init is not a valid llama config",
    "data.chat=chat": "problem 'row-1': the prompt needs a chat template and the tokenizer has none; set",
    "data.system_prompt=hello": "a system prompt and template arguments need a chat template; remove them",
    "run.dir=a-file": "choose another run.dir",
    "run.dir=a-file/run": "cannot make run directory a-file/run: Not a directory; choose another run.dir",
    "run.dir=taken": "taken already contains a run; choose another run.dir, or use --resume",
    "--resume": "--resume needs run.dir=DIRECTORY",
    "--resume run.dir=nothing": "there is no run in nothing; start one without --resume",
}
DATA = {
    "missing.jsonl": "there is no file missing.jsonl; check the path",
    "rows.txt": "rows.txt is not a readable data file; give a file that ends in one of .jsonl",
    "folder.jsonl": "folder.jsonl is a directory, but not of a run; give a run directory, or a data file",
    "nobody/nothing": "'nobody/nothing' is neither a file nor a dataset that can be loaded",
    "question.jsonl": "row 1 has no `prompt`; rename 'question' to `prompt`",
    "no-columns.jsonl": "row 1 has no `prompt`; it has no columns at all",
    "empty.jsonl": "there are no problems to train on; the dataset is empty",
    "empty-prompt.jsonl": "row 2 has an empty prompt; remove the row or write one",
    "no-messages.jsonl": "row 1 has an empty prompt; remove the row or give it a message",
    "long.jsonl": "1 of 2 prompts leave no room for a completion; the first is 'row-2' with 40: shorten or drop them",
    "full.jsonl": "the model's context is 16 tokens and 1 of 1 prompts leave no room for a completion",
    "number.jsonl": "the prompt of row 1 is an int; give text or a list of messages",
    "null.jsonl": "the prompt of row 1 is None; give text or a list of messages",
    "strings.jsonl": "the prompt of row 1: message 1 has no `role` and `content`; write messages as",
    "no-role.jsonl": "the prompt of row 1: message 1 has no `role` and `content`",
    "twice.jsonl": "rows 1 and 2 have the same id 'a'; make ids unique, or drop the column",
    "chat.jsonl": "problem 'row-1': the prompt needs a chat template and the tokenizer has none",
    "mixed.jsonl": "mixed.jsonl line 2 is a list; write one object per line",
    "torn.jsonl": "torn.jsonl line 2 is not valid JSON",
    "latin.jsonl": "latin.jsonl line 1 is not text in UTF-8",
    "object.json": "object.json is not a list of objects; write [{...}, ...]",
    "lines.json": "lines.json is not valid JSON: Extra data: line 2 column 1 (char 16); if it has one object",
    "torn.parquet": "torn.parquet is not a readable parquet file",
    "torn.csv": "torn.csv row 1 does not have as many cells as the header; quote cells that contain commas",
}
REWARDS = {
    "boxed_anser": "there is no reward 'boxed_anser'; did you mean 'boxed_answer'?",
    "": "there is no reward ''; choose one of addition_slip",
    "missing.py:digits": "missing.py; correct the path",
    "judge.py": "reward 'judge.py' is a file; name its function too, judge.py:FUNCTION",
    "judge.py:digit": "judge.py has no function 'digit'; did you mean 'digits'?",
    "judge.py:number": "judge.py has no function 'number'",
    ":digits": "reward ':digits' is not a name; write module:function or file.py:function",
    "no_such_module:judge": "no_such_module cannot be imported: ModuleNotFoundError",
    "broken.py:judge": "broken.py cannot be imported: SyntaxError",
    "raises.py:judge": "raises.py cannot be imported: RuntimeError: first line second line",
    "exits.py:judge": "exits.py cannot be imported: SystemExit: 3",
    "imports.py:judge": "imports.py cannot be imported: ModuleNotFoundError: No module named 'no_such_package'",
    "judge.py:locked": "reward 'locked' cannot be sent to a worker process (TypeError: cannot pickle '_thread.lock'",
    "judge.py:needs_gold": "reward 'needs_gold' needs a column 'gold' that the data does not have (columns: none)",
    "judge.py:digits', 'judge.py:digits": "two rewards are called 'digits'; give them different names",
}
MODELS = {
    "nobody/nothing": "no directory 'nobody/nothing', and no tokenizer of that name was found on the Hub or",
    "./nowhere": "there is no directory './nowhere' to load a model from; check the path",
    "/nowhere/at/all": "there is no directory '/nowhere/at/all' to load a model from; check the path",
    "a-file": "a-file is a file; give the directory that save_pretrained wrote, or a Hub model ID",
    "empty": "empty has no config.json, so it is not a model; give the directory that save_pretrained wrote",
    "no-tokenizer": "no-tokenizer has no tokenizer; save one there with tokenizer.save_pretrained",
    "torn-tokenizer": "cannot load the tokenizer in torn-tokenizer",
    "no-config": "no-config has no config.json, so it is not a model; give the directory that save_pretrained wrote",
    "torn-config": "torn-config/config.json is not a JSON object; copy or download the model again",
    "list-config": "list-config/config.json is not a JSON object",
    "no-type": "cannot load the model in no-type: Unrecognized model in no-type",
    "wrong-type": "model type `lama` but Transformers does not recognize this architecture",
    "no-weights": "cannot load the model in no-weights: Error no file named model.safetensors",
    "torn-weights": "the weights in torn-weights are corrupt or truncated",
    "cut-weights": "the weights in cut-weights are corrupt or truncated",
    "other-shape": "the weights in other-shape have other shapes than its config.json says",
    "small-vocabulary": "the tokenizer has token ids up to 258 but the model's embedding has only 100 rows; use the",
    "encoder": "the model in encoder is an encoder: its tokens attend to later ones; give a causal model",
    "encoder-decoder": "the model in encoder-decoder is not a causal language model; give a decoder",
    "classifier": "classifier lacks 1 weights of a causal language model (lm_head.weight, ...)",
    "refusing": "problem 'row-1': the chat template rejects the prompt: only users may speak",
    "good model.tokenizer=a-file": "a-file is a file; give the directory",
    "good model.attention=flash": "the model in good does not load with attention='flash'; use sdpa or eager",
    "good model.compute_dtype=float16": "Input should be 'auto', 'float32' or 'bfloat16'",
}
OFFLINE = {  # of offline.toml, which trains on two logged groups
    "objective.reference=previous": "is the policy that samples, but offline training does not sample; set it",
    "objective.name=sft": "sft learns from answers, not from groups",
    "objective.name=rloo": "row 1 has no `sampler_logprobs`, but rloo compares the policy with the one that sampled",
    "data.train=rows.jsonl": "set data.groups or data.train, not both",
    "data.sample_groups=3": "set data.groups or data.sample_groups, not both",
    "data.groups=missing.jsonl": "there is no file missing.jsonl",
    "data.groups=empty.jsonl": "there are no groups to train on; the dataset is empty",
    "data.groups=rows.jsonl": "row 1: there is no list `completions`; a logged group has",
    "data.groups=uneven.jsonl": "row 1: `rewards` has 1 values for 2 completions; give a list with one for each",
    "data.groups=alone.jsonl": "no group can be trained on",
}
PREFERENCES = {  # of offline.toml with objective.name=dpo
    "data.groups=label.jsonl": "row 1: it has one answer and a `label`, and comparing needs two answers",
    "data.groups=half.jsonl": "row 1: `chosen` is '2'; give both answers as text, or both as messages",
    "data.groups=swapped.jsonl": "row 1: `score_chosen` 1 is below `score_rejected` 2; swap the answers",
    "data.groups=alike.jsonl": "no row can be trained on: none has two different answers of different scores",
    "data.groups=pairs.jsonl objective.name=epa data.weak_negatives=5": "'row-1' has only 0 answers to other",
    "data.groups=pairs.jsonl data.eval_groups=alike.jsonl": "none has two different answers of different scores",
}
BEFORE_THE_WARM_START = {  # of warm.toml, whose warm start would take hours
    "rewards.funcs=['boxed_anser']": "there is no reward 'boxed_anser'",
    "rewards.funcs=['judge.py:needs_gold']": "reward 'needs_gold' needs a column 'gold'",
    "rewards.accuracy_reward=digit": "rewards.accuracy_reward='digit' is not one of the rewards",
    "objective.beta=0.1": "objective.beta is not a keyword of rloo",
    "data.task=adition": "data.task='adition' does not exist; choose one of addition, arithmetic, calculator",
    "data.task_options={digit=3}": "the task 'addition' has no option 'digit'; did you mean 'digits'?",
    "data.task_options={digits=9}": "prompts leave no room for a completion",
    "warm_start.options={forget=3}": "the task 'addition' has no option 'forget'; did you mean 'forget_carry'?",
    "data.eval=rows.jsonl": "the task 'addition' makes its own problems; set data.task or data.eval, not both",
}
HELD_OUT = {
    "empty.jsonl": "the held-out dataset is empty; add rows, or set data.eval_problems=0",
    "long.jsonl": "1 of 2 prompts leave no room for a completion",
    "missing.jsonl": "there is no file missing.jsonl",
}
CASES = [
    *(([recipe], message) for recipe, message in RECIPES.items()),
    *((["base.toml", *words.split(" ")], message) for words, message in SETTINGS.items()),
    *((["base.toml", f"data.train={name}"], message) for name, message in DATA.items()),
    *((["base.toml", f"data.eval={name}"], message) for name, message in HELD_OUT.items()),
    *((["base.toml", f"rewards.funcs=['{name}']"], message) for name, message in REWARDS.items()),
    *((["saved.toml", *f"model.path={words}".split(" ")], message) for words, message in MODELS.items()),
    *((["offline.toml", words], message) for words, message in OFFLINE.items()),
    *((["offline.toml", "objective.name=dpo", *w.split(" ")], message) for w, message in PREFERENCES.items()),
    *((["warm.toml", words], message) for words, message in BEFORE_THE_WARM_START.items()),
]


def test_the_table_is_long():
    assert len(CASES) >= 60


@pytest.mark.parametrize(
    ("words", "message"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_error_is_one_line_with_a_remedy(
    words: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("gvpo: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (place / "runs").exists()  # the error was raised before any file was written


def test_debug_shows_the_traceback():
    with pytest.raises(ModelError, match="corrupt or truncated") as caught:
        main(["train", "saved.toml", "model.path=torn-weights", "--debug"])
    assert type(caught.value.__cause__).__name__ == "SafetensorError"


ROWS = [{"prompt": "1"}]


def train(**changes: Any) -> Any:
    """Train with valid arguments except for the changes."""

    def lengths(completions: Any, **_: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    given: dict[str, Any] = {
        "model": tiny_model("llama"),
        "reward_funcs": lengths,
        "args": gvpo.TrainConfig(run_dir="runs/python", max_tokens=3, objective="rloo", reward_workers=1),
        "train_dataset": ROWS,
        "processing_class": byte_tokenizer(),
    }
    return gvpo.Trainer(**{**given, **changes}).train()


IN_PYTHON: dict[str, tuple[Callable[[], Any], type[GvpoError], str]] = {
    "a misspelled setting": (
        lambda: gvpo.TrainConfig(grup_size=3),  # type: ignore[call-arg]
        ConfigError,
        "unknown setting 'grup_size'; did you mean 'group_size'",
    ),
    "a wrong type": (lambda: gvpo.TrainConfig(steps="many"), ConfigError, "train.steps='many'"),  # type: ignore[arg-type]
    "a dict for settings": (lambda: train(args={"beta": 0.1}), ConfigError, r"args is a dict; pass TrainConfig\("),
    "an option of TRL": (lambda: gvpo.TrainConfig(max_steps=9), ConfigError, "use 'steps': a step is one rollout"),  # type: ignore[call-arg]
    "an argument of TRL": (
        lambda: train(optimizers=("adam", None)),
        ConfigError,
        "gvpo.Trainer has no argument 'optimizers': the optimizer is AdamW; set learning_rate",
    ),
    "an argument of train": (
        lambda: gvpo.Trainer.train(None, resume_from_checkpoint=True),  # type: ignore[arg-type]
        ConfigError,
        "gvpo.Trainer.train has no argument 'resume_from_checkpoint': resume=True resumes from the latest checkpoint",
    ),
    "an argument of TRL's rewards": (
        lambda: train(reward_funcs=lambda completions, trainer_state: []),
        RewardError,
        "needs 'trainer_state', which gvpo does not pass; give the argument a default",
    ),
    "rows with other names": (
        lambda: train(train_dataset=[{"conversations": []}]),
        DataError,
        "row 1 has no `prompt`; write its 'conversations' as `messages`, each with `role` and `content`",
    ),
    "a single callback": (
        lambda: train(callbacks=TrainerCallback()),
        ConfigError,
        "callbacks is a TrainerCallback; pass a list of instances of transformers.TrainerCallback",
    ),
    "no rows": (
        lambda: train(train_dataset=[], args=gvpo.TrainConfig(epochs=2, max_tokens=3, objective="rloo")),
        DataError,
        "there are no problems to train on; the dataset is empty",
    ),
    "a reward model of another trainer": (
        lambda: train(reward_model=tiny_model("llama")),
        ConfigError,
        "gvpo.Trainer has no argument 'reward_model': pass it in reward_funcs",
    ),
    "a checkpoint to resume from": (
        lambda: gvpo.Trainer.train(None, "runs/checkpoint-2"),  # type: ignore[arg-type]
        ConfigError,
        "resume is a str; resume=True resumes from the latest checkpoint in run_dir",
    ),
    "other data to evaluate": (
        lambda: gvpo.Trainer.evaluate(None, ROWS),  # type: ignore[arg-type]
        ConfigError,
        "gvpo.Trainer.evaluate takes no data: pass eval_dataset to gvpo.Trainer",
    ),
    "a misspelled argument": (
        lambda: train(reward_func=1),
        ConfigError,
        "gvpo.Trainer has no argument 'reward_func'; did you mean 'reward_funcs'",
    ),
    "a number for a model": (lambda: train(model=3), ModelError, "the model is an int; pass a directory"),
    "a bare module": (lambda: train(model=torch.nn.Linear(2, 2)), ModelError, "the model is a Linear; pass"),
    "a name for a tokenizer": (lambda: train(processing_class="good"), ModelError, "processing_class is a str; pass"),
    "a model without a tokenizer": (lambda: train(processing_class=None), ConfigError, "pass processing_class"),
    "splits": (
        lambda: train(train_dataset={"train": ROWS, "test": ROWS}),
        DataError,
        "the dataset is a dict of train, test; pass one of them",
    ),
    "held-out splits": (
        lambda: train(eval_dataset=datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS))),
        DataError,
        "the dataset is a DatasetDict of test; pass one of them",
    ),
    "a number for data": (lambda: train(train_dataset=3), DataError, "the dataset is an int; pass rows"),
    "rows of text": (lambda: train(train_dataset=["1"]), DataError, "row 1 is a str; rows are objects with a `prompt`"),
    "settings for rewards": (
        lambda: train(reward_funcs=gvpo.TrainConfig()),
        RewardError,
        "reward_funcs is a TrainConfig; pass it as args=",
    ),
    "a reference for rewards": (
        lambda: train(reward_funcs=tiny_model("llama")),
        RewardError,
        "reward_funcs contains a language model, LlamaForCausalLM; pass a sequence classifier",
    ),
    "a number for rewards": (lambda: train(reward_funcs=3), RewardError, "reward_funcs is an int; pass functions"),
    "a number among rewards": (lambda: train(reward_funcs=[3]), RewardError, "reward 'int' is an int; give a function"),
    "no rewards": (lambda: train(reward_funcs=[]), ConfigError, "there is no reward: set rewards.funcs"),
    "a peft config": (lambda: gvpo.Trainer("good", peft_config=object()), ModelError, "only LoRA is supported"),
    "no such device": (lambda: gvpo.load_model("good", device="xpu"), ModelError, "cannot put the model on xpu"),
    "no model": (lambda: gvpo.load_model(), ModelError, "give either the path of a model or init"),
    "a recipe without a model": (
        lambda: train_recipe(gvpo.TrainConfig(objective="rloo", task="addition")),
        ConfigError,
        "there is no model",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), IN_PYTHON.values(), ids=IN_PYTHON)
def test_error_in_python_is_an_error_of_gvpo(
    call: Callable[[], Any], error: type[GvpoError], message: str, place: Path
):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not (place / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu():
    with pytest.raises(ModelError, match="cannot put the model on cuda"):
        gvpo.load_model("good", device="cuda")
