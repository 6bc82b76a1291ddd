"""What a file does not say is assumed and printed, with the option that overrides it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from mae.cli.main import main
from mae.errors import WeightsError
from mae.model.create import create
from mae.weights.formats.native import save
from mae.weights.load import load, load_encoder, open_classifier, open_encoder, open_model
from mae.weights.tools.convert import convert
from mae.weights.tools.diff import diff
from mae.weights.tools.inspect import inspect
from tests.jobs.conftest import write_classes
from tests.weights import published
from tests.weights.formats.test_native import CONFIG, same

GUESSED = "assumed, since it does not say: "


def bare(path: Path, **networks: Any) -> Path:
    torch.save(networks or published.full(), path)
    return path


def test_every_guess_stands_in_one_line_with_its_option(tmp_path: Path) -> None:
    _, notes = open_model(bare(tmp_path / "x.pth"))

    assert notes[0] == (
        f"{tmp_path / 'x.pth'}: {GUESSED}3 heads (--heads), 6 decoder heads (--decoder-heads), "
        "norm eps 1e-06 (--norm-eps), square images of 12 x 12 (--grid), a target of pixels "
        "normalised by their patch (--normalize-target), pixel mean 0.485 0.456 0.406 (--mean), "
        "pixel std 0.229 0.224 0.225 (--std), exact GELU (no other is possible)"
    )


def test_what_is_given_is_taken_and_no_longer_a_guess(tmp_path: Path) -> None:
    model, notes = open_model(
        bare(tmp_path / "x.pth"), heads=4, decoder_heads=2, norm_eps=1e-5, grid=(1, 9),
        mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), normalize_target=False,
    )  # fmt: skip

    config = model.config
    assert (config.num_heads, config.decoder_heads, config.norm_eps) == (4, 2, 1e-5)
    assert (config.image_size, model.objective.normalize_target) == ((4, 36), False)
    assert (config.pixels.mean, config.pixels.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert notes[0].endswith(GUESSED + "exact GELU (no other is possible)")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"heads": 4}, "heads: got .*4.*but .* says .*2"),
        ({"norm_eps": 1e-3}, "norm_eps: got .*0.001"),
        ({"mean": (0.5, 0.5)}, "mean: got"),
        ({"grid": (5, 3)}, r"grid: got .*\(5, 3\).*\(3, 5\)"),
        ({"take": "model_ema"}, "holds one network, not several; leave --take model_ema out"),
    ],
)
def test_what_a_file_says_is_not_overruled(given: dict[str, Any], why: str, tmp_path: Path) -> None:
    save(create(CONFIG), tmp_path / "ours")

    with pytest.raises(WeightsError, match=why):
        load(tmp_path / "ours", **given)


def test_what_has_no_effect_is_refused(tmp_path: Path) -> None:
    path = bare(tmp_path / "x.pth")

    with pytest.raises(WeightsError, match="normalize_target: no effect, no decoder is taken"):
        load_encoder(path, normalize_target=True)
    with pytest.raises(WeightsError, match="pool: no effect, no head is taken"):
        convert(path, tmp_path / "out", to="mae", pool="cls")
    with pytest.raises(WeightsError, match="grid: got 2 x 4, its 9 patches do not make that"):
        load(path, grid=(2, 4))


def test_arguments_of_a_published_run_say_what_they_say(tmp_path: Path) -> None:
    state = published.full()
    plain = {"model": state, "args": {"norm_pix_loss": False, "mask_ratio": 0.5}}
    shapes = published.encoder_shapes(768, 1, patch=16, patches=4)
    named = {"model": published.filled(shapes), "args": Namespace(model="mae_vit_base_patch16")}

    model, _ = open_model(bare(tmp_path / "plain.pth", **plain))
    _, notes = open_encoder(bare(tmp_path / "named.pth", **named))

    assert (model.objective.normalize_target, model.objective.mask_ratio) == (False, 0.5)
    assert "heads" not in notes[0] and "eps" not in notes[0] and "GELU" not in notes[0]
    assert inspect(tmp_path / "named.pth").told["num_heads"] == "by the run's arguments"


@pytest.mark.parametrize(("key", "ema"), [("model", "model_ema"), ("state_dict", "state_dict_ema")])
def test_of_a_model_and_its_average_the_model_is_taken_and_it_is_said(
    key: str, ema: str, tmp_path: Path
) -> None:
    path = bare(tmp_path / "x.pth", **{key: published.full(), ema: other(), "epoch": 3})

    model, notes = open_model(path)
    average, of_average = open_model(path, take="model_ema")

    assert notes[0] == f"{path}: took {key} of the file, left {ema} (--take model_ema)"
    assert of_average[0] == f"{path}: took {ema} of the file, left {key} (--take model)"
    assert torch.equal(model.encoder.cls_token, published.full()["cls_token"])
    assert torch.equal(average.encoder.cls_token, other()["cls_token"])
    assert inspect(path).notes == (notes[0],)


def other() -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in published.full().items()}


def test_of_student_and_teacher_one_has_to_be_chosen(tmp_path: Path) -> None:
    path = bare(tmp_path / "x.pth", student=published.full(), teacher=other(), epoch=3)

    with pytest.raises(WeightsError, match="student and teacher.*--take student or --take teacher"):
        load(path)
    with pytest.raises(WeightsError, match="expected one of them to be model_ema"):
        load(path, take="model_ema")

    assert torch.equal(load(path, take="teacher").encoder.cls_token, other()["cls_token"])


def test_a_part_that_was_compiled_or_sharded_is_read_anywhere_in_a_name(tmp_path: Path) -> None:
    state = published.full()
    names = {n: n.replace("blocks.0.", "blocks.0._orig_mod.", 1) for n in state}
    names |= {n: n.replace("blocks.1.", "blocks.1._fsdp_wrapped_module.") for n in state
              if ".1." in n}  # fmt: skip
    wrapped = {f"module.{names[name]}": tensor for name, tensor in state.items()}

    model = load(bare(tmp_path / "x.pth", model=wrapped))

    assert same(model, load(bare(tmp_path / "y.pth", model=state)))
    twice = wrapped | {"module.blocks.0.norm1.bias": torch.zeros(192)}
    with pytest.raises(WeightsError, match="one tensor under several names: .*blocks.0"):
        load(bare(tmp_path / "z.pth", model=twice))


def test_what_lies_beside_the_network_is_left_and_named(tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in published.full().items()}
    state |= {"criterion.weight": torch.zeros(3), "queue": torch.zeros(4)}

    _, notes = open_model(bare(tmp_path / "x.pth", state_dict=state))

    left = "left 2 tensors beside model.* (criterion.weight; queue): no part of the network"
    assert notes[0] == f"{tmp_path / 'x.pth'}: {left}"


def test_a_guessed_head_can_be_told(tmp_path: Path) -> None:
    state = {n: t for n, t in published.encoder_only().items() if not n.startswith("norm.")}
    state |= published.filled({"fc_norm.weight": (192,), "fc_norm.bias": (192,),
                               "head.weight": (5, 192), "head.bias": (5,)})  # fmt: skip
    path = bare(tmp_path / "x.pth", model=state)

    (mean, _), guessed = open_classifier(path)
    (cls, _), told = open_classifier(path, pool="cls")

    assert (mean.pool, cls.pool) == ("mean", "cls")
    assert guessed[0].endswith("a head on the mean of the patches (--pool)")
    assert "--pool" not in told[0]
    assert inspect(path).told["pool"] == "assumed by its norm (--pool)"


def test_names_of_a_file_without_an_ending_are_written_for_the_published_code(
    tmp_path: Path,
) -> None:
    save(create(CONFIG), tmp_path / "ours")

    for name in ("OUT", ".hidden", "ü"):
        convert(tmp_path / "ours", tmp_path / name, to="facebook")

        assert same(load(tmp_path / name), load(tmp_path / "ours"))


def test_a_difference_says_what_was_assumed_of_either(tmp_path: Path) -> None:
    path = bare(tmp_path / "x.pth")
    convert(path, tmp_path / "ours", to="mae")

    found = diff(path, tmp_path / "ours", take=None)

    assert found.same and len(found.assumed) == 1 and GUESSED in found.assumed[0]
    assert not diff(path, tmp_path / "ours", heads=4).same


USES = {
    "embed": "embed {w} --data {d} --out {t}/f.npy",
    "probe": "probe knn {w} --data {d} --k 2",
    "the paper's probe": "probe linear {w} --data {d} --protocol paper --epochs 1 --batch 4",
    "partial": "probe partial {w} --data {d} --blocks 1 --epochs 1 --out {t}/p",
    "reconstruct": "reconstruct {w} {d} --out {t}/r.png",
    "finetune": "finetune --weights {w} --data {d} --steps 1 --out {t}/tuned",
    "pretrain": "pretrain continue --init {w} --data {d} --steps 1 --out {t}/run",
    "convert": "weights convert {w} {t}/ours --to mae",
    "export": "weights export {w} {t}/x.pt2 --to torch-export",
    "diff": "weights diff {w} {w}",
    "evaluate": "evaluate {c} --data {d}",
}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=use, marks=[pytest.mark.slow] if use == "export" else [])
        for use, words in USES.items()
    ],
)
def test_every_use_prints_its_guesses_once(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classes(tmp_path / "d", "ant", "bee", count=5)
    weights = bare(tmp_path / "w.pth")
    head = published.filled({"head.weight": (2, 192), "head.bias": (2,)})
    tuned = bare(tmp_path / "c.pth", **(published.encoder_only() | head))
    if words.startswith("evaluate"):
        for number, name in enumerate(("ant", "bee")):
            (data / name).rename(data / str(number))

    code = main(words.format(w=weights, c=tuned, d=data, t=tmp_path).split())

    out, err = capsys.readouterr()
    said = [line for line in (out + err).splitlines() if GUESSED in line]
    assert code == 0, err
    assert len(said) == 1 and "3 heads (--heads)" in said[0]


def test_an_unusual_width_asks_for_heads_and_every_use_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classes(tmp_path / "d", "ant", "bee", count=5)
    weights = bare(tmp_path / "w.pth", model=published.full(width=24, decoder=16))
    words = f"embed {weights} --data {data} --out {tmp_path / 'f.npy'}".split()

    assert main(words) == 2
    assert "give heads (--heads)" in capsys.readouterr().err
    assert main([*words, "--heads", "4", "--mean", "0.1", "0.2", "0.3"]) == 0
    assert "pixel std 0.229" in capsys.readouterr().err
    assert main([*words, "--decoder-heads", "4"]) == 2
    assert main(f"pretrain --data {data} --heads 4 --out {tmp_path / 'r'}".split()) == 2
    assert "heads: has no effect on a new network" in capsys.readouterr().err
