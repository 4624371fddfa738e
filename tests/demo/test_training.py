"""Training: labels where things are, packed questions equal to single ones, a loss that falls, exact resumption."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ray_job.demo.pictures import Item, Scene
from ray_job.demo.questions import Example, make_example
from ray_job.demo.training.batches import Batch, Collator, TrainBatches
from ray_job.demo.training.heads import token_targets
from ray_job.demo.training.optimiser import orthogonal
from ray_job.demo.training.parallel import ALONE, Processes, run_in_processes
from ray_job.demo.training.phi3_vision import Phi3VisionNetwork, Phi3VisionPreparation, model_config, new_model
from ray_job.demo.training.recipe import Recipe
from ray_job.demo.training.targets import IGNORED, NAMES, patch_targets
from ray_job.demo.training.tokenizer import save_tokenizer
from ray_job.demo.training.train import train
from ray_job.demo.training.trainer import Progress, Trainer
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.image_processing import hd_size
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor

RECIPE = Recipe(steps=50, vision_steps=0, num_examples=4, warmup_steps=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> tuple[Phi3VisionConfig, Path]:
    folder = tmp_path_factory.mktemp("processor")
    config = model_config(save_tokenizer(folder))
    tower = dataclasses.replace(config.vision, num_hidden_layers=2)
    config = dataclasses.replace(config, num_hidden_layers=2, vision=tower)
    config.save_pretrained(folder)
    return config, folder


@pytest.fixture(scope="module")
def collator(config: tuple[Phi3VisionConfig, Path]) -> Collator:
    return Collator(_preparation(config[1]))


def _preparation(folder: Path) -> Phi3VisionPreparation:
    return Phi3VisionPreparation(Phi3VisionProcessor.from_pretrained(folder), 8)


def _trainer(config: Phi3VisionConfig, recipe: Recipe, processes: Processes = ALONE) -> Trainer:
    return Trainer(Phi3VisionNetwork(new_model(config, recipe.seed)), recipe, processes)


def _steps(collator: Collator, first: int, last: int) -> list[Batch]:
    return list(TrainBatches(collator, 0, first, last, RECIPE.num_examples))


def test_patch_labels_follow_the_resize_and_the_padding() -> None:
    # 100×62 becomes 128×79 in a 128×128 canvas, 24 rows of padding above. The circle's centre is at (32, 63).
    circle = Item("circle", "red", (255, 0, 0), x=25.0, y=30.9, half_width=6.0, half_height=6.0)
    scene = Scene(100, 62, ((255, 255, 255), (255, 255, 255)), (circle,), "shapes")
    size = hd_size(100, 62, 4, 64)
    labels_NP4 = patch_targets(scene, size, 8)
    assert labels_NP4.shape == (5, 64, 4)
    # Patches of the global view are twice as large. The centre is on the edge of two, in the crop in the last row.
    centres = [np.flatnonzero(view_P4[:, 2]).tolist() for view_P4 in labels_NP4]
    assert centres == [[3 * 8 + 1, 3 * 8 + 2], [7 * 8 + 3, 7 * 8 + 4], [], [], []]
    below_P4 = labels_NP4[3]  # the rest of the circle is in the crop below
    assert NAMES[below_P4[:, 0].max() - 1] == "circle"
    assert set(np.flatnonzero(below_P4[:, 0])) <= set(range(8))


def test_a_packed_question_has_the_logits_of_the_question_alone(
    config: tuple[Phi3VisionConfig, Path], collator: Collator
) -> None:
    model = new_model(config[0], RECIPE.seed).eval()
    example = next(e for e in map(make_example, range(1000)) if len(e.scenes) == 2 and len(e.questions) > 2)
    packed = collator([example])
    with torch.inference_mode():
        features = model.encode_crops(packed.crops_N3CC, packed.sizes)
        embeds_LD = model.embed_row(_numbered(packed, [len(f) for f in features]), features)
        logits_LV = model(
            embeds_LD[None],
            position_ids_BL=packed.positions_BL,
            is_long_B=torch.zeros(1, dtype=torch.bool),
            mask_BHLL=packed.attention_mask(),
        )[0]
        for number, qa in enumerate(example.questions, 1):
            tokens = [len(f) for f in features]
            preparation = collator.preparation
            ids = preparation.prompt(qa.question, tokens) + preparation.answer_ids(qa.answer)[:-1]
            alone_LV = model(
                model.embed_row(torch.tensor(ids), features)[None],
                position_ids_BL=torch.arange(len(ids))[None],
                is_long_B=torch.zeros(1, dtype=torch.bool),
            )[0]
            own_LV = logits_LV[packed.segments_BL[0] == number]
            torch.testing.assert_close(own_LV, alone_LV[-len(own_LV) :], atol=2e-5, rtol=1e-5)


def _numbered(batch: Batch, tokens: Sequence[int]) -> torch.Tensor:
    """The row's ids; every placeholder already says which picture it belongs to."""
    ids_L = batch.ids_BL[0]
    assert [int((ids_L == -number).sum()) for number in (1, 2)] == list(tokens)
    return ids_L


def test_labels_are_the_answers(config: tuple[Phi3VisionConfig, Path], collator: Collator) -> None:
    example = make_example(3)
    batch = collator([example])
    labels = [int(label) for label in batch.labels_BL[0] if label != IGNORED]
    texts = Phi3VisionProcessor.from_pretrained(config[1]).decode(labels, skip_special_tokens=False).split("<|end|>")
    assert [text.strip() for text in texts if text] == [qa.answer for qa in example.questions]


def test_padding_sees_itself_only(collator: Collator) -> None:
    batch = collator([make_example(0, theme="shapes"), make_example(1, theme="text")])
    mask_BLL = batch.attention_mask()[:, 0]
    padding_BL = batch.segments_BL < 0
    assert padding_BL.any()
    assert (mask_BLL.sum(-1)[padding_BL] == 1).all()
    assert mask_BLL.diagonal(dim1=1, dim2=2).all()


def test_a_few_steps_lower_the_loss(config: tuple[Phi3VisionConfig, Path], collator: Collator) -> None:
    trainer = _trainer(config[0], RECIPE)
    [batch] = _steps(collator, 0, 1)
    losses = []
    for _ in range(3):
        trainer.step(batch)
        losses.append(trainer.progress.losses["answers"])
        trainer.progress = Progress()
    assert losses[2] < losses[1] < losses[0]


def test_a_resumed_training_equals_an_unbroken_one(
    config: tuple[Phi3VisionConfig, Path], collator: Collator, tmp_path: Path
) -> None:
    unbroken, broken, resumed = (_trainer(config[0], RECIPE) for _ in range(3))
    for batch in _steps(collator, 0, 3):
        unbroken.step(batch)
    for batch in _steps(collator, 0, 2):
        broken.step(batch)
    torch.save(broken.state(), tmp_path / "state.pt")
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for batch in _steps(collator, resumed.steps_done, 3):
        resumed.step(batch)
    for name, weight in unbroken.average.state_dict().items():
        assert torch.equal(weight, resumed.average.state_dict()[name]), name


def test_two_processes_make_the_steps_of_one(config: tuple[Phi3VisionConfig, Path], tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=4, vision_steps=1, num_examples=5)  # of 5 examples, one gets 3
    for count in (1, 2):
        run_in_processes(count, _save_average, *config, recipe, tmp_path / f"{count}.pt")
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    start = _trainer(config[0], recipe).average.state_dict()
    for name, weight in one.items():
        if name.endswith("k_proj.bias"):
            continue  # a bias of all keys changes no softmax: its gradient is rounding, which Adam makes a whole step
        moved = float((weight - start[name]).abs().max())
        torch.testing.assert_close(two[name], weight, atol=1e-6 + 0.01 * moved, rtol=0, msg=name)
    assert not torch.equal(one["lm_head.weight"], start["lm_head.weight"])


def _save_average(processes: Processes, config: Phi3VisionConfig, folder: Path, recipe: Recipe, out: Path) -> None:
    trainer = _trainer(config, recipe, processes)
    collator = Collator(_preparation(folder))
    for batch in TrainBatches(collator, 0, 0, recipe.steps, recipe.num_examples, recipe.vision_steps, processes):
        trainer.step(batch)
    if processes.rank == 0:
        torch.save(trainer.average.state_dict(), out)


def test_token_targets_say_what_and_where(config: tuple[Phi3VisionConfig, Path], collator: Collator) -> None:
    network = Phi3VisionNetwork(new_model(config[0], RECIPE.seed))
    example = next(e for e in map(make_example, range(1000)) if len(e.scenes) == 2 and e.scenes[1].height > 1.5 * 64)
    batch = collator([example, make_example(0, theme="sheet")])
    numbers_T = -1 - batch.ids_BL[batch.ids_BL < 0]
    num_asked = sum(map(network.num_crops, batch.sizes))  # the sheet's crops come last
    assert num_asked < len(batch.targets_NP4)
    labels_TX = network.token_labels(batch.targets_NP4[:num_asked], batch.sizes)
    what_TX, where_T4 = token_targets(labels_TX, numbers_T)
    assert len(what_TX) == len(where_T4) == len(numbers_T)
    first = 0
    for number, (rows, cols) in enumerate(batch.sizes):
        local = where_T4[first : first + 4 * rows * (4 * cols + 1)].view(4 * rows, 4 * cols + 1, 4)
        assert local[0, :-1, 0].tolist() == [8 * column // (4 * cols) for column in range(4 * cols)]
        assert local[:, 0, 1].tolist() == [8 * row // (4 * rows) for row in range(4 * rows)]
        assert (local[:, -1] == IGNORED).all()  # the newlines
        assert (local[:, :-1, 2] == 0).all()
        assert (local[:, :-1, 3] == number).all()
        first += local.shape[0] * local.shape[1] + 1
        overview = where_T4[first : first + 20].view(4, 5, 4)
        assert (overview[:, :-1, 2] == 1).all()
        # Each item's centre is in one token of the overview, under its own name.
        names_TP = what_TX[first : first + 20].view(20, 4, 4)
        shown = {NAMES[name - 1] for name in names_TP[..., 0].flatten().tolist() if name > 0}
        assert shown == {item.name for item in example.scenes[number].items}
        first += 20
    assert first == len(where_T4)


def _ignore_interrupts() -> None:
    """As a shell does for what it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_training_continues(tmp_path: Path) -> None:
    recipe = Recipe(steps=104, vision_steps=102, num_examples=2)
    code = f"from tests.demo.test_training import *; train(Path({str(tmp_path / 'killed')!r}), {recipe!r}, 2, 4)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(["nohup", *command], preexec_fn=_ignore_interrupts) as training:
        while not (tmp_path / "killed" / "checkpoint.pt").exists():
            assert training.poll() is None
            time.sleep(0.01)
        workers = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text().split()
        training.kill()
    assert len(workers) >= 2
    while any(Path("/proc", worker).exists() for worker in workers):
        time.sleep(0.1)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    subprocess.run(command, check=True)
    assert "What followed step 100" in (tmp_path / "killed" / "README.md").read_text()
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()
    train(tmp_path / "unbroken", recipe, 1, 4)
    killed, unbroken = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "unbroken"))
    for name, weight in unbroken.items():
        torch.testing.assert_close(killed[name], weight, atol=2e-3, rtol=2e-2, msg=name)  # of bfloat16


def test_a_checkpoint_of_another_recipe_is_refused(config: tuple[Phi3VisionConfig, Path]) -> None:
    state = _trainer(config[0], RECIPE).state()
    with pytest.raises(ValueError, match="another recipe"):
        _trainer(config[0], Recipe(seed=1)).restore(state)


def test_orthogonal_brings_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((32, 96), (96, 32)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=generator)))
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3


def test_text_only_examples_make_a_batch(collator: Collator) -> None:
    example: Example = make_example(5, theme="sum")
    batch = collator([example])
    assert len(batch.crops_N3CC) == 0
    assert batch.num_answer_tokens > 0
