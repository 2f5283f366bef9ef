"""Command line and YAML: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT

from provscale.command_line import key_types, parse, registries
from provscale.config import Config
from provscale.errors import UserError
from provscale.options import REQUIRED, options_of
from provscale.train import main

# The keys the README and the paper's experiments rely on.
PROMISED = """
run.name run.dir seed data.name data.root data.batch_size data.workers model.name model.pretrained
synthesis.name synthesis.probability guidance.alpha guidance.executor guidance.mask optim.name optim.lr
optim.weight_decay optim.momentum optim.schedule train.epochs train.max_steps train.precision tracking.wandb
checkpoint.every_steps checkpoint.keep checkpoint.resume
""".split()  # noqa: SIM905


def from_yaml(tmp_path: Path, text: str, *options: str) -> Config:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return parse(["--cfg", str(file), *options])


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(list(arguments))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_promised_key_exists() -> None:
    assert set(PROMISED) <= set(key_types())


def test_options_override_the_file_in_both_spellings(tmp_path: Path) -> None:
    text = "synthesis: {name: cutmix}\nguidance: {alpha: 0.5}\noptim: {lr: 1e-3}\n"
    assert from_yaml(tmp_path, text).guidance.alpha == 0.5
    assert from_yaml(tmp_path, text, "--guidance.alpha", "0.05").guidance.alpha == 0.05
    config = from_yaml(tmp_path, text, "--guidance.alpha=0.05", "--data.options.train=3")
    assert (config.guidance.alpha, config.optim.lr, config.data.options["train"]) == (0.05, 0.001, 3)
    found, defaults = asdict(parse([])), asdict(Config())
    options = found["data"].pop("options")
    assert defaults["data"].pop("options") == {}
    assert found == defaults
    assert options == asdict(parse(["--data.options={digit_scale: [0.5, 0.7]}"]))["data"]["options"]


def test_yaml_words_stay_words(tmp_path: Path) -> None:
    """YAML 1.1 would read an unquoted no as false and 1e-3 as text."""
    config = from_yaml(tmp_path, "train: {precision: no, self_check: false}\noptim: {weight_decay: 1e-3}\n")
    assert (config.train.precision, config.train.self_check, config.optim.weight_decay) == ("no", False, 1e-3)


def test_frozen_config_is_complete_and_parses_to_the_same(tmp_path: Path) -> None:
    odd = ["--synthesis.name=cutmix", "--guidance.alpha=1e-7", "--run.tags=[a, '1', no]", "--run.name=no"]
    config = parse([*odd, "--data.options={train: 3, ink: [1, 2]}", "--optim.clip_norm=0.5", "--train.max_steps=7"])
    text = config.to_yaml()
    flat = {key for section, value in yaml.safe_load(text).items()
            for key in ([f"{section}.{name}" for name in value] if isinstance(value, dict) else [section])}  # fmt: skip
    assert flat == set(key_types())
    assert asdict(from_yaml(tmp_path, text)) == asdict(config)
    assert yaml.safe_load(text)["data"]["options"].items() >= {"train": 3, "ink": [1, 2], "edits": 200}.items()


def test_help_has_a_text_for_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    options = re.sub(r"\s+", " ", capsys.readouterr().out).split(" options: ", 1)[1]
    for key in key_types():
        metavar = rf"\S+(?:, --{re.escape(key)}\+ \S+)?"
        found = re.search(rf"--{re.escape(key)} {metavar} ((?:(?!--).)*?)\(type: ", options)
        assert found is not None, key
        assert re.search("[a-z]{3}", found.group(1)), key


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--guidance.alph", "0.05"], ["unknown key 'guidance.alph'", "'guidance.alpha'"]),
        (["--guidance.alpa=0.05"], ["unknown key 'guidance.alpa'", "'guidance.alpha'"]),
        (["--alpha", "1"], ["unknown key 'alpha'", "'guidance.alpha'"]),
        (["--data", "{nam: digits}"], ["unknown key 'data.nam'", "'data.name'"]),
        (["--guidance.alpha", "abc"], ["guidance.alpha: is 'abc'", "a finite number"]),
        (["--guidance.alpha", "nan"], ["guidance.alpha: is 'nan'", "a finite number"]),
        (["--guidance.alpha"], ["guidance.alpha: has no value"]),
        (["--train.epochs", "1.5"], ["train.epochs: is '1.5'", "an integer"]),
        (["--optim.name", "adam"], ["optim.name: is 'adam'", "sgd, adamw", "did you mean 'adamw'?"]),
        (["--optim.clip_norm", "x"], ["optim.clip_norm: is 'x'", "or null"]),
        (["--run.tags", "a"], ["run.tags: is 'a'", "a list"]),
        (["configs/demo.yaml"], ["'configs/demo.yaml' belongs to no option", "--cfg"]),
        (["-x"], ["unknown key '-x'"]),
        (["--cfg"], ["--cfg: needs"]),
        (["--cfg", "/nowhere/x.yaml"], ["/nowhere/x.yaml: cannot be read (No such file"]),
        (["--cfg", "/"], ["/: cannot be read (Is a directory)"]),
        (["--optim.lr", "-1"], ["optim.lr: is -1.0, must be 0 or more"]),
        (["--data.batch_size", "0"], ["data.batch_size: is 0"]),
        (["--optim.momentum", "1"], ["optim.momentum: is 1.0"]),
        (["--optim.clip_norm", "0"], ["optim.clip_norm: is 0.0", "null for no clipping"]),
        (["--synthesis.probability", "1.5"], ["synthesis.probability: is 1.5"]),
        (["--train.precision", "fp16"], ["train.precision: fp16", "loss scale", "bf16"]),
        (["--guidance.alpha", "0.1"], ["guidance.alpha: is 0.1 while synthesis.name is none"]),
        (["--run.name", "a/b"], ["run.name: is 'a/b'"]),
        (["--cfg", "deemo"], ["--cfg deemo: no such file", "did you mean 'demo'?", "demo_localisation"]),
        (["--imports", "a.py"], ["imports: is 'a.py'", "a list of words"]),
        (["--data.name", "digit"], ["data.name: unknown name 'digit', did you mean 'digits'?"]),
        (["--data.options.trian", "3"], ["data.options.trian: unknown option of digits, did you mean 'train'?"]),
        (["--data.options.train", "many"], ["data.options.train: is 'many', must be an integer"]),
        (["--data.options.train", "null"], ["data.options.train: is null, must be an integer"]),
        (["--data.options.train", "0"], ["data.options.train: is 0, must be at least 1"]),
        (["--data.options.textures", "[wod]"], ["data.options.textures: is 'wod'", "did you mean 'wood'?"]),
        (["--data.options.digit_scale", "[1]"], ["data.options.digit_scale: is '[1]', must be a list of 2 numbers"]),
        (["--data.options.classes", "[a, b]"], ["data.options.classes: is '[a, b]', must be a list of integers"]),
        (["--model.name", "skp", "--model.options.missing", "maskd"],
         ["model.options.missing: is 'maskd', must be one of auto, packed, masked, did you mean 'masked'?"]),
        (["--synthesis.name", "cutmix", "--synthesis.options.bta", "1"],
         ["synthesis.options.bta: unknown option of cutmix, did you mean 'beta'? (one of: beta)"]),
        (["--synthesis.options.beta", "1"], ["synthesis.options.beta: none has no options"]),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(arguments: list[str], parts: list[str]) -> None:
    message = refusal(*arguments)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("guidance: {alhpa: 0.1}", ["unknown key 'guidance.alhpa'", "'guidance.alpha'"]),
        ("modle: {name: resnet18}", ["unknown key 'modle.name'", "'model.name'"]),
        ("guidance: 5", ["guidance is 5", "a mapping"]),
        ("guidance:\n", ["guidance is null", "a mapping"]),
        ("seed: null", ["seed is null", "an integer"]),
        ("optim: {lr: [1]}", ["optim.lr: is '[1]'"]),
        ("optim: {lr: true}", ["optim.lr: is 'True'"]),
        ("run: {name: 2024}", ["run.name: is '2024'", "quotes"]),
        ("optim: {lr: 1, lr: 2}", ["line 1", "key 'lr' is given twice"]),
        ("optim: {lr: 1", ["not valid YAML"]),
        ("[1, 2]", ["holds a list"]),
        ("", ["is empty"]),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    message = refusal("--cfg", str(file))
    assert all(part in message for part in parts), message


def test_binary_file_as_config(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "is no text file" in refusal("--cfg", str(tmp_path / "x.yaml"))


def test_a_config_that_comes_along_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_path = parse(["--cfg", str(ROOT / "configs" / "demo.yaml"), "--train.epochs=2"])
    monkeypatch.chdir(tmp_path)
    assert parse(["--cfg=demo", "--train.epochs=2"]) == by_path
    (tmp_path / "demo").write_text("run: {name: mine}\n")
    assert parse(["--cfg", "demo"]).run.name == "mine", "a file of one's own comes first"


def test_help_lists_the_options_of_a_chosen_part(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, options in (
        (["--synthesis.name=cutmix"], {"synthesis.options.beta": "(type: float, default: 1.0)"}),
        (["--cfg=ucf101_hrnet"], {"data.options.min_score": "confidence above which a keypoint counts",
                                  "data.options.test_list": "names of the test videos",
                                  "model.options.width": "D. (type: int, default: 256)",
                                  "synthesis.options.variant": "default: overlay)"}),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            parse([*arguments, "--help"])
        assert caught.value.code == 0
        text = re.sub(r"\s+", " ", capsys.readouterr().out)
        for key, part in options.items():
            described = text.split(f" --{key} ")[1]
            assert part in described.split(" --")[0], key
        assert "--synthesis.options OPTIONS" not in text


def test_every_registered_part_is_named_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Their options have types, descriptions and defaults."""
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for section, registry in registries().items():
        described = text.split(f" --{section}.name ")[1].split(" --")[0]
        for name in registry:
            if not registry[name].__module__.startswith("provscale."):
                continue  # another test's own
            assert re.search(rf"\b{name}\b", described), name
            for option, found in options_of(registry[name]).fields.items():
                assert re.search("[a-z]{3}|^[A-Z]\\.$", found.description), (name, option)
                assert found.default is not REQUIRED
                assert found.type is not Any


def test_help_and_mistakes_need_no_pytorch() -> None:
    """PyTorch takes seconds to import."""
    code = """
import sys
from provscale.train import main
try:
    main(["--help"])
except SystemExit:
    pass
assert main(["--cfg=demo", "--optim.lr=x"]) == 2 == main(["--guidance.alpha=1"])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_mistakes_are_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--guidance.alph=1"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "provscale: command line: unknown key 'guidance.alph', did you mean 'guidance.alpha'?\n"
