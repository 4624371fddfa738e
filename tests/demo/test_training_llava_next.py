"""Training a model of the library: prompts, features and logits are the library's own, and steps lower the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ray_job.demo.questions import Example, make_example
from ray_job.demo.training.batches import IGNORED, Batch, Collator, TrainBatches
from ray_job.demo.training.choosing import architecture_of
from ray_job.demo.training.heads import token_targets
from ray_job.demo.training.llava_next import LlavaNext
from ray_job.demo.training.llava_next.network import LlavaNextNetwork
from ray_job.demo.training.llava_next.preparation import LlavaNextPreparation, messages
from ray_job.demo.training.recipe import Recipe
from ray_job.demo.training.targets import NAMES
from ray_job.demo.training.train import train
from ray_job.demo.training.trainer import Progress, Trainer
from ray_job.errors import ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava_next")
    LlavaNext().write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def preparation(folder: Path) -> LlavaNextPreparation:
    return LlavaNext().preparation(folder)


@pytest.fixture(scope="module")
def network(folder: Path) -> LlavaNextNetwork:
    network = LlavaNext().network(folder, seed=0)
    network.module.eval()
    return network


@pytest.fixture(scope="module")
def example() -> Example:
    """Two pictures of unlike grids: a wide and a tall one, and several questions."""
    examples = (make_example(seed, theme="pictures") for seed in range(1000))
    return next(
        example
        for example in examples
        if len(example.questions) > 2
        and example.scenes[0].width > 2 * example.scenes[0].height
        and example.scenes[1].height > example.scenes[1].width
    )


@pytest.fixture(scope="module")
def packed(preparation: LlavaNextPreparation, example: Example) -> Batch:
    return _unspoilt(Collator(preparation)([example]), preparation, example)


def _unspoilt(batch: Batch, preparation: LlavaNextPreparation, example: Example) -> Batch:
    """With the crops of the pictures as drawn, none of them from a lossy file."""
    seen = map(preparation.look, example.scenes, example.pictures)
    batch.crops_N3CC = torch.cat([each.crops_N3CC for each in seen])
    return batch


def test_a_packed_question_has_the_logits_of_the_librarys_whole_model(
    network: LlavaNextNetwork, preparation: LlavaNextPreparation, example: Example, packed: Batch
) -> None:
    with torch.inference_mode():
        features_TD = network.features(network.patches(packed.crops_N3CC), packed.sizes)
        embeds_BLD = network.embed(packed.ids_BL.clamp_min(0))
        embeds_BLD[packed.ids_BL < 0] = features_TD
        hidden_BLD = network.hidden_states(embeds_BLD, packed.positions_BL, packed.attention_mask())
        logits_LV = network.logits(hidden_BLD[0])
        for number, qa in enumerate(example.questions, 1):
            answer = preparation.answer_ids(qa.answer)[:-1]
            asked = preparation.processor.apply_chat_template(
                messages(qa.question, example.pictures),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            ids_1L = torch.cat([asked["input_ids"], torch.tensor([answer], dtype=torch.int64)], dim=1)
            alone_LV = network.module(
                input_ids=ids_1L, pixel_values=asked["pixel_values"], image_sizes=asked["image_sizes"]
            ).logits[0]
            own_LV = logits_LV[packed.segments_BL[0] == number]
            assert len(own_LV) > len(answer)
            torch.testing.assert_close(own_LV, alone_LV[-len(own_LV) :], atol=2e-4, rtol=1e-4)


def test_token_targets_say_what_and_where(network: LlavaNextNetwork, example: Example, packed: Batch) -> None:
    numbers_T = -1 - packed.ids_BL[packed.ids_BL < 0]
    what_TX, where_T4 = token_targets(network.token_labels(packed.targets_NP4, packed.sizes), numbers_T)
    assert len(what_TX) == len(where_T4) == len(numbers_T)
    for number, scene in enumerate(example.scenes):
        what_X, where = what_TX[numbers_T == number], where_T4[numbers_T == number]
        assert (where[:64, 2] == 1).all()
        assert where[:64, 0].view(8, 8).tolist() == [list(range(8))] * 8
        assert where[:64, 1].view(8, 8).T.tolist() == [list(range(8))] * 8
        grid = where[64:]
        is_newline = grid[:, 0] == IGNORED
        assert (grid[~is_newline, 2] == 0).all()
        assert (grid[~is_newline, 3] == number).all()
        line = int(is_newline.nonzero()[0]) + 1
        assert is_newline.view(-1, line).sum(0).tolist() == [0] * (line - 1) + [len(grid) // line]
        assert (line - 1 > len(grid) // line) == (scene.width > scene.height)
        for view_X in (what_X[:64], what_X[64:]):  # every item is in the overview and in the crops
            shown = {NAMES[name - 1] for name in view_X[:, 0].tolist() if name > 0}
            assert shown == {item.name for item in scene.items}


def test_a_few_steps_lower_the_loss(folder: Path, preparation: LlavaNextPreparation) -> None:
    recipe = Recipe(steps=50, vision_steps=0, num_examples=4, warmup_steps=2)
    trainer = Trainer(LlavaNext().network(folder, seed=0), recipe)
    [batch] = TrainBatches(Collator(preparation), 0, 0, 1, recipe.num_examples)
    losses = []
    for _ in range(3):
        trainer.step(batch)
        losses.append(trainer.progress.losses["answers"])
        trainer.progress = Progress()
    assert losses[2] < losses[1] < losses[0]


def test_what_is_saved_is_what_was_trained(
    folder: Path, network: LlavaNextNetwork, example: Example, tmp_path: Path
) -> None:
    LlavaNext().write_folder(tmp_path)
    rounded = LlavaNext().network(folder, seed=0)
    rounded.module.bfloat16().float()
    LlavaNext().save(network.module, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert LlavaNext().answer(tmp_path)([example]) == LlavaNext().answer(tmp_path, rounded.module)([example])


@pytest.mark.slow
def test_the_whole_training_leaves_a_model_and_its_card(tmp_path: Path) -> None:
    train(tmp_path, Recipe(steps=2, vision_steps=0, num_examples=2), 1, 2, LlavaNext.name)
    card = (tmp_path / "README.md").read_text()
    assert "train --architecture llava_next --out DIR --seed 0 --processes 1\n" in card
    assert "from the weights of `builtin:demo` to the saved ones" in card
    assert isinstance(architecture_of(tmp_path), LlavaNext)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_the_folder_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mllama"}')
    with pytest.raises(ModelError, match="model_type is 'mllama'; training knows phi3_v, llava_next"):
        architecture_of(tmp_path)
